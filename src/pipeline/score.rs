//! remit-score: corpus to shards.
//!
//! A reader thread streams the documents of a part, encodes them and packs them into rows; the
//! calling thread batches the rows, runs the models and writes the part's shard, which appears under
//! its name only when it is whole. When the shards of all parts are there, the manifest is made from
//! them, and from nothing else: it is the same whoever computed them, in however many attempts.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};

use super::resume::{complete, missing_parts, refuse_output_inside_input, settle_plan};
use super::{BadInput, Progress, StopFlag, Usage, json_of, open_device, tokenizer_of};
use crate::corpus::{Corpus, CorpusOptions, Part};
use crate::fs::{self, AtomicFile, Digest};
use crate::model::{
    Checkpoint, Compute, ComputeDtype, Decoder, DeviceChoice, ModelSource, SCORING_ACTIVATION_BYTES,
};
use crate::pack::{PackStats, Packer, Packing};
use crate::shard::manifest::{CorpusEntry, Manifest, ModelIdentity, Plan, TokenizerIdentity};
use crate::shard::schema::FORMAT_VERSION;
use crate::shard::write::{ShardOptions, ShardWriter, round_log_probs};
use crate::tokenize::{SpecialTokens, TextTokenizer};
use crate::types::{Document, Row, ScoredRow, TokenId};
use crate::weight::WeightFormula;

/// Default for the most tokens of a batch.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;
/// Default for the longest row, in tokens, where the models allow it.
pub const DEFAULT_SEQ_LEN: u32 = 4096;

/// Text that is encoded at a time.
const ENCODE_BYTES: usize = 1 << 20;
/// Encoded pieces that may wait for the models.
const QUEUE_LEN: usize = 4;

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
    /// Files and folders.
    pub inputs: Vec<PathBuf>,
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
    /// Key or column that holds the text.
    pub text_field: String,
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
    /// Target size of a part in bytes; `None` for the default.
    pub part_bytes: Option<u64>,
    /// Which parts are this worker's: those whose number is `worker_index` modulo `num_workers`.
    pub num_workers: u32,
    /// This worker's number, from 0.
    pub worker_index: u32,
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
    refuse_output_inside_input(options)?;
    let corpus = Corpus::discover(
        &options.inputs,
        &CorpusOptions {
            text_field: options.text_field.clone(),
            part_bytes: options.part_bytes,
        },
    )?;
    if !corpus.skipped().is_empty() {
        progress.note(&format!(
            "{} files of other types are left out, the first being {}",
            corpus.skipped().len(),
            corpus.skipped()[0].display()
        ));
    }
    let models = Models::examine(options)?;
    let compute = Compute {
        device: open_device(options.device, progress)?,
        dtype: options.dtype,
    };
    let plan = models.plan(options, &corpus)?;
    fs::create_dir_all(&options.output)?;
    let plan = settle_plan(&options.output, plan)?;

    let mut missing = missing_parts(&options.output, corpus.parts())?;
    let mine: Vec<&Part> = corpus
        .parts()
        .iter()
        .filter(|part| missing.contains(&part.index))
        .filter(|part| part.index % options.num_workers == options.worker_index)
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
        let scorer = models.load(options, plan.identity()?, &compute, progress)?;
        let started = std::time::Instant::now();
        report.scored_tokens = scorer.score_parts(&corpus, &mine, stop, progress)?;
        report.seconds = started.elapsed().as_secs_f64();
        missing = missing_parts(&options.output, corpus.parts())?;
    }
    if missing.is_empty() {
        report.manifest = Some(complete(&options.output, plan, progress)?);
    }
    report.missing_parts = missing;
    Ok(report)
}

/// What is known of the models before their weights are read.
struct Models {
    tokenizer: TextTokenizer,
    seq_len: u32,
}

