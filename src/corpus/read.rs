//! From the slices of a part to documents, one record at a time.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use super::bytes::{self, ByteStream};
use super::compression::Compression;
use super::files::{Corpus, CorpusFile};
use super::format::Format;
use super::parts::{Part, Slice, SliceRange};
use super::tables::{self, TableFormat};
use super::{Error, Place, RecordProblem, jsonl, tokens};
use crate::fs;
use crate::types::{Content, Document};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A record's number and content, or where it is and what is wrong with it.
type Record = (u64, Result<Content, (Place, RecordProblem)>);

/// Streams the documents of parts; made by [`Corpus::documents`].
///
/// The iterator ends with the part that was begun, or after the first error other than
/// [`Error::BadRecord`]: after one of those it continues with the next record.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    slices: std::slice::Iter<'a, Slice>,
    open: Option<OpenSlice<'a>>,
    /// A compressed file that was left in the middle: the next part may begin just there.
    parked: Option<(usize, Lines)>,
    /// The compressed table that was read last, unpacked.
    unpacked: Option<(usize, fs::File)>,
    bytes_read: u64,
}

struct OpenSlice<'a> {
    slice: &'a Slice,
    file: &'a CorpusFile,
    records: Records,
    /// Documents that are still wanted of it.
    left: u64,
}

/// An open slice of a file.
enum Records {
    Text(Option<Box<ByteStream>>),
    Lines(Lines),
    Table(Box<tables::Rows>),
    Tokens(Box<tokens::Documents<BufReader<io::Take<fs::File>>>>),
}

impl Corpus {
    /// A reader of documents, to be told with which part to begin. One reader for several parts
    /// unpacks a compressed file only once.
    ///
    /// Memory holds one record of a text file, or one batch of rows of a table, never a whole part.
    /// A document's index is its line number (from 0; blank lines count and are no documents), its
    /// row number, its number in a file of token ids, or 0 for a text file. Documents without any
    /// text are yielded as they are.
    pub fn reader(&self) -> Documents<'_> {
        Documents::new(self)
    }

    /// Streams the documents of a part, in order.
    pub fn documents<'a>(&'a self, part: &'a Part) -> Documents<'a> {
        let mut documents = self.reader();
        documents.begin(part);
        documents
    }
}

impl<'a> Documents<'a> {
    fn new(corpus: &'a Corpus) -> Self {
        Self {
            corpus,
            slices: [].iter(),
            open: None,
            parked: None,
            unpacked: None,
            bytes_read: 0,
        }
    }

    /// Goes to the first document of a part. What is left of the part before is not read.
    pub fn begin(&mut self, part: &'a Part) {
        self.park();
        self.slices = part.slices.iter();
    }

    fn park(&mut self) {
        if let Some(OpenSlice {
            slice,
            file,
            records: Records::Lines(lines),
            ..
        }) = self.open.take()
            && file.compression != Compression::None
        {
            self.parked = Some((slice.file, lines));
        }
    }

    fn advance(&mut self) -> Result<Option<Document>, Error> {
        loop {
            if let Some(open) = &mut self.open {
                let before = open.records.offset();
                let record = match open.left {
                    0 => None,
                    _ => open.records.next(open.file, self.corpus)?,
                };
                if let Some((index, content)) = record {
                    open.left -= 1;
                    self.bytes_read += match (before, open.records.offset(), &content) {
                        (Some(before), Some(after), _) => after.saturating_sub(before),
                        (_, _, Ok(content)) => content.size_bytes() as u64,
                        _ => 0,
                    };
                    let content = content.map_err(|(place, problem)| Error::BadRecord {
                        path: open.file.path.clone(),
                        place,
                        problem: Box::new(problem),
                    })?;
                    return Ok(Some(Document {
                        source: Arc::clone(&open.file.source),
                        index,
                        content,
                    }));
                }
                open.file.expect_unchanged()?;
                self.park();
            }
            let Some(slice) = self.slices.next() else {
                return Ok(None);
            };
            // A part of another corpus could name a file that isn't here.
            let Some(file) = self.corpus.file(slice.file) else {
                continue;
            };
            let parked = self.parked.take();
            let table = self.table(slice.file, file)?;
            let records = Records::open(self.corpus, file, slice, parked, table)?;
            self.open = Some(OpenSlice {
                slice,
                file,
                records,
                left: slice.max_documents.unwrap_or(u64::MAX),
            });
        }
    }

