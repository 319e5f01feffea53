//! plan.json, which says what a set will be, and manifest.json, which says what it is.
//!
//! The plan is written before the first shard and never changes: whoever works on the set compares
//! his own with it. The manifest is written last: its presence means that the set is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{check_version, content_digest, pretty};
use super::read::ShardFile;
use super::schema::ShardFormat;
use super::statistics::{Accumulator, BySource, Statistics};
use super::{Error, ErrorKind};
use crate::fs::{self, Digest};
use crate::pack::{PackStats, Packing};
use crate::tokenize::SpecialTokens;
use crate::types::{OnBadRecord, Reject, TokenDtype, TokenId};
use crate::weight::WeightFormula;

/// Name of the manifest in a set's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the plan in a set's folder.
pub const PLAN_FILE: &str = "plan.json";

/// Name of the list of records that could not be read, in a set's folder.
pub const REJECTS_FILE: &str = "rejects.jsonl";

/// Shards whose numbers are gathered at a time.
const PARTS_AT_A_TIME: usize = 64;

/// What the names of shards begin with.
pub const SHARD_PREFIX: &str = "part-";

/// Most differences of the corpus that a message lists.
const MAX_LISTED: usize = 5;

/// A model that took part in scoring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// Its folder as given, or the name of a built-in model.
    pub path: String,
    /// Digest of config.json and the weight files.
    pub fingerprint: Digest,
    /// `model_type` of config.json.
    pub model_type: String,
    /// dtype that it was run in.
    pub dtype: String,
    /// Kind of device that it was run on: `cpu` or `cuda`.
    pub device: String,
}

/// The tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerIdentity {
    /// The model it was taken from.
    pub path: String,
    /// Digest of what decides which ids a text becomes.
    pub fingerprint: Digest,
    /// One more than its largest id.
    pub vocab_size: u64,
}

/// A file of the corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusEntry {
    /// Path relative to the corpus root.
    pub source: String,
    /// Size.
    pub size_bytes: u64,
    /// Digest of the file as it is on disk.
    pub blake3: Digest,
}

/// Everything that decides the bytes of the shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`FORMAT_VERSION`](super::schema::FORMAT_VERSION).
    pub format_version: u64,
    /// Version of the remit that made the set.
    pub tool_version: String,
    /// The RL-tuned model.
    pub reference: ModelIdentity,
    /// The frozen base, if one was scored.
    pub base: Option<ModelIdentity>,
    /// The tokenizer of both.
    pub tokenizer: TokenizerIdentity,
    /// How documents became rows.
    pub packing: Packing,
    /// Longest row, in tokens.
    pub seq_len: u32,
    /// Ids put around documents.
    pub special_tokens: SpecialTokens,
    /// Formula of the static weights; null without a base.
    pub formula: Option<WeightFormula>,
    /// Whether floats keep all 23 bits of their mantissas.
    pub exact: bool,
    /// How shards are stored.
    pub format: ShardFormat,
    /// Key or column that held the text, or token ids; null for the default, which is one thing more than
    /// its first choice: where a record has none of that name, another is taken.
    pub text_field: Option<String>,
    /// Documents of fewer tokens were left out.
    pub min_tokens: u64,
    /// Documents after this many were left out; null for all.
    pub limit_docs: Option<u64>,
    /// What was done with records that can't be read.
    pub on_bad_record: OnBadRecord,
    /// Bytes that one record may have.
    pub max_record_bytes: u64,
    /// How ids are stored in files of token ids without a header.
    pub token_dtype: Option<TokenDtype>,
    /// The id that ends a document in files of token ids; null without such files.
    pub separator: Option<TokenId>,
    /// Target size of a part, bytes.
    pub part_bytes: u64,
    /// Number of parts, which is the number of shards.
    pub num_parts: u32,
    /// The files, in byte order of their sources.
    pub corpus: Vec<CorpusEntry>,
}

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

/// The list of records that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectsEntry {
    /// Name of the file in the set's folder.
    pub file: String,
    /// Records in it.
    pub records: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Digest of the file.
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

