//! Exports a trained model and reports what the run did.

use anyhow::Result;

use super::super::Progress;
use super::export;
use super::loss_change::{LossChange, last_evaluation};
use super::plan::Plan;
use super::report::AnnealReport;
use super::train::Trained;
use crate::escape::Show as _;

/// Writes the annealed model, and returns what the run did.
///
/// # Errors
///
/// When the logs of the run can't be read, and when writing fails.
pub(super) fn finish(
    plan: &Plan<'_>,
    trained: &Trained,
    progress: &dyn Progress,
) -> Result<AnnealReport> {
    let dir = &plan.output.dir;
    let losses = LossChange::read(dir, plan.first_step(), plan.num_steps())?;
    progress.note(&format!("writing {}", dir.shown()));
    export::write(plan, trained, losses.as_ref())?;
    Ok(AnnealReport {
        output: dir.clone(),
        was_finished: false,
        model: plan.initial.name(),
        weighting: plan.settings.objective.weighting,
        steps: plan.num_steps(),
        resumed_after: trained.resumed_after,
        skipped_steps: trained.own_skipped_steps,
        skipped_at_end: trained.skipped_at_end,
        tokens: trained.tokens,
        own_tokens: trained.own_tokens,
        seconds: trained.seconds,
        losses,
        evaluation: last_evaluation(dir)?,
    })
}
