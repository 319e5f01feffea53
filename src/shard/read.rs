//! Shards to rows. Every byte is checked against the manifest before it is parsed, every value
//! against the rules of the format before it is returned; shards stay memory-mapped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Int32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ListArray, PrimitiveArray, RecordBatch, StringArray};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use rayon::prelude::*;

use super::Error;
use super::manifest::{Manifest, ShardEntry};
use super::schema::{self, PACK_STATS_KEY, PLAN_KEY, REJECTS_KEY, RowProblem, columns};
use crate::fs::{self, Digest, MappedFile};
use crate::guard;
use crate::pack::PackStats;
use crate::types::{Reject, Row, ScoredRow};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

/// A row and its place in the set.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRow {
    /// `row_id` column.
    pub row_id: u64,
    /// Everything else.
    pub scored: ScoredRow,
}

/// One shard, mapped into memory, its footer parsed.
#[derive(Debug)]
pub struct ShardFile {
    path: PathBuf,
    part: u32,
    has_base: bool,
    digest: Digest,
    map: MappedFile,
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
    /// Number of the first row of each row group, and the number of all rows.
    group_starts: Vec<u64>,
}

impl ShardFile {
    /// Maps a shard that no manifest describes yet, and parses its footer.
    ///
    /// # Errors
    ///
    /// When it is no Parquet file with exactly the columns of the format.
    pub fn open(path: &Path, part: u32, has_base: bool) -> Result<Self, Error> {
        let map = MappedFile::open(path)?;
        let digest = Digest::of(&map);
        Self::parse(path, part, has_base, map, digest)
    }

    /// Maps a shard and compares size and digest with the manifest before parsing a byte of it.
    fn open_verified(
        dir: &Path,
        entry: &ShardEntry,
        has_base: bool,
        plan: Digest,
    ) -> Result<Self, Error> {
        let path = dir.join(&entry.file);
        if !fs::exists(&path)? {
            return Err(Error::MissingShard { path });
        }
        let map = MappedFile::open(&path)?;
        if map.len() as u64 != entry.size_bytes {
            return Err(Error::Size {
                path,
                expected: entry.size_bytes,
                found: map.len() as u64,
            });
        }
        let found = Digest::of(&map);
        if found != entry.blake3 {
            return Err(Error::Hash {
                path,
                expected: entry.blake3,
                found,
            });
        }
        let shard = Self::parse(&path, entry.part, has_base, map, found)?;
        shard.expect_plan(plan)?;
        shard.expect_count("rows", entry.rows, shard.num_rows())?;
        Ok(shard)
    }

