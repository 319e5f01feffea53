//! Tables, parsed in a process of their own.
//!
//! The readers of [`parquet`](super::parquet) and [`arrow`](super::arrow) run there, on bytes that this process reads
//! for them; see [`process`](crate::guard::process). Here they look as if they ran here. Documents come over in
//! pieces of about a mebibyte.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::columns::Kind;
use super::options::CorpusOptions;
use super::parts::{RowGroup, SliceRange};
use super::{Error, Place, RecordProblem, amplify, arrow, parquet};
use crate::fs;
use crate::guard::guarded;
use crate::guard::process::{self, Death, Failure, Session, Source, Task};
use crate::types::{Content, TokenId};

/// Bytes of documents that come over in one piece.
const PIECE_BYTES: usize = 1 << 20;

/// Documents that come over in one piece, however short they are.
const PIECE_RECORDS: usize = 4096;

/// How a process parses a table.
pub const TABLES: process::Kind = process::Kind {
    id: 1,
    start: |source| {
        Box::new(TableTask {
            source,
            rows: None,
            bytes: 0,
            failed: None,
        })
    },
};

/// What a table is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TableFormat {
    Parquet,
    Arrow,
}

/// A record's number and content, or where it is and what is wrong with it.
type Record = (u64, Result<Content, (Place, RecordProblem)>);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Look {
        format: TableFormat,
        field: Option<String>,
    },
    Rows {
        format: TableFormat,
        field: Option<String>,
        start: usize,
        end: usize,
        first_record: u64,
        num_records: u64,
        num_ids: u64,
        max_record_bytes: u64,
    },
    Next,
}

/// What is wrong with a table, as it is told between the processes: an [`Error`] without the path.
#[derive(Debug, Serialize, Deserialize)]
enum Refusal {
    NoColumn { field: String, columns: Vec<String> },
    ColumnNotText { field: String, found: String },
    Codec { field: String, codec: String },
    Parquet(String),
    DamagedParquet(String),
    Arrow(String),
}

impl Refusal {
    fn of(error: Error, format: TableFormat) -> Self {
        match error {
            Error::NoColumn { field, columns, .. } => Self::NoColumn { field, columns },
            Error::ColumnNotText { field, found, .. } => Self::ColumnNotText { field, found },
            Error::Codec { field, codec, .. } => Self::Codec { field, codec },
            Error::Parquet { reason, .. } => Self::Parquet(reason),
            Error::DamagedParquet { reason, .. } => Self::DamagedParquet(reason),
            Error::Arrow { reason, .. } => Self::Arrow(reason),
            Error::Io(error) => Self::damaged(format, error.source.to_string()),
            other => Self::damaged(format, other.to_string()),
        }
    }

    fn damaged(format: TableFormat, reason: String) -> Self {
        match format {
            TableFormat::Parquet => Self::DamagedParquet(reason),
            TableFormat::Arrow => Self::Arrow(reason),
        }
    }

    fn into_error(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::NoColumn { field, columns } => Error::NoColumn {
                path,
                field,
                columns,
            },
            Self::ColumnNotText { field, found } => Error::ColumnNotText { path, field, found },
            Self::Codec { field, codec } => Error::Codec { path, field, codec },
            Self::Parquet(reason) => Error::Parquet { path, reason },
            Self::DamagedParquet(reason) => Error::DamagedParquet { path, reason },
            Self::Arrow(reason) => Error::Arrow { path, reason },
        }
    }
}

// ---------------------------------------------------------------- the process that asks

/// An open file, as it is served to the other process.
struct Served(fs::File);

impl Source for Served {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes().unwrap_or(0)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.0.read_range(range).map(Vec::from)
    }
}

/// A table in another process.
struct Table {
    path: PathBuf,
    format: TableFormat,
    session: Session,
}

impl Table {
    fn open(path: &Path, format: TableFormat, file: fs::File) -> Result<Self, Error> {
        let session = Session::open(TABLES, Arc::new(Served(file)));
        Ok(Self {
            path: path.to_owned(),
            format,
            session: session.map_err(|failure| error_of(path, format, failure))?,
        })
    }

