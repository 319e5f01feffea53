//! Documents from a column of a Parquet file: strings, or lists of token ids.
//!
//! The parser is not written for hostile files and panics on some damaged ones, so every call into
//! it is guarded and a panic becomes an error that names the file.

use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use ::parquet::basic::Compression;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

use super::amplify::{self, Suspicion};
use super::columns::{self, Batch, Choice, Kind, NoColumn};
use super::compression::MAX_EXPANSION;
use super::parts::RowGroup;
use super::{Error, Place, RecordProblem};
use crate::fs;
use crate::guard::guarded;
use crate::guard::parquet::check_metadata;
use crate::types::Content;

/// Most rows that are decoded at a time.
const MAX_BATCH_ROWS: u64 = 64;

/// Bytes that are decoded at a time, as far as the footer tells how long rows are.
const BATCH_BYTES: u64 = 8 << 20;

/// Bytes that a row group may unpack to, whatever its size.
const MAX_ROW_GROUP_BYTES: u64 = 64 << 20;

/// Rows of consecutive row groups.
pub(super) struct Rows {
    path: PathBuf,
    choice: Choice,
    reader: ParquetRecordBatchReader,
    failure: fs::Failure,
    num_ids: u64,
    batch: Option<Batch>,
    next_in_batch: usize,
    /// Number of the next row in the file.
    row: u64,
    end_row: u64,
}