    /// The file of a slice, if it is one that is read at random.
    fn table(&mut self, index: usize, file: &CorpusFile) -> Result<Option<fs::File>, Error> {
        if !matches!(file.format, Format::Parquet | Format::Arrow) {
            self.unpacked = None;
            return Ok(None);
        }
        if let Some((unpacked, copy)) = &self.unpacked
            && *unpacked == index
        {
            let again = copy.try_clone();
            return Ok(Some(
                again.map_err(|error| self.corpus.read_error(file, error))?,
            ));
        }
        self.unpacked = None;
        let table = bytes::open_table(&file.path, file.compression, &self.corpus.options)?;
        if file.compression != Compression::None {
            let copy = table.try_clone();
            let copy = copy.map_err(|error| self.corpus.read_error(file, error))?;
            self.unpacked = Some((index, copy));
        }
        Ok(Some(table))
    }

    /// Bytes of all records that were returned so far, bad ones included: as they are in the file,
    /// unpacked, and of tables the texts and ids alone. About what [`Part::size_bytes`] counts.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The file of the record that was returned last, as its documents name it.
    pub fn source(&self) -> &str {
        self.open.as_ref().map_or("", |open| &*open.file.source)
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut next = self.advance();
        if let Err(error) = &next
            && !matches!(error, Error::BadRecord { .. })
        {
            // Of a file that is being written to, what can't be read is not what is wrong.
            if let Some(open) = &self.open
                && let Err(changed @ Error::Changed { .. }) = open.file.expect_unchanged()
            {
                next = Err(changed);
            }
            self.open = None;
            self.slices = [].iter();
        }
        next.transpose()
    }
}

impl Records {
    fn open(
        corpus: &Corpus,
        file: &CorpusFile,
        slice: &Slice,
        parked: Option<(usize, Lines)>,
        table: Option<fs::File>,
    ) -> Result<Self, Error> {
        file.expect_unchanged()?;
        let options = &corpus.options;
        let unpack = || bytes::open(&file.path, file.compression, options.zstd_window_log);
        let misfit = || Error::Changed {
            path: file.path.clone(),
            how: "the part is of another kind of file".to_owned(),
        };
        Ok(match (file.format, slice.range) {
            (Format::Text, _) => Self::Text(Some(Box::new(unpack()?))),
            (
                Format::Jsonl,
                SliceRange::Bytes {
                    start,
                    end,
                    first_record,
                },
            ) => {
                let mut lines = match parked {
                    _ if file.compression == Compression::None => {
                        let plain = bytes::open_range(&file.path, start, end)?;
                        Lines::new(Box::new(plain), start, first_record)
                    }
                    Some((parked, lines)) if parked == slice.file && lines.offset <= start => lines,
                    _ => Lines::new(Box::new(unpack()?), 0, 0),
                };
                lines.go_to(start, first_record, file, corpus)?;
                lines.end = end;
                Self::Lines(lines)
            }
            (Format::Parquet | Format::Arrow, range) => {
                let format = match file.format {
                    Format::Parquet => TableFormat::Parquet,
                    _ => TableFormat::Arrow,
                };
                let table = table.ok_or_else(misfit)?;
                let rows = tables::Rows::open(&file.path, format, table, range, options)?;
                Self::Table(Box::new(rows.ok_or_else(misfit)?))
            }
            (
                Format::Tokens(layout),
                SliceRange::Bytes {
                    start,
                    end,
                    first_record,
                },
            ) => Self::Tokens(Box::new(tokens::Documents::new(
                bytes::open_range(&file.path, start, end)?,
                layout,
                options.separator,
                options.num_ids,
                first_record,
            ))),
            (Format::Jsonl | Format::Tokens(_), _) => {
                return Err(misfit());
            }
        })
    }

    /// Where the next record starts in the unpacked file, where that is known.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::Lines(lines) => Some(lines.offset),
            Self::Tokens(documents) => Some(documents.offset()),
            Self::Text(_) | Self::Table(_) => None,
        }
    }

    /// The next record; `None` at the end of the slice.
    fn next(&mut self, file: &CorpusFile, corpus: &Corpus) -> Result<Option<Record>, Error> {
        let max_bytes = corpus.options.max_record_bytes;
        let too_long = |place| (place, RecordProblem::TooLong { max_bytes });
        match self {
            Self::Text(stream) => {
                let Some(stream) = stream.take() else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                stream
                    .take(max_bytes.saturating_add(1))
                    .read_to_end(&mut bytes)
                    .map_err(|error| corpus.read_error(file, error))?;
                let content = if bytes.len() as u64 > max_bytes {
                    Err(too_long(Place::File))
                } else {
                    text(bytes)
                };
                Ok(Some((0, content)))
            }
            Self::Lines(lines) => lines.next(file, corpus),
            Self::Table(rows) => rows.next(),
            Self::Tokens(documents) => {
                let record = documents
                    .next(max_bytes)
                    .map_err(|error| corpus.read_error(file, error))?;
                Ok(record.map(|(index, content)| {
                    let at = |problem| (Place::Document(index), problem);
                    (index, content.map_err(at))
                }))
            }
        }
    }
}

