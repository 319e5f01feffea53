//! Errors that name the path, and what was attempted on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::operation::Operation;
use super::{fault, remote};
use crate::escape::Show as _;

/// An I/O failure, with what was attempted on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.shown())]
#[non_exhaustive]
pub struct Error {
    /// What was attempted.
    pub operation: Operation,
    /// The path as given.
    pub path: PathBuf,
    /// The operating system's answer.
    pub source: io::Error,
}

impl Error {
    /// Returns whether the cause is that the path does not exist.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Returns whether something was to be read, rather than written.
    pub fn is_of_reading(&self) -> bool {
        self.operation.reads()
    }

    /// Returns whether the cause is that it can't be done there at all.
    pub fn is_unsupported(&self) -> bool {
        self.source.kind() == io::ErrorKind::Unsupported
    }

    /// Returns whether the cause is a full disk or an exhausted quota.
    pub fn is_out_of_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Returns whether an error is the operating system's or an object store's, rather than one about content.
pub fn is_of_system(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || remote::is_error_of_store(error)
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

pub(super) trait Context<T> {
    fn during(self, operation: Operation, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn during(self, operation: Operation, path: &Path) -> Result<T> {
        self.map_err(|source| Error {
            operation,
            path: path.to_owned(),
            source,
        })
    }
}

/// Does something with a path; an error says which operation failed.
pub(super) fn attempt<T>(
    operation: Operation,
    path: &Path,
    call: impl FnOnce() -> io::Result<T>,
) -> Result<T> {
    fault::check(operation, path)
        .and_then(|()| call())
        .during(operation, path)
}

/// Returns the error of what can't be done with an object.
pub(super) fn unsupported(operation: Operation, path: &Path) -> Error {
    Error {
        operation,
        path: path.to_owned(),
        source: io::Error::new(
            io::ErrorKind::Unsupported,
            "this command writes to folders only, not to object stores",
        ),
    }
}

/// The last error of a file and its clones that was the operating system's, for those who read or
/// write through a library that only quotes it.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<io::Error>>>);

impl Failure {
    /// The error, if there was one since the last call.
    pub fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn note<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome
            && is_of_system(error)
        {
            let copy = match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
        }
        outcome
    }
}

/// Names the path in an error of a writer that wraps a file of this module.
pub fn write_error(path: &Path, source: io::Error) -> Error {
    Error {
        operation: Operation::Write,
        path: path.to_owned(),
        source,
    }
}

/// The error of a writer that wraps an [`AtomicFile`](super::AtomicFile) for `path`: the operating system's where it was
/// that, however the writer put it.
pub fn write_failure(path: &Path, failure: &Failure, error: anyhow::Error) -> anyhow::Error {
    match failure.take() {
        Some(source) => write_error(path, source).into(),
        None => error.context(format!("cannot write {}", path.shown())),
    }
}
