//! remit-inspect: describes a set and checks that it is intact; describes a model and its costs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::anneal::DEFAULT_MICRO_BATCH_TOKENS;
use super::score::AddToken;
use super::score::{DEFAULT_BATCH_TOKENS, DEFAULT_SEQ_LEN};
use super::special::TokenizerSource;
use super::tokenizer::tokenizer_in;
use super::{BadInput, Progress, Usage};
use crate::demo;
use crate::escape::Show as _;
use crate::fs::Digest;
use crate::model::{self, AnnealingShape, Architecture, ComputeDtype, ModelSource, OpenModel};
use crate::shard;
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardFile;
use crate::shard::row::StoredRow;
use crate::tokenize::{DocumentTokens, TextTokenizer};
use crate::types::Reject;

/// Reads the manifest of a set; no shard is opened.
///
/// # Errors
///
/// When there is none, or it is damaged.
pub fn summary(dir: &Path) -> Result<Manifest> {
    Ok(Manifest::load(dir)?)
}

/// Findings of checking a set.
#[derive(Debug)]
pub struct Verification {
    /// Its manifest.
    pub manifest: Manifest,
    /// Files that are not what they should be, by part.
    pub problems: Vec<(String, shard::Error)>,
}

/// Several files of a set are not what they should be.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} files of {} are not what they should be:{}\nhint: remove the damaged ones and run \
     the same remit-score command again; it makes what is missing",
    problems.len(),
    dir.shown(),
    problems.iter().map(|(_, error)| format!("\n  {}", error.first_line())).collect::<String>()
)]
pub struct BadSet {
    /// The set.
    pub dir: PathBuf,
    /// The files, and what is wrong with them.
    pub problems: Vec<(String, shard::Error)>,
}

impl Verification {
    /// An error if there are problems.
    ///
    /// # Errors
    ///
    /// The problem, or [`BadSet`] where there are several.
    pub fn into_result(mut self, dir: &Path) -> Result<()> {
        match self.problems.len() {
            0 => Ok(()),
            1 => Err(self.problems.remove(0).1.into()),
            _ => Err(BadSet {
                dir: dir.to_owned(),
                problems: self.problems,
            }
            .into()),
        }
    }
}

/// Checks a set down to the last value: digests, columns, counts, and the rules that rows keep; all
/// shards at a time.
///
/// # Errors
///
/// When the manifest can't be read or is damaged.
pub fn verify(dir: &Path) -> Result<Verification> {
    let manifest = Manifest::load(dir)?;
    let problems = shard::verify::check(dir, &manifest)?;
    Ok(Verification { manifest, problems })
}

/// Returns the records of a set's corpus that could not be read, in the order of the corpus.
///
/// # Errors
///
/// When the manifest or the list is missing or damaged.
pub fn rejects(dir: &Path) -> Result<Vec<Reject>> {
    let manifest = Manifest::load(dir)?;
    Ok(shard::verify::rejects(dir, &manifest)?)
}

/// Choice of a row of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChoice {
    /// The row with this number in the set's order, from 0.
    Number(u64),
    /// The row with this `row_id`.
    Id(u64),
}

/// A row and its text.
#[derive(Debug)]
pub struct ShownRow {
    /// The row.
    pub stored: StoredRow,
    /// Pieces of its text, each with the number of ids it is of; `None` without a tokenizer.
    pub pieces: Option<Vec<(usize, String)>>,
    /// Weights lie within 1 - epsilon and 1 + epsilon.
    pub epsilon: Option<f32>,
}