impl Rows {
    /// Goes to the row groups `start..end`, whose first row has the number `first_row`.
    pub(super) fn open(
        path: &Path,
        file: fs::File,
        field: Option<&str>,
        row_groups: std::ops::Range<usize>,
        first_row: u64,
        num_rows: u64,
        num_ids: u64,
    ) -> Result<Self, Error> {
        let failure = file.failure();
        let metadata = load(path, &file)?;
        let choice = choose(path, &metadata, field)?;
        let bytes = metadata
            .metadata()
            .row_groups()
            .get(row_groups.clone())
            .unwrap_or_default()
            .iter()
            .fold(0, |sum: u64, group| {
                let (bytes, _) = column_bytes(group, |leaf| choice.reads(leaf).0);
                sum.saturating_add(bytes)
            });
        let rows = BATCH_BYTES / (bytes / num_rows.max(1)).max(1);
        let batch_rows = usize::try_from(rows.clamp(1, MAX_BATCH_ROWS)).unwrap_or(1);
        let reader = guarded_at(path, || {
            let schema = metadata.parquet_schema();
            let leaves = schema.columns().iter().enumerate();
            let leaves = leaves.filter(|(_, leaf)| choice.reads(leaf.path().parts()).0);
            let mask = ProjectionMask::leaves(schema, leaves.map(|(index, _)| index));
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                .with_projection(mask)
                .with_row_groups(row_groups.collect())
                .with_batch_size(batch_rows)
                .build()
        })?
        .map_err(|source| unreadable(path, &failure, || not_parquet(path, source)))?;
        Ok(Self {
            path: path.to_owned(),
            choice,
            num_ids,
            reader,
            failure,
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
        loop {
            if let Some(batch) = &self.batch
                && self.next_in_batch < batch.len()
            {
                let row = self.row;
                let content = batch
                    .content(self.next_in_batch, &self.choice, self.num_ids)
                    .map_err(|problem| (Place::Row(row), problem));
                self.next_in_batch += 1;
                self.row += 1;
                return Ok(Some((row, content)));
            }
            if !self.next_batch()? {
                return Ok(None);
            }
        }
    }

    /// Decodes the next batch; `false` at the end.
    fn next_batch(&mut self) -> Result<bool, Error> {
        let path = &self.path;
        let reader = &mut self.reader;
        let batch = guarded_at(path, || reader.next().transpose())?.map_err(|error| {
            unreadable(path, &self.failure, || damaged(path, error.to_string()))
        })?;
        let batch = batch.filter(|batch| batch.num_rows() > 0);
        let decoded = batch.as_ref().map_or(0, |batch| batch.num_rows() as u64);
        let missing = self.end_row.saturating_sub(self.row);
        if decoded > missing || (batch.is_none() && missing > 0) {
            return Err(damaged(
                path,
                format!(
                    "its footer promises {} rows up to the end of a row group, and {} are there",
                    self.end_row,
                    self.row + decoded
                ),
            ));
        }
        let Some(batch) = batch else {
            return Ok(false);
        };
        let Some(batch) = self.choice.of(&batch) else {
            return Err(damaged(
                path,
                "it has other columns than its footer".to_owned(),
            ));
        };
        self.batch = Some(batch);
        self.next_in_batch = 0;
        Ok(true)
    }
}

/// Checks the column of the documents and says how many rows and bytes of them each row group has.
pub(super) fn row_groups(
    path: &Path,
    file: &fs::File,
    field: Option<&str>,
) -> Result<(Kind, Vec<RowGroup>), Error> {
    let metadata = load(path, file)?;
    let choice = choose(path, &metadata, field)?;
    let mut groups = Vec::new();
    for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
        let num_rows = u64::try_from(group.num_rows()).map_err(|_| {
            damaged(
                path,
                format!("row group {index} has {} rows", group.num_rows()),
            )
        })?;
        if let Some((field, codec)) = unsupported_codec(group, &choice) {
            return Err(Error::Codec {
                path: path.to_owned(),
                field,
                codec,
            });
        }
        let (bytes, stored_bytes) = column_bytes(group, |leaf| choice.reads(leaf).0);
        if bytes > MAX_ROW_GROUP_BYTES && bytes / MAX_EXPANSION > stored_bytes {
            return Err(damaged(
                path,
                format!(
                    "row group {index} unpacks to more than {MAX_EXPANSION} times its size, {bytes} bytes"
                ),
            ));
        }
        let (text_bytes, _) = column_bytes(group, |leaf| choice.reads(leaf).1);
        groups.push(RowGroup {
            num_rows,
            text_bytes,
        });
    }
    refuse_amplified(path, file, &metadata, &choice, &groups)?;
    Ok((choice.kind, groups))
}

/// Refuses a file whose documents come to far more than its size.
fn refuse_amplified(
    path: &Path,
    file: &fs::File,
    metadata: &ArrowReaderMetadata,
    choice: &Choice,
    groups: &[RowGroup],
) -> Result<(), Error> {
    let is_read = |leaf: &[String]| choice.reads(leaf).0;
    let suspicion = guarded_at(path, || {
        amplify::suspicion(file, metadata.metadata(), is_read)
    })?;
    match suspicion.map_err(|reason| damaged(path, reason))? {
        Suspicion::None => return Ok(()),
        Suspicion::Certain(reason) => return Err(damaged(path, reason)),
        Suspicion::Count => {}
    }
    let again = file
        .try_clone()
        .map_err(|error| damaged(path, error.to_string()))?;
    let num_rows = groups.iter().map(|group| group.num_rows).sum();
    let (field, all) = (Some(choice.field.as_str()), 0..groups.len());
    let mut rows = Rows::open(path, again, field, all, 0, num_rows, 1 << 32)?;
    let size_bytes = file.size_bytes().unwrap_or(0);
    let mut bytes = 0_u64;
    while let Some((_, content)) = rows.next()? {
        bytes = bytes.saturating_add(content.map_or(0, |content| content.size_bytes() as u64));
        if let Some(reason) = amplify::too_many_bytes(size_bytes, bytes) {
            return Err(damaged(path, reason));
        }
    }
    Ok(())
}

/// The name and the codec of a column that is read of a row group, if this build has none of that name. The parser
/// would find out when it reads the first page, and call the file damaged.
fn unsupported_codec(group: &RowGroupMetaData, choice: &Choice) -> Option<(String, String)> {
    let mut columns = group.columns().iter();
    columns.find_map(|column| {
        let names = column.column_path().parts();
        if !choice.reads(names).0 {
            return None;
        }
        match column.compression() {
            Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::LZ4
            | Compression::LZ4_RAW
            | Compression::ZSTD(_) => None,
            other => {
                let name = other.to_string();
                let end = name.find('(').unwrap_or(name.len());
                let codec = name.get(..end).map(str::to_lowercase)?;
                Some((names.first()?.clone(), codec))
            }
        }
    })
}

/// Bytes of some columns in a row group, unpacked and as stored.
fn column_bytes(group: &RowGroupMetaData, is_one: impl Fn(&[String]) -> bool) -> (u64, u64) {
    let bytes = |size: i64| u64::try_from(size).unwrap_or(0);
    let columns = group.columns().iter();
    columns
        .filter(|column| is_one(column.column_path().parts()))
        .fold((0, 0), |(unpacked, stored): (u64, u64), column| {
            (
                unpacked.saturating_add(bytes(column.uncompressed_size())),
                stored.saturating_add(bytes(column.compressed_size())),
            )
        })
}

/// Reads the footer. The Arrow schema that a writer may have embedded is left aside, so that
/// every string column, whatever its Arrow type was, comes back as one type.
fn load(path: &Path, file: &fs::File) -> Result<ArrowReaderMetadata, Error> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    check_depth(path, file)?;
    guarded_at(path, || ArrowReaderMetadata::load(file, options))?
        .map_err(|source| unreadable(path, &file.failure(), || not_parquet(path, source)))
}

