//! remit-score: corpus to shards.
//!
//! [`stream`] has the stages that turn parts into shards; a shard appears under its
//! name only when it is whole. When the shards of all parts are there, the manifest is made from them,
//! and from nothing else: it is the same whoever computed them, in however many attempts.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::resume::{
    check_places, complete, missing_parts, refuse_output_in_corpus, refuse_output_inside_input,
    settle_plan,
};
use super::special::{named, special_tokens};
use super::stream::{self, RowScorer, RowSource, ShardSink};
use super::{BadInput, Progress, StopFlag, Usage, open_device, tokenizer_of};
use crate::corpus::{Corpus, CorpusOptions, Format, Input, Part};
use crate::fs::{self, Digest};
use crate::model::{
    Compute, ComputeDtype, Decoder, DeviceChoice, ModelSource, OpenModel, SCORING_ACTIVATION_BYTES,
};
use crate::pack::{Packer, Packing};
use crate::shard::manifest::{CorpusEntry, Manifest, ModelIdentity, Plan, TokenizerIdentity};
use crate::shard::schema::{FORMAT_VERSION, ShardFormat};
use crate::shard::write::{ShardOptions, round_log_probs};
use crate::tokenize::TextTokenizer;
use crate::types::{OnBadRecord, Row, ScoredRow, TokenDtype, TokenId};
use crate::weight::WeightFormula;

/// Default for the most tokens of a batch.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;
/// Default for the longest row, in tokens, where the models allow it.
pub const DEFAULT_SEQ_LEN: u32 = 4096;

/// Whether a special token is put around documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum AddToken {
    /// BOS where the tokenizer's own template has one; EOS where the model has one.
    #[default]
    Auto,
    /// Yes; an error when the model has none.
    Always,
    /// No.
    Never,
}

/// Everything that a run is asked for.
#[derive(Debug, Clone)]
pub struct ScoreOptions {
    /// Files, folders, patterns, lists of files.
    pub inputs: Vec<Input>,
    /// Folder for shards and manifest.
    pub output: PathBuf,
    /// The RL-tuned model.
    pub rl: ModelSource,
    /// The frozen base, if static weights are wanted.
    pub base: Option<ModelSource>,
    /// Longest row in tokens; `None` for the default.
    pub seq_len: Option<u32>,
    /// How documents become rows.
    pub packing: Packing,
    /// Key or column that holds the text, or token ids; `None` for the default.
    pub text_field: Option<String>,
    /// What is done with records that can't be read.
    pub on_bad_record: OnBadRecord,
    /// Bytes that one record may have.
    pub max_record_bytes: u64,
    /// Documents after this many are left out.
    pub limit_docs: Option<u64>,
    /// Documents of fewer tokens are left out.
    pub min_tokens: usize,
    /// How ids are stored in files of token ids without a header.
    pub token_dtype: Option<TokenDtype>,
    /// The id that ends a document in files of token ids; `None` for the model's EOS.
    pub separator: Option<TokenId>,
    /// The largest window that a Zstandard frame may ask for, as a power of two.
    pub zstd_window_log: u32,
    /// Whether documents begin with BOS.
    pub bos: AddToken,
    /// Whether documents end with EOS.
    pub eos: AddToken,
    /// Most tokens of a batch.
    pub batch_tokens: usize,
    /// Dtype that the models compute in.
    pub dtype: ComputeDtype,
    /// Device that the models compute on.
    pub device: DeviceChoice,
    /// Formula of the static weights.
    pub formula: WeightFormula,
    /// Keep all 23 bits of the mantissas.
    pub exact: bool,
    /// How shards are stored.
    pub format: ShardFormat,
    /// Target size of a part in bytes; `None` for the default.
    pub part_bytes: Option<u64>,
    /// Which parts are this worker's: those whose number is `worker_index` modulo `num_workers`.
    pub num_workers: u32,
    /// This worker's number, from 0.
    pub worker_index: u32,
}

