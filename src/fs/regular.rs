//! Opens what is meant to be read: regular files, and at once.
//!
//! Opening a FIFO waits for somebody who writes to it, reading a device may never end, and a file that should be
//! small may be as large as the disk. A name alone tells none of it. So a path is looked at before it is opened, and
//! what was opened is looked at again, since something else may have taken the place meanwhile; it is opened without
//! waiting. Small files are read up to a limit, whatever size they claim.

use std::fmt;
use std::io;
use std::path::Path;

use super::error::{Error, Result, attempt};
use super::operation::Operation;
use super::url::Url;

/// A file that can't be what it is taken for, whatever it holds.
#[derive(Debug)]
pub(super) enum Unfit {
    NotRegular(&'static str),
    TooLarge { max_bytes: u64 },
    Nul { line: usize },
    NotUtf8 { line: usize },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegular(what) => write!(f, "it is {what}, not a regular file"),
            Self::TooLarge { max_bytes } => write!(
                f,
                "it has more than {max_bytes} bytes, the most that such a file may have"
            ),
            Self::Nul { line } => write!(
                f,
                "line {line} has a NUL byte, which no path has; write one path per line"
            ),
            Self::NotUtf8 { line } => {
                write!(f, "line {line} is not valid UTF-8; rename the file")
            }
        }
    }
}

impl std::error::Error for Unfit {}

impl From<Unfit> for io::Error {
    fn from(unfit: Unfit) -> Self {
        Self::new(io::ErrorKind::InvalidInput, unfit)
    }
}

impl Error {
    /// Returns whether the file can't be what it is taken for: it is a FIFO or a folder, or too large.
    pub fn is_unfit(&self) -> bool {
        let inner = self.source.get_ref();
        inner.is_some_and(|inner| inner.is::<Unfit>())
    }
}

fn expect_file(meta: &std::fs::Metadata) -> io::Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    Err(Unfit::NotRegular(kind_of(meta.file_type())).into())
}

#[cfg(unix)]
fn kind_of(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    }
}

#[cfg(not(unix))]
fn kind_of(kind: std::fs::FileType) -> &'static str {
    match kind.is_dir() {
        true => "a folder",
        false => "something else",
    }
}

/// Refuses a path where something else than a regular file is; an object is one.
pub fn expect_regular(path: &Path) -> Result<()> {
    if Url::of(path).is_some() {
        return Ok(());
    }
    attempt(Operation::Open, path, || {
        expect_file(&std::fs::metadata(path)?)
    })
}

/// Opens a regular file for reading; never waits.
pub(super) fn open_regular(path: &Path) -> io::Result<std::fs::File> {
    // Opening a device may already do something.
    expect_file(&std::fs::metadata(path)?)?;
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    without_waiting(&mut options);
    let file = options.open(path)?;
    expect_file(&file.metadata()?)?;
    Ok(file)
}

/// Opens a file for writing that others may read meanwhile, creating it if it is not there; never waits.
pub(super) fn open_log(path: &Path) -> io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(false).write(true);
    without_waiting(&mut options);
    let file = options.open(path)?;
    expect_file(&file.metadata()?)?;
    Ok(file)
}

fn without_waiting(options: &mut std::fs::OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK);
    }
    #[cfg(not(unix))]
    let _ = options;
}

#[cfg(test)]
mod tests {
    use super::super::{open, read, read_at_most};
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (fifo.as_path(), "a FIFO"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
            (dir.path(), "a folder"),
        ] {
            for error in [
                open(path).unwrap_err(),
                read(path).unwrap_err(),
                super::super::MappedFile::open(path).unwrap_err(),
                expect_regular(path).unwrap_err(),
            ] {
                assert!(error.is_unfit(), "{error}");
                assert_eq!(
                    error.source.to_string(),
                    format!("it is {what}, not a regular file")
                );
            }
        }
        assert!(super::super::Log::open(&fifo).is_err());
    }

    #[test]
    fn a_small_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small");
        super::super::write_atomic(&path, &[7; 100]).unwrap();
        assert_eq!(read_at_most(&path, 100).unwrap(), [7; 100]);
        let error = read_at_most(&path, 99).unwrap_err();
        assert!(error.is_unfit());
        // A sparse file has no blocks, but all of its bytes.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(read(&path).unwrap_err().is_unfit());
    }
}
