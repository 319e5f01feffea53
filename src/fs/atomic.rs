//! Files that appear under their names only when they are complete.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::{Context, Failure, Result, attempt, unsupported};
use super::operation::Operation;
use super::paths::{exists, list, parent, remove_file, sync_dir};
use super::url::Url;
use super::{fault, remote};

/// Suffix of a file that is being written and is not yet published.
pub const TEMP_SUFFIX: &str = ".remit-tmp";

/// A file that appears under its name only when it is complete.
///
/// Dropped without [`AtomicFile::publish`], it leaves nothing behind. For an object, what is written
/// goes to a temporary file without a name, and is sent when it is published.
pub struct AtomicFile {
    target: PathBuf,
    temp: Temp,
    failure: Failure,
}

enum Temp {
    Sibling(tempfile::NamedTempFile),
    Object(Url, std::fs::File),
}

impl AtomicFile {
    /// Opens a hidden temporary sibling of `target` for writing.
    pub fn create(target: &Path) -> Result<Self> {
        let temp = attempt(Operation::CreateTemp, target, || {
            if let Some(url) = Url::of(target) {
                return Ok(Temp::Object(url, tempfile::tempfile()?));
            }
            let name = target.file_name().unwrap_or_default().to_string_lossy();
            tempfile::Builder::new()
                .prefix(&format!(".{name}."))
                .suffix(TEMP_SUFFIX)
                .tempfile_in(parent(target))
                .map(Temp::Sibling)
                .map_err(without_path)
        })?;
        Ok(Self {
            target: target.to_owned(),
            temp,
            failure: Failure::default(),
        })
    }

    /// Returns where the operating system's errors are noted.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Returns where the temporary file is, for a writer that opens files by path.
    ///
    /// # Errors
    ///
    /// When the target is an object: its temporary file has no path.
    pub fn path(&self) -> Result<&Path> {
        match &self.temp {
            Temp::Sibling(temp) => Ok(temp.path()),
            Temp::Object(..) => Err(unsupported(Operation::Write, &self.target)),
        }
    }

    /// Makes what was written durable and visible under the target name, replacing a file there.
    pub fn publish(self) -> Result<()> {
        let Self { target, temp, .. } = self;
        match temp {
            Temp::Object(url, file) => remote::put(&url, &file, false)
                .map(|_| ())
                .during(Operation::Publish, &target),
            Temp::Sibling(temp) => {
                make_durable(&temp, &target)?;
                attempt(Operation::Publish, &target, || {
                    temp.persist(&target).map_err(|error| error.error)
                })?;
                sync_dir(parent(&target))
            }
        }
    }

    /// As [`AtomicFile::publish`], but never overwrites; returns whether the file was published.
    pub fn publish_new(self) -> Result<bool> {
        let Self { target, temp, .. } = self;
        let temp = match temp {
            Temp::Object(url, file) => {
                return remote::put(&url, &file, true).during(Operation::Publish, &target);
            }
            Temp::Sibling(temp) => temp,
        };
        let published = make_durable(&temp, &target).and_then(|()| {
            attempt(Operation::Publish, &target, || {
                temp.persist_noclobber(&target).map_err(|error| error.error)
            })
        });
        match published {
            Ok(_) => sync_dir(parent(&target)).map(|()| true),
            // Somebody was faster, and may even have swept our temporary file away.
            Err(_) if exists(&target)? => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The operating system's error in one that names the temporary file too.
fn without_path(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(std::error::Error::source);
    let inner = inner.and_then(|inner| inner.downcast_ref::<io::Error>());
    match inner.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error,
    }
}

fn make_durable(temp: &tempfile::NamedTempFile, target: &Path) -> Result<()> {
    // By path, since a writer that was handed the path may have put another file there.
    let path = temp.path();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // tempfile creates 0600; a published file follows the usual 0644 so that others on a
        // cluster can read it.
        attempt(Operation::SetPermissions, target, || {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
        })?;
    }
    attempt(Operation::Sync, target, || {
        std::fs::File::open(path).and_then(|file| file.sync_all())
    })
}

impl AtomicFile {
    fn write_some(&mut self, buf: &[u8]) -> io::Result<usize> {
        let allowed = fault::writable(&self.target, buf.len())?;
        let buf = buf.get(..allowed).unwrap_or_default();
        match &mut self.temp {
            // Through the file itself: its wrapper hides the number of an error.
            Temp::Sibling(temp) => temp.as_file_mut().write(buf),
            Temp::Object(_, file) => file.write(buf),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let outcome = self.write_some(buf);
        self.failure.note(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.temp {
            Temp::Sibling(temp) => temp.flush(),
            Temp::Object(_, file) => file.flush(),
        }
    }
}

/// Writes bytes to a file atomically.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).during(Operation::Write, path)?;
    file.publish()
}

/// Writes bytes to a file atomically, never overwriting; returns whether it was written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).during(Operation::Write, path)?;
    file.publish_new()
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
