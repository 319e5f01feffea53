//! Shards to rows. Every byte is checked against the manifest before it is parsed, every value
//! against the rules of the format before it is returned; shards stay memory-mapped.

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use rayon::prelude::*;

use super::Error;
use super::columns::Columns;
use super::container::Container;
use super::entry_file::{self, guarded};
use super::manifest::{Manifest, ShardEntry};
use super::plan::Plan;
use super::row::StoredRow;
use super::schema::{
    self, ColumnSet, FORMAT_VERSION_KEY, PACK_STATS_KEY, PLAN_KEY, REJECTS_KEY, RowProblem,
    SEAL_KEY, SHARD_VERSION, ShardFormat, columns,
};
use super::seal::{self, Broken};
use super::sidecar::{Sidecar, SidecarFile};
use crate::fs::{Digest, MappedFile};
use crate::pack::PackStats;
use crate::types::Reject;

/// One shard, mapped into memory, its footer parsed.
#[derive(Debug)]
pub struct ShardFile {
    path: PathBuf,
    part: u32,
    columns: ColumnSet,
    digest: Digest,
    map: MappedFile,
    bytes: Bytes,
    format: ShardFormat,
    container: Container,
    /// Number of the first row of each row group, and the number of all rows.
    group_starts: Vec<u64>,
    /// What stands for `rl_logprob`; nothing for the column itself.
    rl_columns: Vec<RlColumn>,
}

/// A column of log-probs of an RL model.
#[derive(Debug)]
enum RlColumn {
    /// The set's own.
    Own,
    /// That of a sidecar.
    Sidecar(Box<SidecarFile>),
}

impl ShardFile {
    /// Maps a shard that no manifest describes yet, parses its footer, and compares all of its bytes
    /// with the digest there.
    ///
    /// # Errors
    ///
    /// When it is not what was written, or no file of its format with exactly the columns of a shard.
    pub fn open(
        path: &Path,
        format: ShardFormat,
        part: u32,
        columns: impl Into<ColumnSet>,
    ) -> Result<Self, Error> {
        let map = MappedFile::open(path)?;
        Self::parse(path, format, part, columns.into(), map, None)
    }

    /// As [`ShardFile::open`], whatever the digest in the footer says.
    #[cfg(test)]
    pub(super) fn open_unsealed(
        path: &Path,
        format: ShardFormat,
        part: u32,
        columns: impl Into<ColumnSet>,
    ) -> Result<Self, Error> {
        let map = MappedFile::open(path)?;
        let digest = Digest::of(&map);
        Self::parse(path, format, part, columns.into(), map, Some(digest))
    }

    /// Maps a shard of a set and compares size and digest with the manifest before parsing a byte of
    /// it.
    ///
    /// # Errors
    ///
    /// When it is not what the manifest says.
    pub fn open_verified(
        dir: &Path,
        entry: &ShardEntry,
        manifest_plan: &Plan,
        identity: Digest,
    ) -> Result<Self, Error> {
        let columns = manifest_plan.columns();
        let path = dir.join(&entry.file);
        let map = entry_file::map(&path)?;
        let found = entry_file::check(&path, &map, entry)?;
        let format = manifest_plan.format;
        let shard = Self::parse(&path, format, entry.part, columns, map, Some(found))?;
        shard.expect_plan(identity)?;
        shard.expect_count("rows", entry.rows, shard.num_rows())?;
        Ok(shard)
    }

