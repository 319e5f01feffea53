//! The loop of a run: steps, and what is due after each.

use std::time::Instant;

use anyhow::Result;

use super::super::{Interrupted, Progress, StopFlag, signals};
use super::evaluate::{Rows, evaluation, losses};
use super::files::EVAL_FILE;
use super::logs::{Logs, MAX_SOURCE_CURVES};
use super::nonfinite::{NonFinite, check_weights};
use super::options::OnNonFinite;
use super::plan::Plan;
use super::state::{RESUMES, State};
use super::trainer::Trainer;
use crate::batch::{Cursor, Step};
use crate::checkpoint::{self, CHECKPOINTS_DIR};
use crate::loss::Weighting;

/// Steps that may be skipped one after another; the one after them stops the run.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// A run under way.
pub(super) struct Run<'a> {
    pub plan: &'a Plan<'a>,
    /// State that the next checkpoint will record.
    pub state: State,
    /// The step of the newest checkpoint.
    pub saved_step: u64,
    /// Steps that this run skipped.
    pub skipped_steps: u64,
    pub eval_rows: Option<Rows<'a>>,
    pub stop: &'a StopFlag,
    pub progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Takes all steps that are left, and writes a checkpoint of the last one.
    pub fn steps(&mut self, trainer: &mut Trainer<'_>, logs: &mut Logs) -> Result<()> {
        let plan = self.plan;
        let begin = self.state.cursor;
        let cursors = std::iter::once(begin)
            .chain((begin.epoch + 1..).map(|epoch| Cursor { epoch, rows: 0 }));
        let batch_tokens = plan.settings.batch_tokens;
        let mut steps = cursors.flat_map(|cursor| plan.order.steps_from(cursor, batch_tokens));
        // What was due when the run was interrupted.
        self.evaluate_if_due(trainer, logs)?;
        while self.state.step < plan.num_steps() {
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
        // Without a checkpoint, an interrupted export would have to be trained again.
        if self.state.step > self.saved_step {
            self.save(trainer, logs)?;
        }
        Ok(())
    }

    /// Takes one step, and does what is due after it.
    fn step(&mut self, step: &Step, trainer: &mut Trainer<'_>, logs: &mut Logs) -> Result<()> {
        let number = self.state.step + 1;
        let started = Instant::now();
        let metrics = match trainer.step(number, step, self.stop) {
            Err(error) if error.is::<NonFinite>() => {
                let may_skip = self.plan.settings.on_nonfinite == OnNonFinite::Skip;
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
        let weighting = self.plan.settings.objective.weighting;
        if number == self.plan.first_step() + 1
            && matches!(
                weighting,
                Weighting::Dynamic | Weighting::Static | Weighting::RlNll
            )
        {
            let formula = &self.plan.settings.objective.formula;
            let signal = signals::of_first_step(metrics.weight_at_bounds, formula);
            signals::report(signal.as_slice(), self.plan.strict, self.progress)?;
        }
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
            format!(
                "step {number} loss {:.4} (plain {:.4}) weight {:.3}, {:.0} % at bounds, lr {:.2e}, |g| {:.2}",
                metrics.loss,
                metrics.ntp_loss,
                metrics.weight_mean,
                100.0 * metrics.weight_at_bounds,
                metrics.lr,
                metrics.grad_norm
            )
        };
        self.progress.advance(number, step.num_tokens(), &detail);
        self.evaluate_if_due(trainer, logs)?;
        if number.is_multiple_of(self.plan.checkpoints.save_every) {
            self.save(trainer, logs)?;
        }
        Ok(())
    }

    /// Measures and logs the losses on the evaluation rows, if there are any: before the first step, after the
    /// last, and at the intervals asked for.
    fn evaluate_if_due(&mut self, trainer: &Trainer<'_>, logs: &mut Logs) -> Result<()> {
        let step = self.state.step;
        let is_end = [self.plan.first_step(), self.plan.num_steps()].contains(&step);
        let is_due = is_end || step.is_multiple_of(self.plan.eval_every);
        let Some(rows) = self.eval_rows.as_ref().filter(|_| is_due) else {
            return Ok(());
        };
        if self.state.evaluated_step == Some(step) {
            return Ok(());
        }
        let started = Instant::now();
        let objective = &self.plan.settings.objective;
        let sums = match losses(
            &trainer.model,
            rows,
            objective,
            self.plan.micro_batch_tokens,
            step,
            self.stop,
            RESUMES,
        ) {
            Err(error)
                if error.is::<NonFinite>()
                    && self.plan.settings.on_nonfinite == OnNonFinite::Skip =>
            {
                self.note_skipped(&error);
                self.state.evaluated_step = Some(step);
                return Ok(());
            }
            outcome => outcome?,
        };
        let evaluation = evaluation(step, &sums, objective, started);
        logs.evaluation(&evaluation)?;
        let num_sources = evaluation.sources.len();
        if self.state.evaluated_step.is_none() && num_sources > MAX_SOURCE_CURVES {
            self.progress.warn(&format!(
                "TensorBoard gets no curves by source: there are {num_sources} sources, more than {MAX_SOURCE_CURVES}; {EVAL_FILE} \
                 has all of them"
            ));
        }
        self.state.evaluated_step = Some(step);
        self.progress.note(&format!(
            "after step {}: loss {:.4}, plain {:.4} on {} evaluation targets of {} sources",
            evaluation.step,
            evaluation.loss,
            evaluation.ntp_loss,
            evaluation.targets,
            evaluation.sources.len()
        ));
        Ok(())
    }

    fn note_skipped(&self, error: &anyhow::Error) {
        let text = error.to_string();
        let reason = text.split("\nhint: ").next().unwrap_or_default();
        self.progress.note(&format!("skipped {reason}"));
    }

    /// Writes a checkpoint of the last step, and removes those that are no longer kept.
    fn save(&mut self, trainer: &Trainer<'_>, logs: &Logs) -> Result<()> {
        // Never replace a good checkpoint with a diverged one.
        check_weights(&trainer.model, self.state.step)?;
        let dir = self.plan.output.dir.join(CHECKPOINTS_DIR);
        self.state.logs = logs.sync()?;
        let (parameters, optimizer) = (trainer.model.parameters(), &trainer.optimizer);
        checkpoint::save(&dir, self.state.step, &self.state, parameters, optimizer)?;
        self.saved_step = self.state.step;
        checkpoint::prune(&dir, self.plan.checkpoints.keep)?;
        Ok(())
    }
}