/// Refuses a schema that the parser would recurse into without end.
fn check_depth(path: &Path, file: &fs::File) -> Result<(), Error> {
    let Ok(size_bytes) = file.size_bytes() else {
        return Ok(());
    };
    let read = |range| {
        file.read_range(range).map_err(|source| {
            unreadable(path, &file.failure(), || damaged(path, source.to_string()))
        })
    };
    // What is no file at all, or is encrypted, the parser finds out by itself.
    let Some(trailer) = size_bytes.checked_sub(8) else {
        return Ok(());
    };
    let end = read(trailer..size_bytes)?;
    let len = end.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
    match trailer.checked_sub(u64::from(len)) {
        Some(start) if end.ends_with(b"PAR1") => {
            check_metadata(&read(start..trailer)?).map_err(|reason| damaged(path, reason))
        }
        _ => Ok(()),
    }
}

/// The columns that are read.
fn choose(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    field: Option<&str>,
) -> Result<Choice, Error> {
    let roots = metadata.parquet_schema().root_schema().get_fields();
    columns::choose(metadata.schema(), field).map_err(|problem| match problem {
        NoColumn::Absent { field } => Error::NoColumn {
            path: path.to_owned(),
            field,
            columns: roots.iter().map(|root| root.name().to_owned()).collect(),
        },
        NoColumn::OtherType { field, found } => Error::ColumnNotText {
            path: path.to_owned(),
            field,
            found,
        },
    })
}

fn not_parquet(path: &Path, source: ParquetError) -> Error {
    Error::Parquet {
        path: path.to_owned(),
        reason: source.to_string(),
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::DamagedParquet {
        path: path.to_owned(),
        reason,
    }
}

fn guarded_at<T>(path: &Path, call: impl FnOnce() -> T) -> Result<T, Error> {
    guarded(call).map_err(|reason| damaged(path, reason))
}

/// What the parser says, or the operating system's error behind it, which the parser only quotes.
fn unreadable(path: &Path, failure: &fs::Failure, or: impl FnOnce() -> Error) -> Error {
    match failure.take() {
        Some(source) => Error::Io(fs::Error {
            operation: fs::Operation::Read,
            path: path.to_owned(),
            source,
        }),
        None => or(),
    }
}

impl Length for fs::File {
    fn len(&self) -> u64 {
        self.size_bytes().unwrap_or(0)
    }
}

impl ChunkReader for fs::File {
    type T = BufReader<Self>;

    fn get_read(&self, start: u64) -> ::parquet::errors::Result<Self::T> {
        let mut file = self.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ::parquet::errors::Result<Bytes> {
        Ok(self.read_range(start..start.saturating_add(length as u64))?)
    }
}
