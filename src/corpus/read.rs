//! From the slices of a part to documents, one record at a time.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::{
    Compression, Corpus, CorpusFile, Error, Format, Part, Slice, SliceRange, jsonl, parquet,
};
use crate::fs;
use crate::types::Document;

/// Bytes read from a file at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// The largest window that a Zstandard frame may declare, as a power of two: 2 GiB, the format's
/// own limit, since published corpora are compressed with `--long=31`.
const ZSTD_WINDOW_LOG_MAX: u32 = 31;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

type Stream = Box<dyn BufRead + Send>;

/// Streams the documents of a part; made by [`Corpus::read_part`]. Ends after the first error.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    slices: std::slice::Iter<'a, Slice>,
    open: Option<(&'a CorpusFile, Records)>,
    max_record_bytes: u64,
}

/// An open slice of a file.
enum Records {
    Text(Option<Stream>),
    Lines(Lines),
    Rows(Box<parquet::Rows>),
}

impl<'a> Documents<'a> {
    pub(super) fn new(corpus: &'a Corpus, part: &'a Part, max_record_bytes: u64) -> Self {
        Self {
            corpus,
            slices: part.slices.iter(),
            open: None,
            max_record_bytes,
        }
    }

    fn advance(&mut self) -> Result<Option<Document>, Error> {
        loop {
            if let Some((file, records)) = &mut self.open {
                let field = &self.corpus.text_field;
                if let Some((index, text)) = records.next(file, field, self.max_record_bytes)? {
                    return Ok(Some(Document {
                        source: file.source.clone(),
                        index,
                        text,
                    }));
                }
                self.open = None;
            }
            let Some(slice) = self.slices.next() else {
                return Ok(None);
            };
            // A part of another corpus could name a file that isn't here.
            let Some(file) = self.corpus.file(slice.file) else {
                continue;
            };
            let records = Records::open(file, slice.range, &self.corpus.text_field)?;
            self.open = Some((file, records));
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.open = None;
            self.slices = [].iter();
        }
        next.transpose()
    }
}

impl Records {
    fn open(file: &CorpusFile, range: SliceRange, field: &str) -> Result<Self, Error> {
        let actual = fs::size_bytes(&file.path)?;
        if actual != file.size_bytes {
            return Err(Error::Changed {
                path: file.path.clone(),
                expected: file.size_bytes,
                actual,
            });
        }
        if file.compression != Compression::None && actual == 0 {
            // The decoders disagree on whether nothing at all is a stream; an upload that failed
            // leaves just this behind.
            let empty = io::Error::new(io::ErrorKind::UnexpectedEof, "the file has no bytes");
            return Err(read_error(file, empty));
        }
        match (file.format, range) {
            (Format::Text, _) => Ok(Self::Text(Some(open(file, 0..u64::MAX)?))),
            (
                Format::Jsonl,
                SliceRange::Bytes {
                    start,
                    end,
                    first_record,
                },
            ) => Ok(Self::Lines(Lines::new(
                open(file, start..end)?,
                start,
                first_record,
            ))),
            (Format::Jsonl, _) => Ok(Self::Lines(Lines::new(open(file, 0..u64::MAX)?, 0, 0))),
            (
                Format::Parquet,
                SliceRange::RowGroups {
                    start,
                    end,
                    first_record,
                    num_records,
                },
            ) => {
                let rows =
                    parquet::Rows::open(&file.path, field, start..end, first_record, num_records)?;
                Ok(Self::Rows(Box::new(rows)))
            }
            (Format::Parquet, _) => Err(Error::DamagedParquet {
                path: file.path.clone(),
                reason: "it was cut where there is no row group".to_owned(),
            }),
        }
    }

    /// The next record's number and text.
    fn next(
        &mut self,
        file: &CorpusFile,
        field: &str,
        max_bytes: u64,
    ) -> Result<Option<(u64, String)>, Error> {
        let too_long = |place: String| Error::TooLong {
            path: file.path.clone(),
            place,
        };
        match self {
            Self::Text(stream) => {
                let Some(stream) = stream.take() else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                stream
                    .take(max_bytes.saturating_add(1))
                    .read_to_end(&mut bytes)
                    .map_err(|error| read_error(file, error))?;
                if bytes.len() as u64 > max_bytes {
                    return Err(too_long("the document".to_owned()));
                }
                let bom = leading_mark(&bytes);
                bytes.drain(..bom);
                let text = String::from_utf8(bytes).map_err(|error| {
                    let valid = error.utf8_error().valid_up_to();
                    let before = error.as_bytes().get(..valid).unwrap_or_default();
                    let newlines = before.iter().filter(|&&byte| byte == b'\n').count();
                    not_utf8(&file.path, newlines as u64 + 1, (bom + valid) as u64)
                })?;
                Ok(Some((0, text)))
            }
            Self::Lines(lines) => lines.next(file, field, max_bytes),
            Self::Rows(rows) => match rows.next_text()? {
                Some((row, text)) if text.len() as u64 > max_bytes => {
                    Err(too_long(format!("row {row}")))
                }
                next => Ok(next),
            },
        }
    }
}

