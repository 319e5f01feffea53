//! One optimizer step after another.

use std::time::Instant;

use anyhow::{Context, Result};

use super::super::StopFlag;
use super::{AnnealOptions, RESUMES, StepMetrics};
use crate::batch::{Step, micro_batches, row_tokens};
use crate::loss::{LossSums, Objective};
use crate::model::{self, Backward, Decoder, GRAD_CHUNK_TOKENS, Gradients};
use crate::optim::AdamW;
use crate::schedule::Schedule;
use crate::shard::read::StoredRow;

/// Most rows that an error names.
const MAX_ROWS_NAMED: usize = 8;

/// A loss or gradient that is not a number, or infinite.
#[derive(Debug, thiserror::Error)]
#[error(
    "step {step}: {what}{rows}\nhint: a lower --lr, a longer --warmup-steps or a smaller --clip; --on-nonfinite skip leaves such steps out"
)]
pub struct NonFinite {
    /// The step, from 1.
    pub step: u64,
    /// What is not finite.
    pub what: String,
    /// The rows that it came from, each after a line break.
    pub rows: String,
}

/// A model in training.
pub(super) struct Trainer<'a> {
    pub options: &'a AnnealOptions,
    pub objective: Objective,
    pub schedule: Schedule,
    pub model: Decoder,
    pub gradients: Gradients,
    pub optimizer: AdamW,
    /// Tokens trained on.
    pub tokens: u64,
}

impl Trainer<'_> {
    /// Takes step `number`, counted from 1: gradients of all micro-batches are summed and divided once.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] when the loss or a gradient is not finite, and [`Interrupted`](super::super::Interrupted)
    /// when the run is to stop: no parameter is changed then.
    pub fn step(&mut self, number: u64, step: &Step, stop: &StopFlag) -> Result<StepMetrics> {
        let started = Instant::now();
        let mut sums = LossSums::default();
        let objective = self.objective;
        let how = Backward {
            z_loss: (objective.z_loss != 0.0).then_some(objective.z_loss as f32),
            activation_checkpointing: self.options.activation_checkpointing,
        };
        let runs = micro_batches(
            &step.rows,
            self.options.micro_batch_tokens,
            GRAD_CHUNK_TOKENS,
            row_tokens,
        );
        for rows in runs {
            stop.check(RESUMES)?;
            let ids: Vec<&[u32]> = rows
                .iter()
                .map(|row| row.scored.row.input_ids.as_slice())
                .collect();
            self.model
                .accumulate_gradients(&ids, &mut self.gradients, &how, &mut |outputs, weights| {
                    objective
                        .weigh(&rows[outputs.row].scored, outputs.log_probs, weights)
                        .map_err(|_| model::Error::Internal("a row without static weights"))?;
                    let log_normalizers = match objective.z_loss {
                        0.0 => &[],
                        _ => outputs.log_normalizers,
                    };
                    sums.add(outputs.log_probs, log_normalizers, weights, &objective);
                    Ok(())
                })
                .map_err(|error| log_prob_error(error, number, rows))?;
        }
        let (loss, z_loss) = (sums.loss(objective.normalize), sums.z_loss(&objective));
        if !(loss + z_loss).is_finite() {
            let what = format!("the loss is {}", loss + z_loss);
            return Err(nonfinite(number, what, &step.rows));
        }
        let lr = self.schedule.rate(number - 1);
        let normalizer = sums.normalizer(objective.normalize);
        let grad_norm = match self.optimizer.step(
            self.model.parameters_mut(),
            &mut self.gradients,
            normalizer,
            lr,
        ) {
            Err(model::Error::Diverged { norm }) => {
                let what = format!("the gradient's norm is {norm}");
                return Err(nonfinite(number, what, &step.rows));
            }
            outcome => outcome.with_context(|| format!("step {number} failed"))?,
        };
        let step_tokens = step.num_tokens();
        self.tokens += step_tokens;
        Ok(StepMetrics {
            step: number,
            epoch: step.epoch,
            loss,
            ntp_loss: sums.ntp_loss(),
            z_loss,
            lr,
            grad_norm,
            weight_mean: sums.weight_mean(),
            weight_at_bounds: sums.weight_at_bounds(),
            targets: sums.targets,
            tokens: self.tokens,
            skipped: false,
            tokens_per_second: step_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }

    /// What is logged of a step that was left out, whose gradients are thrown away.
    pub fn skip(&mut self, number: u64, step: &Step, started: Instant) -> Result<StepMetrics> {
        self.gradients.clear(self.model.parameters())?;
        let step_tokens = step.num_tokens();
        self.tokens += step_tokens;
        let targets = step.rows.iter().map(|row| row.scored.row.num_targets());
        Ok(StepMetrics {
            step: number,
            epoch: step.epoch,
            loss: f64::NAN,
            ntp_loss: f64::NAN,
            z_loss: f64::NAN,
            lr: self.schedule.rate(number - 1),
            grad_norm: f64::NAN,
            weight_mean: f64::NAN,
            weight_at_bounds: f64::NAN,
            targets: targets.sum::<usize>() as u64,
            tokens: self.tokens,
            skipped: true,
            tokens_per_second: step_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }
}

/// Names the row of a log-prob that is not finite, among those that were computed together.
pub(super) fn log_prob_error(error: model::Error, step: u64, rows: &[StoredRow]) -> anyhow::Error {
    match error {
        model::Error::NotFiniteLogProb {
            model,
            row,
            position,
            value,
        } => {
            let what = format!(
                "the learner, begun as {model}, gives {value} as the log-probability of token {position} of a row"
            );
            nonfinite(step, what, rows.get(row..=row).unwrap_or(rows))
        }
        other => anyhow::Error::new(other).context(format!("step {step} failed")),
    }
}

/// An error if a weight is not finite in the dtype that it is written in, `step` being the last that was taken.
pub(super) fn check_weights(model: &Decoder, step: u64) -> Result<()> {
    match model::check_exportable(model.name(), model.stored()) {
        Err(model::Error::NotFinite {
            tensor,
            element,
            value,
            ..
        }) => {
            let what = format!("{tensor} has become {value} at element {element}");
            Err(nonfinite(step, what, &[]))
        }
        outcome => Ok(outcome?),
    }
}

fn nonfinite(step: u64, what: String, rows: &[StoredRow]) -> anyhow::Error {
    let mut lines: Vec<String> = rows
        .iter()
        .take(MAX_ROWS_NAMED)
        .map(|stored| {
            let row = &stored.scored.row;
            format!(
                "row_id {}: document {} of {}, {} tokens",
                stored.row_id,
                row.doc_index,
                row.source,
                row.input_ids.len()
            )
        })
        .collect();
    if rows.len() > MAX_ROWS_NAMED {
        lines.push(format!("and {} more rows", rows.len() - MAX_ROWS_NAMED));
    }
    NonFinite {
        step,
        what,
        rows: lines.iter().map(|line| format!("\n  {line}")).collect(),
    }
    .into()
}
