//! Single values: text and lists of a row, ids and whole numbers.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_buffer::ArrowNativeType;
use arrow_schema::DataType;

use super::RecordProblem;
use crate::types::TokenId;

/// The list in a row.
pub(super) fn list(column: &ArrayRef, row: usize) -> Option<ArrayRef> {
    Some(match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(row),
        DataType::LargeList(_) => column.as_list::<i64>().value(row),
        DataType::FixedSizeList(_, _) => column.as_fixed_size_list().value(row),
        _ => return None,
    })
}

/// The text in a row; `None` where it is null.
pub(super) fn text(column: &ArrayRef, row: usize) -> Option<Result<String, RecordProblem>> {
    let of_bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(RecordProblem::NotUtf8Value {
            byte_offset: error.valid_up_to(),
        }),
    };
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => Ok(column.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Ok(column.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Ok(column.as_string_view().value(row).to_owned()),
        DataType::Binary => of_bytes(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => of_bytes(column.as_binary::<i64>().value(row)),
        DataType::BinaryView => of_bytes(column.as_binary_view().value(row)),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let key = key(dictionary.keys(), row)?;
            return (key < dictionary.values().len())
                .then(|| text(dictionary.values(), key))
                .flatten();
        }
        _ => return None,
    })
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

/// A whole number as one; any other value becomes one that no mask has.
pub(super) fn whole(value: f64) -> i64 {
    match value {
        0.0 => 0,
        1.0 => 1,
        -100.0 => -100,
        value if value.fract() == 0.0 && value.abs() < 1e15 => value as i64,
        _ => i64::MIN,
    }
}

/// Ids as the models count them, those at the positions `kept` of all.
pub(super) fn checked_ids(
    ids: impl ExactSizeIterator<Item = i128>,
    kept: std::ops::Range<usize>,
    num_ids: u64,
) -> Result<Vec<TokenId>, RecordProblem> {
    let mut checked = Vec::with_capacity(kept.len());
    for (position, id) in ids.enumerate().take(kept.end).skip(kept.start) {
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
