//! All files below a folder.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Error, Result, attempt};
use super::operation::Operation;
use super::paths::list;
use super::remote;
use super::url::Url;

/// What is below a folder, as paths that start with the folder.
#[derive(Debug, Default)]
pub struct Walked {
    /// Regular files, in byte order of the path.
    pub files: Vec<PathBuf>,
    /// FIFOs, sockets and devices, in the same order.
    pub special: Vec<PathBuf>,
}

/// Asked now and then whether to go on.
pub type KeepOn<'a> = &'a dyn Fn() -> bool;

/// Returns every file below a folder, as paths that start with `dir`.
///
/// Symbolic links to files and folders are followed; names that begin with a dot are left out. A
/// folder that is reached again through a link inside itself is an error, not an endless walk. `keep_on` is asked at
/// every folder; once it says no, the walk ends with what it has found so far.
pub fn walk(dir: &Path, keep_on: KeepOn<'_>) -> Result<Walked> {
    walk_with(dir, Walk::default(), keep_on)
}

/// Options of a walk: what it takes besides regular files without a dot in front.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Walk {
    /// Names that begin with a dot.
    pub(super) hidden: bool,
    /// Links to nothing; elsewhere they are errors.
    pub(super) dangling: bool,
}

/// A step of a walk that is to be taken: into a folder, or back out of it.
enum Step {
    Enter(PathBuf),
    Leave(Identity),
}

pub(super) fn walk_with(dir: &Path, what: Walk, keep_on: KeepOn<'_>) -> Result<Walked> {
    let mut found = Walked::default();
    match Url::of(dir) {
        None => walk_local(dir, what, keep_on, &mut found)?,
        Some(url) => {
            let keys = attempt(Operation::List, dir, || remote::walk(&url))?;
            let hidden = |key: &String| {
                let below = key.get(url.key.len()..).unwrap_or_default();
                below.split('/').any(|name| name.starts_with('.'))
            };
            let paths = keys.into_iter().filter(|key| !hidden(key));
            found.files.extend(
                paths.map(|key| PathBuf::from(format!("{}://{}/{key}", url.scheme, url.bucket))),
            );
        }
    }
    for paths in [&mut found.files, &mut found.special] {
        paths.sort_by(|a, b| {
            a.as_os_str()
                .as_encoded_bytes()
                .cmp(b.as_os_str().as_encoded_bytes())
        });
    }
    Ok(found)
}

/// Walks without recursion, and knows folders by their numbers, not by their paths: neither the stack nor the time
/// for a folder grows with its depth.
fn walk_local(dir: &Path, what: Walk, keep_on: KeepOn<'_>, found: &mut Walked) -> Result<()> {
    let mut above: HashSet<Identity> = HashSet::new();
    let mut steps = vec![Step::Enter(dir.to_owned())];
    while let Some(step) = steps.pop() {
        let dir = match step {
            Step::Enter(dir) => dir,
            Step::Leave(identity) => {
                above.remove(&identity);
                continue;
            }
        };
        if !keep_on() {
            return Ok(());
        }
        let identity = identity(&dir)?;
        if !above.insert(identity.clone()) {
            return Err(Error {
                operation: Operation::Walk,
                path: dir,
                source: io::Error::other("the folder contains a link to itself"),
            });
        }
        steps.push(Step::Leave(identity));
        let first = steps.len();
        for name in list(&dir)? {
            if !what.hidden && name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = dir.join(&name);
            let meta = match attempt(Operation::LookAt, &path, || std::fs::metadata(&path)) {
                Err(error) if what.dangling && error.is_missing() => {
                    found.files.push(path);
                    continue;
                }
                outcome => outcome?,
            };
            if meta.is_dir() {
                steps.push(Step::Enter(path));
            } else if meta.is_file() {
                found.files.push(path);
            } else {
                found.special.push(path);
            }
        }
        // The first folder is the next to be walked.
        if let Some(entered) = steps.get_mut(first..) {
            entered.reverse();
        }
    }
    Ok(())
}

/// What a folder is known by: its device and inode.
#[cfg(unix)]
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity(u64, u64);

#[cfg(unix)]
fn identity(dir: &Path) -> Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    let meta = attempt(Operation::LookAt, dir, || std::fs::metadata(dir))?;
    Ok(Identity(meta.dev(), meta.ino()))
}

/// What a folder is known by.
#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(not(unix))]
fn identity(dir: &Path) -> Result<Identity> {
    super::paths::canonicalize(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_when_it_is_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/b/x.txt", "a/y.txt", "z.txt"] {
            let path = dir.path().join(name);
            super::super::create_dir_all(path.parent().unwrap()).unwrap();
            super::super::write_atomic(&path, b"text").unwrap();
        }
        let asked = std::cell::Cell::new(0);
        let count = |most: usize| {
            asked.set(0);
            let keep_on = || {
                asked.set(asked.get() + 1);
                asked.get() <= most
            };
            walk(dir.path(), &keep_on).unwrap().files.len()
        };
        assert_eq!([count(0), count(1), count(2), count(3)], [0, 1, 2, 3]);
    }

    #[test]
    fn one_folder_may_be_reached_twice_if_not_from_inside() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        super::super::create_dir_all(&real).unwrap();
        super::super::write_atomic(&real.join("x.txt"), b"text").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&real, dir.path().join("again")).unwrap();
        let files = walk(dir.path(), &|| true).unwrap().files;
        assert_eq!(files.len(), if cfg!(unix) { 2 } else { 1 });
    }
}
