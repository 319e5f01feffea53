//! Nested values of a table as JSON, for chat templates: what pyarrow's `to_pylist` gives to Python, in the order of
//! the fields.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;

use super::cells::{list, text};

/// Returns whether values of this type can be written.
pub(super) fn is_supported(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::Boolean | DataType::Float32 | DataType::Float64 => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_supported(values) && !values.is_nested(),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _) => is_supported(element.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_supported(field.data_type())),
        other => other.is_integer(),
    }
}

/// The value in a row; `None` where it can't be written.
pub(super) fn json(column: &ArrayRef, row: usize) -> Option<String> {
    let mut text = String::new();
    write(&mut text, column, row)?;
    Some(text)
}

fn write(out: &mut String, column: &ArrayRef, row: usize) -> Option<()> {
    if row >= column.len() || column.is_null(row) || *column.data_type() == DataType::Null {
        out.push_str("null");
        return Some(());
    }
    match column.data_type() {
        DataType::Boolean => out.push_str(&column.as_boolean().value(row).to_string()),
        DataType::Float32 => number::<Float32Type>(out, column, row)?,
        DataType::Float64 => number::<Float64Type>(out, column, row)?,
        DataType::Int8 => number::<Int8Type>(out, column, row)?,
        DataType::Int16 => number::<Int16Type>(out, column, row)?,
        DataType::Int32 => number::<Int32Type>(out, column, row)?,
        DataType::Int64 => number::<Int64Type>(out, column, row)?,
        DataType::UInt8 => number::<UInt8Type>(out, column, row)?,
        DataType::UInt16 => number::<UInt16Type>(out, column, row)?,
        DataType::UInt32 => number::<UInt32Type>(out, column, row)?,
        DataType::UInt64 => number::<UInt64Type>(out, column, row)?,
        DataType::Struct(fields) => {
            let column = column.as_struct();
            out.push('{');
            for (index, field) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&serde_json::to_string(field.name()).ok()?);
                out.push(':');
                write(out, column.columns().get(index)?, row)?;
            }
            out.push('}');
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) => {
            let list = list(column, row)?;
            out.push('[');
            for index in 0..list.len() {
                if index > 0 {
                    out.push(',');
                }
                write(out, &list, index)?;
            }
            out.push(']');
        }
        _ => out.push_str(&serde_json::to_string(&text(column, row)?.ok()?).ok()?),
    }
    Some(())
}

fn number<T: ArrowPrimitiveType>(out: &mut String, column: &ArrayRef, row: usize) -> Option<()>
where
    T::Native: serde::Serialize,
{
    let value = column.as_primitive_opt::<T>()?.value(row);
    out.push_str(&serde_json::to_string(&value).ok()?);
    Some(())
}
