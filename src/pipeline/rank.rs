//! remit-inspect rank: documents or sources by what models say of them, in bits per byte and nats per token.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::inspect::tokenizer_of_set;
use super::{BadInput, Progress, StopFlag, Usage};
use crate::escape::Show as _;
use crate::model::ModelSource;
use crate::pack::Packing;
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;
use crate::shard::row::StoredRow;
use crate::shard::sidecar::{Sidecar, sidecar_dir};
use crate::tokenize::TextTokenizer;

/// What to rank by; every number is larger where a model finds the text harder, but for the gains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RankBy {
    /// Bits per byte of text under the RL model
    RlBitsPerByte,
    /// Bits per byte of text under the base
    BaseBitsPerByte,
    /// Loss of the RL model, nats per token
    RlLoss,
    /// Loss of the base, nats per token
    BaseLoss,
    /// Loss of the base minus that of the RL model, nats per token
    Gain,
    /// Mean entropy of the RL model, nats
    Entropy,
    /// Mean static weight
    Weight,
}

/// What is ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RankOf {
    /// Documents
    #[default]
    Documents,
    /// Sources: files of the corpus
    Sources,
}

/// Options of a ranking.
#[derive(Debug, Clone)]
pub struct RankOptions {
    /// The set.
    pub set: PathBuf,
    /// What to rank by.
    pub by: RankBy,
    /// What is ranked.
    pub of: RankOf,
    /// The smallest first.
    pub ascending: bool,
    /// Most that are listed; `None` for all.
    pub limit: Option<usize>,
    /// The sidecar that stands for the RL model's log-probs.
    pub rl_column: Option<String>,
    /// The model whose tokenizer the text is decoded with; `None` for the set's own.
    pub tokenizer: Option<ModelSource>,
}

/// A document or a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    /// Its file.
    pub source: String,
    /// Number of the document in it; `None` of a source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_index: Option<u64>,
    /// row_id of its first row.
    pub row_id: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub targets: u64,
    /// Bytes of the text of its targets; `None` without a tokenizer.
    pub bytes: Option<u64>,
    /// Loss of the RL model, nats per target.
    pub rl_loss: f64,
    /// Bits per byte under the RL model.
    pub rl_bits_per_byte: Option<f64>,
    /// Loss of the base, nats per target.
    pub base_loss: Option<f64>,
    /// Bits per byte under the base.
    pub base_bits_per_byte: Option<f64>,
    /// Mean entropy of the RL model, nats.
    pub entropy: Option<f64>,
    /// Mean static weight.
    pub weight: Option<f64>,
}

#[derive(Debug, Clone)]
struct Sums {
    source: Arc<str>,
    doc_index: u64,
    row_id: u64,
    tokens: u64,
    targets: u64,
    bytes: u64,
    rl: f64,
    base: f64,
    entropy: f64,
    weight: f64,
}