impl ScoreOptions {
    /// Whether a part is this worker's.
    pub(super) fn has_part(&self, part: u32) -> bool {
        part % self.num_workers.max(1) == self.worker_index
    }
}

/// What a run did.
#[derive(Debug)]
pub struct ScoreReport {
    /// The finished set; `None` while parts of other workers are missing.
    pub manifest: Option<Manifest>,
    /// Parts that are still missing.
    pub missing_parts: Vec<u32>,
    /// Number of parts in all.
    pub num_parts: usize,
    /// Parts that this run computed.
    pub scored_parts: usize,
    /// Tokens that this run computed.
    pub scored_tokens: u64,
    /// Seconds it spent with the models loaded.
    pub seconds: f64,
}

/// Scores what is missing of a set and completes it if it can.
///
/// # Errors
///
/// When an input is missing or bad, when the output folder belongs to another plan, and when reading
/// or writing fails. Finished parts are kept in every case.
pub fn run(
    options: &ScoreOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<ScoreReport> {
    let Prepared {
        corpus,
        models,
        compute,
        plan,
    } = Prepared::new(options, stop, progress)?;
    fs::create_dir_all(&options.output)?;
    let plan = settle_plan(&options.output, plan)?;

    let mut missing = missing_parts(&options.output, options.format, corpus.parts())?;
    let mine: Vec<&Part> = corpus
        .parts()
        .iter()
        .filter(|part| missing.contains(&part.index))
        .filter(|part| options.has_part(part.index))
        .collect();
    let mut report = ScoreReport {
        manifest: None,
        missing_parts: Vec::new(),
        num_parts: corpus.parts().len(),
        scored_parts: mine.len(),
        scored_tokens: 0,
        seconds: 0.0,
    };
    if !mine.is_empty() {
        let done_before = corpus.parts().len() - missing.len();
        if done_before > 0 {
            progress.note(&format!("{done_before} parts are there already"));
        }
        let scorer = models.load(options, &compute, progress)?;
        let started = std::time::Instant::now();
        let source = models.source(options, &corpus);
        let sink = ShardSink {
            dir: &options.output,
            options: shard_options(options, plan.identity()?),
        };
        report.scored_tokens = stream::run(&source, &mine, &scorer, &sink, stop, progress)?;
        report.seconds = started.elapsed().as_secs_f64();
        missing = missing_parts(&options.output, options.format, corpus.parts())?;
    }
    if missing.is_empty() {
        report.manifest = Some(complete(&options.output, plan, &mine, progress)?);
    }
    report.missing_parts = missing;
    Ok(report)
}

/// Everything that is known before weights are read and anything is written.
pub(super) struct Prepared {
    pub(super) corpus: Corpus,
    pub(super) models: Models,
    pub(super) compute: Compute,
    pub(super) plan: Plan,
}

impl Prepared {
    /// Checks all that can be checked early, so that mistakes show at once.
    pub(super) fn new(
        options: &ScoreOptions,
        stop: &StopFlag,
        progress: &dyn Progress,
    ) -> Result<Self> {
        check_places(options)?;
        refuse_output_inside_input(options)?;
        let models = Models::examine(options)?;
        let corpus = Corpus::discover_inputs(
            &options.inputs,
            &CorpusOptions {
                text_field: options.text_field.clone(),
                part_bytes: options.part_bytes,
                max_record_bytes: options.max_record_bytes,
                limit_docs: options.limit_docs,
                zstd_window_log: options.zstd_window_log,
                num_ids: models.vocab_size as u64,
                token_dtype: options.token_dtype,
                separator: options.separator.or(models.eos),
                stop: stop.shared(),
            },
        )?;
        refuse_output_in_corpus(options, &corpus)?;
        if let Some(first) = corpus.skipped().first() {
            progress.note(&format!(
                "{} files of other types are left out, the first being {}",
                corpus.skipped().len(),
                first.display()
            ));
        }
        let compute = Compute {
            device: open_device(options.device, progress)?,
            dtype: options.dtype,
            trained: false,
        };
        let plan = models.plan(options, &corpus, &compute)?;
        Ok(Self {
            corpus,
            models,
            compute,
            plan,
        })
    }
}

/// What every shard is made with; the part is filled in for each.
pub(super) fn shard_options(options: &ScoreOptions, plan: Digest) -> ShardOptions {
    ShardOptions {
        part: 0,
        format: options.format,
        has_base: options.base.is_some(),
        exact: options.exact,
        plan,
    }
}

/// The models, open but not loaded, and what is known of them.
pub(super) struct Models {
    rl: OpenModel,
    base: Option<OpenModel>,
    tokenizer: TextTokenizer,
    vocab_size: usize,
    eos: Option<TokenId>,
    seq_len: u32,
}

impl Models {
    /// Opens the models and checks everything that needs no weights, so that mistakes show at once.
    fn examine(options: &ScoreOptions) -> Result<Self> {
        let rl = OpenModel::open(&options.rl)?;
        let mut longest = rl.architecture().max_position_embeddings;
        let mut vocab_size = rl.architecture().vocab_size;
        let tokenizer = tokenizer_of(&rl)?;
        let base = options.base.as_ref().map(OpenModel::open).transpose()?;
        if let Some(base) = &base {
            let architecture = base.architecture();
            longest = longest.min(architecture.max_position_embeddings);
            vocab_size = vocab_size.min(architecture.vocab_size);
            tokenizer.compare(&tokenizer_of(base)?).context(
                "the base and the RL model have to share a tokenizer, since their log-probs of \
                 the same ids are compared",
            )?;
        }
        if tokenizer.vocab_size() > vocab_size {
            return Err(BadInput(format!(
                "the tokenizer of {} has ids up to {}, but the model has {vocab_size} embeddings",
                options.rl,
                tokenizer.vocab_size() - 1
            ))
            .into());
        }
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        let seq_len = match options.seq_len {
            Some(seq_len) if seq_len > longest => {
                return Err(Usage(format!(
                    "--seq-len {seq_len} exceeds the {longest} positions that the models were made for"
                ))
                .into());
            }
            Some(seq_len) => seq_len,
            None => DEFAULT_SEQ_LEN.min(longest),
        };
        Packer::new(options.packing, seq_len)
            .map_err(|error| Usage(format!("--seq-len: {error}")))?;
        // An RL-tuned chat model often ends its turns with another token than the one that ends documents in
        // pre-training, so the base's files come first.
        let source = base.as_ref().unwrap_or(&rl);
        let special = special_tokens(options, source, &tokenizer)?;
        for (name, id) in [("BOS", special.bos), ("EOS", special.eos)] {
            if let Some(id) = id
                && usize::try_from(id).map_or(true, |id| id >= vocab_size)
            {
                return Err(BadInput(format!(
                    "the {name} token of {} has the id {id}, but the model has {vocab_size} embeddings\nhint: \
                     correct tokenizer_config.json or config.json, or turn it off with --{} never",
                    source,
                    name.to_lowercase()
                ))
                .into());
            }
        }
        Ok(Self {
            eos: named(source, &tokenizer, "eos_token")?,
            rl,
            base,
            tokenizer: tokenizer.with_special_tokens(special),
            vocab_size,
            seq_len,
        })
    }

    /// The first stage.
    pub(super) fn source<'a>(
        &'a self,
        options: &ScoreOptions,
        corpus: &'a Corpus,
    ) -> RowSource<'a> {
        RowSource {
            corpus,
            tokenizer: &self.tokenizer,
            packing: options.packing,
            seq_len: self.seq_len,
            min_tokens: options.min_tokens,
            on_bad_record: options.on_bad_record,
        }
    }

    fn plan(&self, options: &ScoreOptions, corpus: &Corpus, compute: &Compute) -> Result<Plan> {
        let identity = |model: &OpenModel| ModelIdentity {
            path: model.to_string(),
            fingerprint: model.fingerprint(),
            model_type: model.architecture().model_type.clone(),
            dtype: options.dtype.to_string(),
            device: compute.device.kind().to_owned(),
        };
        let has_token_files = corpus
            .files()
            .iter()
            .any(|file| matches!(file.format, Format::Tokens(_)));
        Ok(Plan {
            format_version: FORMAT_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            reference: identity(&self.rl),
            base: self.base.as_ref().map(identity),
            tokenizer: TokenizerIdentity {
                path: options.rl.to_string(),
                fingerprint: self.tokenizer.fingerprint(),
                vocab_size: self.tokenizer.vocab_size() as u64,
            },
            packing: options.packing,
            seq_len: self.seq_len,
            special_tokens: self.tokenizer.special_tokens(),
            formula: options.base.is_some().then_some(options.formula),
            exact: options.exact,
            format: options.format,
            text_field: options.text_field.clone(),
            min_tokens: options.min_tokens as u64,
            limit_docs: options.limit_docs,
            on_bad_record: options.on_bad_record,
            max_record_bytes: options.max_record_bytes,
            token_dtype: options.token_dtype.filter(|_| has_token_files),
            separator: corpus.options().separator.filter(|_| has_token_files),
            part_bytes: corpus.part_bytes(),
            num_parts: u32::try_from(corpus.parts().len())
                .context("the corpus has too many parts")?,
            corpus: corpus
                .files()
                .iter()
                .map(|file| CorpusEntry {
                    source: file.source.to_string(),
                    size_bytes: file.size_bytes,
                    blake3: file.digest,
                })
                .collect(),
        })
    }

    pub(super) fn load<'a>(
        &self,
        options: &'a ScoreOptions,
        compute: &Compute,
        progress: &dyn Progress,
    ) -> Result<impl RowScorer + use<'a>> {
        let load = |model: &OpenModel| {
            progress.note(&format!("loading {model}"));
            Decoder::from_open(model, compute)
        };
        let rl = load(&self.rl)?;
        let base = self.base.as_ref().map(load).transpose()?;
        let bytes_per_token = [Some(&rl), base.as_ref()]
            .into_iter()
            .flatten()
            .map(|model| model.architecture().scoring_bytes_per_token())
            .max()
            .unwrap_or(1);
        Ok(Scorer {
            options,
            batch_tokens: options
                .batch_tokens
                .min(SCORING_ACTIVATION_BYTES / bytes_per_token)
                .max(1),
            rl,
            base,
        })
    }
}

