//! Recognizes that a file was written to, without reading it.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::{Result, attempt};
use super::operation::Operation;
use super::remote;
use super::url::Url;

/// Marks that change when a file is written to: size and times, or of an object what its store says.
///
/// The inode is not part of it, since some network file systems number files anew; the time of the
/// last change of the inode is, and a file that was put in another's place has its own. Times are as
/// fine as the file system keeps them, some milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    size_bytes: u64,
    modified: Option<SystemTime>,
    version: String,
}

/// Looks at a file.
pub fn stamp(path: &Path) -> Result<Stamp> {
    attempt(Operation::ReadSize, path, || {
        if let Some(url) = Url::of(path) {
            let (size_bytes, version) = remote::version(&url)?;
            return Ok(Stamp {
                size_bytes,
                modified: None,
                version,
            });
        }
        let meta = std::fs::metadata(path)?;
        Ok(Stamp {
            size_bytes: meta.len(),
            modified: meta.modified().ok(),
            version: changed(&meta),
        })
    })
}

#[cfg(unix)]
fn changed(meta: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{:09}", meta.ctime(), meta.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(_: &std::fs::Metadata) -> String {
    String::new()
}

impl Stamp {
    /// Returns the size of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns how a later stamp of the same path differs; `None` when it does not.
    pub fn difference(&self, now: &Self) -> Option<String> {
        if self == now {
            return None;
        }
        Some(if self.size_bytes == now.size_bytes {
            format!(
                "it has {} bytes as before, but was written to",
                now.size_bytes
            )
        } else {
            format!(
                "it had {} bytes and now has {}",
                self.size_bytes, now.size_bytes
            )
        })
    }
}
