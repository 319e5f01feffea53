//! Reads small files in one piece, up to a limit.

use std::io::{self, Read};
use std::path::Path;

use super::error::{Context, Result, attempt};
use super::file::open;
use super::operation::Operation;
use super::regular::Unfit;

/// Most bytes of a file that is read in one piece: a description of a set, a list of files.
pub const MAX_READ_BYTES: u64 = 1 << 30;

/// Reads all of a file, if it has no more than [`MAX_READ_BYTES`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, MAX_READ_BYTES)
}

/// Reads all of a file, if it has no more bytes than this.
pub fn read_at_most(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    take_at_most(open(path)?, max_bytes).during(Operation::Read, path)
}

/// Reads all of a file as [`read_at_most`] does, or of what the shell or the user hands over in place of one:
/// `/dev/stdin`, and `/dev/fd/63` of `<(command)`.
pub fn read_given(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let is_handed_over = path == Path::new("/dev/stdin")
        || path.starts_with("/dev/fd")
        || path.starts_with("/proc/self/fd");
    if !is_handed_over {
        return read_at_most(path, max_bytes);
    }
    let file = attempt(Operation::Open, path, || std::fs::File::open(path))?;
    take_at_most(file, max_bytes).during(Operation::Read, path)
}

pub(super) fn take_at_most(file: impl Read, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Unfit::TooLarge { max_bytes }.into());
    }
    Ok(bytes)
}
