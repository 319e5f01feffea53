//! The only module that touches the file system: atomic writes, hashing, mapping, and errors that
//! always name the path.
//!
//! A file is published by writing a hidden sibling, `fsync`, `rename`, and `fsync` of the folder.
//! A reader therefore sees a whole file or none, also after a power cut.
//!
//! A path may also be the URL of an object, `s3://bucket/key`, `gs://` or `az://`, where the feature
//! `object-store` is on. URLs travel as paths, since `join`, `parent` and `strip_prefix` do to them what
//! they do to paths, and the rest of the crate then needs to know of one kind of place only. An object is
//! published by a put that fails if the object is there.
#![expect(
    clippy::disallowed_methods,
    reason = "the one module that wraps std::fs"
)]

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

mod atomic;
mod digest;
#[cfg(test)]
pub(crate) mod fault;
mod file;
mod log;
mod pattern;
#[cfg(feature = "object-store")]
mod remote;
#[cfg(not(feature = "object-store"))]
#[path = "no_remote.rs"]
mod remote;
mod stamp;
mod url;

pub use atomic::{AtomicFile, write_atomic, write_new};
pub use digest::{Digest, Hasher, HashingFile, HashingWriter, hash_file, hash_mapped};
pub use file::{Failure, File, MappedFile, Spool, open};
pub use log::Log;
pub use pattern::{GlobError, glob, matches};
pub use stamp::{Stamp, stamp};
use url::Url;

/// Where the tests make calls fail; elsewhere none does.
#[cfg(not(test))]
mod fault {
    use std::io::Result;
    use std::path::Path;

    pub(super) fn check(_: &'static str, _: &Path) -> Result<()> {
        Ok(())
    }

    pub(super) fn writable(_: &Path, len: usize) -> Result<usize> {
        Ok(len)
    }
}

/// Suffix of a file that is being written and is not yet published.
pub const TEMP_SUFFIX: &str = ".remit-tmp";

/// An I/O failure, with what was attempted on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
#[non_exhaustive]
pub struct Error {
    /// What was attempted, as a verb phrase: "open", "write".
    pub action: &'static str,
    /// The path as given.
    pub path: PathBuf,
    /// The operating system's answer.
    pub source: io::Error,
}

impl Error {
    /// Whether the cause is that the path does not exist.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether something was to be read, rather than written.
    pub fn is_of_reading(&self) -> bool {
        !matches!(
            self.action,
            "create a temporary file beside"
                | "create the folder"
                | "create"
                | "write"
                | "sync"
                | "sync the folder"
                | "set the permissions of"
                | "publish"
                | "remove"
                | file::SPOOL
        )
    }

    /// Whether the cause is that it can't be done there at all.
    pub fn is_unsupported(&self) -> bool {
        self.source.kind() == io::ErrorKind::Unsupported
    }

    /// Whether the cause is a full disk or an exhausted quota.
    pub fn is_out_of_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Whether an error is the operating system's or an object store's, rather than one about content.
pub fn is_of_system(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || remote::is_error_of_store(error)
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

trait Context<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

/// Does something with a path; an error says what.
fn attempt<T>(
    action: &'static str,
    path: &Path,
    call: impl FnOnce() -> io::Result<T>,
) -> Result<T> {
    fault::check(action, path)
        .and_then(|()| call())
        .during(action, path)
}

/// The error of what can't be done with an object.
fn unsupported(action: &'static str, path: &Path) -> Error {
    Error {
        action,
        path: path.to_owned(),
        source: io::Error::new(
            io::ErrorKind::Unsupported,
            "this command writes to folders only, not to object stores",
        ),
    }
}

/// Size of a file in bytes.
pub fn size_bytes(path: &Path) -> Result<u64> {
    attempt("read the size of", path, || match Url::of(path) {
        None => std::fs::metadata(path).map(|meta| meta.len()),
        Some(url) => remote::size_bytes(&url),
    })
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).during("read", path)?;
    Ok(bytes)
}

/// Reads a list of paths, one a line; `-` is stdin. Blank lines are left out.
pub fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin()).during("read the list from", Path::new("stdin"))?
    } else {
        io::read_to_string(open(path)?).during("read", path)?
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Whether anything exists at the path; an error other than "not found" is reported.
pub fn exists(path: &Path) -> Result<bool> {
    attempt("look at", path, || {
        let Some(url) = Url::of(path) else {
            return path.try_exists();
        };
        match remote::size_bytes(&url) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(!remote::list(&url)?.is_empty())
            }
            Err(error) => Err(error),
        }
    })
}