    fn parse(
        path: &Path,
        part: u32,
        has_base: bool,
        map: MappedFile,
        digest: Digest,
    ) -> Result<Self, Error> {
        let bytes = Bytes::from_owner(map.clone());
        let metadata = guarded(path, || {
            ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(|e| e.to_string())
        })?;
        let wanted = schema::schema(has_base);
        if metadata.schema().fields() != wanted.fields() {
            let describe = |fields: &arrow_schema::Fields| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|f| format!("{}: {}", f.name(), f.data_type()))
                    .collect();
                fields.join(", ")
            };
            return Err(Error::Schema {
                path: path.to_owned(),
                reason: format!(
                    "expected {}; found {}",
                    describe(wanted.fields()),
                    describe(metadata.schema().fields())
                ),
            });
        }
        let mut group_starts = vec![0];
        let mut total = 0_u64;
        for group in metadata.metadata().row_groups() {
            total = u64::try_from(group.num_rows())
                .ok()
                .and_then(|rows| total.checked_add(rows))
                .ok_or_else(|| Error::Parquet {
                    path: path.to_owned(),
                    reason: "its footer has an impossible number of rows".to_owned(),
                })?;
            group_starts.push(total);
        }
        Ok(Self {
            path: path.to_owned(),
            part,
            has_base,
            digest,
            map,
            bytes,
            metadata,
            group_starts,
        })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file.
    pub fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// BLAKE3 of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of row groups, the unit of reading.
    pub fn num_row_groups(&self) -> usize {
        self.group_starts.len().saturating_sub(1)
    }

    /// Number of rows.
    pub fn num_rows(&self) -> u64 {
        self.group_starts.last().copied().unwrap_or(0)
    }

    /// A value of the footer's metadata.
    fn footer(&self, key: &str) -> Option<&str> {
        let entries = self
            .metadata
            .metadata()
            .file_metadata()
            .key_value_metadata();
        let mut entries = entries.into_iter().flatten();
        entries.find(|entry| entry.key == key)?.value.as_deref()
    }

    /// Counts of the packer, from the footer.
    pub fn pack_stats(&self) -> Result<PackStats, Error> {
        self.footer(PACK_STATS_KEY)
            .and_then(|value| serde_json::from_str(value).ok())
            .ok_or_else(|| Error::Schema {
                path: self.path.clone(),
                reason: format!("its footer has no readable {PACK_STATS_KEY}"),
            })
    }

    /// Records of the part that could not be read, from the footer.
    pub fn rejects(&self) -> Result<Vec<Reject>, Error> {
        let Some(value) = self.footer(REJECTS_KEY) else {
            return Ok(Vec::new());
        };
        serde_json::from_str(value).map_err(|_| Error::Schema {
            path: self.path.clone(),
            reason: format!("its footer has no readable {REJECTS_KEY}"),
        })
    }

    /// Whether the shard was made under this plan.
    ///
    /// # Errors
    ///
    /// [`Error::OtherPlan`] when it was not.
    pub fn expect_plan(&self, plan: Digest) -> Result<(), Error> {
        if self.footer(PLAN_KEY) == Some(plan.to_string().as_str()) {
            return Ok(());
        }
        Err(Error::OtherPlan {
            path: self.path.clone(),
        })
    }

    /// All rows of a row group, each checked against the rules of the format.
    ///
    /// # Errors
    ///
    /// When the data can't be decoded, or a row breaks a rule.
    pub fn read_row_group(&self, group: usize) -> Result<Vec<StoredRow>, Error> {
        let start = self.group_start(group)?;
        let mut rows = Vec::new();
        self.decode(group, ProjectionMask::all(), |batch| {
            let columns = Columns::of(&batch, self.has_base)
                .ok_or_else(|| self.no_column("a column of the format"))?;
            for i in 0..batch.num_rows() {
                let index = start + rows.len() as u64;
                let row = columns.row(i).and_then(|row| {
                    schema::validate(&row.scored)?;
                    let expected = u32::try_from(index)
                        .map_or(u64::MAX, |index| schema::row_id(self.part, index));
                    if row.row_id == expected {
                        return Ok(row);
                    }
                    Err(RowProblem::RowId {
                        expected,
                        found: row.row_id,
                    })
                });
                rows.push(row.map_err(|reason| Error::Row {
                    path: self.path.clone(),
                    row: index,
                    reason,
                })?);
            }
            Ok(())
        })?;
        self.expect_rows_of(group, rows.len())?;
        Ok(rows)
    }

    /// Tokens of each row of a row group; decodes the ids alone.
    pub fn row_lengths(&self, group: usize) -> Result<Vec<u32>, Error> {
        let descriptor = self.metadata.metadata().file_metadata().schema_descr();
        let mask = ProjectionMask::columns(descriptor, [columns::INPUT_IDS]);
        let mut lengths = Vec::new();
        self.decode(group, mask, |batch| {
            let ids = batch
                .column_by_name(columns::INPUT_IDS)
                .and_then(|column| column.as_list_opt::<i32>())
                .ok_or_else(|| self.no_column(columns::INPUT_IDS))?;
            for i in 0..ids.len() {
                lengths.push(u32::try_from(ids.value_length(i)).unwrap_or(0));
            }
            Ok(())
        })?;
        self.expect_rows_of(group, lengths.len())?;
        Ok(lengths)
    }

    fn decode(
        &self,
        group: usize,
        mask: ProjectionMask,
        mut each: impl FnMut(RecordBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut reader = guarded(&self.path, || {
            ParquetRecordBatchReaderBuilder::new_with_metadata(
                self.bytes.clone(),
                self.metadata.clone(),
            )
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| error.to_string())
        })?;
        loop {
            let next = guarded(&self.path, || {
                reader.next().transpose().map_err(|e| e.to_string())
            })?;
            match next {
                Some(batch) => each(batch)?,
                None => return Ok(()),
            }
        }
    }

    fn group_start(&self, group: usize) -> Result<u64, Error> {
        self.group_starts
            .get(group)
            .copied()
            .ok_or_else(|| Error::Parquet {
                path: self.path.clone(),
                reason: format!("it has no row group {group}"),
            })
    }

    fn no_column(&self, column: &str) -> Error {
        Error::Schema {
            path: self.path.clone(),
            reason: format!("{column} is missing or of another type"),
        }
    }

    fn expect_rows_of(&self, group: usize, found: usize) -> Result<(), Error> {
        let start = self.group_start(group)?;
        let end = self.group_start(group.saturating_add(1))?;
        self.expect_count(
            "rows in a row group",
            end.saturating_sub(start),
            found as u64,
        )
    }

    pub(super) fn expect_count(
        &self,
        what: &'static str,
        expected: u64,
        found: u64,
    ) -> Result<(), Error> {
        if expected == found {
            return Ok(());
        }
        Err(Error::Count {
            path: self.path.clone(),
            what,
            expected,
            found,
        })
    }
}

