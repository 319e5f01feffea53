//! Files that are read: at random, or mapped into memory.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::error::{Context, Failure, Result, attempt};
use super::operation::Operation;
use super::regular::{Unfit, open_regular};
use super::url::Url;
use super::{fault, remote};
use crate::escape::Show as _;

/// Bytes of an object that are read at a time.
const BLOCK_BYTES: u64 = 4 << 20;

/// Bytes of a [`File::served`] that are read at a time.
const SERVED_BLOCK_BYTES: u64 = 256 << 10;

/// A file or object that is open for reading.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    inner: Inner,
    failure: Failure,
}

#[derive(Debug)]
enum Inner {
    Local(std::fs::File),
    Object {
        url: Url,
        size_bytes: u64,
        position: u64,
        /// Where the bytes that were read last begin, and these.
        block: (u64, Bytes),
    },
    Served {
        served: Arc<Served>,
        position: u64,
    },
}

/// Bytes that come from elsewhere, asked for by their place.
pub trait ReadAt: Send + Sync {
    /// Number of bytes.
    fn size_bytes(&self) -> u64;

    /// Returns the bytes of a range, all of them.
    ///
    /// # Errors
    ///
    /// When they end before, or reading fails.
    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes>;
}

/// What a file and its clones share.
struct Served {
    source: Box<dyn ReadAt>,
    /// Where the bytes that were read last begin, and these.
    block: Mutex<(u64, Bytes)>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({} bytes)", self.source.size_bytes())
    }
}

impl Served {
    /// Reads from a place up to the end of a block.
    fn read(&self, position: u64, buf: &mut [u8]) -> io::Result<usize> {
        let size_bytes = self.source.size_bytes();
        if position >= size_bytes || buf.is_empty() {
            return Ok(0);
        }
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, bytes) = &mut *block;
        if position < *start || position >= *start + bytes.len() as u64 {
            let end = position.saturating_add(SERVED_BLOCK_BYTES).min(size_bytes);
            *bytes = self.source.read_at(position..end)?;
            *start = position;
        }
        let skip = usize::try_from(position - *start).unwrap_or(usize::MAX);
        let rest = bytes.get(skip..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(len)
    }
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File> {
    let inner = match Url::of(path) {
        None => Inner::Local(attempt(Operation::Open, path, || open_regular(path))?),
        Some(url) => Inner::Object {
            size_bytes: remote::size_bytes(&url).during(Operation::Open, path)?,
            url,
            position: 0,
            block: (0, Bytes::new()),
        },
    };
    Ok(File {
        path: path.to_owned(),
        inner,
        failure: Failure::default(),
    })
}

impl File {
    /// Returns a file of bytes from elsewhere; errors call it `path`.
    pub fn served(path: &Path, source: Box<dyn ReadAt>) -> Self {
        let served = Served {
            source,
            block: Mutex::default(),
        };
        Self {
            path: path.to_owned(),
            inner: Inner::Served {
                served: Arc::new(served),
                position: 0,
            },
            failure: Failure::default(),
        }
    }

    /// Size in bytes; of an object, when it was opened.
    ///
    /// # Errors
    ///
    /// When the operating system does not say.
    pub fn size_bytes(&self) -> io::Result<u64> {
        match &self.inner {
            Inner::Local(file) => Ok(file.metadata()?.len()),
            Inner::Object { size_bytes, .. } => Ok(*size_bytes),
            Inner::Served { served, .. } => Ok(served.source.size_bytes()),
        }
    }

    /// Returns another handle. Those of a local file share their position.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn try_clone(&self) -> io::Result<Self> {
        let inner = match &self.inner {
            Inner::Local(file) => Inner::Local(file.try_clone()?),
            Inner::Object {
                url,
                size_bytes,
                position,
                block,
            } => Inner::Object {
                url: url.clone(),
                size_bytes: *size_bytes,
                position: *position,
                block: block.clone(),
            },
            Inner::Served { served, position } => Inner::Served {
                served: Arc::clone(served),
                position: *position,
            },
        };
        Ok(Self {
            path: self.path.clone(),
            inner,
            failure: self.failure.clone(),
        })
    }

    /// Returns where the operating system's errors are noted.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Returns the bytes of a range, all of them.
    ///
    /// # Errors
    ///
    /// When the file ends before, or reading fails.
    pub fn read_range(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.failure.note(self.range(range))
    }

    fn range(&self, range: Range<u64>) -> io::Result<Bytes> {
        fault::check(Operation::Read, &self.path)?;
        let len = range.end.saturating_sub(range.start);
        match &self.inner {
            Inner::Local(file) => {
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut bytes = Vec::new();
                file.take(len).read_to_end(&mut bytes)?;
                if bytes.len() as u64 != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(bytes.into())
            }
            Inner::Object { size_bytes, .. } if range.end > *size_bytes => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Inner::Object { .. } if len == 0 => Ok(Bytes::new()),
            Inner::Object { url, .. } => remote::read_range(url, range),
            Inner::Served { served, .. } => served.source.read_at(range),
        }
    }
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let outcome = self.read_some(buf);
        self.failure.note(outcome)
    }
}

