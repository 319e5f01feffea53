//! Tells what a run changed, in numbers that can be compared.
//!
//! The losses of two single steps say nothing about training, since each is of other rows. So losses are compared
//! on the evaluation rows, which are the same before and after; without any, averaged over the first and over the
//! last tenth of the steps. All come from the logs, which also have the steps of runs that were interrupted.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::evaluate::Evaluation;
use super::files::{EVAL_FILE, METRICS_FILE};
use crate::escape::Show as _;
use crate::fs;

/// The part of the steps at either end of a run that losses are averaged over: one in this many.
const TENTHS: u64 = 10;

/// Losses at the beginning and at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "measured_on", rename_all = "snake_case")]
pub enum LossChange {
    /// On the evaluation rows, all of them each time.
    EvaluationRows {
        /// The first evaluation.
        first: EvaluationLosses,
        /// The last one.
        last: EvaluationLosses,
    },
    /// On the rows that were trained on, each at its own step.
    TrainingRows {
        /// Over the targets of the first tenth of the steps.
        first: MeanLosses,
        /// Over the targets of the last tenth.
        last: MeanLosses,
    },
    /// On the rows that were trained on; there were too few steps to compare some of them with others.
    AllTrainingRows {
        /// Over the targets of all steps.
        all: MeanLosses,
    },
}

/// Losses on all evaluation rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLosses {
    /// Steps done before.
    pub step: u64,
    /// Number of targets.
    pub targets: u64,
    /// The weighted loss, as training has it.
    pub loss: f64,
    /// The plain next-token loss, nats per target.
    pub ntp_loss: f64,
}

/// Losses of several steps, averaged over their targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeanLosses {
    /// The first of the steps, from 1.
    pub first_step: u64,
    /// The last of them.
    pub last_step: u64,
    /// Number of targets, those of skipped steps left out.
    pub targets: u64,
    /// The weighted loss.
    pub loss: f64,
    /// The plain next-token loss, nats per target.
    pub ntp_loss: f64,
}

/// The part of a line of metrics.jsonl that is read. The losses of a skipped step are null.
#[derive(Deserialize)]
struct Step {
    step: u64,
    targets: u64,
    loss: Option<f64>,
    ntp_loss: Option<f64>,
}

impl LossChange {
    /// Reads what a run up to step `num_steps`, after `first_step` of another, changed from its logs; `None` if every step was skipped, or the logs are gone.
    ///
    /// # Errors
    ///
    /// When a log can't be read, or is not what a run writes.
    pub(super) fn read(output: &Path, first_step: u64, num_steps: u64) -> Result<Option<Self>> {
        let evaluations: Vec<EvaluationLosses> = lines(&output.join(EVAL_FILE))?;
        if let (Some(first), Some(last)) = (evaluations.first(), evaluations.last())
            && first.step < last.step
        {
            return Ok(Some(Self::EvaluationRows {
                first: *first,
                last: *last,
            }));
        }
        let steps: Vec<Step> = lines(&output.join(METRICS_FILE))?;
        Ok(Self::of_steps(&steps, first_step, num_steps))
    }

    fn of_steps(steps: &[Step], first_step: u64, num_steps: u64) -> Option<Self> {
        let tenth = num_steps.saturating_sub(first_step).div_ceil(TENTHS);
        let first = mean(steps, first_step + 1, first_step + tenth);
        let last = mean(steps, num_steps.saturating_sub(tenth) + 1, num_steps);
        match (first, last) {
            // The loss of a single step is only that of some rows.
            (Some(first), Some(last)) if tenth > 1 => Some(Self::TrainingRows { first, last }),
            _ => mean(steps, first_step + 1, num_steps).map(|all| Self::AllTrainingRows { all }),
        }
    }
}

/// Averages the losses of the steps from `first_step` to `last_step`; `None` if all of them were skipped.
fn mean(steps: &[Step], first_step: u64, last_step: u64) -> Option<MeanLosses> {
    let (mut targets, mut loss, mut ntp_loss) = (0, 0.0, 0.0);
    for step in steps {
        if (first_step..=last_step).contains(&step.step)
            && let (Some(weighted), Some(plain)) = (step.loss, step.ntp_loss)
        {
            targets += step.targets;
            loss += weighted * step.targets as f64;
            ntp_loss += plain * step.targets as f64;
        }
    }
    (targets > 0).then(|| MeanLosses {
        first_step,
        last_step,
        targets,
        loss: loss / targets as f64,
        ntp_loss: ntp_loss / targets as f64,
    })
}

/// Reads the last evaluation of a run, if there is one.
///
/// # Errors
///
/// When the log can't be read, or is not what a run writes.
pub(super) fn last_evaluation(output: &Path) -> Result<Option<Evaluation>> {
    Ok(lines(&output.join(EVAL_FILE))?.pop())
}

/// Parses a log, line by line; a missing one has no lines.
fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    if !fs::exists(path)? {
        return Ok(Vec::new());
    }
    let text = fs::read(path)?;
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .enumerate()
        .map(|(number, line)| {
            serde_json::from_slice(line)
                .with_context(|| format!("line {} of {}", number + 1, path.shown()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, targets: u64, loss: f64) -> Step {
        let finite = loss.is_finite().then_some(loss);
        Step {
            step,
            targets,
            loss: finite,
            ntp_loss: finite.map(|loss| 2.0 * loss),
        }
    }

    #[test]
    fn a_tenth_is_averaged_over_its_targets_without_skipped_steps() {
        let mut steps: Vec<Step> = (1..=30).map(|number| step(number, 10, 5.0)).collect();
        steps[0] = step(1, 30, 1.0);
        steps[1] = step(2, 10, f64::NAN);
        steps[2] = step(3, 10, 3.0);
        let Some(LossChange::TrainingRows { first, last }) = LossChange::of_steps(&steps, 0, 30)
        else {
            panic!("30 steps have tenths");
        };
        assert_eq!((first.first_step, first.last_step), (1, 3));
        assert_eq!((first.targets, first.loss, first.ntp_loss), (40, 1.5, 3.0));
        assert_eq!((last.first_step, last.last_step), (28, 30));
        assert_eq!((last.targets, last.loss), (30, 5.0));
    }

    #[test]
    fn single_steps_are_never_compared() {
        let steps: Vec<Step> = (1..=10)
            .map(|number| step(number, 1, number as f64))
            .collect();
        let Some(LossChange::AllTrainingRows { all }) = LossChange::of_steps(&steps, 0, 10) else {
            panic!("a tenth of 10 steps is a single one");
        };
        assert_eq!((all.targets, all.loss), (10, 5.5));
        let skipped = [step(1, 1, f64::NAN)];
        assert_eq!(LossChange::of_steps(&skipped, 0, 1), None);
    }
}
