//! Names of the files in an output folder.

use std::path::Path;

use crate::checkpoint::CHECKPOINTS_DIR;
use crate::fs;
use crate::shard::layout::DESCRIPTION_DIR;
use crate::shard::version1;
use crate::tensorboard::EVENTS_DIR;

/// Name of the log of steps: one JSON object each.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the log of evaluations: one JSON object each.
pub const EVAL_FILE: &str = "eval.jsonl";
/// Name of the file that says how to repeat the run.
pub const RUN_FILE: &str = "run.json";
/// Name of the file that says where the model comes from.
pub const PROVENANCE_FILE: &str = "remit.json";
/// Name of the model card.
pub(super) const CARD_FILE: &str = "README.md";

/// Name of the file that no Hugging Face directory is without. It is written last, so its presence says that a
/// run is finished.
pub(super) const COMPLETION_MARKER: &str = "config.json";

/// Other files of a Hugging Face directory that are carried over, where the model has them: of generation, of its
/// tokenizer, its chat templates, and what prepares images and sound for it.
const CARRIED_OVER: [&str; 24] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "audio_preprocessor_config.json",
    "feature_extractor_config.json",
    "SYSTEM_PROMPT.txt",
    "normalizer.json",
];

/// Beginnings of the names of licences and notices, in any case.
const LEGAL: [&str; 10] = [
    "license",
    "licence",
    "notice",
    "copying",
    "copyright",
    "patents",
    "use_policy",
    "usage_policy",
    "acceptable_use",
    "third_party",
];

/// Returns whether a file of a model is carried over into an export, by its name.
pub(super) fn is_carried_over(name: &str) -> bool {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    CARRIED_OVER.contains(&name)
        || name.ends_with(".tiktoken")
        || LEGAL.iter().any(|beginning| lower.starts_with(beginning))
}

/// Returns whether a file holds weights of a model, or lists the files that do.
fn holds_weights(name: &str) -> bool {
    name == "model.safetensors.index.json"
        || (name.starts_with("model") && name.ends_with(".safetensors"))
}

/// Returns whether an export writes a file of this name.
pub(super) fn is_exported(name: &str) -> bool {
    holds_weights(name)
        || is_carried_over(name)
        || [CARD_FILE, PROVENANCE_FILE, COMPLETION_MARKER].contains(&name)
}

/// Returns whether a run writes a file of this name, or another command of remit does.
pub(super) fn is_written(name: &str) -> bool {
    const LOGS: [&str; 4] = [METRICS_FILE, EVAL_FILE, CHECKPOINTS_DIR, EVENTS_DIR];
    const SETS: [&str; 3] = [
        DESCRIPTION_DIR,
        version1::MANIFEST_FILE,
        version1::PLAN_FILE,
    ];
    LOGS.contains(&name) || SETS.contains(&name) || is_exported(name)
}

/// Returns whether a folder holds a finished model.
pub(super) fn holds_finished_model(dir: &Path) -> Result<bool, fs::Error> {
    if !fs::exists(&dir.join(COMPLETION_MARKER))? {
        return Ok(false);
    }
    let names = fs::list(dir)?;
    Ok(names
        .iter()
        .any(|name| holds_weights(&name.to_string_lossy())))
}
