//! A file that a manifest has an entry of: mapped, compared with the entry, and parsed under guard.

use std::path::Path;

use super::Error;
use super::manifest::ShardEntry;
use super::schema::ShardFormat;
use crate::fs::{self, Digest, MappedFile};
use crate::guard;

/// Maps a file, which has to be there.
pub(super) fn map(path: &Path) -> Result<MappedFile, Error> {
    let path = path.to_owned();
    if !fs::exists(&path)? {
        return Err(Error::MissingShard { path });
    }
    Ok(MappedFile::open(&path)?)
}

/// Compares size and BLAKE3 of a mapped file with its entry; returns the digest.
pub(super) fn check(path: &Path, map: &MappedFile, entry: &ShardEntry) -> Result<Digest, Error> {
    let path = path.to_owned();
    if map.len() as u64 != entry.size_bytes {
        return Err(Error::Size {
            path,
            expected: entry.size_bytes,
            found: map.len() as u64,
        });
    }
    let found = Digest::of(map);
    if found != entry.blake3 {
        return Err(Error::Hash {
            path,
            expected: entry.blake3,
            found,
        });
    }
    Ok(found)
}

/// Runs a step of the parser; a panic in it becomes an error that names the file.
pub(super) fn guarded<T>(
    path: &Path,
    format: ShardFormat,
    step: impl FnOnce() -> Result<T, String>,
) -> Result<T, Error> {
    let outcome = guard::guarded(step).and_then(|result| result);
    outcome.map_err(|reason| Error::Unreadable {
        path: path.to_owned(),
        format,
        reason,
    })
}
