//! Numbers per token from elsewhere: a Parquet file with a column `row_id` and a column of lists.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use bytes::Bytes;

use super::Error;
use super::container::Container;
use super::schema::{ShardFormat, columns};
use super::sidecar::Values;
use crate::fs::{self, MappedFile, Operation};
use crate::guard::process::{Failure, Kind, Session, Source, Task};
use crate::guard::{self, process};

/// How a process tries a file of numbers.
pub const IMPORTS: Kind = Kind {
    id: 4,
    start: |source| Box::new(Trial(source)),
};

/// Reads the numbers of every row of a file, by `row_id`. All of them are held in memory, 8 bytes each.
///
/// The file is somebody else's, so a process with limits reads it first (see [`process`]); what it survives is read here.
///
/// # Errors
///
/// When it is no Parquet file, has not these columns, or a `row_id` twice; when reading takes more memory or time than
/// a file of its size may take.
pub fn read(path: &Path, column: &str) -> Result<BTreeMap<u64, Values>, Error> {
    let bytes = Bytes::from_owner(MappedFile::open(path)?);
    let bad = |reason: String| Error::Import {
        path: path.to_owned(),
        reason,
    };
    if process::has_program() {
        let source = Arc::new(bytes.clone());
        let tried = Session::open(IMPORTS, source).and_then(|mut it| it.call(column.as_bytes()));
        match tried {
            Ok(_) => {}
            Err(Failure::Refused(reason)) => {
                return Err(bad(String::from_utf8_lossy(&reason).into_owned()));
            }
            Err(Failure::Died(death)) => return Err(bad(death.to_string())),
            Err(Failure::Source(source) | Failure::Start(source)) => {
                let (operation, path) = (Operation::Read, path.to_owned());
                return Err(fs::Error {
                    operation,
                    path,
                    source,
                }
                .into());
            }
        }
    }
    guard::guarded(|| parse(&bytes, column))
        .and_then(|parsed| parsed)
        .map_err(bad)
}

struct Trial(Arc<dyn Source>);

impl Task for Trial {
    /// Reads the column that the request names.
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let column = String::from_utf8_lossy(request);
        let tried = self
            .0
            .read(0..self.0.size_bytes())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let bytes = Bytes::from(bytes);
                guard::guarded(|| parse(&bytes, &column)).and_then(|parsed| parsed)
            });
        tried.map(|_| Vec::new()).map_err(String::into_bytes)
    }
}

fn parse(bytes: &Bytes, column: &str) -> Result<BTreeMap<u64, Values>, String> {
    let mut rows = BTreeMap::new();
    let container = Container::parse(ShardFormat::Parquet, bytes)?;
    let groups = container.group_rows().map_or(0, |groups| groups.len());
    for group in 0..groups {
        for batch in container.batches(bytes, group, None)? {
            let batch = batch.map_err(|error| error.to_string())?;
            let ids = ids(&batch)
                .ok_or_else(|| "it has no column row_id of 64-bit integers".to_owned())?;
            let lists = batch
                .column_by_name(column)
                .ok_or_else(|| format!("it has no column {column:?}"))?;
            for (i, id) in ids.into_iter().enumerate() {
                let values = list(lists, i).ok_or_else(|| {
                    format!("{column:?} of row_id {id} is no list of floating-point numbers")
                })?;
                if rows.insert(id, values).is_some() {
                    return Err(format!("row_id {id} comes twice"));
                }
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
