//! Everything that touches the world before scoring and can refuse a run.

use anyhow::{Context, Result};

use super::super::device::open_device;
use super::super::{Progress, StopFlag};
use super::models::Models;
use super::options::ScoreOptions;
use super::resume::{check_places, refuse_output_in_corpus, refuse_output_inside_input};
use crate::corpus::{Corpus, CorpusOptions, Format};
use crate::model::{Compute, OpenModel};
use crate::shard::plan::{CorpusEntry, FORMAT_VERSION, ModelIdentity, Plan, TokenizerIdentity};

/// Everything that is known before weights are loaded and anything is written.
pub(in super::super) struct Prepared {
    pub corpus: Corpus,
    pub models: Models,
    pub compute: Compute,
    pub plan: Plan,
}

impl Prepared {
    /// Checks all that can be checked early. What is cheap to refuse comes first: the device and the models
    /// before the corpus, which is hashed.
    ///
    /// # Errors
    ///
    /// When an input is missing or bad, when the device can't be used, and when options don't fit the models.
    pub fn new(options: &ScoreOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<Self> {
        let ScoreOptions {
            corpus: input,
            rows,
            compute,
            shards,
            ..
        } = options;
        check_places(&input.inputs, &shards.output)?;
        refuse_output_inside_input(&input.inputs, &shards.output)?;
        let device = open_device(compute.device, progress)?;
        let models = Models::examine(rows, compute, progress)?;
        let corpus = Corpus::discover_inputs(
            &input.inputs,
            &CorpusOptions {
                text_field: input.text_field.clone(),
                part_bytes: input.part_bytes,
                max_record_bytes: input.max_record_bytes,
                limit_docs: input.limit_docs,
                zstd_window_log: input.zstd_window_log,
                num_ids: models.vocab_size as u64,
                token_dtype: input.token_dtype,
                separator: input.separator.or(models.eos),
                stop: stop.shared(),
            },
        )?;
        refuse_output_in_corpus(&input.inputs, &shards.output, shards.format, &corpus)?;
        if let Some(first) = corpus.skipped().first() {
            progress.note(&format!(
                "{} files of other types are left out, the first being {}",
                corpus.skipped().len(),
                first.display()
            ));
        }
        let compute = Compute {
            device,
            dtype: compute.dtype,
            trained: false,
        };
        let plan = plan(options, &models, &corpus, &compute)?;
        Ok(Self {
            corpus,
            models,
            compute,
            plan,
        })
    }
}

/// Returns what decides the shards.
fn plan(
    options: &ScoreOptions,
    models: &Models,
    corpus: &Corpus,
    compute: &Compute,
) -> Result<Plan> {
    let ScoreOptions {
        corpus: input,
        rows,
        shards,
        ..
    } = options;
    let identity = |model: &OpenModel| ModelIdentity {
        path: model.to_string(),
        fingerprint: model.fingerprint(),
        model_type: model.architecture().model_type.clone(),
        dtype: compute.dtype.to_string(),
        device: compute.device.kind().to_owned(),
    };
    let has_token_files = corpus
        .files()
        .iter()
        .any(|file| matches!(file.format, Format::Tokens(_)));
    Ok(Plan {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        rl: identity(&models.rl),
        base: models.base.as_ref().map(identity),
        tokenizer: TokenizerIdentity {
            path: models.tokenizer.name().to_owned(),
            fingerprint: models.tokenizer.fingerprint(),
            vocab_size: models.tokenizer.vocab_size() as u64,
            special_fingerprint: (!models.special_tokens_in_text.is_default())
                .then(|| models.tokenizer.special_fingerprint()),
            document_tokens: Some(models.document_tokens.clone()),
        },
        packing: rows.packing,
        seq_len: models.seq_len,
        special_tokens: models.tokenizer.special_tokens(),
        special_tokens_in_text: models.special_tokens_in_text,
        formula: models.base.is_some().then_some(shards.formula),
        exact: shards.exact,
        format: shards.format,
        text_field: input.text_field.clone(),
        min_tokens: rows.min_tokens as u64,
        limit_docs: input.limit_docs,
        on_bad_record: input.on_bad_record,
        max_record_bytes: input.max_record_bytes,
        token_dtype: input.token_dtype.filter(|_| has_token_files),
        separator: corpus.options().separator.filter(|_| has_token_files),
        part_bytes: corpus.part_bytes(),
        num_parts: u32::try_from(corpus.parts().len()).context("the corpus has too many parts")?,
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
