//! Files as streams of bytes, unpacked where they are compressed, with limits on what a small file may
//! unpack to.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::Error;
use super::compression::{Compression, MAX_EXPANSION};
use super::gzip::Members;
use super::options::CorpusOptions;
use crate::fs;

/// Bytes read from a file at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// Bytes that a file may unpack to whatever its size: below that, the ratio means nothing.
const FREE_BYTES: u64 = 64 << 20;

/// A file that is read from its start, unpacked.
pub(super) type ByteStream = BufReader<Unpacker<BufReader<fs::HashingFile>>>;

/// Opens a file and unpacks it; `window_log` bounds the window of a Zstandard frame.
pub(super) fn open(
    path: &Path,
    compression: Compression,
    window_log: u32,
) -> Result<ByteStream, Error> {
    let failed = |error| read_error(path, compression, window_log, error);
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, fs::HashingFile::open(path)?);
    if compression != Compression::None && packed.fill_buf().map_err(failed)?.is_empty() {
        // The decoders disagree on whether nothing at all is a stream; an upload that failed leaves
        // just this behind.
        let empty = io::Error::new(io::ErrorKind::UnexpectedEof, "the file has no bytes");
        return Err(failed(empty));
    }
    let unpacker = Unpacker::new(packed, compression, window_log).map_err(failed)?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, unpacker))
}

/// Opens a table, which is read at random: a compressed one is unpacked to a temporary file without a
/// name first.
pub(super) fn open_table(
    path: &Path,
    compression: Compression,
    options: &CorpusOptions,
) -> Result<fs::File, Error> {
    if compression == Compression::None {
        return Ok(fs::open(path)?);
    }
    let mut copy = fs::Spool::create(path)?;
    let mut stream = open(path, compression, options.zstd_window_log)?;
    loop {
        options.check_stop()?;
        let block = stream
            .fill_buf()
            .map_err(|error| read_error(path, compression, options.zstd_window_log, error))?;
        if block.is_empty() {
            return Ok(copy.finish()?);
        }
        copy.write(block)?;
        let len = block.len();
        stream.consume(len);
    }
}

/// Opens a plain file for the bytes `start..end`.
pub(super) fn open_range(
    path: &Path,
    start: u64,
    end: u64,
) -> Result<BufReader<io::Take<fs::File>>, Error> {
    let mut file = fs::open(path)?;
    if start > 0 {
        file.seek(SeekFrom::Start(start))
            .map_err(|error| read_error(path, Compression::None, 0, error))?;
    }
    let file = file.take(end.saturating_sub(start));
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// Reads a whole file, unpacked, block by block; returns size and digest of the file as it is stored.
pub(super) fn scan(
    path: &Path,
    compression: Compression,
    options: &CorpusOptions,
    mut observe: impl FnMut(&[u8]),
) -> Result<(u64, fs::Digest), Error> {
    let window_log = options.zstd_window_log;
    let mut stream = open(path, compression, window_log)?;
    loop {
        options.check_stop()?;
        let block = stream
            .fill_buf()
            .map_err(|error| read_error(path, compression, window_log, error))?;
        if block.is_empty() {
            break;
        }
        observe(block);
        let len = block.len();
        stream.consume(len);
    }
    match stream.into_inner().into_inner() {
        Some(packed) => Ok(packed.into_inner().finish()?),
        None => Ok(fs::hash_file(path, |_| ())?),
    }
}

/// What a failure to read means: the operating system's carry a number, others are the decoder's.
pub(super) fn read_error(
    path: &Path,
    compression: Compression,
    window_log: u32,
    source: io::Error,
) -> Error {
    let path = path.to_owned();
    if source.get_ref().is_some_and(|inner| inner.is::<Expands>()) {
        return Error::Expansion { path, compression };
    }
    if compression == Compression::None || fs::is_of_system(&source) {
        return Error::Io(fs::Error {
            operation: fs::Operation::Read,
            path,
            source,
        });
    }
    // The library has no code for it that could be asked for.
    if compression == Compression::Zstd && source.to_string().contains("too much memory") {
        return Error::Window { path, window_log };
    }
    Error::Decompress {
        path,
        compression,
        source,
    }
}

/// The mark of a file that unpacks to too much.
#[derive(Debug)]
struct Expands;

impl fmt::Display for Expands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it unpacks to more than {MAX_EXPANSION} times its size")
    }
}

impl std::error::Error for Expands {}

/// Unpacks a stream, and stops where it unpacks to more than [`MAX_EXPANSION`] times its size.
pub(super) struct Unpacker<R: BufRead> {
    decoder: Decoder<R>,
    unpacked_bytes: u64,
}

enum Decoder<R: BufRead> {
    None(Counting<R>),
    Gzip(Members<Counting<R>>),
    Zstd(zstd::stream::read::Decoder<'static, Counting<R>>),
}

impl<R: BufRead> Unpacker<R> {
    pub(super) fn new(packed: R, compression: Compression, window_log: u32) -> io::Result<Self> {
        let packed = Counting {
            inner: packed,
            consumed: 0,
        };
        let decoder = match compression {
            Compression::None => Decoder::None(packed),
            Compression::Gzip => Decoder::Gzip(Members::new(packed)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(window_log)?;
                Decoder::Zstd(decoder)
            }
        };
        Ok(Self {
            decoder,
            unpacked_bytes: 0,
        })
    }

    fn into_inner(self) -> Option<R> {
        let packed = match self.decoder {
            Decoder::None(packed) => packed,
            Decoder::Gzip(decoder) => decoder.into_inner()?,
            Decoder::Zstd(decoder) => decoder.finish(),
        };
        Some(packed.inner)
    }
}

impl<R: BufRead> Read for Unpacker<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (read, packed_bytes) = match &mut self.decoder {
            Decoder::None(packed) => return packed.read(buf),
            Decoder::Gzip(decoder) => {
                let read = decoder.read(buf)?;
                (read, decoder.get_ref().map_or(0, |packed| packed.consumed))
            }
            Decoder::Zstd(decoder) => (decoder.read(buf)?, decoder.get_ref().consumed),
        };
        self.unpacked_bytes += read as u64;
        if self.unpacked_bytes > FREE_BYTES && self.unpacked_bytes / MAX_EXPANSION > packed_bytes {
            return Err(io::Error::other(Expands));
        }
        Ok(read)
    }
}

/// Counts the bytes that are taken from a reader.
struct Counting<R> {
    inner: R,
    consumed: u64,
}

impl<R: BufRead> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.consumed += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counting<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.consumed += amount as u64;
        self.inner.consume(amount);
    }
}