/// Ranks what there is in a set. Memory holds the numbers of every document or source.
///
/// # Errors
///
/// When the set is damaged, or has not what is ranked by.
pub fn rank(
    options: &RankOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Vec<Ranked>> {
    let mut set = ShardSet::open(&options.set)?;
    check(options, set.manifest())?;
    if let Some(name) = &options.rl_column {
        let sidecar = Sidecar::open(&sidecar_dir(&options.set, name), set.manifest())?;
        set = set.with_rl_columns(false, vec![sidecar]);
    }
    let tokenizer = tokenizer_of_set(set.manifest(), options.tokenizer.clone(), progress)?;
    let needs_bytes = matches!(options.by, RankBy::RlBitsPerByte | RankBy::BaseBitsPerByte);
    if needs_bytes && tokenizer.is_none() {
        return Err(BadInput(format!(
            "the tokenizer of the set in {} is not where it was, so bytes of text are not known\nhint: --tokenizer DIR names a \
             model that has it",
            options.set.shown()
        ))
        .into());
    }
    let mut found: BTreeMap<(Arc<str>, u64), Sums> = BTreeMap::new();
    for shard in set.shards() {
        for group in 0..shard.num_row_groups() {
            stop.check("it begins anew")?;
            for row in shard.read_row_group(group)? {
                let doc_index = match options.of {
                    RankOf::Documents => row.scored.doc_index,
                    RankOf::Sources => 0,
                };
                let key = (Arc::clone(&row.scored.source), doc_index);
                let sums = found.entry(key).or_insert_with(|| Sums {
                    source: Arc::clone(&row.scored.source),
                    doc_index,
                    row_id: row.row_id,
                    tokens: 0,
                    targets: 0,
                    bytes: 0,
                    rl: 0.0,
                    base: 0.0,
                    entropy: 0.0,
                    weight: 0.0,
                });
                sums.add(&row, tokenizer.as_ref())?;
            }
        }
    }
    let plan = &set.manifest().plan;
    let (has_base, has_bytes) = (plan.base.is_some(), tokenizer.is_some());
    let has_entropy = plan.distributions.is_some_and(|stored| stored.entropy);
    let mut ranked: Vec<Ranked> = found
        .into_values()
        .filter(|sums| sums.targets > 0)
        .map(|sums| sums.ranked(options.of, has_base, has_bytes, has_entropy))
        .collect();
    let order = |a: &Ranked, b: &Ranked| {
        let by = |ranked: &Ranked| value(ranked, options.by).unwrap_or(f64::NAN);
        let order = by(a).total_cmp(&by(b));
        let order = if options.ascending {
            order
        } else {
            order.reverse()
        };
        match order {
            Ordering::Equal => a.row_id.cmp(&b.row_id),
            order => order,
        }
    };
    ranked.sort_by(order);
    ranked.truncate(options.limit.unwrap_or(usize::MAX));
    Ok(ranked)
}

fn check(options: &RankOptions, manifest: &Manifest) -> Result<()> {
    let missing = match options.by {
        RankBy::BaseBitsPerByte | RankBy::BaseLoss | RankBy::Gain | RankBy::Weight
            if manifest.plan.base.is_none() =>
        {
            "a base"
        }
        RankBy::Entropy
            if !manifest
                .plan
                .distributions
                .is_some_and(|stored| stored.entropy) =>
        {
            "--entropy"
        }
        _ => "",
    };
    if !missing.is_empty() {
        return Err(Usage(format!(
            "the set in {} was scored without {missing}, so it can't be ranked by that\nhint: --by rl-loss needs neither",
            options.set.shown()
        ))
        .into());
    }
    if options.of == RankOf::Documents && manifest.plan.packing != Packing::Document {
        return Err(Usage(format!(
            "the rows of {} are windows over several documents\nhint: --of sources, or score with --packing document",
            options.set.shown()
        ))
        .into());
    }
    Ok(())
}

impl Sums {
    fn add(&mut self, row: &StoredRow, tokenizer: Option<&TextTokenizer>) -> Result<()> {
        let scored = &row.scored;
        // Of what is no target, the value is 0.
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        self.tokens += row.num_tokens() as u64;
        self.targets += row.num_targets() as u64;
        self.rl -= sum(&scored.rl_logprobs);
        self.base -= scored.base_logprobs.as_deref().map_or(0.0, sum);
        self.weight += scored.weights.as_deref().map_or(0.0, sum);
        self.entropy += scored.distributions.entropies.as_deref().map_or(0.0, sum);
        if let Some(tokenizer) = tokenizer {
            self.bytes += bytes_of_targets(row, tokenizer)?;
        }
        Ok(())
    }

    fn ranked(self, of: RankOf, has_base: bool, has_bytes: bool, has_entropy: bool) -> Ranked {
        let per_target = |sum: f64| sum / self.targets as f64;
        let bits_per_byte = |nats: f64| {
            (has_bytes && self.bytes > 0).then(|| nats / std::f64::consts::LN_2 / self.bytes as f64)
        };
        Ranked {
            doc_index: (of == RankOf::Documents).then_some(self.doc_index),
            row_id: self.row_id,
            tokens: self.tokens,
            targets: self.targets,
            bytes: has_bytes.then_some(self.bytes),
            rl_loss: per_target(self.rl),
            rl_bits_per_byte: bits_per_byte(self.rl),
            base_loss: has_base.then(|| per_target(self.base)),
            base_bits_per_byte: bits_per_byte(self.base).filter(|_| has_base),
            entropy: has_entropy.then(|| per_target(self.entropy)),
            weight: has_base.then(|| per_target(self.weight)),
            source: self.source.to_string(),
        }
    }
}

/// Returns the bytes of text that the targets of a row stand for: a token that is a part of a character counts with the
/// character's last; BOS and EOS have none.
fn bytes_of_targets(row: &StoredRow, tokenizer: &TextTokenizer) -> Result<u64> {
    let ids = row.ids();
    let decoded = |ids: &[u32]| -> Result<u64> { Ok(tokenizer.decode(ids)?.len() as u64) };
    if row.scored.target_mask.is_none() {
        let first = ids.get(..1).unwrap_or_default();
        return Ok(decoded(ids)?.saturating_sub(decoded(first)?));
    }
    // Runs of targets by themselves.
    let mut bytes = 0;
    let mut run: Vec<u32> = Vec::new();
    for (index, id) in ids.iter().skip(1).enumerate() {
        if row.scored.is_target(index) {
            run.push(*id);
        } else if !run.is_empty() {
            bytes += decoded(&std::mem::take(&mut run))?;
        }
    }
    Ok(bytes + decoded(&run)?)
}

/// Returns what a ranking goes by.
pub fn value(ranked: &Ranked, by: RankBy) -> Option<f64> {
    match by {
        RankBy::RlBitsPerByte => ranked.rl_bits_per_byte,
        RankBy::BaseBitsPerByte => ranked.base_bits_per_byte,
        RankBy::RlLoss => Some(ranked.rl_loss),
        RankBy::BaseLoss => ranked.base_loss,
        RankBy::Gain => ranked.base_loss.map(|base| base - ranked.rl_loss),
        RankBy::Entropy => ranked.entropy,
        RankBy::Weight => ranked.weight,
    }
}
