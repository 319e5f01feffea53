//! Settings that decide the result of a run: a run resumes only with the settings that it was started with.

use serde::{Deserialize, Serialize};

use super::options::OnNonFinite;
use crate::loss::{Normalize, Objective, Weighting};
use crate::optim::AdamWOptions;
use crate::schedule::{Decay, Schedule};
use crate::weight::{Center, WeightFormula};

/// Everything that decides weights and metrics. Paths, threads, activation checkpointing and when checkpoints are
/// written are not here, since they change nothing on the CPU. Nor is the micro-batch: it moves last bits only
/// below the size of a unit of gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `content_blake3` of the set's manifest.
    pub manifest_blake3: String,
    /// Names of the columns that stand for the RL model's log-probs, with the digests of their sidecars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rl_columns: Option<String>,
    /// `content_blake3` of the manifest of the set to evaluate on, if that is another.
    pub eval_manifest_blake3: Option<String>,
    /// Fingerprint of the initial model.
    pub model_fingerprint: String,
    /// The loss that is minimised.
    pub objective: Objective,
    /// The learning rate, and the number of steps.
    pub schedule: Schedule,
    /// AdamW and clipping.
    pub optimizer: AdamWOptions,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Seed of the order of the rows.
    pub seed: u64,
    /// Fraction of the documents that is never trained on.
    pub holdout: Option<f64>,
    /// Reaction to a loss or gradient that is not finite.
    pub on_nonfinite: OnNonFinite,
    /// Dtype that the model computes in.
    pub dtype: String,
    /// Kind of device.
    pub device: String,
    /// The checkpoint of another run that this one goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<Extended>,
}

/// The checkpoint that a run goes on from, as its settings have it: it decides the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extended {
    /// The step after which it was written.
    pub after_step: u64,
    /// Its BLAKE3, as in the file beside it.
    pub checkpoint_blake3: String,
}

/// Fields of [`Settings`] and the flags that set them.
const FLAGS: [(&str, &str); 35] = [
    ("manifest_blake3", "the set of --weights"),
    ("rl_columns", "--rl-column"),
    ("eval_manifest_blake3", "the set of --eval-weights"),
    ("model_fingerprint", "the initial model"),
    ("objective.weighting", "--weighting"),
    ("objective.formula.epsilon", "--epsilon"),
    ("objective.formula.temperature", "--temperature"),
    ("objective.center", "--center"),
    ("objective.normalize", "--normalize"),
    ("objective.top_k_fraction", "--top-k-fraction"),
    ("objective.distillation.divergence", "--divergence"),
    (
        "objective.distillation.temperature",
        "the temperature of the set's distributions",
    ),
    ("objective.distillation.fraction", "--switch-fraction"),
    ("objective.distillation.alpha", "--alpha"),
    ("objective.z_loss", "--z-loss"),
    ("schedule.decay", "--schedule"),
    ("schedule.lr", "--lr"),
    ("schedule.min_lr", "--min-lr"),
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
    ("schedule.first_step", "the step to go on after"),
    ("extends.after_step", "--resume-from"),
    (
        "extends.checkpoint_blake3",
        "the checkpoint of --resume-from",
    ),
];

impl Settings {
    /// Lists how other settings differ from these, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (Ok(mine), Ok(others)) = (serde_json::to_value(self), serde_json::to_value(other))
        else {
            return vec!["they can't be compared".to_owned()];
        };
        let mut lines = Vec::new();
        collect("", &mine, &others, &mut lines);
        lines
    }

    /// Returns a copy in which everything but the rows, their order and the initial model is at its default, to
    /// compare these alone.
    pub(super) fn of_rows_and_model(&self) -> Self {
        Self {
            manifest_blake3: self.manifest_blake3.clone(),
            rl_columns: self.rl_columns.clone(),
            eval_manifest_blake3: None,
            model_fingerprint: self.model_fingerprint.clone(),
            objective: Objective {
                weighting: Weighting::default(),
                formula: WeightFormula::default(),
                center: Center::default(),
                normalize: Normalize::Targets,
                top_k_fraction: 1.0,
                distillation: None,
                z_loss: None,
            },
            schedule: Schedule {
                decay: Decay::default(),
                lr: 0.0,
                min_lr: 0.0,
                warmup_steps: 0,
                num_steps: 0,
                first_step: 0,
            },
            optimizer: AdamWOptions::default(),
            batch_tokens: 0,
            seed: self.seed,
            holdout: self.holdout,
            on_nonfinite: OnNonFinite::default(),
            dtype: String::new(),
            device: String::new(),
            extends: None,
        }
    }
}