/// Reads one row; its shard is verified first.
///
/// # Errors
///
/// When there is no such row, the set is damaged, or `tokenizer` is not the set's.
pub fn row(
    dir: &Path,
    choice: RowChoice,
    tokenizer: Option<ModelSource>,
    progress: &dyn Progress,
) -> Result<ShownRow> {
    let manifest = Manifest::load(dir)?;
    let (part, index) = find(&manifest, choice).ok_or_else(|| {
        let what = match choice {
            RowChoice::Number(row) => format!("no row {row}: rows are counted from 0"),
            RowChoice::Id(id) => format!("no row with the row_id {id}"),
        };
        let rows = manifest.totals.rows;
        Usage(format!("{} has {what}, and there are {rows}", dir.shown()))
    })?;
    let entry = manifest
        .shards
        .get(part)
        .context("the part was just found")?;
    let shard = ShardFile::open_verified(dir, entry, &manifest.plan, manifest.plan.identity()?)?;
    let stored = match shard.group_of(index) {
        Some((group, at)) => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            shard.read_row_group(group)?.into_iter().nth(at)
        }
        None => None,
    };
    let stored = stored.context("the shard of the row has fewer rows than the manifest says")?;
    let tokenizer = tokenizer_of_set(&manifest, tokenizer, progress)?;
    Ok(ShownRow {
        pieces: tokenizer
            .map(|tokenizer| tokenizer.pieces(stored.ids()))
            .transpose()?,
        epsilon: manifest.plan.formula.map(|formula| formula.epsilon()),
        stored,
    })
}

/// Index of a row's part, and its number there.
fn find(manifest: &Manifest, choice: RowChoice) -> Option<(usize, u64)> {
    match choice {
        RowChoice::Id(id) => {
            let (part, index) = (usize::try_from(id >> 32).ok()?, id & u64::from(u32::MAX));
            (index < manifest.shards.get(part)?.rows).then_some((part, index))
        }
        RowChoice::Number(mut row) => {
            for (part, shard) in manifest.shards.iter().enumerate() {
                if row < shard.rows {
                    return Some((part, row));
                }
                row -= shard.rows;
            }
            None
        }
    }
}

/// The tokenizer of a set: from the model that is given, or from where the set was made, if it is
/// still there.
pub(super) fn tokenizer_of_set(
    manifest: &Manifest,
    given: Option<ModelSource>,
    progress: &dyn Progress,
) -> Result<Option<TextTokenizer>> {
    let wanted = &manifest.plan.tokenizer;
    if let Some(source) = given {
        let tokenizer = tokenizer_in(&source)?;
        if tokenizer.fingerprint() != wanted.fingerprint {
            return Err(BadInput(format!(
                "the tokenizer of {source} is not the one that the set was made with, that of {}",
                wanted.path.shown()
            ))
            .into());
        }
        return Ok(Some(tokenizer));
    }
    let source = demo::by_name(&wanted.path)
        .unwrap_or_else(|| ModelSource::Directory(wanted.path.clone().into()));
    match tokenizer_in(&source) {
        Ok(tokenizer) if tokenizer.fingerprint() == wanted.fingerprint => Ok(Some(tokenizer)),
        _ => {
            progress.note(&format!(
                "{} is not there, or has another tokenizer: there will be ids, but no text; --tokenizer \
                 names a model that has it",
                wanted.path.shown()
            ));
            Ok(None)
        }
    }
}

/// Description of a model and its costs.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// The model as given.
    pub model: String,
    /// The decoder.
    #[serde(skip)]
    pub architecture: Architecture,
    /// `model_type` of config.json.
    pub model_type: String,
    /// `model_type` of the text part, if it is a multimodal model.
    pub text_model_type: Option<String>,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Why no weights could be looked at: the folder has none yet. Everything that follows from config.json is known.
    pub weights_problem: Option<String>,
    /// Fields of config.json that were not understood, and accepted by name.
    pub ignored_config_fields: Vec<String>,
    /// Weight files and their bytes.
    pub files: Vec<(String, u64)>,
    /// Dtypes of the stored tensors.
    pub dtypes: String,
    /// Number of tensors that the architecture asks for; all are there, unless there are no weights.
    pub num_tensors: usize,
    /// Every value was read and is finite.
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
    /// Number of ids of the tokenizer, if there is one that can be used.
    pub tokenizer_ids: Option<usize>,
    /// Digest of what decides which ids a text becomes, as plans have it.
    pub tokenizer_fingerprint: Option<Digest>,
    /// Number of these that the embedding has no row for: documents that use one can't be scored.
    pub ids_without_row: usize,
    /// Tokens that documents begin and end with unless options say otherwise.
    pub document_tokens: Option<DocumentTokens>,
    /// What a user should know of how the tokenizer's files were read.
    pub tokenizer_warnings: Vec<String>,
    /// Why there is none.
    pub tokenizer_problem: Option<String>,
}

