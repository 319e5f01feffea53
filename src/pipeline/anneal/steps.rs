//! The loop of a run: steps, and what is due after each.

use std::time::Instant;

use anyhow::Result;

use super::super::{Interrupted, Progress, StopFlag};
use super::evaluate::{Evaluation, Rows, evaluation, losses};
use super::logs::Logs;
use super::trainer::{NonFinite, Trainer, check_weights};
use super::{AnnealOptions, OnNonFinite, RESUMES, State};
use crate::batch::{Cursor, Order, Step};
use crate::checkpoint::{self, CHECKPOINTS_DIR};

/// Without a number of steps between evaluations there are this many in a run, and one before it.
const EVALUATIONS_OF_A_RUN: u64 = 10;

/// Steps that may be skipped one after another; the one after them stops the run.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// A run that is under way.
pub(super) struct Run<'a> {
    pub options: &'a AnnealOptions,
    pub num_steps: u64,
    /// What the next checkpoint will say.
    pub state: State,
    /// The step of the newest checkpoint.
    pub saved_step: u64,
    pub skipped_steps: u64,
    pub evaluation: Option<Evaluation>,
    pub eval_rows: Option<Rows<'a>>,
    pub stop: &'a StopFlag,
    pub progress: &'a dyn Progress,
}

impl Run<'_> {
    /// All steps that are left.
    pub fn steps(
        &mut self,
        order: &Order<'_>,
        trainer: &mut Trainer<'_>,
        logs: &mut Logs,
    ) -> Result<()> {
        let begin = self.state.cursor;
        let cursors = std::iter::once(begin)
            .chain((begin.epoch + 1..).map(|epoch| Cursor { epoch, rows: 0 }));
        let mut steps =
            cursors.flat_map(|cursor| order.steps_from(cursor, self.options.batch_tokens));
        // What was due when the run was interrupted.
        self.evaluate_if_due(trainer, logs)?;
        while self.state.step < self.num_steps {
            // Every epoch has a step, since the order has a row.
            let Some(step) = steps.next().transpose()? else {
                break;
            };
            match self.step(&step, trainer, logs) {
                Err(error) if error.is::<Interrupted>() => {
                    if self.state.step > self.saved_step {
                        self.save(trainer, logs)?;
                    }
                    return Err(error);
                }
                outcome => outcome?,
            }
        }
        // What is exported now would else have to be trained again if that were interrupted.
        if self.state.step > self.saved_step {
            self.save(trainer, logs)?;
        }
        check_weights(&trainer.model, self.state.step)
    }

    /// One step, and what is due after it.
    fn step(&mut self, step: &Step, trainer: &mut Trainer<'_>, logs: &mut Logs) -> Result<()> {
        let number = self.state.step + 1;
        let started = Instant::now();
        let metrics = match trainer.step(number, step, self.stop) {
            Err(error) if error.is::<NonFinite>() => {
                let may_skip = self.options.on_nonfinite == OnNonFinite::Skip;
                if !may_skip {
                    return Err(error);
                }
                if self.state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW {
                    return Err(error.context(format!(
                        "{MAX_SKIPPED_IN_A_ROW} steps were skipped one after another, and the next is no better"
                    )));
                }
                self.note_skipped(&error);
                trainer.skip(number, step, started)?
            }
            outcome => outcome?,
        };
        logs.step(&metrics)?;
        self.state.step = number;
        self.state.cursor = step.end;
        self.state.tokens = trainer.tokens;
        self.state.optimizer_steps = trainer.optimizer.num_steps();
        let detail = if metrics.skipped {
            self.state.skipped_in_a_row += 1;
            self.skipped_steps += 1;
            format!("step {number} skipped")
        } else {
            self.state.skipped_in_a_row = 0;
            self.state.first.get_or_insert_with(|| metrics.clone());
            let detail = format!(
                "step {number} loss {:.4} (plain {:.4}) weight {:.3}, {:.0} % at bounds, lr {:.2e}, |g| {:.2}",
                metrics.loss,
                metrics.ntp_loss,
                metrics.weight_mean,
                100.0 * metrics.weight_at_bounds,
                metrics.lr,
                metrics.grad_norm
            );
            self.state.last = Some(metrics);
            detail
        };
        self.progress.advance(number, step.num_tokens(), &detail);
        self.evaluate_if_due(trainer, logs)?;
        if number.is_multiple_of(self.options.save_every) {
            self.save(trainer, logs)?;
        }
        Ok(())
    }

    /// Measures and logs the losses on the rows to evaluate on, if there are any: before the first step, after
    /// the last, and at the intervals asked for.
    fn evaluate_if_due(&mut self, trainer: &Trainer<'_>, logs: &mut Logs) -> Result<()> {
        let step = self.state.step;
        let every = self
            .options
            .eval_every
            .unwrap_or(self.num_steps.div_ceil(EVALUATIONS_OF_A_RUN));
        let is_due = step == self.num_steps || step.is_multiple_of(every);
        let Some(rows) = self.eval_rows.as_ref().filter(|_| is_due) else {
            return Ok(());
        };
        if self.state.evaluated_step == Some(step) {
            return Ok(());
        }
        let started = Instant::now();
        let (objective, tokens) = (&trainer.objective, self.options.micro_batch_tokens);
        let sums = match losses(
            &trainer.model,
            rows,
            objective,
            tokens,
            step,
            self.stop,
            RESUMES,
        ) {
            Err(error)
                if error.is::<NonFinite>() && self.options.on_nonfinite == OnNonFinite::Skip =>
            {
                self.note_skipped(&error);
                self.state.evaluated_step = Some(step);
                return Ok(());
            }
            outcome => outcome?,
        };
        let evaluation = evaluation(step, &sums, objective, started);
        logs.evaluation(&evaluation)?;
        self.state.evaluated_step = Some(step);
        self.progress.note(&format!(
            "after step {}: loss {:.4}, plain {:.4} on {} targets of {} sources that are not trained on",
            evaluation.step,
            evaluation.loss,
            evaluation.ntp_loss,
            evaluation.targets,
            evaluation.sources.len()
        ));
        self.evaluation = Some(evaluation);
        Ok(())
    }

    fn note_skipped(&self, error: &anyhow::Error) {
        let text = error.to_string();
        let reason = text.split("\nhint: ").next().unwrap_or_default();
        self.progress.note(&format!("skipped {reason}"));
    }

    /// Writes a checkpoint of the last step, and removes those that are no longer kept.
    fn save(&mut self, trainer: &Trainer<'_>, logs: &Logs) -> Result<()> {
        // What could not be gone on with must not take the place of what can.
        check_weights(&trainer.model, self.state.step)?;
        let dir = self.options.output.join(CHECKPOINTS_DIR);
        self.state.logs = logs.sync()?;
        let (parameters, optimizer) = (trainer.model.parameters(), &trainer.optimizer);
        checkpoint::save(&dir, self.state.step, &self.state, parameters, optimizer)?;
        self.saved_step = self.state.step;
        checkpoint::prune(&dir, self.options.keep)?;
        Ok(())
    }
}
