//! Parquet and Arrow files as groups of rows. Every call into the parsers may panic, and is to be
//! guarded. Arrays of an Arrow file lie where the file is mapped; nothing of it is copied.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::{Block, MetadataVersion};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

use super::schema::{BATCH_ROWS_KEY, ShardFormat};
use crate::guard::parquet::{check_footer, check_pages};

/// Rows decoded at a time, where the format leaves the choice.
const BATCH_ROWS: usize = 1024;

/// First bytes of an Arrow file.
const ARROW_MAGIC: &[u8] = b"ARROW1";

/// Bytes before the length of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// A parsed footer.
#[derive(Debug)]
pub(super) enum Container {
    Parquet(ArrowReaderMetadata),
    Arrow(ArrowFooter),
}

/// The footer of an Arrow file.
#[derive(Debug)]
pub(super) struct ArrowFooter {
    schema: SchemaRef,
    version: MetadataVersion,
    metadata: HashMap<String, String>,
    /// Places of the batches.
    blocks: Vec<Block>,
}

/// The batches of a row group.
pub(super) enum Batches {
    Parquet(Box<ParquetRecordBatchReader>),
    Arrow(Option<RecordBatch>),
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Parquet(reader) => reader.next(),
            Self::Arrow(batch) => batch.take().map(Ok),
        }
    }
}

impl Container {
    pub(super) fn parse(format: ShardFormat, bytes: &Bytes) -> Result<Self, String> {
        match format {
            ShardFormat::Parquet => {
                check_footer(bytes)?;
                ArrowReaderMetadata::load(bytes, ArrowReaderOptions::new())
                    .map(Self::Parquet)
                    .map_err(|error| error.to_string())
            }
            ShardFormat::Arrow => ArrowFooter::parse(bytes).map(Self::Arrow),
        }
    }

    pub(super) fn schema(&self) -> &Schema {
        match self {
            Self::Parquet(metadata) => metadata.schema(),
            Self::Arrow(footer) => &footer.schema,
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
            Self::Arrow(footer) => footer.metadata.get(key).map(String::as_str),
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
            Self::Arrow(footer) => {
                let rows: Vec<u64> = serde_json::from_str(self.value(BATCH_ROWS_KEY)?).ok()?;
                (rows.len() == footer.blocks.len()).then_some(rows)
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
                check_group(metadata, bytes, group, column)?;
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
            Self::Arrow(footer) => footer
                .batch(bytes, group, column)
                .map(|batch| Batches::Arrow(Some(batch))),
        }
    }
}

/// Checks the pages of a row group before the parser believes what they say of themselves.
fn check_group(
    metadata: &ArrowReaderMetadata,
    bytes: &Bytes,
    group: usize,
    column: Option<&str>,
) -> Result<(), String> {
    let group = metadata.metadata().row_groups().get(group);
    let chunks = group.map_or(&[][..], |group| group.columns());
    for chunk in chunks {
        let root = chunk.column_path().parts().first().map(String::as_str);
        if column.is_some() && column != root {
            continue;
        }
        let (start, len) = chunk.byte_range();
        let place = |at: Option<u64>| at.and_then(|at| usize::try_from(at).ok());
        let range = place(Some(start)).zip(place(start.checked_add(len)));
        let pages = range
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or("a column reaches beyond its end")?;
        check_pages(pages)?;
    }
    Ok(())
}

impl ArrowFooter {
    fn parse(bytes: &Bytes) -> Result<Self, String> {
        let (rest, trailer) = bytes
            .split_last_chunk()
            .filter(|_| bytes.starts_with(ARROW_MAGIC))
            .ok_or("it does not begin as one")?;
        let len = read_footer_length(*trailer).map_err(|error| error.to_string())?;
        let footer = rest
            .len()
            .checked_sub(len)
            .and_then(|start| rest.get(start..))
            .ok_or_else(|| format!("its footer of {len} bytes does not fit in"))?;
        let footer = arrow_ipc::root_as_footer(footer).map_err(|error| error.to_string())?;
        let schema = footer.schema().ok_or("its footer has no schema")?;
        if !schema.endianness().equals_to_target_endianness() {
            return Err("its numbers have another byte order than this machine's".to_owned());
        }
        let entries = footer.custom_metadata().into_iter().flatten();
        Ok(Self {
            schema: arrow_ipc::convert::try_fb_to_schema(schema)
                .map(Arc::new)
                .map_err(|error| error.to_string())?,
            version: footer.version(),
            metadata: entries
                .filter_map(|entry| Some((entry.key()?.to_owned(), entry.value()?.to_owned())))
                .collect(),
            blocks: footer
                .recordBatches()
                .into_iter()
                .flatten()
                .copied()
                .collect(),
        })
    }

    fn batch(
        &self,
        bytes: &Bytes,
        group: usize,
        column: Option<&str>,
    ) -> Result<RecordBatch, String> {
        let failed = |error: ArrowError| error.to_string();
        let block = self
            .blocks
            .get(group)
            .ok_or("it has no such record batch")?;
        let message = slice_of(bytes, block)
            .ok_or_else(|| format!("its record batch {group} reaches beyond its end"))?;
        if is_compressed(&message)? {
            return Err(format!("its record batch {group} is compressed"));
        }
        let mut decoder = FileDecoder::new(Arc::clone(&self.schema), self.version);
        if let Some(column) = column {
            let index = self.schema.index_of(column).map_err(failed)?;
            decoder = decoder.with_projection(vec![index]);
        }
        decoder
            .read_record_batch(block, &Buffer::from(message))
            .map_err(failed)?
            .ok_or_else(|| format!("its record batch {group} is none"))
    }
}

/// Metadata and body of a batch, if all of it is in the file.
fn slice_of(bytes: &Bytes, block: &Block) -> Option<Bytes> {
    let start = usize::try_from(block.offset()).ok()?;
    let metadata = usize::try_from(block.metaDataLength()).ok()?;
    let body = usize::try_from(block.bodyLength()).ok()?;
    let end = start.checked_add(metadata)?.checked_add(body)?;
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}

/// Returns whether a message's buffers are compressed. The parser would reserve the memory that they claim to
/// need.
fn is_compressed(message: &[u8]) -> Result<bool, String> {
    let skipped = if message.starts_with(&CONTINUATION) {
        8
    } else {
        4
    };
    let metadata = message.get(skipped..).unwrap_or_default();
    let message = arrow_ipc::root_as_message(metadata).map_err(|error| error.to_string())?;
    Ok(message
        .header_as_record_batch()
        .is_some_and(|batch| batch.compression().is_some()))
}
