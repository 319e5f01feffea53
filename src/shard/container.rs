//! Parquet and Arrow files as groups of rows. Every call into the parsers may panic, and is to be
//! guarded.

use std::collections::HashMap;
use std::io::Cursor;

use arrow_array::RecordBatch;
use arrow_ipc::reader::FileReader;
use arrow_schema::{ArrowError, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

use super::schema::{BATCH_ROWS_KEY, ShardFormat};

/// Rows decoded at a time, where the format leaves the choice.
const BATCH_ROWS: usize = 1024;

/// A parsed footer.
#[derive(Debug)]
pub(super) enum Container {
    Parquet(ArrowReaderMetadata),
    Arrow {
        schema: SchemaRef,
        metadata: HashMap<String, String>,
        num_batches: usize,
    },
}

/// The batches of a row group.
pub(super) enum Batches {
    Parquet(Box<ParquetRecordBatchReader>),
    Arrow(Option<Box<FileReader<Cursor<Bytes>>>>),
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Parquet(reader) => reader.next(),
            // It stands before the batch that was asked for.
            Self::Arrow(reader) => reader.take()?.next(),
        }
    }
}

impl Container {
    pub(super) fn parse(format: ShardFormat, bytes: &Bytes) -> Result<Self, String> {
        match format {
            ShardFormat::Parquet => ArrowReaderMetadata::load(bytes, ArrowReaderOptions::new())
                .map(Self::Parquet)
                .map_err(|error| error.to_string()),
            ShardFormat::Arrow => {
                let reader = FileReader::try_new(Cursor::new(bytes.clone()), None)
                    .map_err(|error| error.to_string())?;
                Ok(Self::Arrow {
                    schema: reader.schema(),
                    metadata: reader.custom_metadata().clone(),
                    num_batches: reader.num_batches(),
                })
            }
        }
    }

    pub(super) fn schema(&self) -> &Schema {
        match self {
            Self::Parquet(metadata) => metadata.schema(),
            Self::Arrow { schema, .. } => schema,
        }
    }

    /// A value of the footer's metadata.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        match self {
            Self::Parquet(metadata) => {
                let entries = metadata.metadata().file_metadata().key_value_metadata();
                let mut entries = entries.into_iter().flatten();
                entries.find(|entry| entry.key == key)?.value.as_deref()
            }
            Self::Arrow { metadata, .. } => metadata.get(key).map(String::as_str),
        }
    }

    /// Rows of each row group; `None` when the footer says nothing that makes sense.
    pub(super) fn group_rows(&self) -> Option<Vec<u64>> {
        match self {
            Self::Parquet(metadata) => {
                let groups = metadata.metadata().row_groups().iter();
                groups
                    .map(|group| u64::try_from(group.num_rows()).ok())
                    .collect()
            }
            Self::Arrow { num_batches, .. } => {
                let rows: Vec<u64> = serde_json::from_str(self.value(BATCH_ROWS_KEY)?).ok()?;
                (rows.len() == *num_batches).then_some(rows)
            }
        }
    }

    /// The batches of a row group: all columns, or one.
    pub(super) fn batches(
        &self,
        bytes: &Bytes,
        group: usize,
        column: Option<&str>,
    ) -> Result<Batches, String> {
        match self {
            Self::Parquet(metadata) => {
                let descriptor = metadata.metadata().file_metadata().schema_descr();
                let mask = match column {
                    None => ProjectionMask::all(),
                    Some(column) => ProjectionMask::columns(descriptor, [column]),
                };
                ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata.clone())
                    .with_row_groups(vec![group])
                    .with_projection(mask)
                    .with_batch_size(BATCH_ROWS)
                    .build()
                    .map(|reader| Batches::Parquet(Box::new(reader)))
                    .map_err(|error| error.to_string())
            }
            Self::Arrow { schema, .. } => {
                let projection = column
                    .map(|column| schema.index_of(column).map(|index| vec![index]))
                    .transpose();
                let failed = |error: ArrowError| error.to_string();
                let mut reader =
                    FileReader::try_new(Cursor::new(bytes.clone()), projection.map_err(failed)?)
                        .map_err(failed)?;
                reader.set_index(group).map_err(failed)?;
                Ok(Batches::Arrow(Some(Box::new(reader))))
            }
        }
    }
}