/// Lines of a JSONL file.
struct Lines {
    stream: Stream,
    /// Reused between lines.
    line: Vec<u8>,
    /// Where the next line starts in the uncompressed file.
    offset: u64,
    /// Number of the next line, from 0.
    record: u64,
}

impl Lines {
    fn new(stream: Stream, offset: u64, record: u64) -> Self {
        Self {
            stream,
            line: Vec::new(),
            offset,
            record,
        }
    }

    fn next(
        &mut self,
        file: &CorpusFile,
        field: &str,
        max_bytes: u64,
    ) -> Result<Option<(u64, String)>, Error> {
        loop {
            self.line.clear();
            let read = (&mut self.stream)
                .take(max_bytes.saturating_add(1))
                .read_until(b'\n', &mut self.line)
                .map_err(|error| read_error(file, error))?;
            if read == 0 {
                return Ok(None);
            }
            let (start, record) = (self.offset, self.record);
            let line = record.saturating_add(1);
            if read as u64 > max_bytes && !self.line.ends_with(b"\n") {
                return Err(Error::TooLong {
                    path: file.path.clone(),
                    place: format!("line {line}"),
                });
            }
            self.offset = start.saturating_add(read as u64);
            self.record = line;
            let bom = if start == 0 {
                leading_mark(&self.line)
            } else {
                0
            };
            let json = self.line.get(bom..).unwrap_or_default();
            let json = std::str::from_utf8(json).map_err(|error| {
                let at = start.saturating_add((bom + error.valid_up_to()) as u64);
                not_utf8(&file.path, line, at)
            })?;
            if json.trim_ascii().is_empty() {
                continue;
            }
            // Without its line end, a cut-off record is reported at its last column.
            let json = json.trim_end_matches(['\n', '\r']);
            return jsonl::text_of(json, field, &file.path, line).map(|text| Some((record, text)));
        }
    }
}

/// Opens a file, unpacked where it is compressed; a byte range only applies to a plain one.
fn open(file: &CorpusFile, bytes: std::ops::Range<u64>) -> Result<Stream, Error> {
    let mut plain = fs::open(&file.path)?;
    Ok(match file.compression {
        Compression::None => {
            if bytes.start > 0 {
                plain
                    .seek(SeekFrom::Start(bytes.start))
                    .map_err(|error| read_error(file, error))?;
            }
            let plain = plain.take(bytes.end.saturating_sub(bytes.start));
            Box::new(BufReader::with_capacity(BUFFER_BYTES, plain))
        }
        Compression::Gzip => {
            let packed = BufReader::with_capacity(BUFFER_BYTES, plain);
            let unpacked = flate2::bufread::MultiGzDecoder::new(packed);
            Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked))
        }
        Compression::Zstd => {
            let packed = BufReader::with_capacity(BUFFER_BYTES, plain);
            let mut unpacked = zstd::stream::read::Decoder::with_buffer(packed)
                .map_err(|error| read_error(file, error))?;
            unpacked
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(|error| read_error(file, error))?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked))
        }
    })
}

/// An error of the operating system carries its number; any other one is the decoder's.
fn read_error(file: &CorpusFile, source: io::Error) -> Error {
    if file.compression == Compression::None || source.raw_os_error().is_some() {
        Error::Io(fs::Error {
            action: "read",
            path: file.path.clone(),
            source,
        })
    } else {
        Error::Decompress {
            path: file.path.clone(),
            compression: file.compression,
            source,
        }
    }
}

fn not_utf8(path: &Path, line: u64, byte_offset: u64) -> Error {
    Error::NotUtf8 {
        path: path.to_owned(),
        line,
        byte_offset,
    }
}

/// Length of a byte order mark at the start.
fn leading_mark(bytes: &[u8]) -> usize {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len()
    } else {
        0
    }
}