/// Runs a step of the Parquet parser; a panic in it becomes an error that names the shard.
fn guarded<T>(path: &Path, step: impl FnOnce() -> Result<T, String>) -> Result<T, Error> {
    let failed = |reason| Error::Parquet {
        path: path.to_owned(),
        reason,
    };
    guard::guarded(step)
        .and_then(|result| result)
        .map_err(failed)
}

/// The typed columns of a batch.
struct Columns<'a> {
    row_id: &'a PrimitiveArray<UInt64Type>,
    source_keys: &'a PrimitiveArray<Int32Type>,
    source_values: &'a StringArray,
    doc_index: &'a PrimitiveArray<UInt64Type>,
    doc_starts: &'a ListArray,
    input_ids: &'a ListArray,
    rl_logprob: &'a ListArray,
    base: Option<(&'a ListArray, &'a ListArray)>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch, has_base: bool) -> Option<Self> {
        let list = |name: &str| batch.column_by_name(name)?.as_list_opt::<i32>();
        let source = batch
            .column_by_name(columns::SOURCE)?
            .as_dictionary_opt::<Int32Type>()?;
        Some(Self {
            row_id: batch.column_by_name(columns::ROW_ID)?.as_primitive_opt()?,
            source_keys: source.keys(),
            source_values: source.values().as_string_opt()?,
            doc_index: batch
                .column_by_name(columns::DOC_INDEX)?
                .as_primitive_opt()?,
            doc_starts: list(columns::DOC_STARTS)?,
            input_ids: list(columns::INPUT_IDS)?,
            rl_logprob: list(columns::RL_LOGPROB)?,
            base: if has_base {
                Some((list(columns::BASE_LOGPROB)?, list(columns::WEIGHT)?))
            } else {
                None
            },
        })
    }

    fn row(&self, i: usize) -> Result<StoredRow, RowProblem> {
        let missing = |column| RowProblem::Null {
            column,
            position: 0,
        };
        let key = scalar(self.source_keys, i).and_then(|key| usize::try_from(key).ok());
        let source = key
            .filter(|&key| key < self.source_values.len() && self.source_values.is_valid(key))
            .map(|key| self.source_values.value(key))
            .ok_or(missing(columns::SOURCE))?;
        let base = self.base.map(|(base, weight)| {
            Ok((
                after_first(base, i, columns::BASE_LOGPROB, None)?,
                after_first(weight, i, columns::WEIGHT, Some(0.0))?,
            ))
        });
        let (base_logprobs, weights) = base.transpose()?.unzip();
        Ok(StoredRow {
            row_id: scalar(self.row_id, i).ok_or(missing(columns::ROW_ID))?,
            scored: ScoredRow {
                row: Row {
                    source: Arc::from(source),
                    doc_index: scalar(self.doc_index, i).ok_or(missing(columns::DOC_INDEX))?,
                    doc_starts: values::<UInt32Type>(self.doc_starts, i, columns::DOC_STARTS, 0)?,
                    input_ids: values::<UInt32Type>(self.input_ids, i, columns::INPUT_IDS, 0)?,
                },
                rl_logprobs: after_first(self.rl_logprob, i, columns::RL_LOGPROB, None)?,
                base_logprobs,
                weights,
            },
        })
    }
}

