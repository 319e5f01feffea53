//! The manifest of a finished set: its plan, its shards, and numbers about them.
//!
//! The manifest is written last: its presence means that the set is complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::description;
use super::json::{check_version, content_digest};
use super::layout::{DESCRIPTION_DIR, Description, shard_name};
use super::plan::{FORMAT_VERSION, Plan};
use super::schema::ShardFormat;
use super::statistics::Statistics;
use super::version1;
use crate::escape::Show as _;
use crate::fs::{self, Digest};
use crate::pack::PackStats;

/// A shard of a finished set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Name of the file in the set's folder.
    pub file: String,
    /// Number of the part that it holds.
    pub part: u32,
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub targets: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Digest of the file.
    pub blake3: Digest,
}

impl ShardEntry {
    /// Compares the size of the file, without opening it.
    ///
    /// # Errors
    ///
    /// [`Error::MissingShard`] and [`Error::Size`].
    pub fn expect_size(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(&self.file);
        if !fs::exists(&path)? {
            return Err(Error::MissingShard { path });
        }
        let found = fs::size_bytes(&path)?;
        if found == self.size_bytes {
            return Ok(());
        }
        Err(Error::Size {
            path,
            expected: self.size_bytes,
            found,
        })
    }
}

/// The list of records that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectsEntry {
    /// Name of the file in the set's folder.
    pub file: String,
    /// Records in it.
    pub records: u64,
    /// Size of the list as text, without the file around it.
    pub size_bytes: u64,
    /// Digest of that text.
    pub blake3: Digest,
}

/// A finished set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// BLAKE3 of this file with these 64 digits written as zeros.
    pub content_blake3: Digest,
    /// What decided the shards.
    pub plan: Plan,
    /// The shards, by part.
    pub shards: Vec<ShardEntry>,
    /// Counts of the packer over all parts: documents, and what was left out.
    pub documents: PackStats,
    /// The list of records that could not be read; null without any.
    pub rejects: Option<RejectsEntry>,
    /// Numbers over all rows.
    pub totals: Statistics,
    /// Numbers by source; a row counts for the source of its first token.
    pub sources: BTreeMap<String, Statistics>,
}

/// Tells what a folder is that holds no set, and what to do with it.
fn hint_of_no_set(dir: &Path) -> String {
    let has = |name: &str| fs::exists(&dir.join(name)).unwrap_or(false);
    let shown = dir.shown();
    if has("config.json") {
        let of_run = if has("run.json") {
            " that remit-anneal made"
        } else {
            ""
        };
        return format!(
            "it is a model{of_run}: remit-inspect model {shown} describes it, and remit-inspect compare A B --weights SET \
             measures losses of two"
        );
    }
    if has("run.json") {
        return "it is a run of remit-anneal that is not finished; the same command, run again, resumes it".to_owned();
    }
    let sidecar = Description::SidecarPlan.file(ShardFormat::Parquet);
    if has(&sidecar) || has(&Description::SidecarPlan.file(ShardFormat::Arrow)) {
        return "it is a sidecar, one more column for a set; give the folder of the set".to_owned();
    }
    let below = fs::list(dir)
        .unwrap_or_default()
        .into_iter()
        .find(|name| fs::is_dir(&dir.join(name).join(DESCRIPTION_DIR)).unwrap_or(false));
    match below {
        Some(name) => format!("there is a set further down: {}", dir.join(name).shown()),
        None => "remit-score INPUT -o DIR makes one".to_owned(),
    }
}