impl Models {
    /// Checks everything that needs no weights, so that mistakes show at once.
    fn examine(options: &ScoreOptions) -> Result<Self> {
        let rl = options.rl.architecture()?;
        let mut longest = rl.max_position_embeddings;
        let mut vocab_size = rl.vocab_size;
        let tokenizer = tokenizer_of(&options.rl)?;
        if let Some(base) = &options.base {
            let architecture = base.architecture()?;
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
        let special = special_tokens(options, &tokenizer)?;
        for (name, id) in [("BOS", special.bos), ("EOS", special.eos)] {
            if let Some(id) = id
                && usize::try_from(id).map_or(true, |id| id >= vocab_size)
            {
                return Err(BadInput(format!(
                    "the {name} token of {} has the id {id}, but the model has {vocab_size} embeddings\nhint: \
                     correct tokenizer_config.json or config.json, or turn it off with --{} never",
                    options.base.as_ref().unwrap_or(&options.rl),
                    name.to_lowercase()
                ))
                .into());
            }
        }
        Ok(Self {
            tokenizer: tokenizer.with_special_tokens(special),
            seq_len,
        })
    }

    fn plan(&self, options: &ScoreOptions, corpus: &Corpus) -> Result<Plan> {
        let identity = |source: &ModelSource| -> Result<ModelIdentity> {
            let architecture = source.architecture()?;
            let checkpoint = Checkpoint::open(source)?;
            checkpoint.verify(&architecture)?;
            Ok(ModelIdentity {
                path: source.to_string(),
                fingerprint: checkpoint.fingerprint()?,
                model_type: architecture.model_type,
                dtype: options.dtype.to_string(),
            })
        };
        Ok(Plan {
            format_version: FORMAT_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            reference: identity(&options.rl)?,
            base: options.base.as_ref().map(identity).transpose()?,
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
            text_field: options.text_field.clone(),
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

    fn load<'a>(
        &'a self,
        options: &'a ScoreOptions,
        plan: Digest,
        compute: &Compute,
        progress: &dyn Progress,
    ) -> Result<Scorer<'a>> {
        progress.note(&format!("loading {}", options.rl));
        let rl = Decoder::load_on(&options.rl, compute)?;
        let base = match &options.base {
            Some(source) => {
                progress.note(&format!("loading {source}"));
                Some(Decoder::load_on(source, compute)?)
            }
            None => None,
        };
        let bytes_per_token = [Some(&rl), base.as_ref()]
            .into_iter()
            .flatten()
            .map(|model| model.architecture().scoring_bytes_per_token())
            .max()
            .unwrap_or(1);
        Ok(Scorer {
            options,
            models: self,
            plan,
            batch_tokens: options
                .batch_tokens
                .min(SCORING_ACTIVATION_BYTES / bytes_per_token)
                .max(1),
            rl,
            base,
        })
    }
}

/// BOS and EOS as the options and the models' files have them.
///
/// The base's files come first: an RL-tuned chat model often ends its turns with another token than
/// the one that ends documents in pre-training.
fn special_tokens(options: &ScoreOptions, tokenizer: &TextTokenizer) -> Result<SpecialTokens> {
    let source = options.base.as_ref().unwrap_or(&options.rl);
    let named = |key: &str| -> Result<Option<TokenId>> {
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let config = json_of(source, file)?;
            let token = config.as_ref().and_then(|config| {
                let token = config.get(key)?;
                token.as_str().or_else(|| token.get("content")?.as_str())
            });
            if let Some(id) = token.and_then(|token| tokenizer.token_to_id(token)) {
                return Ok(Some(id));
            }
        }
        let config = json_of(source, "config.json")?;
        let id = config.as_ref().and_then(|config| {
            let id = config.get(format!("{key}_id"))?;
            id.as_u64().or_else(|| id.get(0)?.as_u64())
        });
        Ok(id.and_then(|id| TokenId::try_from(id).ok()))
    };
    let required = |key: &str, flag: &str| -> Result<Option<TokenId>> {
        match named(key)? {
            Some(id) => Ok(Some(id)),
            None => Err(BadInput(format!(
                "{source} names no {key} in tokenizer_config.json or config.json, but {flag} always was given"
            ))
            .into()),
        }
    };
    Ok(SpecialTokens {
        bos: match options.bos {
            AddToken::Auto => match explicit_bos(source)? {
                None => tokenizer.default_bos(),
                Some(true) => named("bos_token")?,
                Some(false) => None,
            },
            AddToken::Always => required("bos_token", "--bos")?,
            AddToken::Never => None,
        },
        eos: match options.eos {
            AddToken::Auto => named("eos_token")?,
            AddToken::Always => required("eos_token", "--eos")?,
            AddToken::Never => None,
        },
    })
}

/// Whether tokenizer_config.json puts its own template in place of tokenizer.json's, and if so,
/// whether with BOS. As in transformers, naming either of the two fields does that.
fn explicit_bos(source: &ModelSource) -> Result<Option<bool>> {
    let config = json_of(source, "tokenizer_config.json")?;
    let flag = |key: &str| config.as_ref()?.get(key)?.as_bool();
    Ok(match (flag("add_bos_token"), flag("add_eos_token")) {
        (None, None) => None,
        (bos, _) => Some(bos.unwrap_or(false)),
    })
}

/// What the reader thread sends, part after part.
enum Piece {
    /// Rows of the current part, and how many bytes of text they were made from.
    Rows(Vec<Row>, u64),
    /// The current part is complete.
    End(PackStats),
}

struct Scorer<'a> {
    options: &'a ScoreOptions,
    models: &'a Models,
    plan: Digest,
    rl: Decoder,
    base: Option<Decoder>,
    batch_tokens: usize,
}

