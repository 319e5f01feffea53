//! Everything that touches the world before scoring and can refuse a run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use chrono::{Local, NaiveDate};

use super::super::device::open_device;
use super::super::signals;
use super::super::stages::PartQueue;
use super::super::{Progress, StopFlag, Usage, refuse_below_a_set};
use super::models::Models;
use super::options::{InputOptions, ScoreOptions};
use super::resume::{
    check_places, refuse_model_as_output, refuse_output_in_corpus, refuse_output_inside_input,
    refuse_sets,
};
use super::{chat, left_out};
use crate::corpus::{self, Corpus, CorpusOptions, Format, Scans};
use crate::fs;
use crate::model::{Compute, ComputeDevice, OpenModel};
use crate::shard::plan::{CorpusEntry, FORMAT_VERSION, ModelIdentity, Plan, TokenizerIdentity};
use crate::tokenize::ChatTemplate;
use crate::types::{DistributionPlan, TokenId, WeightBounds};

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
    pub fn new(
        options: &ScoreOptions,
        queue: &dyn PartQueue,
        stop: &StopFlag,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let ScoreOptions {
            corpus: input,
            rows,
            compute,
            shards,
            ..
        } = options;
        check_places(&input.inputs, &shards.output)?;
        refuse_output_inside_input(&input.inputs, &shards.output)?;
        refuse_below_a_set(&shards.output)?;
        refuse_sets(&input.inputs)?;
        refuse_model_as_output(&shards.output)?;
        let device = open_device(compute.device, compute.dtype, progress)?;
        let mut models = Models::examine(rows, compute, progress)?;
        if let Some(distributions) = &shards.distributions {
            check_distributions(distributions, &device, models.vocab_size)?;
        }
        let num_ids = models.vocab_size as u64;
        let known = queue.scans(num_ids, models.eos)?;
        let corpus = Corpus::discover_known(
            &input.inputs,
            &corpus_options(input, num_ids, models.eos, stop.shared()),
            &known,
        )?;
        refuse_output_in_corpus(&input.inputs, &shards.output, shards.format, &corpus)?;
        left_out::tell(&corpus, progress);
        let chat_date = match corpus.may_hold_messages() {
            true => set_chat_template(options, &mut models, progress)?,
            false => None,
        };
        let compute = Compute {
            device,
            dtype: compute.dtype,
            trained: false,
        };
        let plan = plan(options, &models, &corpus, &compute, chat_date)?;
        if let Some(base) = &models.base {
            let signals = signals::of_pair(&models.rl, base)?;
            signals::report(&signals, options.strict, progress)?;
        }
        Ok(Self {
            corpus,
            models,
            compute,
            plan,
        })
    }
}

