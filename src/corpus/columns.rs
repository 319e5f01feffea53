//! Columns of tables that hold documents, as text or as lists of token ids.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_buffer::ArrowNativeType;
use arrow_schema::{DataType, Schema};

use super::RecordProblem;
use super::options::{DEFAULT_IDS_FIELD, DEFAULT_TEXT_FIELD};
use crate::types::{Content, TokenId};

/// Why no column holds the documents.
pub(super) enum NoColumn {
    /// None has the name.
    Absent {
        /// The name that was looked for.
        field: String,
    },
    /// The one that has it holds something else.
    OtherType {
        /// The name that was looked for.
        field: String,
        /// The column's type.
        found: String,
    },
}

/// The column that holds the documents: the one that is named, else `text`, else `input_ids`.
pub(super) fn choose(schema: &Schema, field: Option<&str>) -> Result<usize, NoColumn> {
    let find = |name: &str| schema.index_of(name).ok();
    let name = field.unwrap_or(DEFAULT_TEXT_FIELD);
    let index = match (find(name), field) {
        (Some(index), _) => Some(index),
        (None, None) => find(DEFAULT_IDS_FIELD),
        (None, Some(_)) => None,
    };
    let Some(index) = index else {
        return Err(NoColumn::Absent {
            field: name.to_owned(),
        });
    };
    let column = schema.field(index);
    if holds_documents(column.data_type()) {
        return Ok(index);
    }
    Err(NoColumn::OtherType {
        field: column.name().to_owned(),
        found: column.data_type().to_string(),
    })
}

fn holds_documents(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => {
            matches!(**values, DataType::Utf8 | DataType::LargeUtf8)
        }
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _) => element.data_type().is_integer(),
        _ => false,
    }
}

/// Bytes of the documents in a column: what counts towards the size of a part.
pub(super) fn size_bytes(column: &dyn Array) -> u64 {
    column
        .to_data()
        .get_slice_memory_size()
        .map_or(0, |bytes| bytes as u64)
}

/// The document in a row of a column that [`choose`] chose. Ids have to be below `num_ids`.
pub(super) fn content(
    column: &ArrayRef,
    row: usize,
    field: &str,
    num_ids: u64,
) -> Result<Content, RecordProblem> {
    let null = || RecordProblem::NullText {
        field: field.to_owned(),
    };
    if row >= column.len() || column.is_null(row) {
        return Err(null());
    }
    let text = |text: &str| Ok(Content::Text(text.to_owned()));
    match column.data_type() {
        DataType::Utf8 => text(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => text(column.as_string::<i64>().value(row)),
        DataType::Utf8View => text(column.as_string_view().value(row)),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let key = key(dictionary.keys(), row).ok_or_else(null)?;
            content(dictionary.values(), key, field, num_ids)
        }
        DataType::List(_) => ids(&column.as_list::<i32>().value(row), num_ids),
        DataType::LargeList(_) => ids(&column.as_list::<i64>().value(row), num_ids),
        DataType::FixedSizeList(_, _) => ids(&column.as_fixed_size_list().value(row), num_ids),
        _ => Err(null()),
    }
}

/// The key of a row. `normalized_keys` would make those of all rows, for each of them.
pub(super) fn key(keys: &dyn Array, row: usize) -> Option<usize> {
    fn of<T: ArrowPrimitiveType>(keys: &dyn Array, row: usize) -> Option<usize> {
        keys.as_primitive_opt::<T>()?.value(row).to_usize()
    }
    match keys.data_type() {
        DataType::Int8 => of::<Int8Type>(keys, row),
        DataType::Int16 => of::<Int16Type>(keys, row),
        DataType::Int32 => of::<Int32Type>(keys, row),
        DataType::Int64 => of::<Int64Type>(keys, row),
        DataType::UInt8 => of::<UInt8Type>(keys, row),
        DataType::UInt16 => of::<UInt16Type>(keys, row),
        DataType::UInt32 => of::<UInt32Type>(keys, row),
        _ => of::<UInt64Type>(keys, row),
    }
}

fn ids(list: &ArrayRef, num_ids: u64) -> Result<Content, RecordProblem> {
    if list.null_count() > 0
        && let Some(position) = (0..list.len()).find(|&position| list.is_null(position))
    {
        return Err(RecordProblem::NullId { position });
    }
    match list.data_type() {
        DataType::Int8 => values::<Int8Type>(list, num_ids),
        DataType::Int16 => values::<Int16Type>(list, num_ids),
        DataType::Int32 => values::<Int32Type>(list, num_ids),
        DataType::Int64 => values::<Int64Type>(list, num_ids),
        DataType::UInt8 => values::<UInt8Type>(list, num_ids),
        DataType::UInt16 => values::<UInt16Type>(list, num_ids),
        DataType::UInt32 => values::<UInt32Type>(list, num_ids),
        _ => values::<UInt64Type>(list, num_ids),
    }
}

fn values<T: ArrowPrimitiveType>(list: &ArrayRef, num_ids: u64) -> Result<Content, RecordProblem>
where
    T::Native: Into<i128> + Copy,
{
    let Some(list) = list.as_primitive_opt::<T>() else {
        return Ok(Content::Ids(Vec::new()));
    };
    let ids = list.values().iter().map(|&id| id.into());
    checked_ids(ids, num_ids).map(Content::Ids)
}

/// Ids as the models count them.
pub(super) fn checked_ids(
    ids: impl ExactSizeIterator<Item = i128>,
    num_ids: u64,
) -> Result<Vec<TokenId>, RecordProblem> {
    let mut checked = Vec::with_capacity(ids.len());
    for (position, id) in ids.enumerate() {
        match TokenId::try_from(id) {
            Ok(token) if u64::from(token) < num_ids => checked.push(token),
            _ => {
                return Err(RecordProblem::IdOutOfRange {
                    position,
                    id,
                    num_ids,
                });
            }
        }
    }
    Ok(checked)
}
