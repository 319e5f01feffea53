//! One optimizer step after another.

use std::time::Instant;

use anyhow::{Context, Result};

use super::super::StopFlag;
use super::metrics::StepMetrics;
use super::nonfinite::{NonFinite, log_prob_error};
use super::plan::Plan;
use super::state::RESUMES;
use crate::batch::{Step, micro_batches};
use crate::distill::StepTargets;
use crate::loss::LossSums;
use crate::model::{self, Backward, Decoder, GRAD_CHUNK_TOKENS, Gradients, SoftLoss};
use crate::optim::AdamW;
use crate::shard::row::StoredRow;

/// A model in training.
pub(super) struct Trainer<'a> {
    pub plan: &'a Plan<'a>,
    pub model: Decoder,
    pub gradients: Gradients,
    pub optimizer: AdamW,
    /// Tokens trained on.
    pub tokens: u64,
}

impl<'a> Trainer<'a> {
    /// Loads the initial model, with moments of zero.
    ///
    /// # Errors
    ///
    /// When it can't be read, or the device has not enough memory.
    pub fn load(plan: &'a Plan<'a>) -> Result<Self> {
        let model = Decoder::from_open(plan.initial, &plan.compute)?;
        Ok(Self {
            plan,
            gradients: Gradients::new(model.parameters().len()),
            optimizer: AdamW::new(model.parameters(), plan.settings.optimizer)?,
            model,
            tokens: 0,
        })
    }

    /// Takes step `number`, counted from 1: gradients of all micro-batches are summed and divided once.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] when the loss or a gradient is not finite, and [`Interrupted`](super::super::Interrupted)
    /// when the run is to stop. No parameter is changed then.
    pub fn step(&mut self, number: u64, step: &Step, stop: &StopFlag) -> Result<StepMetrics> {
        let started = Instant::now();
        let mut sums = LossSums::default();
        let objective = self.plan.settings.objective;
        let how = Backward {
            z_loss: objective.z_loss.map(|z_loss| z_loss as f32),
            activation_checkpointing: self.plan.activation_checkpointing,
        };
        let runs = micro_batches(
            &step.rows,
            self.plan.micro_batch_tokens,
            GRAD_CHUNK_TOKENS,
            StoredRow::num_tokens,
        );
        let distilled = objective.distillation.map(|distillation| {
            StepTargets::new(distillation, step.rows.iter().map(|row| &row.scored))
        });
        let mut first_row = 0;
        for rows in runs {
            stop.check(RESUMES)?;
            let ids: Vec<&[u32]> = rows.iter().map(StoredRow::ids).collect();
            let soft = distilled
                .as_ref()
                .map(|step| step.soft_targets(first_row, rows.iter().map(|row| &row.scored)));
            let mut divergences = vec![0.0; soft.as_ref().map_or(0, |soft| soft.targets.len())];
            let soft = soft.as_ref().filter(|soft| !soft.targets.is_empty());
            let soft = soft.map(|targets| SoftLoss {
                targets,
                divergences: &mut divergences,
            });
            let (model, gradients) = (&self.model, &mut self.gradients);
            model
                .accumulate_soft_gradients(&ids, gradients, &how, soft, &mut |outputs, weights| {
                    let row = &rows[outputs.row].scored;
                    match &distilled {
                        Some(step) => step.fill_weights(first_row + outputs.row, row, weights),
                        None => objective
                            .token_weights(row, outputs.log_probs, weights)
                            .map_err(|_| model::Error::Internal("a row without static weights"))?,
                    }
                    let log_normalizers = match objective.z_loss {
                        None => &[],
                        Some(_) => outputs.log_normalizers,
                    };
                    sums.add(outputs.log_probs, log_normalizers, weights, &objective);
                    Ok(())
                })
                .map_err(|error| log_prob_error(error, number, rows))?;
            sums.add_divergences(&divergences);
            first_row += rows.len();
        }
        let (loss, z_loss) = (sums.loss(objective.normalize), sums.z_loss(&objective));
        if !(loss + z_loss).is_finite() {
            let what = format!("the loss is {}", loss + z_loss);
            return Err(NonFinite::new(number, what, &step.rows).into());
        }
        let lr = self.plan.settings.schedule.lr_at(number - 1);
        let normalizer = sums.normalizer(objective.normalize);
        let grad_norm = match self.optimizer.step(
            self.model.parameters_mut(),
            &mut self.gradients,
            normalizer,
            lr,
        ) {
            Err(model::Error::Diverged { norm }) => {
                let what = format!("the gradient's norm is {norm}");
                return Err(NonFinite::new(number, what, &step.rows).into());
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
            divergence: distilled
                .as_ref()
                .map(|_| sums.divergence_loss(objective.normalize)),
            distilled: distilled.as_ref().map(|_| sums.distilled),
            targets: sums.targets,
            tokens: self.tokens,
            skipped: false,
            tokens_per_second: step_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }

    /// Throws away the gradients of a step that is left out, and returns what is logged of it.
    pub fn skip(&mut self, number: u64, step: &Step, started: Instant) -> Result<StepMetrics> {
        self.gradients.clear(self.model.parameters())?;
        let step_tokens = step.num_tokens();
        self.tokens += step_tokens;
        let targets = step.rows.iter().map(StoredRow::num_targets);
        Ok(StepMetrics {
            step: number,
            epoch: step.epoch,
            loss: f64::NAN,
            ntp_loss: f64::NAN,
            z_loss: f64::NAN,
            lr: self.plan.settings.schedule.lr_at(number - 1),
            grad_norm: f64::NAN,
            weight_mean: f64::NAN,
            weight_at_bounds: f64::NAN,
            divergence: None,
            distilled: None,
            targets: targets.sum::<usize>() as u64,
            tokens: self.tokens,
            skipped: true,
            tokens_per_second: step_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }
}
