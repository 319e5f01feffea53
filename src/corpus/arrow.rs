//! Documents from a column of an Arrow IPC file, in the file or in the stream format.
//!
//! As with Parquet, every call into the parser is guarded: a panic becomes an error that names the
//! file.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, SchemaRef};

use super::amplify;
use super::columns::{self, Batch, Choice, Kind, NoColumn};
use super::compression::MAX_EXPANSION;
use super::parts::RowGroup;
use super::{Error, Place, RecordProblem};
use crate::fs;
use crate::guard::guarded;
use crate::types::Content;

/// What a file of the file format begins with.
const FILE_MAGIC: &[u8] = b"ARROW1";

/// What stands before the length of a message, except in old files.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Bytes that a buffer may unpack to, whatever its size.
const MAX_BUFFER_BYTES: u64 = 64 << 20;

/// Batches of a file, one after another.
struct Batches {
    path: PathBuf,
    choice: Choice,
    reader: Reader,
}

enum Reader {
    File(FileReader<BufReader<fs::File>>),
    Stream(StreamReader<BufReader<fs::File>>),
}

impl Batches {
    fn open(path: &Path, mut file: fs::File, field: Option<&str>) -> Result<Self, Error> {
        let io_error = |source| read_error(path, source);
        let is_file = is_file_format(&mut file).map_err(io_error)?;
        let mut open = |projection: Option<Vec<usize>>| -> Result<Reader, Error> {
            file.seek(SeekFrom::Start(0)).map_err(io_error)?;
            let source = BufReader::new(file.try_clone().map_err(io_error)?);
            parse(path, || {
                Ok(if is_file {
                    Reader::File(FileReader::try_new(source, projection)?)
                } else {
                    Reader::Stream(StreamReader::try_new(source, projection)?)
                })
            })
        };
        let schema = open(None)?.schema();
        let choice = columns::choose(&schema, field).map_err(|problem| match problem {
            NoColumn::Absent { field } => Error::NoColumn {
                path: path.to_owned(),
                field,
                columns: schema.fields().iter().map(|f| f.name().clone()).collect(),
            },
            NoColumn::OtherType { field, found } => Error::ColumnNotText {
                path: path.to_owned(),
                field,
                found,
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            reader: open(Some(choice.columns().collect()))?,
            choice,
        })
    }

    /// Leaves out batches.
    fn skip(&mut self, count: usize) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        if let Reader::File(reader) = &mut self.reader {
            return parse(&self.path, || reader.set_index(count));
        }
        for _ in 0..count {
            self.next()?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Batch>, Error> {
        let reader = &mut self.reader;
        let batch: Option<RecordBatch> = parse(&self.path, || {
            match reader {
                Reader::File(reader) => reader.next(),
                Reader::Stream(reader) => reader.next(),
            }
            .transpose()
        })?;
        let Some(batch) = batch else {
            return Ok(None);
        };
        match self.choice.of(&batch) {
            Some(batch) => Ok(Some(batch)),
            None => Err(Error::Arrow {
                path: self.path.clone(),
                reason: "a batch has other columns than the schema".to_owned(),
            }),
        }
    }
}

impl Reader {
    fn schema(&self) -> SchemaRef {
        match self {
            Self::File(reader) => reader.schema(),
            Self::Stream(reader) => reader.schema(),
        }
    }
}

fn read_error(path: &Path, source: io::Error) -> Error {
    Error::Io(fs::Error {
        operation: fs::Operation::Read,
        path: path.to_owned(),
        source,
    })
}

fn is_file_format(file: &mut fs::File) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let mut magic = [0; FILE_MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == FILE_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// A compressed buffer that claims to unpack to far more than its size.
struct Bomb {
    size_bytes: u64,
    claimed_bytes: u64,
}

/// The first bomb of a file.
///
/// The parser reserves what a buffer claims before it unpacks a byte of it, and a process whose
/// memory can't be reserved is ended. Anything else that is wrong here is left to the parser to find.
fn find_bomb(file: &mut fs::File) -> io::Result<Option<Bomb>> {
    let size_bytes = file.size_bytes()?;
    if is_file_format(file)? {
        for (at, body) in blocks(file, size_bytes)? {
            if let Some((_, Some(bomb))) = message(file, at, Some(body), size_bytes)? {
                return Ok(Some(bomb));
            }
        }
        return Ok(None);
    }
    let mut at = 0;
    while let Some((end, bomb)) = message(file, at, None, size_bytes)? {
        if bomb.is_some() {
            return Ok(bomb);
        }
        at = end;
    }
    Ok(None)
}

/// Where the footer says that the metadata and the bodies of messages begin.
fn blocks(file: &fs::File, size_bytes: u64) -> io::Result<Vec<(u64, u64)>> {
    let trailer = size_bytes.saturating_sub(4 + FILE_MAGIC.len() as u64);
    let len = number_at::<4>(file, trailer, size_bytes)?.map_or(0, u32::from_le_bytes);
    let Some(start) = trailer.checked_sub(u64::from(len)) else {
        return Ok(Vec::new());
    };
    let footer = file.read_range(start..trailer)?;
    let Ok(footer) = arrow_ipc::root_as_footer(&footer) else {
        return Ok(Vec::new());
    };
    let all = [footer.dictionaries(), footer.recordBatches()];
    let blocks = all.into_iter().flatten().flatten();
    Ok(blocks
        .filter_map(|block| {
            let at = u64::try_from(block.offset()).ok()?;
            let metadata = u64::try_from(block.metaDataLength()).ok()?;
            Some((at, at.checked_add(metadata)?))
        })
        .collect())
}

/// Where the message at `at` ends, and a buffer of it that claims too much; `None` without a message.
/// The body begins at `body`, or else where the message says.
fn message(
    file: &fs::File,
    at: u64,
    body: Option<u64>,
    size_bytes: u64,
) -> io::Result<Option<(u64, Option<Bomb>)>> {
    let Some(mut length) = number_at::<4>(file, at, size_bytes)? else {
        return Ok(None);
    };
    let mut start = at + 4;
    if length == CONTINUATION {
        let Some(next) = number_at::<4>(file, start, size_bytes)? else {
            return Ok(None);
        };
        length = next;
        start += 4;
    }
    let metadata_end = start + u64::from(u32::from_le_bytes(length));
    // The parser goes by the footer, if there is one, for the body only.
    let end = body.unwrap_or(0).max(metadata_end).min(size_bytes);
    let body = body.unwrap_or(metadata_end);
    if end == start || body > size_bytes {
        return Ok(None);
    }
    let metadata = file.read_range(start..end)?;
    let Ok(message) = arrow_ipc::root_as_message(&metadata) else {
        return Ok(None);
    };
    let within = |offset: i64| u64::try_from(offset).map_or(size_bytes, |n| body.saturating_add(n));
    let batch = message.header_as_record_batch().or_else(|| {
        let dictionary = message.header_as_dictionary_batch()?;
        dictionary.data()
    });
    let compressed = batch.filter(|batch| batch.compression().is_some());
    let buffers = compressed.and_then(|batch| batch.buffers());
    for buffer in buffers.into_iter().flatten() {
        let Some(claim) = number_at::<8>(file, within(buffer.offset()), size_bytes)? else {
            continue;
        };
        // A negative length is that of a buffer that is not compressed, or no length at all.
        let claim = u64::try_from(i64::from_le_bytes(claim)).unwrap_or(0);
        let length = u64::try_from(buffer.length()).unwrap_or(0);
        if claim > MAX_BUFFER_BYTES && claim / MAX_EXPANSION > length {
            let bomb = Bomb {
                size_bytes: length,
                claimed_bytes: claim,
            };
            return Ok(Some((size_bytes, Some(bomb))));
        }
    }
    Ok(Some((within(message.bodyLength()), None)))
}

/// Bytes at a place of the file; `None` beyond its end.
fn number_at<const N: usize>(
    file: &fs::File,
    at: u64,
    size_bytes: u64,
) -> io::Result<Option<[u8; N]>> {
    let end = at.saturating_add(N as u64);
    if end > size_bytes {
        return Ok(None);
    }
    let bytes = file.read_range(at..end)?;
    Ok(bytes.first_chunk().copied())
}

/// Says how many rows and bytes each batch has in the column of the documents.
pub(super) fn batches(
    path: &Path,
    mut file: fs::File,
    field: Option<&str>,
) -> Result<(Kind, Vec<RowGroup>), Error> {
    let bomb = parse(path, || find_bomb(&mut file).map_err(Into::into))?;
    if let Some(Bomb {
        size_bytes,
        claimed_bytes,
    }) = bomb
    {
        return Err(Error::Arrow {
            path: path.to_owned(),
            reason: format!(
                "a buffer of {size_bytes} bytes is said to unpack to {claimed_bytes}, more than {MAX_EXPANSION} \
                 times its size"
            ),
        });
    }
    let size_bytes = file.size_bytes().unwrap_or(0);
    let mut batches = Batches::open(path, file, field)?;
    let mut groups = Vec::new();
    let (mut bytes, mut num_rows) = (0_u64, 0_u64);
    while let Some(batch) = batches.next()? {
        let shared = batch.arrays().map(amplify::shared_bytes);
        bytes = shared.fold(bytes, u64::saturating_add);
        num_rows = num_rows.saturating_add(batch.len() as u64);
        let amplified = amplify::too_many_bytes(size_bytes, bytes)
            .or_else(|| amplify::too_many_values(size_bytes, num_rows));
        if let Some(reason) = amplified {
            return Err(Error::Arrow {
                path: path.to_owned(),
                reason,
            });
        }
        groups.push(RowGroup {
            num_rows: batch.len() as u64,
            text_bytes: batch.size_bytes(),
        });
    }
    Ok((batches.choice.kind, groups))
}

/// Rows of consecutive batches.
pub(super) struct Rows {
    batches: Batches,
    num_ids: u64,
    batch: Option<Batch>,
    next_in_batch: usize,
    /// Number of the next row in the file.
    row: u64,
    end_row: u64,
}

impl Rows {
    /// Goes to the batches from `first_batch` on, whose first row has the number `first_row`.
    pub(super) fn open(
        path: &Path,
        file: fs::File,
        field: Option<&str>,
        first_batch: usize,
        first_row: u64,
        num_rows: u64,
        num_ids: u64,
    ) -> Result<Self, Error> {
        let mut batches = Batches::open(path, file, field)?;
        batches.skip(first_batch)?;
        Ok(Self {
            batches,
            num_ids,
            batch: None,
            next_in_batch: 0,
            row: first_row,
            end_row: first_row.saturating_add(num_rows),
        })
    }

    /// The next row's number and content; `None` after the last.
    #[expect(clippy::type_complexity, reason = "a record, or what is wrong with it")]
    pub(super) fn next(
        &mut self,
    ) -> Result<Option<(u64, Result<Content, (Place, RecordProblem)>)>, Error> {
        while self.row < self.end_row {
            if let Some(batch) = &self.batch
                && self.next_in_batch < batch.len()
            {
                let row = self.row;
                let content = batch
                    .content(self.next_in_batch, &self.batches.choice, self.num_ids)
                    .map_err(|problem| (Place::Row(row), problem));
                self.next_in_batch += 1;
                self.row += 1;
                return Ok(Some((row, content)));
            }
            let Some(batch) = self.batches.next()? else {
                return Err(Error::Arrow {
                    path: self.batches.path.clone(),
                    reason: format!(
                        "it had {} rows up to the end of a batch, and now has {}",
                        self.end_row, self.row
                    ),
                });
            };
            self.batch = Some(batch);
            self.next_in_batch = 0;
        }
        Ok(None)
    }
}

fn parse<T>(path: &Path, step: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, Error> {
    let failed = |reason| Error::Arrow {
        path: path.to_owned(),
        reason,
    };
    guarded(step).map_err(failed)?.map_err(|error| match error {
        ArrowError::IoError(_, source) if fs::is_of_system(&source) => Error::Io(fs::Error {
            operation: fs::Operation::Read,
            path: path.to_owned(),
            source,
        }),
        other => failed(other.to_string()),
    })
}
