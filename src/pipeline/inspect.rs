//! remit-inspect: what a set says about itself and whether it is whole; what a model is and costs.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::anneal::DEFAULT_MICRO_BATCH_TOKENS;
use super::score::{DEFAULT_BATCH_TOKENS, DEFAULT_SEQ_LEN};
use super::{Usage, tokenizer_of};
use crate::model::{Architecture, Checkpoint, ModelSource};
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;

/// The manifest of a set; no shard is opened.
///
/// # Errors
///
/// When there is none, or it is damaged.
pub fn summary(dir: &Path) -> Result<Manifest> {
    Ok(Manifest::load(dir)?)
}

/// Checks a set down to the last value: digests, columns, counts, and the rules that rows keep.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn verify(dir: &Path) -> Result<Manifest> {
    let set = ShardSet::open(dir)?;
    set.verify_values()?;
    set.manifest().verify_rejects(dir)?;
    Ok(set.manifest().clone())
}

/// What a model is and what it costs.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// The model as given.
    pub model: String,
    /// The decoder.
    #[serde(skip)]
    pub architecture: Architecture,
    /// `model_type` of config.json.
    pub model_type: String,
    /// Weight files and their bytes.
    pub files: Vec<(String, u64)>,
    /// Dtypes of the stored tensors.
    pub dtypes: String,
    /// Number of tensors that the architecture asks for; all are there.
    pub num_tensors: usize,
    /// Whether every value was read and is a number.
    pub values_checked: bool,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of parameters without the embedding.
    pub parameters_without_embedding: u64,
    /// Length of the rows that the costs are for, in tokens.
    pub seq_len: usize,
    /// Floating-point operations of a token's forward pass.
    pub forward_flops_per_token: f64,
    /// Floating-point operations of a token in training.
    pub training_flops_per_token: f64,
    /// About how many bytes scoring needs, in f32.
    pub scoring_bytes: u64,
    /// About how many bytes scoring needs with matrices in bf16.
    pub scoring_bytes_bf16: u64,
    /// About how many bytes annealing needs.
    pub annealing_bytes: u64,
    /// Tokens of the micro-batch that `annealing_bytes` is for.
    pub micro_batch_tokens: usize,
    /// Number of ids of the tokenizer, if there is one that fits.
    pub tokenizer_ids: Option<usize>,
    /// Why there is none.
    pub tokenizer_problem: Option<String>,
}

/// Describes a model. Of the weights only headers are read, and both copies of a tied head that is
/// stored twice, unless `check_values` is set.
///
/// # Errors
///
/// When the model can't be described, when tensors are absent or do not fit, and, if the values are
/// checked, when one is not a number.
pub fn model(
    source: &ModelSource,
    seq_len: Option<usize>,
    check_values: bool,
) -> Result<ModelReport> {
    let architecture = source.architecture()?;
    let checkpoint = Checkpoint::open(source)?;
    checkpoint.verify(&architecture)?;
    if check_values {
        checkpoint.check_values(&architecture)?;
    }
    let longest = architecture.max_position_embeddings;
    let seq_len = match seq_len {
        Some(seq_len) if seq_len > longest => {
            return Err(Usage(format!(
                "--seq-len {seq_len} exceeds the {longest} positions that the model was made for"
            ))
            .into());
        }
        Some(seq_len) => seq_len,
        None => longest.min(DEFAULT_SEQ_LEN as usize),
    };
    let micro_batch_tokens = DEFAULT_MICRO_BATCH_TOKENS.max(seq_len);
    let parameters = architecture.num_parameters();
    let embedding = architecture.vocab_size as u64 * architecture.hidden_size as u64;
    let forward = architecture.forward_flops_per_token(seq_len);
    let tokenizer = match tokenizer_of(source) {
        Err(error) => Err(format!("{error:#}")),
        Ok(tokenizer) if tokenizer.vocab_size() > architecture.vocab_size => Err(format!(
            "it has ids up to {}, but the model has {} embeddings",
            tokenizer.vocab_size() - 1,
            architecture.vocab_size
        )),
        Ok(tokenizer) => Ok(tokenizer.vocab_size()),
    };
    Ok(ModelReport {
        model: source.to_string(),
        model_type: architecture.model_type.clone(),
        files: checkpoint
            .files()
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect(),
        dtypes: checkpoint.dtype_names(),
        num_tensors: architecture.tensors().len(),
        values_checked: check_values,
        parameters,
        parameters_without_embedding: parameters - embedding,
        seq_len,
        forward_flops_per_token: forward,
        training_flops_per_token: 3.0 * forward,
        scoring_bytes: architecture.scoring_bytes(4, DEFAULT_BATCH_TOKENS, seq_len),
        scoring_bytes_bf16: architecture.scoring_bytes(2, DEFAULT_BATCH_TOKENS, seq_len),
        annealing_bytes: architecture.annealing_bytes(micro_batch_tokens),
        micro_batch_tokens,
        tokenizer_ids: tokenizer.as_ref().ok().copied(),
        tokenizer_problem: tokenizer.err(),
        architecture,
    })
}
