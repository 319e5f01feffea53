//! Finds tables whose documents come to far more than the file.
//!
//! Encodings may repeat a value for a few bits: a reference to a dictionary, a run of references, the length of what a
//! value shares with the one before. A file of a megabyte can so hold 100 GB of text, in rows that are fine one by
//! one, and would be scored for years. As for compressed files, documents may come to [`MAX_EXPANSION`] times the
//! size of the file, once they are beyond 64 MiB.
//!
//! A Parquet file is not decoded for this, as long as the longest value of each dictionary, for every row, stays
//! within the limit; else its documents are counted, and no further than to the limit.

use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::Encoding;
use ::parquet::column::page::{Page, PageReader};
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use ::parquet::file::serialized_reader::SerializedPageReader;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;

use super::columns;
use super::compression::MAX_EXPANSION;
use crate::fs;

/// Bytes that documents may come to, whatever the size of the file.
const FREE_BYTES: u64 = 64 << 20;

/// Values that a file may have, whatever its size.
const FREE_VALUES: u64 = 1 << 20;

/// Bytes that the documents of a file of this size may come to.
pub(super) fn most_bytes(size_bytes: u64) -> u64 {
    size_bytes.saturating_mul(MAX_EXPANSION).max(FREE_BYTES)
}

/// What is wrong with a file of this size whose documents come to so many bytes.
pub(super) fn too_many_bytes(size_bytes: u64, document_bytes: u64) -> Option<String> {
    (document_bytes > most_bytes(size_bytes)).then(|| {
        format!(
            "its documents come to more than {MAX_EXPANSION} times its size of {size_bytes} bytes"
        )
    })
}

/// What is wrong with a file of this size that has so many values in the column of the documents.
pub(super) fn too_many_values(size_bytes: u64, num_values: u64) -> Option<String> {
    (num_values > FREE_VALUES && num_values / MAX_EXPANSION > size_bytes).then(|| {
        format!(
            "it has {num_values} values, more than {MAX_EXPANSION} for each of its {size_bytes} bytes"
        )
    })
}

/// Bytes of the documents of a column of an Arrow file that share bytes with others; 0 where none can.
pub(super) fn shared_bytes(column: &ArrayRef) -> u64 {
    match column.data_type() {
        DataType::Utf8View => {
            // The low half of the first word of a view is its length.
            let lengths = column.as_string_view().views().iter();
            lengths.fold(0, |sum: u64, view| {
                sum.saturating_add(u64::from(*view as u32))
            })
        }
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let lengths = value_lengths(dictionary.values());
            let keys = dictionary.keys();
            (0..keys.len())
                .filter(|&row| keys.is_valid(row))
                .filter_map(|row| lengths.get(columns::key(keys, row)?))
                .fold(0, |sum: u64, length| sum.saturating_add(*length))
        }
        _ => 0,
    }
}

fn value_lengths(values: &ArrayRef) -> Vec<u64> {
    fn of<T: Into<i64> + Copy>(offsets: &[T]) -> Vec<u64> {
        offsets
            .windows(2)
            .map(|pair| u64::try_from(pair[1].into() - pair[0].into()).unwrap_or(0))
            .collect()
    }
    match values.data_type() {
        DataType::Utf8 => of(values.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => of(values.as_string::<i64>().value_offsets()),
        _ => Vec::new(),
    }
}

/// What the footer and the dictionaries of a Parquet file say about the column of the documents.
pub(super) enum Suspicion {
    /// Its documents come to no more than they may.
    None,
    /// They have to be counted.
    Count,
    /// The file contradicts itself, or has too much.
    Certain(String),
}

/// Looks at the chunks of the column of the documents.
pub(super) fn suspicion(
    path: &Path,
    file: &fs::File,
    metadata: &ParquetMetaData,
    chunk_of: impl Fn(usize) -> Option<usize>,
) -> Result<Suspicion, String> {
    let size_bytes = file.size_bytes().map_err(|error| error.to_string())?;
    let chunks = || {
        let groups = metadata.row_groups().iter().enumerate();
        groups.filter_map(|(index, group)| {
            let chunk = group.columns().get(chunk_of(index)?)?;
            Some((group, chunk))
        })
    };
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
    let sum = |of: fn(&ColumnChunkMetaData) -> i64| {
        chunks().fold(0, |sum: u64, (_, chunk)| {
            sum.saturating_add(unsigned(of(chunk)))
        })
    };
    if let Some(reason) = too_many_values(size_bytes, sum(ColumnChunkMetaData::num_values)) {
        return Ok(Suspicion::Certain(reason));
    }
    let stored = sum(ColumnChunkMetaData::compressed_size);
    if stored > size_bytes {
        return Ok(Suspicion::Certain(format!(
            "its row groups are said to take {stored} bytes, and it has {size_bytes}"
        )));
    }
    let most = most_bytes(size_bytes);
    let mut bytes = sum(ColumnChunkMetaData::uncompressed_size);
    for (group, chunk) in chunks() {
        let longest = match repetition(chunk) {
            Repetition::None => continue,
            Repetition::Prefixes => return Ok(Suspicion::Count),
            Repetition::Dictionary => longest_value(path, file, chunk, unsigned(group.num_rows()))?,
        };
        bytes = bytes.saturating_add(longest.saturating_mul(unsigned(chunk.num_values())));
        if bytes > most {
            return Ok(Suspicion::Count);
        }
    }
    Ok(Suspicion::None)
}

/// How the values of a chunk may repeat each other.
enum Repetition {
    None,
    Dictionary,
    Prefixes,
}

fn repetition(chunk: &ColumnChunkMetaData) -> Repetition {
    let mut found = match chunk.dictionary_page_offset() {
        Some(_) => Repetition::Dictionary,
        None => Repetition::None,
    };
    for encoding in chunk.encodings() {
        match encoding {
            Encoding::DELTA_BYTE_ARRAY => return Repetition::Prefixes,
            Encoding::RLE_DICTIONARY => found = Repetition::Dictionary,
            other if other == plain_dictionary() => found = Repetition::Dictionary,
            _ => {}
        }
    }
    found
}

/// The old name of an encoding with a dictionary.
fn plain_dictionary() -> Encoding {
    Encoding::PLAIN_DICTIONARY
}

/// Bytes of the longest value of a chunk's dictionary. Values of a fixed width count 8.
fn longest_value(
    path: &Path,
    file: &fs::File,
    chunk: &ColumnChunkMetaData,
    num_rows: u64,
) -> Result<u64, String> {
    use ::parquet::basic::Type;
    if chunk.column_type() != Type::BYTE_ARRAY {
        return Ok(8);
    }
    let failed = |error: &dyn std::fmt::Display| format!("{}{error}", path.display());
    let file = Arc::new(file.try_clone().map_err(|error| failed(&error))?);
    let rows = usize::try_from(num_rows).unwrap_or(usize::MAX);
    let mut pages =
        SerializedPageReader::new(file, chunk, rows, None).map_err(|error| failed(&error))?;
    let page = pages.get_next_page().map_err(|error| failed(&error))?;
    let Some(Page::DictionaryPage { buf, .. }) = page else {
        return Ok(0);
    };
    // Each value is behind its length.
    let mut longest = 0;
    let mut rest: &[u8] = &buf;
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len);
        longest = longest.max(u64::from(len));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        rest = after.get(len..).unwrap_or_default();
    }
    Ok(longest)
}