/// Compares two values of the same shape; `path` names them.
fn collect(path: &str, old: &serde_json::Value, new: &serde_json::Value, lines: &mut Vec<String>) {
    use serde_json::Value;
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            // What is left out has its default.
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let separator = if path.is_empty() { "" } else { "." };
                let old = old.get(key).unwrap_or(&Value::Null);
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
            let is_or_holds = |field: &str| {
                let rest = field.strip_prefix(path);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let flag = FLAGS.iter().find(|(field, _)| is_or_holds(field));
            let name = flag.map_or(path, |(_, flag)| flag);
            let word = |value: &Value| match value {
                Value::Null => "none".to_owned(),
                Value::String(text) => text.clone(),
                Value::Object(fields) => match fields.get("after_step") {
                    Some(step) => format!("a checkpoint after step {step}"),
                    None => value.to_string(),
                },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::Distillation;
    use crate::types::Divergence;

    fn settings() -> Settings {
        Settings {
            manifest_blake3: "aa".to_owned(),
            rl_columns: Some("rl2=dd".to_owned()),
            eval_manifest_blake3: None,
            model_fingerprint: "bb".to_owned(),
            objective: Objective {
                weighting: Weighting::Dynamic,
                formula: WeightFormula::default(),
                center: Center::Row,
                normalize: Normalize::Targets,
                top_k_fraction: 0.6,
                distillation: Some(Distillation {
                    divergence: Divergence::Reverse,
                    temperature: 2.0,
                    fraction: Some(0.2),
                    alpha: Some(0.5),
                }),
                z_loss: None,
            },
            schedule: Schedule {
                decay: Decay::Linear,
                lr: 1e-3,
                min_lr: 0.0,
                warmup_steps: 0,
                num_steps: 10,
                first_step: 4,
            },
            optimizer: AdamWOptions::default(),
            batch_tokens: 2048,
            seed: 0,
            holdout: None,
            on_nonfinite: OnNonFinite::Stop,
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            extends: Some(Extended {
                after_step: 4,
                checkpoint_blake3: "cc".to_owned(),
            }),
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
        new.extends = None;
        assert_eq!(
            old.differences(&new),
            [
                "--resume-from: it was a checkpoint after step 4, now it is none",
                "--holdout: it was none, now it is 0.1",
                "--epsilon: it was 0.2, now it is 0.3",
                "--beta2: it was 0.95, now it is 0.99",
                "--clip: it was 1.0, now it is none",
            ]
        );
        let mut back = old.clone();
        back.extends = None;
        assert_eq!(
            back.differences(&old),
            ["--resume-from: it was none, now it is a checkpoint after step 4"]
        );
    }

    /// Checkpoints and run.json of runs that earlier builds started have other names, and 0 for no z-loss.
    #[test]
    fn settings_of_earlier_runs_are_read_as_they_were_meant() {
        let mut earlier = serde_json::to_value(settings()).unwrap();
        let schedule = earlier["schedule"].as_object_mut().unwrap();
        for (now, before) in [("lr", "peak"), ("min_lr", "floor")] {
            let value = schedule.remove(now).unwrap();
            schedule.insert(before.to_owned(), value);
        }
        assert_eq!(earlier["objective"]["z_loss"], 0.0);
        let read: Settings = serde_json::from_value(earlier).unwrap();
        assert_eq!(read, settings());
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