impl Manifest {
    /// Reads and checks the manifest of a set.
    ///
    /// # Errors
    ///
    /// [`Error::NoFolder`], [`Error::NoManifest`], [`Error::Unfinished`] and [`Error::Version1Unfinished`]
    /// tell what is missing; a manifest that was changed after it was written is refused.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        if !fs::is_dir(dir)? {
            if fs::exists(dir)? {
                let path = dir.to_owned();
                let hint = match fs::folder_above_with(dir, DESCRIPTION_DIR)? {
                    Some(set) => format!("give the folder of the set: {}", set.shown()),
                    None => "remit-score INPUT -o DIR makes a set".to_owned(),
                };
                return Err(Error::NotAFolder { path, hint });
            }
            return Err(Error::NoFolder {
                dir: dir.to_owned(),
            });
        }
        if let Some(manifest) = Self::load_if_present(dir)? {
            return Ok(manifest);
        }
        let dir = dir.to_owned();
        Err(if description::exists(&dir, Description::Plan)? {
            Error::Unfinished { dir }
        } else if version1::is_present(&dir)? {
            Error::Version1Unfinished { dir }
        } else {
            let hint = hint_of_no_set(&dir);
            Error::NoManifest { dir, hint }
        })
    }

    /// Reads and checks as [`Manifest::load`]; `None` when there is none.
    pub fn load_if_present(dir: &Path) -> Result<Option<Self>, Error> {
        if let Some(found) = description::read(dir, Description::Manifest)? {
            return Self::parse(found.path, &found.text, FORMAT_VERSION).map(Some);
        }
        let path = dir.join(version1::MANIFEST_FILE);
        if !fs::exists(&path)? {
            return Ok(None);
        }
        let text = fs::read(&path)?;
        Self::parse(path, &text, version1::FORMAT_VERSION).map(Some)
    }

    /// Returns whether a set has a manifest, whatever is in it.
    pub fn is_present(dir: &Path) -> Result<bool, Error> {
        Ok(description::exists(dir, Description::Manifest)?
            || fs::exists(&dir.join(version1::MANIFEST_FILE))?)
    }

    fn parse(path: PathBuf, text: &[u8], version: u64) -> Result<Self, Error> {
        let mut value = check_version(&path, text, version, |value| {
            value.get("plan")?.get("format_version")
        })?;
        if version == version1::FORMAT_VERSION
            && let Some(plan) = value.get_mut("plan")
        {
            version1::upgrade(plan, FORMAT_VERSION);
        }
        let manifest: Self = match serde_json::from_value(value) {
            Ok(manifest) => manifest,
            Err(source) => return Err(Error::Json { path, source }),
        };
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let found = content_digest(text, manifest.content_blake3)
            .ok_or_else(|| damaged("it does not hold its own digest once".to_owned()))?;
        if found != manifest.content_blake3 {
            return Err(damaged(format!(
                "its content has the digest {found}, but it says {}; it was changed after it was written",
                manifest.content_blake3
            )));
        }
        manifest.validate().map_err(damaged)?;
        Ok(manifest)
    }

    /// Checks that the numbers agree with each other; the error says which do not.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.shards.len() as u64 != u64::from(self.plan.num_parts) {
            return Err(format!(
                "it lists {} shards, but the plan has {} parts",
                self.shards.len(),
                self.plan.num_parts
            ));
        }
        let rejected = self.rejects.as_ref().map_or(0, |rejects| rejects.records);
        let names_rejects = |entry: &RejectsEntry| {
            entry.file == Description::Rejects.file(self.plan.format)
                || entry.file == version1::REJECTS_FILE
        };
        if rejected != self.documents.rejected_records
            || !self.rejects.as_ref().is_none_or(names_rejects)
        {
            return Err(format!(
                "{} records could not be read, but {rejected} are said to be listed in {}",
                self.documents.rejected_records,
                self.rejects.as_ref().map_or("no file", |entry| &entry.file)
            ));
        }
        if self.plan.base.is_some() != self.plan.formula.is_some() {
            return Err("a formula and a base come together or not at all".to_owned());
        }
        let mut sums = (0_u64, 0_u64, 0_u64);
        for (part, shard) in (0_u32..).zip(&self.shards) {
            if shard.part != part || shard.file != shard_name(part, self.plan.format) {
                return Err(format!(
                    "shard {part} is called {:?} and says it is part {}",
                    shard.file, shard.part
                ));
            }
            let add = |sum: u64, n: u64| sum.checked_add(n).ok_or("its counts overflow");
            sums = (
                add(sums.0, shard.rows)?,
                add(sums.1, shard.tokens)?,
                add(sums.2, shard.targets)?,
            );
        }
        for (what, sum, total) in [
            ("rows", sums.0, self.totals.rows),
            ("tokens", sums.1, self.totals.tokens),
            ("targets", sums.2, self.totals.targets),
        ] {
            if sum != total {
                return Err(format!(
                    "its shards have {sum} {what}, but the totals say {total}"
                ));
            }
        }
        Ok(())
    }
}
