//! The plan of a set: everything that decides the bytes of its shards.
//!
//! The plan is written before the first shard and never changes: whoever works on the set compares
//! his own with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;
use super::description;
use super::json::{check_version, pretty};
use super::layout::Description;
use super::schema::{ColumnSet, ShardFormat};
use super::version1;
use crate::fs::{self, Digest};
use crate::pack::Packing;
use crate::tokenize::{DocumentTokens, SpecialTokens, SpecialTokensInText};
use crate::types::{DistributionPlan, OnBadRecord, TokenDtype, TokenId, WeightBounds};
use crate::weight::WeightFormula;

/// Version of the plan and the manifest, and of where they lie.
pub const FORMAT_VERSION: u64 = 2;

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
    /// Digest of which tokens are special, where that decides ids too: where text that spells one out stays text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_fingerprint: Option<Digest>,
    /// BOS and EOS of documents with their spelling and where they are from; absent in older plans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_tokens: Option<DocumentTokens>,
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
    /// [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Version of the remit that made the set.
    pub tool_version: String,
    /// The RL-tuned model.
    pub rl: ModelIdentity,
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
    /// How text was read that spells out a special token; left out where it became the token.
    #[serde(default, skip_serializing_if = "SpecialTokensInText::is_default")]
    pub special_tokens_in_text: SpecialTokensInText,
    /// Formula of the static weights; null without a base.
    pub formula: Option<WeightFormula>,
    /// How weights at a bound are stored; left out where they are rounded like the others.
    #[serde(default, skip_serializing_if = "WeightBounds::is_default")]
    pub weight_bounds: WeightBounds,
    /// What is stored of the RL model's distributions; left out where that is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributions: Option<DistributionPlan>,
    /// Whether floats keep all 23 bits of their mantissas.
    pub exact: bool,
    /// How shards are stored.
    pub format: ShardFormat,
    /// Key or column that held the text, or token ids; null for the default, which is one thing more than
    /// its first choice: where a record has none of that name, another is taken.
    pub text_field: Option<String>,
    /// Digest of the chat template and what it is given, where the corpus may hold messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<Digest>,
    /// Date that the chat template is told, where it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_date: Option<String>,
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
    /// Endings of files that were taken for text besides .txt and .md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text_ext: Vec<String>,
    /// Fields of config.json of the models that were not understood, and accepted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_config_fields: Vec<String>,
    /// Number of parts, which is the number of shards.
    pub num_parts: u32,
    /// The files, in byte order of their sources.
    pub corpus: Vec<CorpusEntry>,
}

impl Plan {
    /// Returns the columns of the set's shards.
    pub fn columns(&self) -> ColumnSet {
        columns_of(self.base.is_some(), self.distributions.as_ref())
    }

    /// Returns where the plan lies in a set's folder.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(Description::Plan.file(self.format))
    }

    /// Reads the plan of a set; `None` when the folder has none.
    ///
    /// # Errors
    ///
    /// [`Error::Version1`] when the folder holds a set of version 1: it can be read, but not added to.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let Some(found) = description::read(dir, Description::Plan)? else {
            if version1::is_present(dir)? {
                return Err(Error::Version1 {
                    dir: dir.to_owned(),
                });
            }
            return Ok(None);
        };
        let path = found.path;
        let value = check_version(&path, &found.text, FORMAT_VERSION, |value| {
            value.get("format_version")
        })?;
        serde_json::from_value(value)
            .map(Some)
            .map_err(|source| Error::Json { path, source })
    }

    /// Writes the plan, unless there is one; returns whether it was written.
    pub fn save(&self, dir: &Path) -> Result<bool, Error> {
        let text = self.to_json()?;
        let columns = self.columns();
        if !description::write_new(dir, Description::Plan, self.format, columns, &text)? {
            return Ok(false);
        }
        // Plans of the two formats have two names. Each looks for the other after it was written, so at
        // least one of two that are written together sees it, and gives way.
        if fs::exists(&dir.join(Description::Plan.file(self.format.other())))? {
            fs::remove_file(&self.path(dir))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Returns the plan as it is written.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, Error> {
        pretty(self, Path::new(Description::Plan.name()))
    }

    /// Returns the digest of all that [`Plan::difference`] compares; every shard of the set carries it.
    /// It is that of the plan as version 1 of the format wrote it, so that a shard does not depend on
    /// how the plan is written.
    ///
    /// # Errors
    ///
    /// None in practice: a plan can always be written as JSON.
    pub fn identity(&self) -> Result<Digest, Error> {
        let mut plan = self.clone();
        plan.rl.path.clear();
        plan.tokenizer.path.clear();
        // Its ids are in `special_tokens`.
        plan.tokenizer.document_tokens = None;
        if let Some(base) = &mut plan.base {
            base.path.clear();
        }
        Ok(Digest::of(&version1::plan_text(&plan.to_json()?)))
    }

    /// Returns in what another plan asks for other shards than this one: one line each, with both values.
    /// Paths of models are not compared, since their contents are.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let (Ok(Value::Object(mine)), Ok(Value::Object(theirs))) =
            (serde_json::to_value(self), serde_json::to_value(other))
        else {
            return vec!["the plans can't be compared".to_owned()];
        };
        let mut lines = Vec::new();
        // A setting with its default may be left out of either.
        let fields: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
        for field in fields {
            let value = |plan: &Map<String, Value>| plan.get(field).cloned().unwrap_or_default();
            let (mine, theirs) = (&value(&mine), &value(&theirs));
            match field.as_str() {
                "corpus" => lines.extend(corpus_difference(&self.corpus, &other.corpus)),
                _ => compare(field, mine, theirs, &mut lines),
            }
        }
        lines
    }
}

/// Returns the columns of the shards of a set with a base or without one, and with what is stored of distributions.
pub fn columns_of(has_base: bool, distributions: Option<&DistributionPlan>) -> ColumnSet {
    let top_k = distributions.and_then(|stored| stored.top_k);
    ColumnSet {
        base: has_base,
        entropy: distributions.is_some_and(|stored| stored.entropy),
        top_k: top_k.map(|top| usize::try_from(top.k).unwrap_or(usize::MAX)),
    }
}

fn compare(field: &str, mine: &Value, theirs: &Value, lines: &mut Vec<String>) {
    match (mine, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            // What both plans leave out of account.
            let is_compared = |key: &&String| !["path", "document_tokens"].contains(&key.as_str());
            for key in a
                .keys()
                .chain(b.keys())
                .filter(is_compared)
                .collect::<BTreeSet<_>>()
            {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{field}.{key}"), &of(a), &of(b), lines);
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