impl Plan {
    /// Reads plan.json; `None` when the folder has none.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(PLAN_FILE);
        if !fs::exists(&path)? {
            return Ok(None);
        }
        let bytes = fs::read(&path)?;
        check_version(&path, &bytes, |value| value.get("format_version"))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Json { path, source })
    }

    /// Writes plan.json, unless there is one; whether it was written.
    pub fn save(&self, dir: &Path) -> Result<bool, Error> {
        let path = dir.join(PLAN_FILE);
        Ok(fs::write_new(&path, &self.to_json()?)?)
    }

    /// The content of plan.json.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, Error> {
        pretty(self, Path::new(PLAN_FILE))
    }

    /// Digest of all that [`Plan::difference`] compares; every shard of the set carries it.
    ///
    /// # Errors
    ///
    /// None in practice: a plan can always be written as JSON.
    pub fn identity(&self) -> Result<Digest, Error> {
        let mut plan = self.clone();
        plan.reference.path.clear();
        plan.tokenizer.path.clear();
        if let Some(base) = &mut plan.base {
            base.path.clear();
        }
        Ok(Digest::of(&plan.to_json()?))
    }

    /// In what another plan asks for other shards than this one: one line each, with both values.
    /// Paths of models are not compared, since their contents are.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let (Ok(Value::Object(mine)), Ok(Value::Object(theirs))) =
            (serde_json::to_value(self), serde_json::to_value(other))
        else {
            return vec!["the plans can't be compared".to_owned()];
        };
        let mut lines = Vec::new();
        for (field, mine) in &mine {
            let theirs = theirs.get(field).unwrap_or(&Value::Null);
            match field.as_str() {
                "corpus" => lines.extend(corpus_difference(&self.corpus, &other.corpus)),
                _ => compare(field, mine, theirs, &mut lines),
            }
        }
        lines
    }
}

fn compare(field: &str, mine: &Value, theirs: &Value, lines: &mut Vec<String>) {
    match (mine, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a.iter().filter(|(key, _)| *key != "path") {
                let theirs = b.get(key).unwrap_or(&Value::Null);
                compare(&format!("{field}.{key}"), value, theirs, lines);
            }
        }
        _ if mine == theirs => {}
        _ => lines.push(format!("{field} was {mine}, is now {theirs}")),
    }
}

fn corpus_difference(before: &[CorpusEntry], now: &[CorpusEntry]) -> Vec<String> {
    let by_source = |entries: &[CorpusEntry]| -> BTreeMap<String, CorpusEntry> {
        entries
            .iter()
            .map(|entry| (entry.source.clone(), entry.clone()))
            .collect()
    };
    let (before, now) = (by_source(before), by_source(now));
    let mut lines = Vec::new();
    for source in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        match (before.get(source), now.get(source)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => lines.push(format!("the corpus file {source} has changed")),
            (Some(_), None) => lines.push(format!("the corpus file {source} is gone")),
            (None, _) => lines.push(format!("the corpus file {source} is new")),
        }
    }
    if lines.len() > MAX_LISTED {
        let more = lines.len() - MAX_LISTED;
        lines.truncate(MAX_LISTED);
        lines.push(format!("and {more} more files of the corpus"));
    }
    lines
}

/// A manifest that is not written yet, and what goes with it.
#[derive(Debug)]
pub struct Assembly {
    manifest: Manifest,
    rejects_jsonl: Vec<u8>,
}

impl Assembly {
    /// Writes rejects.jsonl, if there is anything in it, and then manifest.json, both atomically.
    pub fn save(self, dir: &Path) -> Result<Manifest, Error> {
        self.save_rejects(dir)?;
        self.manifest.save(dir)
    }

    /// Writes rejects.jsonl, if there is anything in it.
    pub fn save_rejects(&self, dir: &Path) -> Result<(), Error> {
        if !self.rejects_jsonl.is_empty() {
            fs::write_new(&dir.join(REJECTS_FILE), &self.rejects_jsonl)?;
        }
        Ok(())
    }
}

impl Manifest {
    /// Name of the shard of a part.
    pub fn shard_name(part: u32, format: ShardFormat) -> String {
        format!("{SHARD_PREFIX}{part:06}.{}", format.extension())
    }

