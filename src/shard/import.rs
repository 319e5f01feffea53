//! Numbers per token from elsewhere: a Parquet file with a column `row_id` and a column of lists.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use bytes::Bytes;

use super::Error;
use super::container::Container;
use super::schema::{ShardFormat, columns};
use super::sidecar::Values;
use crate::fs::MappedFile;
use crate::guard;

/// Reads the numbers of every row of a file, by `row_id`. All of them are held in memory, 8 bytes each.
///
/// # Errors
///
/// When it is no Parquet file, has not these columns, or a `row_id` twice.
pub fn read(path: &Path, column: &str) -> Result<BTreeMap<u64, Values>, Error> {
    let format = ShardFormat::Parquet;
    let map = MappedFile::open(path)?;
    let bytes = Bytes::from_owner(map);
    let bad = |reason: String| Error::Import {
        path: path.to_owned(),
        reason,
    };
    let guarded = |step: &mut dyn FnMut() -> Result<Vec<RecordBatch>, String>| {
        guard::guarded(step).and_then(|result| result).map_err(bad)
    };
    let mut rows = BTreeMap::new();
    let batches = guarded(&mut || {
        let container = Container::parse(format, &bytes)?;
        let groups = container.group_rows().map_or(0, |groups| groups.len());
        let mut all = Vec::new();
        for group in 0..groups {
            for batch in container.batches(&bytes, group, None)? {
                all.push(batch.map_err(|error| error.to_string())?);
            }
        }
        Ok(all)
    })?;
    for batch in batches {
        let ids = ids(&batch)
            .ok_or_else(|| bad("it has no column row_id of 64-bit integers".to_owned()))?;
        let lists = batch
            .column_by_name(column)
            .ok_or_else(|| bad(format!("it has no column {column:?}")))?;
        for (i, id) in ids.into_iter().enumerate() {
            let values = list(lists, i).ok_or_else(|| {
                bad(format!(
                    "{column:?} of row_id {id} is no list of floating-point numbers"
                ))
            })?;
            if rows.insert(id, values).is_some() {
                return Err(bad(format!("row_id {id} comes twice")));
            }
        }
    }
    Ok(rows)
}

fn ids(batch: &RecordBatch) -> Option<Vec<u64>> {
    let column = batch.column_by_name(columns::ROW_ID)?;
    if let Some(ids) = column.as_primitive_opt::<UInt64Type>() {
        return ids.iter().collect();
    }
    let ids = column.as_primitive_opt::<Int64Type>()?;
    ids.iter().map(|id| u64::try_from(id?).ok()).collect()
}

fn list(lists: &ArrayRef, i: usize) -> Option<Values> {
    if lists.is_null(i) {
        return None;
    }
    let values = match (lists.as_list_opt::<i32>(), lists.as_list_opt::<i64>()) {
        (Some(lists), _) => lists.value(i),
        (None, Some(lists)) => lists.value(i),
        (None, None) => return None,
    };
    if let Some(values) = values.as_primitive_opt::<Float32Type>() {
        return Some(values.iter().collect());
    }
    let values = values.as_primitive_opt::<Float64Type>()?;
    Some(
        values
            .iter()
            .map(|value| value.map(|value| value as f32))
            .collect(),
    )
}
