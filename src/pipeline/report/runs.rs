//! Logs of training runs, thinned out to what a chart can show.

use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::BadInput;
use super::super::anneal::{EVAL_FILE, Evaluation, METRICS_FILE, RUN_FILE};
use crate::escape::Show as _;
use crate::fs;

/// Most points of a line; with more steps, a point is the mean of several.
const MAX_POINTS: usize = 400;
/// Most evaluations that are kept.
const MAX_EVALUATIONS: usize = 200;

/// One line of metrics.jsonl, as far as it is drawn. Losses of a skipped step are null.
#[derive(Debug, Clone, Deserialize)]
struct Step {
    step: u64,
    tokens: u64,
    loss: Option<f64>,
    ntp_loss: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    weight_mean: Option<f64>,
    weight_at_bounds: Option<f64>,
}

/// A training run: lines with a point for every few steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunData {
    /// Its folder as given.
    name: String,
    /// Objective, schedule and seed of run.json; null without one.
    settings: Value,
    /// Number of steps.
    steps: usize,
    /// Steps of a point; a point is the mean over them.
    steps_per_point: usize,
    /// The last step of each point.
    step: Vec<u64>,
    /// Tokens trained on by then.
    tokens: Vec<u64>,
    loss: Vec<Option<f64>>,
    ntp_loss: Vec<Option<f64>>,
    lr: Vec<Option<f64>>,
    grad_norm: Vec<Option<f64>>,
    weight_mean: Vec<Option<f64>>,
    weight_at_bounds: Vec<Option<f64>>,
    /// Evaluations, the first and the last among them.
    evaluations: Vec<Evaluation>,
}

/// Reads the logs of a run, also of one that is not finished.
///
/// # Errors
///
/// When there is no metrics.jsonl, or a line of a log is not what remit-anneal writes.
pub fn read(dir: &Path) -> Result<RunData> {
    let hint = || {
        format!(
            "{} is no folder of a training run\nhint: --run takes the -o of remit-anneal",
            dir.shown()
        )
    };
    let steps: Vec<Step> = lines(&dir.join(METRICS_FILE)).with_context(hint)?;
    let eval = dir.join(EVAL_FILE);
    let evaluations: Vec<Evaluation> = match fs::exists(&eval)? {
        true => lines(&eval)?,
        false => Vec::new(),
    };
    let run = dir.join(RUN_FILE);
    let settings = match fs::exists(&run)? {
        true => serde_json::from_slice::<Value>(&fs::read(&run)?)
            .ok()
            .and_then(|run| run.get("settings").cloned())
            .map_or(Value::Null, |settings| drawn(&settings)),
        false => Value::Null,
    };
    let steps_per_point = steps.len().div_ceil(MAX_POINTS).max(1);
    let points = || steps.chunks(steps_per_point);
    let mean = |of: fn(&Step) -> Option<f64>| -> Vec<Option<f64>> {
        points()
            .map(|point| {
                let values: Vec<f64> = point.iter().filter_map(of).collect();
                let count = values.len();
                (count > 0).then(|| values.into_iter().sum::<f64>() / count as f64)
            })
            .collect()
    };
    let stride = evaluations.len().div_ceil(MAX_EVALUATIONS).max(1);
    let last = evaluations.len().saturating_sub(1);
    let kept = evaluations.into_iter().enumerate();
    let kept = kept.filter(|(i, _)| i % stride == 0 || *i == last);
    Ok(RunData {
        name: dir.display().to_string(),
        settings,
        steps: steps.len(),
        steps_per_point,
        step: points().filter_map(|p| Some(p.last()?.step)).collect(),
        tokens: points().filter_map(|p| Some(p.last()?.tokens)).collect(),
        loss: mean(|s| s.loss),
        ntp_loss: mean(|s| s.ntp_loss),
        lr: mean(|s| s.lr),
        grad_norm: mean(|s| s.grad_norm),
        weight_mean: mean(|s| s.weight_mean),
        weight_at_bounds: mean(|s| s.weight_at_bounds),
        evaluations: kept.map(|(_, evaluation)| evaluation).collect(),
    })
}

/// Returns the settings that tell runs apart.
fn drawn(settings: &Value) -> Value {
    let keys = ["objective", "schedule", "seed", "batch_tokens", "dtype"];
    let kept = keys.into_iter().filter_map(|key| {
        let value = settings.get(key)?;
        Some((key.to_owned(), value.clone()))
    });
    Value::Object(kept.collect())
}

/// Parses a log. What follows the last line break was not written to its end, and is left out.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read(path)?;
    let end = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let text = text.get(..end).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|error| {
                let line = index + 1;
                BadInput(format!(
                    "{}, line {line} is not what remit-anneal writes: {}",
                    path.shown(),
                    error.to_string().shown()
                ))
                .into()
            })
        })
        .collect()
}
