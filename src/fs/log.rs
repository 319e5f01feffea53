//! Files that grow at their end while others read them.

use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::error::{Context, Result, attempt, unsupported};
use super::fault;
use super::operation::Operation;
use super::paths::{parent, sync_dir};
use super::regular::open_log;
use super::url::Url;

/// A log: what is appended is handed to the operating system at once, and is durable after
/// [`Log::sync`].
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: std::fs::File,
    size_bytes: u64,
    /// What the file is known by, if the system has something of the kind.
    identity: Option<(u64, u64)>,
}

#[cfg(unix)]
fn identity(meta: &std::fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> Option<(u64, u64)> {
    None
}

impl Log {
    /// Opens a log, creating it if it is not there, and locks it against other processes as long as it is open.
    ///
    /// # Errors
    ///
    /// When it is an object, can't be opened, or is locked.
    pub fn open(path: &Path) -> Result<Self> {
        if Url::of(path).is_some() {
            return Err(unsupported(Operation::Create, path));
        }
        let is_new = !super::paths::exists(path)?;
        let file = attempt(Operation::Create, path, || open_log(path))?;
        let size_bytes = attempt(Operation::Write, path, || {
            // File systems without locks refuse; then there is no lock.
            if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
                return Err(std::io::Error::other("another process writes to it"));
            }
            Ok(file.metadata()?.len())
        })?;
        if is_new {
            sync_dir(parent(path))?;
        }
        Ok(Self {
            path: path.to_owned(),
            identity: identity(&attempt(Operation::Write, path, || file.metadata())?),
            file,
            size_bytes,
        })
    }

    /// Resumes at `size_bytes`, and drops what is behind; 0 starts over.
    ///
    /// # Errors
    ///
    /// When the file can't be cut.
    pub fn resume_at(&mut self, size_bytes: u64) -> Result<()> {
        attempt(Operation::Write, &self.path, || {
            self.file.set_len(size_bytes)?;
            self.file.seek(SeekFrom::Start(size_bytes)).map(|_| ())
        })?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails when the file is no longer where it was opened, say because its folder was removed: what is written
    /// then would go nowhere.
    fn expect_in_place(&self) -> Result<()> {
        attempt(Operation::Write, &self.path, || {
            let there = match std::fs::metadata(&self.path) {
                Ok(meta) => identity(&meta),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(std::io::Error::other(
                        "it was removed while it was written to",
                    ));
                }
                Err(error) => return Err(error),
            };
            if there == self.identity {
                return Ok(());
            }
            Err(std::io::Error::other(
                "another file took its place while it was written to",
            ))
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// When writing fails, or the file was removed.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.expect_in_place()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let allowed =
                fault::writable(&self.path, rest.len()).during(Operation::Write, &self.path)?;
            let (now, later) = rest.split_at_checked(allowed).unwrap_or((rest, &[]));
            self.file
                .write_all(now)
                .during(Operation::Write, &self.path)?;
            rest = later;
        }
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Returns the size so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    ///
    /// When that fails, or the file was removed.
    pub fn sync(&self) -> Result<()> {
        self.expect_in_place()?;
        attempt(Operation::Sync, &self.path, || self.file.sync_data())
    }
}