fn scalar<T: ArrowPrimitiveType>(array: &PrimitiveArray<T>, i: usize) -> Option<T::Native> {
    (i < array.len() && array.is_valid(i)).then(|| array.value(i))
}

/// Element `i` of a list column, from its value `skip` on; none of them may be null.
fn values<T: ArrowPrimitiveType>(
    lists: &ListArray,
    i: usize,
    column: &'static str,
    skip: usize,
) -> Result<Vec<T::Native>, RowProblem> {
    let null = |position| RowProblem::Null { column, position };
    if i >= lists.len() || lists.is_null(i) {
        return Err(null(0));
    }
    let list = lists.value(i);
    let list = list.as_primitive_opt::<T>().ok_or(null(0))?;
    if let Some(position) = (skip..list.len()).find(|&position| list.is_null(position)) {
        return Err(null(position));
    }
    Ok(list
        .values()
        .get(skip..)
        .map(<[_]>::to_vec)
        .unwrap_or_default())
}

/// The values of the targets; the first of the list has to be `first`, or null.
fn after_first(
    lists: &ListArray,
    i: usize,
    column: &'static str,
    first: Option<f32>,
) -> Result<Vec<f32>, RowProblem> {
    let targets = values::<Float32Type>(lists, i, column, 1)?;
    let list = lists.value(i);
    let list = list
        .as_primitive_opt::<Float32Type>()
        .ok_or(RowProblem::FirstValue(column))?;
    let found = scalar(list, 0);
    if list.is_empty() || found.map(f32::to_bits) != first.map(f32::to_bits) {
        return Err(RowProblem::FirstValue(column));
    }
    Ok(targets)
}

/// A finished set, every shard verified and mapped.
#[derive(Debug)]
pub struct ShardSet {
    manifest: Manifest,
    shards: Vec<ShardFile>,
}

impl ShardSet {
    /// Opens a set: manifest, then size, BLAKE3, footer and columns of every shard, in parallel.
    ///
    /// # Errors
    ///
    /// When anything is missing or is not what the manifest says.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let manifest = Manifest::load(dir)?;
        let has_base = manifest.plan.base.is_some();
        let plan = manifest.plan.identity()?;
        let shards = manifest
            .shards
            .par_iter()
            .map(|entry| ShardFile::open_verified(dir, entry, has_base, plan))
            .collect::<Result<_, _>>()?;
        Ok(Self { manifest, shards })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shards, by part.
    pub fn shards(&self) -> &[ShardFile] {
        &self.shards
    }

    /// Reads every value of every shard, in parallel, and compares the counts with the manifest.
    ///
    /// # Errors
    ///
    /// The first problem found, by part.
    pub fn verify_values(&self) -> Result<(), Error> {
        self.shards
            .par_iter()
            .zip(&self.manifest.shards)
            .try_for_each(|(shard, entry)| {
                let mut tokens = 0_u64;
                for group in 0..shard.num_row_groups() {
                    for row in shard.read_row_group(group)? {
                        tokens += row.scored.row.input_ids.len() as u64;
                    }
                }
                shard.expect_count("tokens", entry.tokens, tokens)
            })
    }
}
