//! Looks at paths and into folders.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Context, Result, attempt};
use super::operation::Operation;
use super::read::{MAX_READ_BYTES, read_given, take_at_most};
use super::regular::Unfit;
use super::remote;
use super::url::Url;

/// Returns the size of a file in bytes.
pub fn size_bytes(path: &Path) -> Result<u64> {
    attempt(Operation::ReadSize, path, || match Url::of(path) {
        None => std::fs::metadata(path).map(|meta| meta.len()),
        Some(url) => remote::size_bytes(&url),
    })
}

/// Reads a list of paths, one a line; `-` is stdin. Blank lines are left out.
pub fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let text = if path == Path::new("-") {
        take_at_most(io::stdin(), MAX_READ_BYTES).during(Operation::ReadList, Path::new("stdin"))?
    } else {
        read_given(path, MAX_READ_BYTES)?
    };
    let line_of = |at: usize| {
        let before = text.get(..at).unwrap_or_default();
        1 + memchr::memchr_iter(b'\n', before).count()
    };
    let unfit = |unfit: Unfit| Err(io::Error::from(unfit)).during(Operation::ReadList, path);
    if let Some(at) = memchr::memchr(0, &text) {
        return unfit(Unfit::Nul { line: line_of(at) });
    }
    let text = match str::from_utf8(&text) {
        Ok(text) => text,
        Err(error) => {
            let line = line_of(error.valid_up_to());
            return unfit(Unfit::NotUtf8 { line });
        }
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Returns whether anything exists at the path; an error other than "not found" is reported.
pub fn exists(path: &Path) -> Result<bool> {
    attempt(Operation::LookAt, path, || {
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

/// Returns whether the path is a folder, or a prefix of objects; `false` when nothing is there.
pub fn is_dir(path: &Path) -> Result<bool> {
    attempt(Operation::LookAt, path, || match Url::of(path) {
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

/// Returns the absolute path without links, `.` and `..`.
pub fn canonicalize(path: &Path) -> Result<PathBuf> {
    if Url::of(path).is_some() {
        return Ok(path.to_owned());
    }
    attempt(Operation::Resolve, path, || path.canonicalize())
}

/// Returns what two paths share if they lead to one file, through links of either kind or not.
pub fn identity(path: &Path) -> Result<String> {
    if Url::of(path).is_some() {
        return Ok(path.display().to_string());
    }
    attempt(Operation::LookAt, path, || {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let meta = std::fs::metadata(path)?;
            Ok(format!("{} {}", meta.dev(), meta.ino()))
        }
        #[cfg(not(unix))]
        {
            Ok(path.canonicalize()?.display().to_string())
        }
    })
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
    .during(Operation::CreateFolder, path)
}

/// Returns whether the path is a URL that names no bucket; whatever is joined to it would be taken for one.
pub fn lacks_bucket(path: &Path) -> bool {
    Url::of(path).is_some_and(|url| url.bucket.is_empty())
}

/// Creates a folder and its parents. Object stores need none.
pub fn create_dir_all(path: &Path) -> Result<()> {
    if Url::of(path).is_some() {
        return Ok(());
    }
    attempt(Operation::CreateFolder, path, || {
        std::fs::create_dir_all(path)
    })
}

/// Removes a file.
pub fn remove_file(path: &Path) -> Result<()> {
    attempt(Operation::Remove, path, || match Url::of(path) {
        None => std::fs::remove_file(path),
        Some(url) => remote::delete(&url),
    })
}

/// Returns the names in a folder, in byte order.
pub fn list(dir: &Path) -> Result<Vec<OsString>> {
    let mut names: Vec<OsString> = attempt(Operation::List, dir, || match Url::of(dir) {
        None => std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name()))
            .collect(),
        Some(url) => Ok(remote::list(&url)?.into_iter().map(Into::into).collect()),
    })?;
    names.sort();
    Ok(names)
}

/// Returns the absolute path without links, of something that need not exist: its folders that do exist are
/// resolved.
pub fn canonicalize_missing(path: &Path) -> Result<PathBuf> {
    if Url::of(path).is_some() {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).during(Operation::Resolve, path)?;
    for ancestor in absolute.ancestors() {
        if exists(ancestor)? {
            let rest = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return Ok(canonicalize(ancestor)?.join(rest));
        }
    }
    Ok(absolute)
}

/// Returns the nearest folder above a path that holds a folder of this name; the path itself need not exist. Object
/// stores are not asked, since keys above a prefix may be forbidden to list.
pub fn folder_above_with(path: &Path, name: &str) -> Result<Option<PathBuf>> {
    if Url::of(path).is_some() {
        return Ok(None);
    }
    for above in canonicalize_missing(path)?.ancestors().skip(1) {
        if is_dir(&above.join(name))? {
            return Ok(Some(above.to_owned()));
        }
    }
    Ok(None)
}

/// Returns the folder that holds a path; the current folder for a bare name.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    // Windows can't open a folder as a file, and needs no such call.
    if cfg!(unix) {
        attempt(Operation::SyncFolder, dir, || {
            std::fs::File::open(dir)?.sync_all()
        })?;
    }
    Ok(())
}