    /// Without a `digest` that somebody else vouches for, the file's own has to be right.
    fn parse(
        path: &Path,
        format: ShardFormat,
        part: u32,
        columns: ColumnSet,
        map: MappedFile,
        digest: Option<Digest>,
    ) -> Result<Self, Error> {
        let bytes = Bytes::from_owner(map.clone());
        let container = guarded(path, format, || Container::parse(format, &bytes))?;
        let digest = match digest {
            Some(digest) => digest,
            None => {
                check_seal(path, &map, container.value(SEAL_KEY))?;
                Digest::of(&map)
            }
        };
        let version = container.value(FORMAT_VERSION_KEY);
        if version != Some(SHARD_VERSION.to_string().as_str()) {
            return Err(Error::Schema {
                path: path.to_owned(),
                reason: format!(
                    "its version is {}, and this remit reads {SHARD_VERSION}",
                    version.unwrap_or("not given")
                ),
            });
        }
        let wanted = schema::schema(format, columns);
        if container.schema().fields() != wanted.fields() {
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
                    describe(container.schema().fields())
                ),
            });
        }
        let mut group_starts = vec![0];
        let mut total = 0_u64;
        let group_rows = guarded(path, format, || Ok(container.group_rows()))?;
        for rows in group_rows.into_iter().flatten() {
            total = total.saturating_add(rows);
            group_starts.push(total);
        }
        if total == u64::MAX || (group_starts.len() == 1 && container.group_rows().is_none()) {
            return Err(Error::Unreadable {
                path: path.to_owned(),
                format,
                reason: "its footer has an impossible number of rows".to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            part,
            columns,
            digest,
            map,
            bytes,
            format,
            container,
            group_starts,
            rl_columns: Vec::new(),
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size of the file.
    pub fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Returns the BLAKE3 of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of row groups, the unit of reading.
    pub fn num_row_groups(&self) -> usize {
        self.group_starts.len().saturating_sub(1)
    }

    /// Returns the `row_id` of a row of a row group.
    pub fn row_id(&self, group: usize, row: usize) -> u64 {
        let start = self.group_starts.get(group).copied().unwrap_or(0);
        u32::try_from(start.saturating_add(row as u64))
            .map_or(u64::MAX, |index| schema::row_id(self.part, index))
    }

    /// Number of rows.
    pub fn num_rows(&self) -> u64 {
        self.group_starts.last().copied().unwrap_or(0)
    }

    /// Returns a value of the footer's metadata.
    fn footer(&self, key: &str) -> Option<&str> {
        self.container.value(key)
    }

    /// Returns the counts of the packer, from the footer.
    pub fn pack_stats(&self) -> Result<PackStats, Error> {
        self.footer(PACK_STATS_KEY)
            .and_then(|value| serde_json::from_str(value).ok())
            .ok_or_else(|| Error::Schema {
                path: self.path.clone(),
                reason: format!("its footer has no readable {PACK_STATS_KEY}"),
            })
    }

    /// Returns the records of the part that could not be read, from the footer.
    pub fn rejects(&self) -> Result<Vec<Reject>, Error> {
        let Some(value) = self.footer(REJECTS_KEY) else {
            return Ok(Vec::new());
        };
        serde_json::from_str(value).map_err(|_| Error::Schema {
            path: self.path.clone(),
            reason: format!("its footer has no readable {REJECTS_KEY}"),
        })
    }

    /// Checks that the shard was made under this plan.
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

    /// Returns all rows of a row group, each checked against the rules of the format.
    ///
    /// # Errors
    ///
    /// When the data can't be decoded, or a row breaks a rule.
    pub fn read_row_group(&self, group: usize) -> Result<Vec<StoredRow>, Error> {
        let start = self.group_start(group)?;
        let mut rows = Vec::new();
        if self.is_empty(group) {
            return Ok(rows);
        }
        self.decode(group, None, |batch| {
            let columns = Columns::of(&batch, self.columns)
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
        self.replace_rl_log_probs(group, &mut rows)?;
        Ok(rows)
    }

    /// Puts the mean of the columns that were asked for in the place of the RL model's log-probs.
    fn replace_rl_log_probs(&self, group: usize, rows: &mut [StoredRow]) -> Result<(), Error> {
        if self.rl_columns.is_empty() {
            return Ok(());
        }
        let mut sums: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| vec![0.0; row.scored.rl_logprobs.len()])
            .collect();
        for column in &self.rl_columns {
            let RlColumn::Sidecar(file) = column else {
                for (sums, row) in sums.iter_mut().zip(&*rows) {
                    let values = row.scored.rl_logprobs.iter();
                    sums.iter_mut()
                        .zip(values)
                        .for_each(|(sum, v)| *sum += f64::from(*v));
                }
                continue;
            };
            let values = file.read_group(group)?;
            if values.len() != rows.len() {
                return Err(Error::Count {
                    path: file.path().to_owned(),
                    what: "rows in a row group",
                    expected: rows.len() as u64,
                    found: values.len() as u64,
                });
            }
            for ((sums, row), (id, values)) in sums.iter_mut().zip(&*rows).zip(values) {
                let problem = |reason| Error::SidecarRow {
                    path: file.path().to_owned(),
                    row_id: row.row_id,
                    reason,
                };
                if id != row.row_id || values.len() != row.num_tokens() {
                    return Err(problem("its row_id or its length is another"));
                }
                let of_targets = values.get(1..).unwrap_or_default();
                for (index, (sum, value)) in sums.iter_mut().zip(of_targets).enumerate() {
                    if value.is_some() != row.scored.is_target(index) {
                        return Err(problem("they have values at other positions"));
                    }
                    *sum += f64::from(value.unwrap_or(0.0));
                }
            }
        }
        let count = self.rl_columns.len() as f64;
        for (sums, row) in sums.into_iter().zip(&mut *rows) {
            row.scored.rl_logprobs = sums.into_iter().map(|sum| (sum / count) as f32).collect();
            schema::validate(&row.scored).map_err(|reason| Error::Row {
                path: self.path.clone(),
                row: row.row_id & u64::from(u32::MAX),
                reason,
            })?;
        }
        Ok(())
    }

    /// Returns the number of tokens of each row of a row group; decodes the ids alone.
    pub fn row_lengths(&self, group: usize) -> Result<Vec<u32>, Error> {
        let mut lengths = Vec::new();
        if self.is_empty(group) {
            return Ok(lengths);
        }
        self.decode(group, Some(columns::INPUT_IDS), |batch| {
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
        column: Option<&str>,
        mut each: impl FnMut(RecordBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut batches = guarded(&self.path, self.format, || {
            self.container.batches(&self.bytes, group, column)
        })?;
        loop {
            let next = guarded(&self.path, self.format, || {
                batches.next().transpose().map_err(|e| e.to_string())
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
            .ok_or_else(|| Error::Unreadable {
                path: self.path.clone(),
                format: self.format,
                reason: format!("it has no row group {group}"),
            })
    }

    /// Returns the row group that a row is in, and its number there.
    pub fn group_of(&self, row: u64) -> Option<(usize, u64)> {
        let group = self
            .group_starts
            .partition_point(|start| *start <= row)
            .checked_sub(1)?;
        let start = self.group_starts.get(group)?;
        (row < self.num_rows()).then_some((group, row - start))
    }

    /// Returns whether a row group has no rows. The parser takes its time for one.
    fn is_empty(&self, group: usize) -> bool {
        let start = self.group_starts.get(group);
        start.is_some() && start == self.group_starts.get(group.saturating_add(1))
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

/// Compares a shard with the digest in its footer.
fn check_seal(path: &Path, bytes: &[u8], seal: Option<&str>) -> Result<(), Error> {
    let path = path.to_owned();
    match seal::check(bytes, seal) {
        Ok(()) => Ok(()),
        Err(Broken::Digest { expected, found }) => Err(Error::Seal {
            path,
            expected,
            found,
        }),
        Err(broken @ Broken::Absent) => Err(Error::Schema {
            path,
            reason: broken.to_string(),
        }),
    }
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
        let identity = manifest.plan.identity()?;
        let shards = manifest
            .shards
            .par_iter()
            .map(|entry| ShardFile::open_verified(dir, entry, &manifest.plan, identity))
            .collect::<Result<_, _>>()?;
        Ok(Self { manifest, shards })
    }

    /// Puts the mean of columns in the place of the RL model's log-probs in every row that is read from now on: those of
    /// sidecars, and with `own` the set's too.
    pub fn with_rl_columns(mut self, own: bool, sidecars: Vec<Sidecar>) -> Self {
        for shard in &mut self.shards {
            shard.rl_columns = own.then_some(RlColumn::Own).into_iter().collect();
        }
        for sidecar in sidecars {
            for (shard, file) in self.shards.iter_mut().zip(sidecar.into_files()) {
                shard.rl_columns.push(RlColumn::Sidecar(Box::new(file)));
            }
        }
        self
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shards, by part.
    pub fn shards(&self) -> &[ShardFile] {
        &self.shards
    }
}