impl File {
    fn read_some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        fault::check(Operation::Read, &self.path)?;
        match &mut self.inner {
            Inner::Local(file) => file.read(buf),
            Inner::Served { served, position } => {
                let len = served.read(*position, buf)?;
                *position += len as u64;
                Ok(len)
            }
            Inner::Object {
                url,
                size_bytes,
                position,
                block: (start, bytes),
            } => {
                if *position >= *size_bytes || buf.is_empty() {
                    return Ok(0);
                }
                if *position < *start || *position >= *start + bytes.len() as u64 {
                    let end = position.saturating_add(BLOCK_BYTES).min(*size_bytes);
                    *bytes = remote::read_range(url, *position..end)?;
                    *start = *position;
                }
                let skip = usize::try_from(*position - *start).unwrap_or(usize::MAX);
                let rest = bytes.get(skip..).unwrap_or_default();
                let len = rest.len().min(buf.len());
                if len == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                *position += len as u64;
                Ok(len)
            }
        }
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.inner {
            Inner::Local(file) => file.seek(to),
            Inner::Object {
                size_bytes,
                position,
                ..
            } => seek(*size_bytes, position, to),
            Inner::Served { served, position } => seek(served.source.size_bytes(), position, to),
        }
    }
}

fn seek(size_bytes: u64, position: &mut u64, to: SeekFrom) -> io::Result<u64> {
    let target = match to {
        SeekFrom::Start(target) => Some(target),
        SeekFrom::End(offset) => size_bytes.checked_add_signed(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
    };
    *position = target.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(*position)
}

/// A new temporary file without a name.
fn temporary() -> io::Result<std::fs::File> {
    tempfile::tempfile().map_err(no_temporary)
}

fn no_temporary(error: io::Error) -> io::Error {
    let folder = std::env::temp_dir();
    io::Error::new(
        error.kind(),
        format!(
            "no temporary file can be made in {}: {error}\nhint: set TMPDIR to a folder that exists and has room",
            folder.shown()
        ),
    )
}

/// A copy of stdin in a temporary folder, which is gone with it.
#[derive(Debug)]
pub struct StdinCopy {
    folder: tempfile::TempDir,
    name: String,
}

impl StdinCopy {
    /// Reads stdin to its end; `name` is that of the copy.
    pub fn read(name: &str) -> Result<Self> {
        let stdin = Path::new("stdin");
        let folder = attempt(Operation::Spool, stdin, || {
            let folder = tempfile::Builder::new().prefix("remit-").tempdir();
            folder.map_err(no_temporary)
        })?;
        let copy = Self {
            folder,
            name: name.to_owned(),
        };
        let path = copy.path();
        attempt(Operation::Spool, stdin, || {
            io::copy(&mut io::stdin().lock(), &mut std::fs::File::create(&path)?)
        })?;
        Ok(copy)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }
}

/// An object as a temporary file without a name.
fn download(url: &Url) -> io::Result<std::fs::File> {
    let mut file = temporary()?;
    let size_bytes = remote::size_bytes(url)?;
    let mut start = 0;
    while start < size_bytes {
        let end = size_bytes.min(start + 4 * BLOCK_BYTES);
        io::Write::write_all(&mut file, &remote::read_range(url, start..end)?)?;
        start = end;
    }
    Ok(file)
}

/// A copy of something that can only be read in a line, in a temporary file without a name, so that it
/// can be read at random. It is gone with its last handle.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: std::fs::File,
}

impl Spool {
    /// An empty copy of what is at `path`, which its errors name.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: attempt(Operation::Spool, path, temporary)?,
        })
    }

    /// Adds bytes to the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { path, file } = self;
        attempt(Operation::Spool, path, || io::Write::write_all(file, bytes))
    }

    /// Returns the copy, to be read from its start.
    pub fn finish(mut self) -> Result<File> {
        let Self { path, file } = &mut self;
        attempt(Operation::Spool, path, || file.rewind())?;
        Ok(File {
            path: self.path,
            inner: Inner::Local(self.file),
            failure: Failure::default(),
        })
    }
}

/// A read-only memory map of a file; dereferences to its bytes. Cheap to clone.
#[derive(Clone)]
pub struct MappedFile {
    path: Arc<Path>,
    map: Option<Arc<memmap2::Mmap>>,
}

impl MappedFile {
    /// Maps a file. An empty file gives an empty slice. An object is copied to a temporary file
    /// without a name first, which is gone with the map.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match Url::of(path) {
            None => attempt(Operation::Open, path, || open_regular(path))?,
            Some(url) => download(&url).during(Operation::Read, path)?,
        };
        let size = attempt(Operation::ReadSize, path, || file.metadata())?.len();
        let map = if size == 0 {
            None
        } else {
            // SAFETY: the bytes are only ever read, through `&[u8]`. Another process that shortens
            // or rewrites the file while it is mapped could still change them under us; published
            // files are never rewritten by remit, and inputs are documented as read-only while a
            // command runs.
            let map = attempt(Operation::Map, path, || unsafe {
                memmap2::Mmap::map(&file)
            })?;
            Some(Arc::new(map))
        };
        Ok(Self {
            path: path.into(),
            map,
        })
    }

    /// Maps a file as [`MappedFile::open`] does, if it has no more bytes than this.
    pub fn open_at_most(path: &Path, max_bytes: u64) -> Result<Self> {
        let file = Self::open(path)?;
        if file.len() as u64 > max_bytes {
            return Err(io::Error::from(Unfit::TooLarge { max_bytes }))
                .during(Operation::Read, path);
        }
        Ok(file)
    }

    /// Returns the path as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the operating system that these bytes will not be read again soon, so that pages of
    /// a large file do not count as this process's memory. Harmless when it can't be honoured.
    pub fn release(&self, offset: usize, len: usize) {
        let Some(map) = &self.map else { return };
        let end = offset.saturating_add(len).min(map.len());
        if offset >= end {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the map is a read-only view of a file, so dropped pages are read back from
            // that file with the same content; nothing is lost by it.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, end - offset)
            };
            if let Err(error) = advised {
                tracing::debug!(path = %self.path.shown(), %error, "madvise was refused");
            }
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| map)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFile({})", self.path.shown())
    }
}