impl Scorer<'_> {
    /// Computes and publishes the shards of these parts; returns the number of tokens.
    fn score_parts(
        &self,
        corpus: &Corpus,
        parts: &[&Part],
        stop: &StopFlag,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let total = parts.iter().map(|part| part.size_bytes).sum();
        progress.begin("scoring", total);
        let tokens = std::thread::scope(|scope| -> Result<u64> {
            let (send, receive) = sync_channel(QUEUE_LEN);
            let reader = scope.spawn(move || self.read_parts(corpus, parts, &send));
            let scored = self.write_parts(parts, receive, stop, progress);
            // The receiver is gone by now, so a reader that still waits has been woken.
            let read = reader
                .join()
                .map_err(|_| anyhow::anyhow!("the reader thread panicked"))?;
            // A reader that failed is the reason why the writer ran dry.
            read?;
            scored
        });
        progress.finish();
        tokens
    }

    fn read_parts(&self, corpus: &Corpus, parts: &[&Part], send: &SyncSender<Piece>) -> Result<()> {
        for part in parts {
            let mut packer = Packer::new(self.options.packing, self.models.seq_len)?;
            let mut waiting: Vec<Document> = Vec::new();
            let mut waiting_bytes = 0;
            let mut flush = |waiting: &mut Vec<Document>, bytes: usize| -> Result<bool> {
                let encoded = self
                    .models
                    .tokenizer
                    .encode_batch(std::mem::take(waiting))?;
                let rows = encoded
                    .into_iter()
                    .flat_map(|document| packer.push(document))
                    .collect();
                Ok(send.send(Piece::Rows(rows, bytes as u64)).is_ok())
            };
            for document in corpus.read_part(part) {
                let document = document?;
                waiting_bytes += document.text.len();
                waiting.push(document);
                if waiting_bytes >= ENCODE_BYTES {
                    if !flush(&mut waiting, waiting_bytes)? {
                        return Ok(());
                    }
                    waiting_bytes = 0;
                }
            }
            if !flush(&mut waiting, waiting_bytes)? {
                return Ok(());
            }
            let (tail, stats) = packer.finish();
            let last = [
                Piece::Rows(tail.into_iter().collect(), 0),
                Piece::End(stats),
            ];
            for piece in last {
                if send.send(piece).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn write_parts(
        &self,
        parts: &[&Part],
        pieces: Receiver<Piece>,
        stop: &StopFlag,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let mut tokens = 0;
        let mut done_bytes = 0;
        for part in parts {
            let path = self.options.output.join(Manifest::shard_name(part.index));
            let file = AtomicFile::create(&path)?;
            let shard_options = ShardOptions {
                part: part.index,
                has_base: self.base.is_some(),
                exact: self.options.exact,
                plan: self.plan,
            };
            let mut writer = ShardWriter::new(file, shard_options)
                .with_context(|| format!("cannot write {}", path.display()))?;
            let mut batch: Vec<Row> = Vec::new();
            let mut batch_tokens = 0;
            let mut part_bytes = 0;
            let mut score = |batch: &mut Vec<Row>| -> Result<()> {
                stop.check("finished parts are kept, and it does the rest")?;
                for row in self.score(std::mem::take(batch))? {
                    writer
                        .push(&row)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                Ok(())
            };
            let stats = loop {
                // The reader hung up; its error says why.
                let Ok(piece) = pieces.recv() else {
                    return Ok(tokens);
                };
                let (rows, bytes) = match piece {
                    Piece::Rows(rows, bytes) => (rows, bytes),
                    Piece::End(stats) => break stats,
                };
                part_bytes += bytes;
                for row in rows {
                    let len = row.input_ids.len();
                    if batch_tokens > 0 && batch_tokens + len > self.batch_tokens {
                        score(&mut batch)?;
                        tokens += batch_tokens as u64;
                        let done = done_bytes + part_bytes.min(part.size_bytes);
                        progress.advance(done, batch_tokens as u64, "");
                        batch_tokens = 0;
                    }
                    batch_tokens += len;
                    batch.push(row);
                }
            };
            if !batch.is_empty() {
                score(&mut batch)?;
                tokens += batch_tokens as u64;
            }
            let (file, _) = writer
                .finish(&stats)
                .with_context(|| format!("cannot write {}", path.display()))?;
            // Another run of this worker may have published the part meanwhile, with the same bytes.
            file.publish_new()?;
            done_bytes += part.size_bytes;
            progress.advance(done_bytes, batch_tokens as u64, "");
        }
        Ok(tokens)
    }

    /// Runs the models over a batch. Static weights are made from the log-probs as they are stored,
    /// so that anybody can make them again from the columns.
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