/// A whole file as text.
fn text(mut bytes: Vec<u8>) -> Result<Content, (Place, RecordProblem)> {
    let bom = leading_mark(&bytes);
    bytes.drain(..bom);
    String::from_utf8(bytes)
        .map(Content::Text)
        .map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..valid).unwrap_or_default();
            let newlines = before.iter().filter(|&&byte| byte == b'\n').count();
            let byte_offset = (bom + valid) as u64;
            (
                Place::TextLine(newlines as u64 + 1),
                RecordProblem::NotUtf8 { byte_offset },
            )
        })
}

/// Lines of a JSONL file.
struct Lines {
    stream: Box<dyn BufRead + Send>,
    /// Reused between lines.
    line: Vec<u8>,
    /// Where the next line starts in the unpacked file.
    offset: u64,
    /// Number of the next line, from 0.
    record: u64,
    /// Where the slice ends.
    end: u64,
}

impl Lines {
    fn new(stream: Box<dyn BufRead + Send>, offset: u64, record: u64) -> Self {
        Self {
            stream,
            line: Vec::new(),
            offset,
            record,
            end: u64::MAX,
        }
    }

    /// Leaves out what lies before a line.
    fn go_to(
        &mut self,
        offset: u64,
        record: u64,
        file: &CorpusFile,
        corpus: &Corpus,
    ) -> Result<(), Error> {
        let mut left = offset.saturating_sub(self.offset);
        while left > 0 {
            corpus.options.check_stop()?;
            let block = self
                .stream
                .fill_buf()
                .map_err(|error| corpus.read_error(file, error))?;
            if block.is_empty() {
                let early = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ends before a line that was there",
                );
                return Err(corpus.read_error(file, early));
            }
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            self.stream.consume(len);
            left -= len as u64;
        }
        self.offset = offset;
        self.record = record;
        Ok(())
    }

    fn next(&mut self, file: &CorpusFile, corpus: &Corpus) -> Result<Option<Record>, Error> {
        let max_bytes = corpus.options.max_record_bytes;
        let failed = |error| corpus.read_error(file, error);
        loop {
            if self.offset >= self.end {
                return Ok(None);
            }
            self.line.clear();
            let mut read = (&mut self.stream)
                .take(max_bytes.saturating_add(1))
                .read_until(b'\n', &mut self.line)
                .map_err(failed)? as u64;
            if read == 0 {
                return Ok(None);
            }
            let too_long = read > max_bytes && !self.line.ends_with(b"\n");
            if too_long {
                read += skip_line(&mut self.stream).map_err(failed)?;
            }
            let (start, record) = (self.offset, self.record);
            let line = record.saturating_add(1);
            self.offset = start.saturating_add(read);
            self.record = line;
            if too_long {
                self.line = Vec::new();
                let problem = RecordProblem::TooLong { max_bytes };
                return Ok(Some((record, Err((Place::Line(line), problem)))));
            }
            let bom = match start {
                0 => leading_mark(&self.line),
                _ => 0,
            };
            let json = self.line.get(bom..).unwrap_or_default();
            let content = match std::str::from_utf8(json) {
                Err(error) => Err(RecordProblem::NotUtf8 {
                    byte_offset: start.saturating_add((bom + error.valid_up_to()) as u64),
                }),
                Ok(json) if json.trim_ascii().is_empty() => continue,
                // Without its line end, a cut-off record is reported at its last column.
                Ok(json) => jsonl::content_of(
                    json.trim_end_matches(['\n', '\r']),
                    corpus.options.text_field.as_deref(),
                    corpus.options.num_ids,
                ),
            };
            let content = content.map_err(|problem| (Place::Line(line), problem));
            return Ok(Some((record, content)));
        }
    }
}

/// Leaves out the rest of a line, its end included; the bytes that were left out.
fn skip_line(stream: &mut dyn BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let block = stream.fill_buf()?;
        let newline = memchr::memchr(b'\n', block);
        let len = newline.map_or(block.len(), |at| at + 1);
        stream.consume(len);
        skipped += len as u64;
        if newline.is_some() || len == 0 {
            return Ok(skipped);
        }
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