/// Whether the path is a folder, or a prefix of objects; `false` when nothing is there.
pub fn is_dir(path: &Path) -> Result<bool> {
    attempt("look at", path, || match Url::of(path) {
        Some(url) => Ok(!remote::list(&url)?.is_empty()),
        None => match std::fs::metadata(path) {
            Ok(meta) => Ok(meta.is_dir()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        },
    })
}

/// The absolute path without links, `.` and `..`.
pub fn canonicalize(path: &Path) -> Result<PathBuf> {
    if Url::of(path).is_some() {
        return Ok(path.to_owned());
    }
    attempt("resolve", path, || path.canonicalize())
}

/// Refuses a path where something else than a folder is, which [`create_dir_all`] would do later.
pub fn expect_no_file(path: &Path) -> Result<()> {
    if Url::of(path).is_some() || is_dir(path)? || !exists(path)? {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "a file is there",
    ))
    .during("create the folder", path)
}

/// Whether the path is a URL that names no bucket; whatever is joined to it would be taken for one.
pub fn lacks_bucket(path: &Path) -> bool {
    Url::of(path).is_some_and(|url| url.bucket.is_empty())
}

/// Creates a folder and its parents. Object stores need none.
pub fn create_dir_all(path: &Path) -> Result<()> {
    if Url::of(path).is_some() {
        return Ok(());
    }
    attempt("create the folder", path, || std::fs::create_dir_all(path))
}

/// Removes a file.
pub fn remove_file(path: &Path) -> Result<()> {
    attempt("remove", path, || match Url::of(path) {
        None => std::fs::remove_file(path),
        Some(url) => remote::delete(&url),
    })
}

/// Names in a folder, in byte order.
pub fn list(dir: &Path) -> Result<Vec<OsString>> {
    let mut names: Vec<OsString> = attempt("list", dir, || match Url::of(dir) {
        None => std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name()))
            .collect(),
        Some(url) => Ok(remote::list(&url)?.into_iter().map(Into::into).collect()),
    })?;
    names.sort();
    Ok(names)
}

/// Every regular file below a folder, as paths that start with `dir`, in byte order of the path.
///
/// Symbolic links to files and folders are followed; names that begin with a dot are left out. A
/// folder that is reached again through a link inside itself is an error, not an endless walk.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    walk_with(dir, Walk::default())
}

/// What a walk takes besides regular files without a dot in front.
#[derive(Debug, Clone, Copy, Default)]
struct Walk {
    /// Names that begin with a dot.
    hidden: bool,
    /// Links to nothing; elsewhere they are errors.
    dangling: bool,
}

fn walk_with(dir: &Path, what: Walk) -> Result<Vec<PathBuf>> {
    fn visit(
        dir: &Path,
        what: Walk,
        above: &mut Vec<PathBuf>,
        found: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let real = canonicalize(dir)?;
        if above.contains(&real) {
            return Err(Error {
                action: "walk",
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
            let meta = match attempt("look at", &path, || std::fs::metadata(&path)) {
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
            let keys = attempt("list", dir, || remote::walk(&url))?;
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

/// Names the path in an error of a writer that wraps a file of this module.
pub fn write_error(path: &Path, source: io::Error) -> Error {
    Error {
        action: "write",
        path: path.to_owned(),
        source,
    }
}

/// The error of a writer that wraps an [`AtomicFile`] for `path`: the operating system's where it was
/// that, however the writer put it.
pub fn write_failure(path: &Path, failure: &Failure, error: anyhow::Error) -> anyhow::Error {
    match failure.take() {
        Some(source) => write_error(path, source).into(),
        None => error.context(format!("cannot write {}", path.display())),
    }
}

/// Removes temporary files of targets whose names begin with `prefix`, left by interrupted runs, and
/// says how many.
///
/// Only to be called when all those targets are published: whoever still writes one of them finds it
/// there (see [`AtomicFile::publish_new`]).
pub fn remove_stale_temps(dir: &Path, prefix: &str) -> Result<usize> {
    if Url::of(dir).is_some() {
        return Ok(0);
    }
    let mut removed = 0;
    let beginning = format!(".{prefix}");
    for name in list(dir)? {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(beginning.as_bytes()) && bytes.ends_with(TEMP_SUFFIX.as_bytes()) {
            match remove_file(&dir.join(&name)) {
                Err(error) if error.is_missing() => {}
                outcome => {
                    outcome?;
                    removed += 1;
                }
            }
        }
    }
    Ok(removed)
}

/// The absolute path without links, of something that need not exist: its folders that do exist are
/// resolved.
pub fn canonicalize_missing(path: &Path) -> Result<PathBuf> {
    if Url::of(path).is_some() {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).during("resolve", path)?;
    for ancestor in absolute.ancestors() {
        if exists(ancestor)? {
            let rest = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return Ok(canonicalize(ancestor)?.join(rest));
        }
    }
    Ok(absolute)
}

/// The folder that holds a path; the current folder for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    // Windows can't open a folder as a file, and needs no such call.
    if cfg!(unix) {
        attempt("sync the folder", dir, || {
            std::fs::File::open(dir)?.sync_all()
        })?;
    }
    Ok(())
}
