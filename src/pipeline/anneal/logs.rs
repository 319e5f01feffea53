//! The logs of a run: metrics.jsonl, eval.jsonl and TensorBoard's events.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::BadInput;
use super::evaluate::Evaluation;
use super::files::{EVAL_FILE, METRICS_FILE};
use super::metrics::StepMetrics;
use crate::escape::Show as _;
use crate::fs::{self, Log};
use crate::tensorboard::EventLog;

/// Most sources that TensorBoard gets curves of.
pub(super) const MAX_SOURCE_CURVES: usize = 50;

/// Sizes of the logs in bytes, to cut them to when a run resumes from a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSizes {
    /// metrics.jsonl.
    pub metrics_bytes: u64,
    /// eval.jsonl; 0 if there is none.
    pub eval_bytes: u64,
    /// TensorBoard's event file.
    pub events_bytes: u64,
}

/// The logs of a run.
pub(super) struct Logs {
    metrics: Log,
    eval: Option<Log>,
    events: EventLog,
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl Logs {
    /// Opens the other logs as well, cut to these sizes: what is behind will be logged again.
    pub fn open(output: &Path, mut metrics: Log, sizes: LogSizes, evaluates: bool) -> Result<Self> {
        cut(&mut metrics, sizes.metrics_bytes)?;
        let path = output.join(EVAL_FILE);
        // Evaluations so far are kept, even if there will be no more.
        let mut eval = (evaluates || sizes.eval_bytes > 0)
            .then(|| Log::open(&path))
            .transpose()?;
        if let Some(log) = &mut eval {
            cut(log, sizes.eval_bytes)?;
        }
        if eval.is_none() && fs::exists(&path)? {
            fs::remove_file(&path)?;
        }
        Ok(Self {
            metrics,
            eval,
            events: EventLog::open(output, sizes.events_bytes, now())?,
        })
    }

    /// Logs a step.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.metrics.append(&line(metrics)?)?;
        let mut scalars = vec![
            ("train/loss", metrics.loss),
            ("train/ntp_loss", metrics.ntp_loss),
            ("train/lr", metrics.lr),
            ("train/grad_norm", metrics.grad_norm),
            ("train/weight_mean", metrics.weight_mean),
            ("train/weight_at_bounds", metrics.weight_at_bounds),
            ("train/tokens_per_second", metrics.tokens_per_second),
        ];
        if metrics.z_loss != 0.0 {
            scalars.push(("train/z_loss", metrics.z_loss));
        }
        if let Some(divergence) = metrics.divergence {
            scalars.push(("train/divergence", divergence));
        }
        scalars.retain(|(_, value)| value.is_finite());
        self.events.append(metrics.step, now(), &scalars)?;
        Ok(())
    }

    /// Logs an evaluation.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        if let Some(log) = &mut self.eval {
            log.append(&line(evaluation)?)?;
        }
        let mut scalars = vec![
            ("eval/loss".to_owned(), evaluation.loss),
            ("eval/ntp_loss".to_owned(), evaluation.ntp_loss),
        ];
        if evaluation.sources.len() <= MAX_SOURCE_CURVES {
            scalars.extend(evaluation.sources.iter().map(|source| {
                let tag = format!("eval_ntp_loss/{}", source.source);
                (tag, source.ntp_loss)
            }));
        }
        let scalars: Vec<(&str, f64)> = scalars
            .iter()
            .map(|(tag, value)| (tag.as_str(), *value))
            .collect();
        self.events.append(evaluation.step, now(), &scalars)?;
        Ok(())
    }

    /// Makes everything so far durable, and returns how much that is.
    pub fn sync(&self) -> Result<LogSizes> {
        let size_of = |log: &Log| log.sync().map(|()| log.size_bytes());
        Ok(LogSizes {
            metrics_bytes: size_of(&self.metrics)?,
            eval_bytes: self.eval.as_ref().map_or(Ok(0), size_of)?,
            events_bytes: size_of(self.events.log())?,
        })
    }
}

/// Creates an output folder if it is missing, and locks it, so that no two runs share one. Returns
/// metrics.jsonl, as it was left.
pub(super) fn lock(output: &Path) -> Result<Log> {
    fs::create_dir_all(output)?;
    Ok(Log::open(&output.join(METRICS_FILE))?)
}

/// Cuts a log to the size that a checkpoint records.
fn cut(log: &mut Log, size_bytes: u64) -> Result<()> {
    if log.size_bytes() < size_bytes {
        return Err(BadInput(format!(
            "{} has {} bytes, but had {size_bytes} when the newest checkpoint was written\nhint: put it back, or remove the checkpoints beside it to start over",
            log.path().shown(),
            log.size_bytes()
        ))
        .into());
    }
    log.resume_at(size_bytes)?;
    Ok(())
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}
