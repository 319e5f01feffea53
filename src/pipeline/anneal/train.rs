//! Trains what was planned.

use std::time::Instant;

use anyhow::Result;

use super::super::{Progress, StopFlag};
use super::logs::Logs;
use super::nonfinite::NonFinite;
use super::options::DEFAULT_BATCH_TOKENS;
use super::plan::{Plan, Start};
use super::run_file;
use super::steps::Run;
use super::trainer::Trainer;
use crate::checkpoint::{self, CHECKPOINTS_DIR};
use crate::escape::Show as _;
use crate::model::Decoder;

/// A trained model, and what this run contributed to it.
pub(super) struct Trained {
    pub model: Decoder,
    /// The step that this run resumed after; 0 if it started at the beginning.
    pub resumed_after: u64,
    /// Steps that were skipped, by this run and those before it.
    pub skipped_steps: u64,
    /// Steps that this run skipped.
    pub own_skipped_steps: u64,
    /// Number of last steps that were skipped, one after another.
    pub skipped_at_end: u64,
    /// Tokens trained on, by this run and those before it.
    pub tokens: u64,
    /// Tokens that this run trained on.
    pub own_tokens: u64,
    /// Duration of all steps of this run, seconds.
    pub seconds: f64,
}

/// Takes all steps of a plan that are left.
///
/// # Errors
///
/// When the model can't be loaded, when a loss is not finite, when the run is interrupted, and when writing
/// fails. Checkpoints are kept in every case.
pub(super) fn train(
    plan: &Plan<'_>,
    start: Start,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Trained> {
    let Start {
        metrics_log,
        state,
        checkpoint,
    } = start;
    let dir = &plan.output.dir;
    let checkpoints_dir = dir.join(CHECKPOINTS_DIR);
    progress.note(&format!("loading {}", plan.initial));
    let mut trainer = Trainer::load(plan)?;
    let mut resumed_from = None;
    if let Some(point) = checkpoint {
        point.checkpoint.restore(
            trainer.model.parameters_mut(),
            &mut trainer.optimizer,
            state.optimizer_steps,
        )?;
        trainer.tokens = state.tokens;
        // They would be taken for newer than those that are yet to come.
        for step in point.damaged_steps {
            checkpoint::remove(&checkpoints_dir, step)?;
        }
        progress.note(&format!("resuming after step {}", state.step));
        resumed_from = Some(point.checkpoint.path().to_owned());
    }
    // Without run.json, the next start would refuse the files that come after it.
    run_file::write(plan, state.step)?;
    let eval_rows = plan.eval_rows();
    let mut logs = Logs::open(dir, metrics_log, state.logs, eval_rows.is_some())?;
    // An interruption may have come between writing a checkpoint and removing older ones.
    checkpoint::prune(&checkpoints_dir, plan.checkpoints.keep)?;
    announce(plan, progress);

    let (resumed_after, tokens_before) = (state.step, state.tokens);
    let mut run = Run {
        plan,
        saved_step: state.step,
        state,
        skipped_steps: 0,
        eval_rows,
        stop,
        progress,
    };
    let started = Instant::now();
    progress.begin("annealing", plan.num_steps());
    progress.advance(resumed_after, 0, "");
    run.steps(&mut trainer, &mut logs)
        .map_err(|error| match &resumed_from {
            // What the run went on from may be the cause.
            Some(path) if error.is::<NonFinite>() => {
                error.context(format!("training, resumed from {}", path.shown()))
            }
            _ => error,
        })?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    logs.sync()?;
    Ok(Trained {
        resumed_after,
        skipped_steps: plan.num_steps() - trainer.optimizer.num_steps(),
        own_skipped_steps: run.skipped_steps,
        skipped_at_end: run.state.skipped_in_a_row,
        tokens: trainer.tokens,
        own_tokens: trainer.tokens - tokens_before,
        seconds,
        model: trainer.model,
    })
}

/// Notes what is about to be trained.
fn announce(plan: &Plan<'_>, progress: &dyn Progress) {
    let (batch_tokens, available) = (plan.settings.batch_tokens, plan.order.num_tokens());
    let whole_set = usize::try_from(available).is_ok_and(|available| batch_tokens > available);
    if whole_set && batch_tokens != DEFAULT_BATCH_TOKENS {
        progress.warn(&format!(
            "--batch-tokens {batch_tokens} is more than the {available} tokens there are to train on, so every step takes all \
             of them: look at --batch-tokens"
        ));
    }
    progress.note(&format!(
        "{} steps of {} tokens, {} rows in the set, {} held out; {} weights",
        plan.num_steps(),
        match whole_set {
            true => available.to_string(),
            false => format!("about {batch_tokens}"),
        },
        plan.manifest.totals.rows,
        plan.order.num_held_out(),
        plan.settings.objective.weighting
    ));
    let left_out = plan.order.num_left_out();
    if left_out > 0 {
        progress.note(&format!(
            "{left_out} rows are left out, since they hold a part of a document of which another part is on the other side \
             of the holdout"
        ));
    }
}
