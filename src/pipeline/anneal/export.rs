//! What a finished run leaves: a Hugging Face directory, where it comes from, and a card.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{AnnealOptions, METRICS_FILE, RUN_FILE, Settings, StepMetrics};
use crate::fs;
use crate::model::{self, Decoder, OpenModel};
use crate::shard::manifest::Manifest;

/// Name of the file in the output folder that says where the model comes from.
pub const PROVENANCE_FILE: &str = "remit.json";

/// Name of the model card in the output folder.
const CARD_FILE: &str = "README.md";

/// What no Hugging Face directory is without; it is written last, so its presence says that a run is finished.
pub(super) const LAST_FILE: &str = "config.json";

/// Other files of a Hugging Face directory that are carried over, where the model has them.
const CARRIED_OVER: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "LICENSE",
];

/// Whether the file holds weights of a model, or says which files do.
fn is_of_weights(name: &str) -> bool {
    name == "model.safetensors.index.json"
        || (name.starts_with("model") && name.ends_with(".safetensors"))
}

/// Whether an export writes a file of this name.
pub(super) fn is_exported(name: &str) -> bool {
    is_of_weights(name)
        || CARRIED_OVER.contains(&name)
        || [CARD_FILE, PROVENANCE_FILE, LAST_FILE].contains(&name)
}

/// Whether a folder holds weights.
pub(super) fn has_weights(dir: &Path) -> Result<bool> {
    let names = fs::list(dir)?;
    Ok(names
        .iter()
        .any(|name| is_of_weights(&name.to_string_lossy())))
}

/// What a run came to.
pub(super) struct Outcome<'a> {
    pub initial: &'a OpenModel,
    pub manifest: &'a Manifest,
    pub settings: &'a Settings,
    pub tokens: u64,
    pub steps: u64,
    pub skipped_steps: u64,
    /// The first and the last step that were not skipped.
    pub ends: Option<(&'a StepMetrics, &'a StepMetrics)>,
}

/// Where the model comes from, as JSON.
fn provenance(options: &AnnealOptions, outcome: &Outcome<'_>) -> Value {
    let Outcome {
        initial,
        manifest,
        settings,
        tokens,
        steps,
        skipped_steps,
        ends: _,
    } = outcome;
    let objective = &settings.objective;
    json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": initial.to_string(),
        "model_fingerprint": settings.model_fingerprint,
        "weights": options.weights.display().to_string(),
        "manifest_blake3": settings.manifest_blake3,
        "reference": manifest.plan.reference,
        "weighting": objective.weighting,
        "formula": objective.formula,
        "center": objective.center,
        "normalize": objective.normalize,
        "top_k_fraction": objective.top_k_fraction,
        "z_loss": objective.z_loss,
        "learning_rate": settings.schedule.peak,
        "min_learning_rate": settings.schedule.floor,
        "schedule": settings.schedule.decay,
        "warmup_steps": settings.schedule.warmup_steps,
        "steps": steps,
        "skipped_steps": skipped_steps,
        "batch_tokens": settings.batch_tokens,
        "weight_decay": settings.optimizer.weight_decay,
        "decay_on": settings.optimizer.decay_on,
        "clip": settings.optimizer.clip,
        "betas": settings.optimizer.betas,
        "adam_eps": settings.optimizer.eps,
        "seed": settings.seed,
        "holdout": settings.holdout,
        "device": settings.device,
        "dtype": settings.dtype,
        "tokens": tokens,
    })
}

fn card(options: &AnnealOptions, outcome: &Outcome<'_>) -> String {
    let Outcome {
        initial,
        manifest,
        settings,
        tokens,
        steps,
        skipped_steps: _,
        ends,
    } = outcome;
    let objective = &settings.objective;
    let losses = ends.map_or(String::new(), |(first, last)| {
        format!(
            "The plain next-token loss was {:.4} nats a target in the first step and {:.4} in the last, each on rows of \
             its own.\n",
            first.ntp_loss, last.ntp_loss
        )
    });
    let name = options.output.file_name().map_or_else(
        || "Annealed model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    // JSON strings are YAML strings.
    let base = json!(initial.to_string());
    format!(
        "---\nbase_model: {base}\ntags:\n  - remit\n  - mid-training\n---\n\n# {name}\n\n\
         `{initial}`, annealed with [ReMiT](https://arxiv.org/abs/2602.03075) by remit {version}: {weighting} weighting \
         of the next-token loss by `{reference}`, {steps} steps, {tokens} tokens, learning rate {lr:e} ({schedule}).\n\
         {losses}\n\
         - Corpus, tokens and log-probs: the set `{weights}`, manifest {digest}.\n\
         - Everything that decided the result: {PROVENANCE_FILE} and {RUN_FILE}; every step: {METRICS_FILE}.\n\n\
         ## Intended use, limits, evaluation\n\nTo be filled in.\n",
        version = env!("CARGO_PKG_VERSION"),
        weighting = objective.weighting,
        reference = manifest.plan.reference.path,
        lr = settings.schedule.peak,
        schedule = settings.schedule.decay,
        weights = options.weights.display(),
        digest = settings.manifest_blake3,
    )
}

/// Writes a Hugging Face directory. config.json comes last: without it no library takes the folder for a
/// model, and a run that is interrupted before goes on.
pub(super) fn write(model: &Decoder, options: &AnnealOptions, outcome: &Outcome<'_>) -> Result<()> {
    let dir: &Path = &options.output;
    // What an export that was interrupted left may be of another run, and libraries prefer it to shards.
    for name in fs::list(dir)? {
        if is_exported(&name.to_string_lossy()) {
            fs::remove_file(&dir.join(&name))?;
        }
    }
    model::write_weights(dir, model.stored(), options.max_shard_bytes)?;
    let initial = outcome.initial;
    for name in CARRIED_OVER {
        if let Some(content) = initial.file(name)? {
            fs::write_atomic(&dir.join(name), &content)?;
        }
    }
    fs::write_atomic(&dir.join(CARD_FILE), card(options, outcome).as_bytes())?;
    let mut text = serde_json::to_vec_pretty(&provenance(options, outcome))?;
    text.push(b'\n');
    fs::write_atomic(&dir.join(PROVENANCE_FILE), &text)?;
    for name in ["model", RUN_FILE, CARD_FILE, PROVENANCE_FILE, LAST_FILE] {
        fs::remove_stale_temps(dir, name)?;
    }
    for name in CARRIED_OVER {
        fs::remove_stale_temps(dir, name)?;
    }
    fs::write_atomic(&dir.join(LAST_FILE), &initial.require(LAST_FILE)?)?;
    Ok(())
}
