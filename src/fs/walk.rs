//! All files below a folder.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Error, Result, attempt};
use super::operation::Operation;
use super::paths::{canonicalize, list};
use super::remote;
use super::url::Url;

/// Returns every regular file below a folder, as paths that start with `dir`, in byte order of the path.
///
/// Symbolic links to files and folders are followed; names that begin with a dot are left out. A
/// folder that is reached again through a link inside itself is an error, not an endless walk.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    walk_with(dir, Walk::default())
}

/// Options of a walk: what it takes besides regular files without a dot in front.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Walk {
    /// Names that begin with a dot.
    pub(super) hidden: bool,
    /// Links to nothing; elsewhere they are errors.
    pub(super) dangling: bool,
}

pub(super) fn walk_with(dir: &Path, what: Walk) -> Result<Vec<PathBuf>> {
    fn visit(
        dir: &Path,
        what: Walk,
        above: &mut Vec<PathBuf>,
        found: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let real = canonicalize(dir)?;
        if above.contains(&real) {
            return Err(Error {
                operation: Operation::Walk,
                path: dir.to_owned(),
                source: io::Error::other("the folder contains a link to itself"),
            });
        }
        above.push(real);
        for name in list(dir)? {
            if !what.hidden && name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = dir.join(&name);
            let meta = match attempt(Operation::LookAt, &path, || std::fs::metadata(&path)) {
                Err(error) if what.dangling && error.is_missing() => {
                    found.push(path);
                    continue;
                }
                outcome => outcome?,
            };
            if meta.is_dir() {
                visit(&path, what, above, found)?;
            } else if meta.is_file() {
                found.push(path);
            }
        }
        above.pop();
        Ok(())
    }
    let mut found = Vec::new();
    match Url::of(dir) {
        None => visit(dir, what, &mut Vec::new(), &mut found)?,
        Some(url) => {
            let keys = attempt(Operation::List, dir, || remote::walk(&url))?;
            let hidden = |key: &String| {
                let below = key.get(url.key.len()..).unwrap_or_default();
                below.split('/').any(|name| name.starts_with('.'))
            };
            let paths = keys.into_iter().filter(|key| !hidden(key));
            found.extend(
                paths.map(|key| PathBuf::from(format!("{}://{}/{key}", url.scheme, url.bucket))),
            );
        }
    }
    found.sort_by(|a, b| {
        a.as_os_str()
            .as_encoded_bytes()
            .cmp(b.as_os_str().as_encoded_bytes())
    });
    Ok(found)
}