    fn call(&mut self, request: &Request) -> Result<Vec<u8>, Error> {
        let request = serde_json::to_vec(request).unwrap_or_default();
        self.session
            .call(&request)
            .map_err(|failure| error_of(&self.path, self.format, failure))
    }

    fn garbled(&self) -> Error {
        let reason = "the parser gave an answer that is none".to_owned();
        Refusal::damaged(self.format, reason).into_error(&self.path)
    }
}

fn error_of(path: &Path, format: TableFormat, failure: Failure) -> Error {
    let io_error = |operation, source| {
        Error::Io(fs::Error {
            operation,
            path: path.to_owned(),
            source,
        })
    };
    match failure {
        Failure::Source(source) => io_error(fs::Operation::Read, source),
        Failure::Start(source) => io_error(fs::Operation::StartParser, source),
        Failure::Refused(refusal) => match serde_json::from_slice::<Refusal>(&refusal) {
            Ok(refusal) => refusal.into_error(path),
            Err(error) => Refusal::damaged(format, error.to_string()).into_error(path),
        },
        Failure::Died(death) => {
            let hint = match death {
                Death::Memory { .. } => {
                    "; write it again with smaller pages and row groups, or batches, if it is meant to be so"
                }
                _ => "",
            };
            Refusal::damaged(format, format!("{death}{hint}")).into_error(path)
        }
    }
}

/// Checks the column of the documents and says how many rows and bytes of them each row group or batch has.
pub(super) fn row_groups(
    path: &Path,
    format: TableFormat,
    file: fs::File,
    field: Option<&str>,
) -> Result<(Kind, Vec<RowGroup>), Error> {
    let mut table = Table::open(path, format, file)?;
    let answer = table.call(&Request::Look {
        format,
        field: field.map(str::to_owned),
    })?;
    let (kind, groups): (Kind, Vec<(u64, u64)>) =
        serde_json::from_slice(&answer).map_err(|_| table.garbled())?;
    let groups = groups.into_iter().map(|(num_rows, text_bytes)| RowGroup {
        num_rows,
        text_bytes,
    });
    Ok((kind, groups.collect()))
}

/// Rows of consecutive row groups or batches.
pub(super) struct Rows {
    table: Table,
    waiting: VecDeque<Record>,
    is_last: bool,
}

impl Rows {
    /// Goes to the row groups of a slice; `None` where it is one of another kind of file.
    pub(super) fn open(
        path: &Path,
        format: TableFormat,
        file: fs::File,
        range: SliceRange,
        options: &CorpusOptions,
    ) -> Result<Option<Self>, Error> {
        let SliceRange::RowGroups {
            start,
            end,
            first_record,
            num_records,
        } = range
        else {
            return Ok(None);
        };
        let mut table = Table::open(path, format, file)?;
        table.call(&Request::Rows {
            format,
            field: options.text_field.clone(),
            start,
            end,
            first_record,
            num_records,
            num_ids: options.num_ids,
            max_record_bytes: options.max_record_bytes,
        })?;
        Ok(Some(Self {
            table,
            waiting: VecDeque::new(),
            is_last: false,
        }))
    }

    /// The next row's number and content; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Error> {
        while self.waiting.is_empty() && !self.is_last {
            let answer = self.table.call(&Request::Next)?;
            if self.decode(&answer).is_none() {
                return Err(self.table.garbled());
            }
        }
        Ok(self.waiting.pop_front())
    }

    fn decode(&mut self, answer: &[u8]) -> Option<()> {
        let mut answer = Answer(answer);
        loop {
            let tag = answer.take(1)?.first().copied()?;
            if tag == LAST || tag == MORE {
                self.is_last = tag == LAST;
                return answer.0.is_empty().then_some(());
            }
            let (row, len) = (answer.number()?, usize::try_from(answer.number()?).ok()?);
            let bytes = answer.take(len)?;
            let content = match tag {
                BAD => Err((
                    Place::Row(row),
                    RecordProblem::Told {
                        reason: String::from_utf8(bytes.to_vec()).ok()?,
                    },
                )),
                tag => Ok(decode_content(tag, bytes)?),
            };
            self.waiting.push_back((row, content));
        }
    }
}