    /// Reads and checks manifest.json.
    ///
    /// # Errors
    ///
    /// [`Error::NoFolder`], [`Error::NoManifest`] and [`Error::Unfinished`] tell what is missing; a
    /// manifest that was changed after it was written is refused.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        if !fs::is_dir(dir)? {
            return Err(Error::NoFolder {
                dir: dir.to_owned(),
            });
        }
        match Self::load_if_present(dir)? {
            Some(manifest) => Ok(manifest),
            None if fs::exists(&dir.join(PLAN_FILE))? => Err(Error::Unfinished {
                dir: dir.to_owned(),
            }),
            None => Err(Error::NoManifest {
                dir: dir.to_owned(),
            }),
        }
    }

    /// As [`Manifest::load`]; `None` when there is none.
    pub fn load_if_present(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(MANIFEST_FILE);
        if !fs::exists(&path)? {
            return Ok(None);
        }
        let bytes = fs::read(&path)?;
        check_version(&path, &bytes, |value| {
            value.get("plan")?.get("format_version")
        })?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        let damaged = |reason: String| Error::Manifest {
            path: path.clone(),
            reason,
        };
        let found = content_digest(&bytes, manifest.content_blake3)
            .ok_or_else(|| damaged("it does not hold its own digest once".to_owned()))?;
        if found != manifest.content_blake3 {
            return Err(damaged(format!(
                "its content has the digest {found}, but it says {}; it was changed after it was written",
                manifest.content_blake3
            )));
        }
        manifest.validate().map_err(damaged)?;
        Ok(Some(manifest))
    }

    /// Makes the manifest of a set whose shards are all there, by reading every one of them.
    ///
    /// # Errors
    ///
    /// When a shard is missing, is not what was written, or breaks a rule of the format; all of the shards
    /// are read before, so that one message names all that have to be made again.
    pub fn from_shards(dir: &Path, plan: Plan) -> Result<Assembly, Error> {
        let formula = plan.formula.unwrap_or_default();
        let identity = plan.identity()?;
        let mut documents = PackStats::default();
        let mut by_source = BySource::new();
        let mut shards = Vec::new();
        let mut rejects_jsonl = Vec::new();
        let mut bad = Vec::new();
        let numbers: Vec<u32> = (0..plan.num_parts).collect();
        // Some at a time, so that memory does not hold what all of them say.
        for numbers in numbers.chunks(PARTS_AT_A_TIME) {
            let parts: Vec<_> = numbers
                .par_iter()
                .map(|part| describe(dir, *part, &plan, identity, &formula))
                .collect();
            for described in parts {
                let (entry, stats, sources, rejects) = match described {
                    Ok(described) => described,
                    Err(error) if error.kind() == ErrorKind::BadData => {
                        bad.push(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                shards.push(entry);
                for reject in rejects {
                    serde_json::to_writer(&mut rejects_jsonl, &reject).map_err(|source| {
                        Error::Json {
                            path: dir.join(REJECTS_FILE),
                            source,
                        }
                    })?;
                    rejects_jsonl.push(b'\n');
                }
                documents += stats;
                for (source, accumulator) in sources {
                    by_source.entry(source).or_default().merge(&accumulator);
                }
            }
        }
        if bad.len() > 1 {
            let dir = dir.to_owned();
            return Err(Error::Several { dir, problems: bad });
        }
        if let Some(error) = bad.pop() {
            return Err(error);
        }
        let mut totals = Accumulator::default();
        by_source
            .values()
            .for_each(|accumulator| totals.merge(accumulator));
        let rejects = (!rejects_jsonl.is_empty()).then(|| RejectsEntry {
            file: REJECTS_FILE.to_owned(),
            records: documents.rejected_records,
            size_bytes: rejects_jsonl.len() as u64,
            blake3: Digest::of(&rejects_jsonl),
        });
        let manifest = Self {
            content_blake3: Digest::of(b""),
            shards,
            documents,
            rejects,
            totals: totals.statistics(&formula),
            sources: by_source
                .into_iter()
                .map(|(source, accumulator)| (source, accumulator.statistics(&formula)))
                .collect(),
            plan,
        };
        Ok(Assembly {
            manifest,
            rejects_jsonl,
        })
    }

    /// Compares the list of records that could not be read with its digest.
    ///
    /// # Errors
    ///
    /// When it is missing or is not what it was.
    pub fn verify_rejects(&self, dir: &Path) -> Result<(), Error> {
        let Some(entry) = &self.rejects else {
            return Ok(());
        };
        let path = dir.join(&entry.file);
        if !fs::exists(&path)? {
            return Err(Error::MissingRejects { path });
        }
        let (_, found) = fs::hash_file(&path, |_| ())?;
        if found == entry.blake3 {
            return Ok(());
        }
        Err(Error::Hash {
            path,
            expected: entry.blake3,
            found,
        })
    }

    /// Writes manifest.json, atomically, with its own digest in it, unless there is one; returns it as
    /// it was written.
    pub(crate) fn save(mut self, dir: &Path) -> Result<Self, Error> {
        let path = dir.join(MANIFEST_FILE);
        self.validate().map_err(|reason| Error::Manifest {
            path: path.clone(),
            reason,
        })?;
        let draft = pretty(&self, &path)?;
        self.content_blake3 =
            content_digest(&draft, self.content_blake3).ok_or_else(|| Error::Manifest {
                path: path.clone(),
                reason: "it does not hold its own digest once".to_owned(),
            })?;
        // Another worker may have been faster, with the same bytes.
        fs::write_new(&path, &pretty(&self, &path)?)?;
        Ok(self)
    }

    fn validate(&self) -> Result<(), String> {
        if self.shards.len() as u64 != u64::from(self.plan.num_parts) {
            return Err(format!(
                "it lists {} shards, but the plan has {} parts",
                self.shards.len(),
                self.plan.num_parts
            ));
        }
        let rejected = self.rejects.as_ref().map_or(0, |rejects| rejects.records);
        let names_rejects = |entry: &RejectsEntry| entry.file == REJECTS_FILE;
        if rejected != self.documents.rejected_records
            || !self.rejects.as_ref().is_none_or(names_rejects)
        {
            return Err(format!(
                "{} records could not be read, but {REJECTS_FILE} is said to list {rejected}",
                self.documents.rejected_records
            ));
        }
        if self.plan.base.is_some() != self.plan.formula.is_some() {
            return Err("a formula and a base come together or not at all".to_owned());
        }
        let mut sums = (0_u64, 0_u64, 0_u64);
        for (part, shard) in (0_u32..).zip(&self.shards) {
            if shard.part != part || shard.file != Self::shard_name(part, self.plan.format) {
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

/// Reads a finished shard for what the manifest says of it.
fn describe(
    dir: &Path,
    part: u32,
    plan: &Plan,
    identity: Digest,
    formula: &WeightFormula,
) -> Result<(ShardEntry, PackStats, BySource, Vec<Reject>), Error> {
    let file = Manifest::shard_name(part, plan.format);
    let path = dir.join(&file);
    if !fs::exists(&path)? {
        return Err(Error::MissingShard { path });
    }
    let shard = ShardFile::open(&path, plan.format, part, plan.base.is_some())?;
    shard.expect_plan(identity)?;
    let mut sources = BySource::new();
    let mut counts = (0, 0, 0);
    for group in 0..shard.num_row_groups() {
        for row in shard.read_row_group(group)? {
            counts.0 += 1;
            counts.1 += row.scored.row.input_ids.len() as u64;
            counts.2 += row.scored.row.num_targets() as u64;
            let source = &*row.scored.row.source;
            if !sources.contains_key(source) {
                sources.insert(source.to_owned(), Accumulator::default());
            }
            if let Some(accumulator) = sources.get_mut(source) {
                accumulator.add(&row.scored, formula);
            }
        }
    }
    let entry = ShardEntry {
        file,
        part,
        rows: counts.0,
        tokens: counts.1,
        targets: counts.2,
        size_bytes: shard.size_bytes(),
        blake3: shard.digest(),
    };
    let stats = shard.pack_stats()?;
    let rejects = shard.rejects()?;
    shard.expect_count(
        "records that could not be read",
        stats.rejected_records,
        rejects.len() as u64,
    )?;
    Ok((entry, stats, sources, rejects))
}
