//! Finds tables whose documents come to far more than the file.
//!
//! Encodings may repeat a value for a few bits: a reference to a dictionary, a run of references, the length of what a
//! value shares with the one before. A file of a megabyte can so hold 100 GB of text, in rows that are fine one by
//! one, and would be scored for years. As for compressed files, documents may come to [`MAX_EXPANSION`] times the
//! size of the file, once they are beyond 64 MiB.
//!
//! A Parquet file is not decoded for this, as long as the longest value of each dictionary, for every row, stays
//! within the limit; else its documents are counted, and no further than to the limit.

use std::sync::Arc;

use ::parquet::column::page::{Page, PageReader};
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use ::parquet::file::serialized_reader::SerializedPageReader;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;

use super::cells;
use super::compression::MAX_EXPANSION;
use crate::fs;
use crate::guard::parquet::PageHeader;

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

/// Bytes of a column of an Arrow file that may be bytes of another value too; 0 where none can.
pub(super) fn shared_bytes(column: &ArrayRef) -> u64 {
    let sum = |lengths: &mut dyn Iterator<Item = u64>| lengths.fold(0, u64::saturating_add);
    // The low half of the first word of a view is its length.
    let lengths = |views: &[u128]| sum(&mut views.iter().map(|view| u64::from(*view as u32)));
    match column.data_type() {
        DataType::Utf8View => lengths(column.as_string_view().views()),
        DataType::BinaryView => lengths(column.as_binary_view().views()),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let lengths = value_lengths(dictionary.values());
            let keys = dictionary.keys();
            let rows = (0..keys.len()).filter(|&row| keys.is_valid(row));
            sum(&mut rows.filter_map(|row| lengths.get(cells::key(keys, row)?).copied()))
        }
        DataType::List(_) => shared_bytes(column.as_list::<i32>().values()),
        DataType::LargeList(_) => shared_bytes(column.as_list::<i64>().values()),
        DataType::FixedSizeList(_, _) => shared_bytes(column.as_fixed_size_list().values()),
        DataType::Struct(_) => {
            let columns = column.as_struct().columns().iter();
            sum(&mut columns.map(shared_bytes))
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
        DataType::Binary => of(values.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => of(values.as_binary::<i64>().value_offsets()),
        DataType::Utf8View => {
            let views = values.as_string_view().views().iter();
            views.map(|view| u64::from(*view as u32)).collect()
        }
        DataType::BinaryView => {
            let views = values.as_binary_view().views().iter();
            views.map(|view| u64::from(*view as u32)).collect()
        }
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

/// Looks at the chunks of the columns that are read.
pub(super) fn suspicion(
    file: &fs::File,
    metadata: &ParquetMetaData,
    is_read: impl Fn(&[String]) -> bool,
) -> Result<Suspicion, String> {
    let size_bytes = file.size_bytes().map_err(|error| error.to_string())?;
    let chunks = || {
        metadata.row_groups().iter().flat_map(|group| {
            let chunks = group.columns().iter();
            let read = chunks.filter(|chunk| is_read(chunk.column_path().parts()));
            read.map(move |chunk| (group, chunk))
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
    let mut num_values = 0_u64;
    for (group, chunk) in chunks() {
        let pages = Pages::look(file, chunk)?;
        num_values = num_values.saturating_add(pages.num_values);
        if let Some(reason) = too_many_values(size_bytes, num_values) {
            return Ok(Suspicion::Certain(reason));
        }
        if pages.has_prefixes {
            return Ok(Suspicion::Count);
        }
        if pages.has_dictionary {
            let longest = longest_value(file, chunk, unsigned(group.num_rows()))?;
            bytes = bytes.saturating_add(longest.saturating_mul(pages.num_values));
        }
        if bytes > most {
            return Ok(Suspicion::Count);
        }
    }
    Ok(Suspicion::None)
}

/// What the headers of a chunk's pages say. The footer lists encodings too, but nobody goes by that list.
#[derive(Default)]
struct Pages {
    /// Values of rows.
    num_values: u64,
    has_dictionary: bool,
    /// Texts are told by what they share with the one before.
    has_prefixes: bool,
}

/// Bytes in which the header of a page is looked for, and those where that is not enough: statistics may be long.
const HEADER_BYTES: [u64; 3] = [512, 64 << 10, 16 << 20];

impl Pages {
    fn look(file: &fs::File, chunk: &ColumnChunkMetaData) -> Result<Self, String> {
        let (mut at, len) = chunk.byte_range();
        let end = at.saturating_add(len);
        let size_bytes = file.size_bytes().map_err(|error| error.to_string())?;
        let mut pages = Self::default();
        while at < end {
            let mut page = Err(String::new());
            for most in HEADER_BYTES {
                let until = at.saturating_add(most).min(end);
                let bytes = file
                    .read_range(at..until)
                    .map_err(|error| error.to_string())?;
                page = PageHeader::parse(&bytes);
                if page.is_ok() || until == end {
                    break;
                }
            }
            let page = page?;
            // Old writers leave the header of the dictionary out of the size of a chunk.
            page.check(size_bytes.saturating_sub(at))?;
            pages.has_dictionary |=
                page.is_dictionary || PageHeader::DICTIONARY.contains(&page.encoding);
            pages.has_prefixes |= page.encoding == PageHeader::DELTA_BYTE_ARRAY;
            if !page.is_dictionary {
                pages.num_values = pages.num_values.saturating_add(page.num_values);
            }
            at = at
                .saturating_add(page.header_bytes)
                .saturating_add(page.stored_bytes);
        }
        Ok(pages)
    }
}

/// Bytes of the longest value of a chunk's dictionary. Values of a fixed width count 8.
fn longest_value(
    file: &fs::File,
    chunk: &ColumnChunkMetaData,
    num_rows: u64,
) -> Result<u64, String> {
    use ::parquet::basic::Type;
    if chunk.column_type() != Type::BYTE_ARRAY {
        return Ok(8);
    }
    let failed = |error: &dyn std::fmt::Display| error.to_string();
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