/// Describes a model. Of the weights only headers are read, and both copies of a tied head that is
/// stored twice, unless `check_values` is set. A folder without weights is described by its config.json.
///
/// # Errors
///
/// When the model can't be described, when tensors are absent or do not fit, and, if the values are
/// checked, when one is not a number.
pub fn model(
    source: &ModelSource,
    seq_len: Option<usize>,
    check_values: bool,
    ignored: &[String],
) -> Result<ModelReport> {
    let opened = OpenModel::open_ignoring(source, ignored);
    let (opened, weights_problem) = match opened {
        Err(model::Error::MissingFile { file, hint, .. })
            if !check_values && file == "model.safetensors" && hint.is_empty() =>
        {
            (None, Some(format!("there is no {file}")))
        }
        opened => (Some(opened?), None),
    };
    let from_config;
    let (architecture, ignored_config_fields) = match &opened {
        Some(model) => (model.architecture(), model.ignored_fields().to_vec()),
        None => {
            let config = source.require("config.json")?;
            from_config = Architecture::from_json_ignoring(&config, &source.to_string(), ignored)?;
            (&from_config.0, from_config.1.clone())
        }
    };
    if let Some(model) = &opened
        && check_values
    {
        model.weights().check_values(architecture)?;
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
    let tokenizer = match &opened {
        Some(model) => TokenizerSource::of(model),
        None => TokenizerSource::in_folder(source),
    };
    let tokenizer = tokenizer.and_then(|source| {
        let tokens = source.document_tokens(AddToken::Auto, AddToken::Auto)?;
        Ok((source.tokenizer, tokens))
    });
    let (tokenizer, tokenizer_problem) = match tokenizer {
        Ok(tokenizer) => (Some(tokenizer), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let tokenizer_ids = tokenizer
        .as_ref()
        .map(|(tokenizer, _)| tokenizer.vocab_size());
    let tokenizer_fingerprint = tokenizer
        .as_ref()
        .map(|(tokenizer, _)| tokenizer.fingerprint());
    let tokenizer_warnings = tokenizer
        .as_ref()
        .map(|(tokenizer, _)| tokenizer.warnings().to_vec());
    Ok(ModelReport {
        model: source.name(),
        model_type: architecture.outer_model_type().to_owned(),
        text_model_type: architecture
            .multimodal
            .is_some()
            .then(|| architecture.model_type.clone()),
        max_position_embeddings: longest,
        weights_problem,
        ignored_config_fields,
        files: opened
            .iter()
            .flat_map(|model| model.weights().files())
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect(),
        dtypes: opened
            .as_ref()
            .map_or_else(String::new, |model| model.weights().dtype_names()),
        num_tensors: architecture.tensors().len(),
        values_checked: check_values,
        parameters,
        parameters_without_embedding: parameters - embedding,
        seq_len,
        forward_flops_per_token: forward,
        training_flops_per_token: 3.0 * forward,
        scoring_bytes: architecture.scoring_bytes(4, DEFAULT_BATCH_TOKENS, seq_len),
        scoring_bytes_bf16: architecture.scoring_bytes(2, DEFAULT_BATCH_TOKENS, seq_len),
        annealing_bytes: architecture
            .annealing_memory(&AnnealingShape {
                batch_tokens: micro_batch_tokens,
                micro_batch_tokens,
                longest_scored_row: 0,
                dtype: ComputeDtype::F32,
                activation_checkpointing: false,
            })
            .total_bytes(),
        micro_batch_tokens,
        tokenizer_ids,
        tokenizer_fingerprint,
        ids_without_row: tokenizer_ids
            .unwrap_or_default()
            .saturating_sub(architecture.vocab_size),
        document_tokens: tokenizer.map(|(_, tokens)| tokens),
        tokenizer_warnings: tokenizer_warnings.unwrap_or_default(),
        tokenizer_problem,
        architecture: architecture.clone(),
    })
}
