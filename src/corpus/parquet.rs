//! Documents from a string column of a Parquet file.
//!
//! The parser is not written for hostile files and panics on some damaged ones, so every call into
//! it is guarded and a panic becomes an error that names the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::{Array, StringArray};
use arrow_schema::DataType;

use super::Error;
use super::parts::RowGroup;
use crate::fs;

/// Rows that are decoded at a time: few, since a row is a document of any length.
const BATCH_ROWS: usize = 64;

/// Rows of consecutive row groups.
pub(super) struct Rows {
    path: PathBuf,
    field: String,
    reader: ParquetRecordBatchReader,
    batch: Option<StringArray>,
    next_in_batch: usize,
    /// Number of the next row in the file.
    row: u64,
    end_row: u64,
}

impl Rows {
    /// Opens the row groups `start..end`, whose first row has the number `first_row`.
    pub(super) fn open(
        path: &Path,
        field: &str,
        row_groups: std::ops::Range<usize>,
        first_row: u64,
        num_rows: u64,
    ) -> Result<Self, Error> {
        let file = fs::open(path)?;
        let metadata = load(path, &file)?;
        let root = text_column(path, &metadata, field)?;
        let reader = guarded(path, || {
            let mask = ProjectionMask::roots(metadata.parquet_schema(), [root]);
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                .with_projection(mask)
                .with_row_groups(row_groups.collect())
                .with_batch_size(BATCH_ROWS)
                .build()
        })?
        .map_err(|source| Error::Parquet {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            field: field.to_owned(),
            reader,
            batch: None,
            next_in_batch: 0,
            row: first_row,
            end_row: first_row.saturating_add(num_rows),
        })
    }

    /// The next row's number and text; `None` after the last.
    pub(super) fn next_text(&mut self) -> Result<Option<(u64, String)>, Error> {
        loop {
            if let Some(batch) = &self.batch
                && self.next_in_batch < batch.len()
            {
                let index = self.next_in_batch;
                let row = self.row;
                if batch.is_null(index) {
                    return Err(Error::NullText {
                        path: self.path.clone(),
                        row,
                        field: self.field.clone(),
                    });
                }
                let text = batch.value(index).to_owned();
                self.next_in_batch += 1;
                self.row += 1;
                return Ok(Some((row, text)));
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
        let batch = guarded(path, || reader.next().transpose())?
            .map_err(|error| damaged(path, error.to_string()))?;
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
        let texts = batch
            .columns()
            .first()
            .and_then(|column| column.as_string_opt::<i32>())
            .ok_or_else(|| {
                damaged(
                    path,
                    "the text column was not decoded as strings".to_owned(),
                )
            })?;
        self.batch = Some(texts.clone());
        self.next_in_batch = 0;
        Ok(true)
    }
}

/// Checks the text column and says how many rows and bytes of text each row group has.
pub(super) fn row_groups(path: &Path, field: &str) -> Result<Vec<RowGroup>, Error> {
    let file = fs::open(path)?;
    let metadata = load(path, &file)?;
    text_column(path, &metadata, field)?;
    let mut groups = Vec::new();
    for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
        let num_rows = u64::try_from(group.num_rows()).map_err(|_| {
            damaged(
                path,
                format!("row group {index} has {} rows", group.num_rows()),
            )
        })?;
        let column = group
            .columns()
            .iter()
            .find(|column| matches!(column.column_path().parts(), [name] if name == field));
        let text_bytes = column.map_or(0, |column| {
            u64::try_from(column.uncompressed_size()).unwrap_or(0)
        });
        groups.push(RowGroup {
            num_rows,
            text_bytes,
        });
    }
    Ok(groups)
}

/// Reads the footer. The Arrow schema that a writer may have embedded is left aside, so that
/// every string column, whatever its Arrow type was, comes back as one type.
fn load(path: &Path, file: &std::fs::File) -> Result<ArrowReaderMetadata, Error> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    guarded(path, || ArrowReaderMetadata::load(file, options))?.map_err(|source| Error::Parquet {
        path: path.to_owned(),
        source,
    })
}

/// Index of the text column among the file's top-level columns.
fn text_column(path: &Path, metadata: &ArrowReaderMetadata, field: &str) -> Result<usize, Error> {
    let roots = metadata.parquet_schema().root_schema().get_fields();
    let root = roots.iter().position(|root| root.name() == field);
    let arrow = metadata.schema().field_with_name(field).ok();
    let (Some(root), Some(arrow)) = (root, arrow) else {
        return Err(Error::NoColumn {
            path: path.to_owned(),
            field: field.to_owned(),
            columns: roots.iter().map(|root| root.name().to_owned()).collect(),
        });
    };
    if arrow.data_type() != &DataType::Utf8 {
        return Err(Error::ColumnNotString {
            path: path.to_owned(),
            field: field.to_owned(),
            found: arrow.data_type().to_string(),
        });
    }
    Ok(root)
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::DamagedParquet {
        path: path.to_owned(),
        reason,
    }
}

/// Runs a call into the parser. What it leaves half done after a panic is never used again: the
/// iterator over a part ends with its first error.
fn guarded<T>(path: &Path, call: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let reason = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "the parser gave up".to_owned());
        damaged(path, reason)
    })
}