const TEXT: u8 = b't';
const IDS: u8 = b'i';
/// Ids with a mask, one byte for each after all of them.
const MASKED_IDS: u8 = b'x';
const MESSAGES: u8 = b'c';
/// Messages with tools, after the length of the messages.
const MESSAGES_WITH_TOOLS: u8 = b'd';
const BAD: u8 = b'b';
/// There are more rows.
const MORE: u8 = b'm';
/// That was the last row.
const LAST: u8 = b'l';

fn decode_content(tag: u8, bytes: &[u8]) -> Option<Content> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let ids = |bytes: &[u8]| {
        let ids = bytes.as_chunks().0.iter();
        ids.map(|id| TokenId::from_le_bytes(*id)).collect()
    };
    Some(match tag {
        TEXT => Content::Text(text(bytes)?),
        IDS => Content::Ids {
            ids: ids(bytes),
            loss_mask: None,
        },
        MASKED_IDS => {
            let (id_bytes, mask) = bytes.split_at_checked(bytes.len() / 5 * 4)?;
            Content::Ids {
                ids: ids(id_bytes),
                loss_mask: Some(mask.iter().map(|byte| *byte != 0).collect()),
            }
        }
        MESSAGES => Content::Messages {
            messages: text(bytes)?,
            tools: None,
        },
        MESSAGES_WITH_TOOLS => {
            let mut rest = Answer(bytes);
            let len = usize::try_from(rest.number()?).ok()?;
            Content::Messages {
                messages: text(rest.take(len)?)?,
                tools: Some(text(rest.0)?),
            }
        }
        _ => return None,
    })
}

struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes))
    }
}

// ---------------------------------------------------------------- the process that parses

/// Bytes that the process that asks has.
struct Asked(Arc<dyn Source>);

impl fs::ReadAt for Asked {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.0.read(range).map(Bytes::from)
    }
}

enum FormatRows {
    Parquet(Box<parquet::Rows>),
    Arrow(Box<arrow::Rows>),
}

struct OpenRows {
    rows: FormatRows,
    format: TableFormat,
    max_record_bytes: u64,
}

struct TableTask {
    source: Arc<dyn Source>,
    rows: Option<OpenRows>,
    /// Of all documents so far.
    bytes: u64,
    /// What is to be told after the documents before it.
    failed: Option<Refusal>,
}

impl Task for TableTask {
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let outcome = match serde_json::from_slice(request) {
            Ok(request) => guarded(|| self.answer(request)).unwrap_or_else(|reason| {
                let format = self.rows.take().map(|rows| rows.format);
                let format = format.unwrap_or(TableFormat::Parquet);
                Err(Refusal::damaged(format, reason))
            }),
            Err(error) => Err(Refusal::DamagedParquet(error.to_string())),
        };
        outcome.map_err(|refusal| serde_json::to_vec(&refusal).unwrap_or_default())
    }
}

impl TableTask {
    /// The file, under no name: who asks knows it.
    fn file(&self) -> fs::File {
        let asked = Asked(Arc::clone(&self.source));
        fs::File::served(Path::new(""), Box::new(asked))
    }