/// Refuses what can't be stored of distributions.
fn check_distributions(
    plan: &DistributionPlan,
    device: &ComputeDevice,
    vocab_size: usize,
) -> Result<()> {
    if device.kind() != "cpu" {
        return Err(Usage(format!(
            "--entropy and --top-k are computed on the CPU only so far, and the device is {device}\nhint: --device cpu"
        ))
        .into());
    }
    match plan.top_k {
        Some(top) if top.k as usize >= vocab_size => Err(Usage(format!(
            "--top-k {} leaves no tail: the models have {vocab_size} tokens\nhint: give a smaller number",
            top.k
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Returns what the corpus is read with.
fn corpus_options(
    input: &InputOptions,
    num_ids: u64,
    separator: Option<TokenId>,
    stop: Arc<AtomicBool>,
) -> CorpusOptions {
    CorpusOptions {
        text_field: input.text_field.clone(),
        include: input.include.clone(),
        exclude: input.exclude.clone(),
        text_ext: input.text_ext.clone(),
        part_bytes: input.part_bytes,
        max_record_bytes: input.max_record_bytes,
        limit_docs: input.limit_docs,
        zstd_window_log: input.zstd_window_log,
        num_ids,
        token_dtype: input.token_dtype,
        separator: input.separator.or(separator),
        stop,
    }
}

/// Reads the files of the corpus for several processes, which have models of `num_ids` ids and this separator of token
/// files where none is given.
///
/// # Errors
///
/// When an input is missing or damaged, and once `stop` is set.
pub fn scan_corpus(
    input: &InputOptions,
    num_ids: u64,
    separator: Option<TokenId>,
    stop: Arc<AtomicBool>,
) -> Result<Scans, corpus::Error> {
    let options = corpus_options(input, num_ids, separator, stop);
    Ok(Corpus::discover_inputs(&input.inputs, &options)?.scans())
}

/// Gives the tokenizer the template that makes text of messages; returns the date that it is told, if it asks for one.
fn set_chat_template(
    options: &ScoreOptions,
    models: &mut Models,
    progress: &dyn Progress,
) -> Result<Option<NaiveDate>> {
    let ScoreOptions { corpus, shards, .. } = options;
    let date = match corpus.chat_date {
        Some(date) => date,
        // A set that was begun yesterday is finished with its own date.
        None => match planned_date(&shards.output)? {
            Some(date) => date,
            None => Local::now().date_naive(),
        },
    };
    let sources: Vec<&OpenModel> = models.base.iter().chain([&models.rl]).collect();
    let found = chat::find(corpus.chat_template.as_deref(), &sources, date)?;
    let Some(chat::Found { template, file }) = found else {
        return Ok(None);
    };
    let date = template.uses_date().then_some(date);
    let told = date.map_or_else(String::new, |date| {
        format!(", which is told that it is {date}")
    });
    progress.note(&format!(
        "records of messages become text by the chat template of {file}{told}; neither BOS nor EOS is put around them"
    ));
    models.tokenizer.set_chat_template(template);
    Ok(date)
}

/// Returns the date in the plan of a set, if there is one.
fn planned_date(dir: &Path) -> Result<Option<NaiveDate>> {
    if !fs::is_dir(dir)? {
        return Ok(None);
    }
    let date = Plan::load(dir)?.and_then(|plan| plan.chat_date);
    Ok(date.and_then(|date| date.parse().ok()))
}

/// Returns what decides the shards.
fn plan(
    options: &ScoreOptions,
    models: &Models,
    corpus: &Corpus,
    compute: &Compute,
    chat_date: Option<NaiveDate>,
) -> Result<Plan> {
    let ScoreOptions {
        corpus: input,
        rows,
        shards,
        ..
    } = options;
    let identity = |model: &OpenModel| ModelIdentity {
        path: model.name(),
        fingerprint: model.fingerprint(),
        model_type: model.architecture().outer_model_type().to_owned(),
        dtype: compute.dtype.to_string(),
        device: compute.device.kind().to_owned(),
    };
    let mut ignored_config_fields: Vec<String> = [Some(&models.rl), models.base.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|model| model.ignored_fields().to_vec())
        .collect();
    ignored_config_fields.sort_unstable();
    ignored_config_fields.dedup();
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
            path: models.tokenizer_source.clone(),
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
        // Without rounding, or without weights, it changes nothing.
        weight_bounds: match models.base.is_some() && !shards.exact {
            true => shards.weight_bounds,
            false => WeightBounds::default(),
        },
        distributions: shards.distributions,
        exact: shards.exact,
        format: shards.format,
        text_field: input.text_field.clone(),
        chat_template: models
            .tokenizer
            .chat_template()
            .map(ChatTemplate::fingerprint),
        chat_date: chat_date.map(|date| date.to_string()),
        min_tokens: rows.min_tokens as u64,
        limit_docs: input.limit_docs,
        on_bad_record: input.on_bad_record,
        max_record_bytes: input.max_record_bytes,
        token_dtype: input.token_dtype.filter(|_| has_token_files),
        separator: corpus.options().separator.filter(|_| has_token_files),
        part_bytes: corpus.part_bytes(),
        text_ext: input.text_ext.clone(),
        ignored_config_fields,
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
