//! BLAKE3 of bytes and of files.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Context, Result};
use super::file::{File, MappedFile, open};
use super::operation::Operation;

/// Bytes of a mapped file that are hashed before their pages are given back.
const MAPPED_BLOCK_BYTES: usize = 8 << 20;

/// Bytes read at a time where a file is streamed.
const STREAM_BUFFER_BYTES: usize = 1 << 20;

/// A BLAKE3 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of bytes in memory, on all threads of the current rayon pool.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(hex: String) -> std::result::Result<Self, &'static str> {
        hex.parse()
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(hex: &str) -> std::result::Result<Self, &'static str> {
        blake3::Hash::from_hex(hex)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| "a BLAKE3 digest must be 64 hexadecimal digits")
    }
}

/// Makes the digest of bytes that come piece by piece, on the calling thread alone: it may be one that
/// has no time to wait for the others.
#[derive(Debug, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Adds bytes to the end.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Digest of all bytes so far.
    pub fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// Size and BLAKE3 digest of a file, streamed: memory does not grow with the file.
///
/// `observe` sees every block once, in order, so that a caller can count records in the same pass.
pub fn hash_file(path: &Path, mut observe: impl FnMut(&[u8])) -> Result<(u64, Digest)> {
    let mut file = open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0_u8; STREAM_BUFFER_BYTES];
    let mut size_bytes = 0_u64;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).during(Operation::Read, path),
        };
        let block = buffer.get(..read).unwrap_or_default();
        hasher.update_rayon(block);
        observe(block);
        size_bytes += read as u64;
    }
    Ok((size_bytes, Digest(*hasher.finalize().as_bytes())))
}

/// Returns the digest of a mapped file, that of [`hash_file`]. Pages are given back once they are hashed:
/// memory does not grow with the file.
pub fn hash_mapped(file: &MappedFile) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    for block in file.chunks(MAPPED_BLOCK_BYTES) {
        hasher.update_rayon(block);
        file.release(offset, block.len());
        offset += block.len();
    }
    Digest(*hasher.finalize().as_bytes())
}

/// A file that is read from its start and hashed as it is read.
pub struct HashingFile {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    size_bytes: u64,
}

impl HashingFile {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            hasher: blake3::Hasher::new(),
            size_bytes: 0,
        })
    }

    /// Reads what is left; returns size and digest of all of the file.
    pub fn finish(mut self) -> Result<(u64, Digest)> {
        io::copy(&mut self, &mut io::sink()).during(Operation::Read, &self.path.clone())?;
        Ok((self.size_bytes, Digest(*self.hasher.finalize().as_bytes())))
    }
}

impl Read for HashingFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buf)?;
        self.hasher
            .update_rayon(buf.get(..read).unwrap_or_default());
        self.size_bytes += read as u64;
        Ok(read)
    }
}

/// A file that is hashed as it is written.
pub struct HashingWriter<W> {
    file: W,
    hasher: blake3::Hasher,
}

impl<W: Write> HashingWriter<W> {
    /// Writes to `file`.
    pub fn new(file: W) -> Self {
        Self {
            file,
            hasher: blake3::Hasher::new(),
        }
    }

    /// The file, and the digest of all that was written.
    pub fn finish(self) -> (W, Digest) {
        (self.file, Digest(*self.hasher.finalize().as_bytes()))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.hasher
            .update_rayon(buf.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