struct Scorer<'a> {
    options: &'a ScoreOptions,
    rl: Decoder,
    base: Option<Decoder>,
    batch_tokens: usize,
}

impl RowScorer for Scorer<'_> {
    fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// Static weights are made from the log-probs as they are stored, so that anybody can make them
    /// again from the columns.
    fn score(&self, rows: Vec<Row>) -> Result<Vec<ScoredRow>> {
        let ids: Vec<&[TokenId]> = rows.iter().map(|row| row.input_ids.as_slice()).collect();
        let run = |model: &Decoder| -> Result<Vec<Vec<f32>>> {
            let mut all = model.target_log_probs(&ids)?;
            if !self.options.exact {
                all.iter_mut()
                    .for_each(|log_probs| round_log_probs(log_probs));
            }
            Ok(all)
        };
        let rl = run(&self.rl)?;
        let base = match &self.base {
            Some(base) => run(base)?.into_iter().map(Some).collect(),
            None => vec![None; rows.len()],
        };
        let scored =
            rows.into_iter()
                .zip(rl)
                .zip(base)
                .map(|((row, rl_logprobs), base_logprobs)| {
                    let weights = base_logprobs.as_ref().map(|base| {
                        let mut weights = vec![0.0; base.len()];
                        self.options
                            .formula
                            .weights(&rl_logprobs, base, &mut weights);
                        weights
                    });
                    ScoredRow {
                        row,
                        rl_logprobs,
                        base_logprobs,
                        weights,
                    }
                });
        Ok(scored.collect())
    }
}
