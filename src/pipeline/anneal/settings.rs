//! What decides the result of a run: a run goes on only with the settings that it was begun with.

use serde::{Deserialize, Serialize};

use crate::batch::Cursor;
use crate::loss::Objective;
use crate::optim::AdamWOptions;
use crate::schedule::Schedule;

use super::logs::LogSizes;
use super::{OnNonFinite, StepMetrics};

/// Everything that decides weights and metrics. Not here, since they change nothing on the CPU: paths, threads,
/// activation checkpointing, when it is saved, and the micro-batch, which below the size of a unit of
/// gradients moves last bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `content_blake3` of the set's manifest.
    pub manifest_blake3: String,
    /// `content_blake3` of the manifest of the set to evaluate on, if that is another.
    pub eval_manifest_blake3: Option<String>,
    /// Fingerprint of the model to begin with.
    pub model_fingerprint: String,
    /// What is minimised.
    pub objective: Objective,
    /// The learning rate, and the number of steps.
    pub schedule: Schedule,
    /// AdamW and clipping.
    pub optimizer: AdamWOptions,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Seed of the order of the rows.
    pub seed: u64,
    /// Share of the documents that is never trained on.
    pub holdout: Option<f64>,
    /// What is done when a loss or gradient is not finite.
    pub on_nonfinite: OnNonFinite,
    /// What the model computes in.
    pub dtype: String,
    /// Kind of device.
    pub device: String,
}

/// Fields of [`Settings`] and the flags that set them.
const FLAGS: [(&str, &str); 27] = [
    ("manifest_blake3", "the set of --weights"),
    ("eval_manifest_blake3", "the set of --eval-weights"),
    ("model_fingerprint", "the model to begin with"),
    ("objective.weighting", "--weighting"),
    ("objective.formula.epsilon", "--epsilon"),
    ("objective.formula.temperature", "--temperature"),
    ("objective.center", "--center"),
    ("objective.normalize", "--normalize"),
    ("objective.top_k_fraction", "--top-k-fraction"),
    ("objective.z_loss", "--z-loss"),
    ("schedule.decay", "--schedule"),
    ("schedule.peak", "--lr"),
    ("schedule.floor", "--min-lr"),
    ("schedule.warmup_steps", "--warmup-steps"),
    ("schedule.num_steps", "the number of steps"),
    ("optimizer.betas[0]", "--beta1"),
    ("optimizer.betas[1]", "--beta2"),
    ("optimizer.eps", "--adam-eps"),
    ("optimizer.weight_decay", "--weight-decay"),
    ("optimizer.decay_on", "--decay-on"),
    ("optimizer.clip", "--clip"),
    ("batch_tokens", "--batch-tokens"),
    ("seed", "--seed"),
    ("holdout", "--holdout"),
    ("on_nonfinite", "--on-nonfinite"),
    ("dtype", "--dtype"),
    ("device", "--device"),
];

impl Settings {
    /// How other settings differ from these, a line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (Ok(mine), Ok(others)) = (serde_json::to_value(self), serde_json::to_value(other))
        else {
            return vec!["they can't be compared".to_owned()];
        };
        let mut lines = Vec::new();
        collect("", &mine, &others, &mut lines);
        lines
    }
}

/// Compares two values of one shape; `path` names them.
fn collect(path: &str, old: &serde_json::Value, new: &serde_json::Value, lines: &mut Vec<String>) {
    use serde_json::Value;
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            for (key, old) in old {
                let separator = if path.is_empty() { "" } else { "." };
                let new = new.get(key).unwrap_or(&Value::Null);
                collect(&format!("{path}{separator}{key}"), old, new, lines);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                collect(&format!("{path}[{i}]"), old, new, lines);
            }
        }
        _ => {
            let flag = FLAGS.iter().find(|(field, _)| *field == path);
            let name = flag.map_or(path, |(_, flag)| flag);
            let word = |value: &Value| match value {
                Value::Null => "none".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            lines.push(format!(
                "{name}: it was {}, now it is {}",
                word(old),
                word(new)
            ));
        }
    }
}

/// What a checkpoint holds besides weights and moments.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of remit that wrote it.
    pub tool_version: String,
    /// What the run was begun with.
    pub settings: Settings,
    /// Steps done.
    pub step: u64,
    /// Steps that the optimizer took: all but those that were skipped.
    pub optimizer_steps: u64,
    /// Steps skipped just before this one, without one in between that was not.
    pub skipped_in_a_row: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Where the next step begins. With the seed it is all that the order of the rows needs.
    pub cursor: Cursor,
    /// Sizes of the logs.
    pub logs: LogSizes,
    /// The step after which the rows to evaluate on were, if they were.
    pub evaluated_step: Option<u64>,
    /// Metrics of the first step that was not skipped.
    pub first: Option<StepMetrics>,
    /// Metrics of the last step that was not skipped.
    pub last: Option<StepMetrics>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Normalize, Weighting};
    use crate::schedule::Decay;
    use crate::weight::{Center, WeightFormula};

    fn settings() -> Settings {
        Settings {
            manifest_blake3: "aa".to_owned(),
            eval_manifest_blake3: None,
            model_fingerprint: "bb".to_owned(),
            objective: Objective {
                weighting: Weighting::Dynamic,
                formula: WeightFormula::default(),
                center: Center::Row,
                normalize: Normalize::Targets,
                top_k_fraction: 0.6,
                z_loss: 0.0,
            },
            schedule: Schedule {
                decay: Decay::Linear,
                peak: 1e-3,
                floor: 0.0,
                warmup_steps: 0,
                num_steps: 10,
            },
            optimizer: AdamWOptions::default(),
            batch_tokens: 2048,
            seed: 0,
            holdout: None,
            on_nonfinite: OnNonFinite::Stop,
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
        }
    }

    #[test]
    fn every_difference_is_named_by_its_flag() {
        let old = settings();
        assert!(old.differences(&old).is_empty());
        let mut new = settings();
        new.objective.formula = WeightFormula::new(0.3, 1.0).unwrap();
        new.optimizer.betas.1 = 0.99;
        new.optimizer.clip = None;
        new.holdout = Some(0.1);
        assert_eq!(
            old.differences(&new),
            [
                "--holdout: it was none, now it is 0.1",
                "--epsilon: it was 0.2, now it is 0.3",
                "--beta2: it was 0.95, now it is 0.99",
                "--clip: it was 1.0, now it is none",
            ]
        );
    }

    #[test]
    fn every_field_has_a_flag() {
        fn leaves(path: &str, value: &serde_json::Value, out: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    for (key, value) in map {
                        let dot = if path.is_empty() { "" } else { "." };
                        leaves(&format!("{path}{dot}{key}"), value, out);
                    }
                }
                serde_json::Value::Array(values) => {
                    for (i, value) in values.iter().enumerate() {
                        leaves(&format!("{path}[{i}]"), value, out);
                    }
                }
                _ => out.push(path.to_owned()),
            }
        }
        let mut found = Vec::new();
        leaves("", &serde_json::to_value(settings()).unwrap(), &mut found);
        found.sort_unstable();
        let mut named: Vec<&str> = FLAGS.iter().map(|(field, _)| *field).collect();
        named.sort_unstable();
        assert_eq!(found, named);
    }
}