    fn answer(&mut self, request: Request) -> Result<Vec<u8>, Refusal> {
        let path = Path::new("");
        match request {
            Request::Look { format, field } => {
                let field = field.as_deref();
                let groups = match format {
                    TableFormat::Parquet => parquet::row_groups(path, &self.file(), field),
                    TableFormat::Arrow => arrow::batches(path, self.file(), field),
                }
                .map_err(|error| Refusal::of(error, format))?;
                let (kind, groups) = groups;
                let groups: Vec<(u64, u64)> = groups
                    .iter()
                    .map(|group| (group.num_rows, group.text_bytes))
                    .collect();
                serde_json::to_vec(&(kind, groups))
                    .map_err(|error| Refusal::damaged(format, error.to_string()))
            }
            Request::Rows {
                format,
                field,
                start,
                end,
                first_record,
                num_records,
                num_ids,
                max_record_bytes,
            } => {
                let (file, field) = (self.file(), field.as_deref());
                let rows = match format {
                    TableFormat::Parquet => parquet::Rows::open(
                        path,
                        file,
                        field,
                        start..end,
                        first_record,
                        num_records,
                        num_ids,
                    )
                    .map(|rows| FormatRows::Parquet(Box::new(rows))),
                    TableFormat::Arrow => arrow::Rows::open(
                        path,
                        file,
                        field,
                        start,
                        first_record,
                        num_records,
                        num_ids,
                    )
                    .map(|rows| FormatRows::Arrow(Box::new(rows))),
                };
                self.rows = Some(OpenRows {
                    rows: rows.map_err(|error| Refusal::of(error, format))?,
                    format,
                    max_record_bytes,
                });
                Ok(Vec::new())
            }
            Request::Next => self.next(),
        }
    }

    fn next(&mut self) -> Result<Vec<u8>, Refusal> {
        if let Some(refusal) = self.failed.take() {
            return Err(refusal);
        }
        let mut answer = Vec::new();
        let Some(OpenRows {
            rows,
            format,
            max_record_bytes,
        }) = &mut self.rows
        else {
            return Ok(vec![LAST]);
        };
        for _ in 0..PIECE_RECORDS {
            let next = match rows {
                FormatRows::Parquet(rows) => rows.next(),
                FormatRows::Arrow(rows) => rows.next(),
            };
            let refusal = match next {
                Ok(Some((row, content))) => {
                    let content_bytes = content.as_ref().map_or(0, Content::size_bytes);
                    self.bytes = self.bytes.saturating_add(content_bytes as u64);
                    let amplified = amplify::too_many_bytes(self.source.size_bytes(), self.bytes);
                    if amplified.is_none() {
                        encode(&mut answer, row, content, *max_record_bytes);
                    }
                    amplified.map(|reason| Refusal::damaged(*format, reason))
                }
                Ok(None) => {
                    answer.push(LAST);
                    return Ok(answer);
                }
                Err(error) => Some(Refusal::of(error, *format)),
            };
            match refusal {
                Some(refusal) if answer.is_empty() => return Err(refusal),
                Some(_) => {
                    self.failed = refusal;
                    break;
                }
                None if answer.len() >= PIECE_BYTES => break,
                None => {}
            }
        }
        answer.push(MORE);
        Ok(answer)
    }
}

fn encode(
    answer: &mut Vec<u8>,
    row: u64,
    content: Result<Content, (Place, RecordProblem)>,
    max_record_bytes: u64,
) {
    let content = content.and_then(|content| {
        let problem = RecordProblem::TooLong {
            max_bytes: max_record_bytes,
        };
        match content.size_bytes() as u64 > max_record_bytes {
            true => Err((Place::Row(row), problem)),
            false => Ok(content),
        }
    });
    let (tag, bytes) = match content {
        Ok(Content::Text(text)) => (TEXT, text.into_bytes()),
        Ok(Content::Ids { ids, loss_mask }) => {
            let mut bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let tag = match &loss_mask {
                Some(_) => MASKED_IDS,
                None => IDS,
            };
            bytes.extend(loss_mask.into_iter().flatten().map(u8::from));
            (tag, bytes)
        }
        Ok(Content::Messages {
            messages,
            tools: None,
        }) => (MESSAGES, messages.into_bytes()),
        Ok(Content::Messages {
            messages,
            tools: Some(tools),
        }) => {
            let mut bytes = (messages.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(messages.as_bytes());
            bytes.extend_from_slice(tools.as_bytes());
            (MESSAGES_WITH_TOOLS, bytes)
        }
        Err((_, problem)) => (BAD, problem.to_string().into_bytes()),
    };
    answer.push(tag);
    answer.extend(row.to_le_bytes());
    answer.extend((bytes.len() as u64).to_le_bytes());
    answer.extend_from_slice(&bytes);
}
