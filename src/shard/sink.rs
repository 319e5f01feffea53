//! Batches to a Parquet or Arrow file that carries a digest of itself.

use std::io::Write;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Error;
use super::schema::{BATCH_ROWS_KEY, LIST_ELEMENT, SEAL_KEY, ShardFormat, columns};
use super::seal::Sealing;

/// Level of the zstd compression.
pub const ZSTD_LEVEL: i32 = 1;

/// A file that is being written.
pub(super) enum Sink<W: Write + Send> {
    Parquet(Box<ArrowWriter<Sealing<W>>>),
    /// And the rows of each batch so far.
    Arrow(Box<FileWriter<Sealing<W>>>, Vec<u64>),
}

impl<W: Write + Send> Sink<W> {
    pub(super) fn new(writer: W, format: ShardFormat, schema: &SchemaRef) -> Result<Self, Error> {
        let writer = Sealing::new(writer);
        Ok(match format {
            ShardFormat::Parquet => {
                let properties = properties(schema);
                let writer = ArrowWriter::try_new(writer, Arc::clone(schema), Some(properties))?;
                Self::Parquet(Box::new(writer))
            }
            ShardFormat::Arrow => {
                Self::Arrow(Box::new(FileWriter::try_new(writer, schema)?), Vec::new())
            }
        })
    }

    /// Writes a batch as a row group of its own.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        match self {
            Self::Parquet(writer) => {
                writer.write(batch)?;
                writer.flush()?;
            }
            Self::Arrow(writer, batch_rows) => {
                writer.write(batch)?;
                batch_rows.push(batch.num_rows() as u64);
            }
        }
        Ok(())
    }

    /// Ends the file with these entries in its footer's metadata, and a digest of all of it.
    pub(super) fn finish(self, mut entries: Vec<(&str, String)>) -> Result<W, Error> {
        let inner = match self {
            Self::Parquet(mut writer) => {
                // What lies in a buffer in between is held back too; the digest is the same.
                let stand_in = writer.inner_mut().hold();
                entries.push((SEAL_KEY, stand_in.to_string()));
                for (key, value) in entries {
                    writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
                }
                writer.into_inner()?.finish(stand_in)
            }
            Self::Arrow(mut writer, batch_rows) => {
                let stand_in = writer.get_mut().hold();
                entries.push((SEAL_KEY, stand_in.to_string()));
                let batch_rows = serde_json::to_string(&batch_rows).unwrap_or_default();
                entries.push((BATCH_ROWS_KEY, batch_rows));
                for (key, value) in entries {
                    writer.write_metadata(key, value);
                }
                writer.into_inner()?.finish(stand_in)
            }
        };
        inner.map_err(Error::Write)
    }
}

fn properties(schema: &SchemaRef) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("remit ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(
            ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default(),
        ))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        // Row groups are closed by hand, by tokens.
        .set_max_row_group_row_count(None)
        .set_column_dictionary_enabled(ColumnPath::from(columns::SOURCE), true);
    for column in [columns::ROW_ID, columns::DOC_INDEX] {
        builder = builder
            .set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Chunk)
            .set_column_encoding(ColumnPath::from(column), Encoding::PLAIN);
    }
    for field in schema.fields() {
        let mut path = vec![field.name().clone()];
        let mut data_type = field.data_type();
        while let DataType::List(element) = data_type {
            path.extend(["list".to_owned(), LIST_ELEMENT.to_owned()]);
            data_type = element.data_type();
        }
        let encoding = match data_type {
            DataType::Float32 => Encoding::BYTE_STREAM_SPLIT,
            DataType::UInt32 => Encoding::PLAIN,
            _ => continue,
        };
        builder = builder.set_column_encoding(ColumnPath::new(path), encoding);
    }
    builder.build()
}
