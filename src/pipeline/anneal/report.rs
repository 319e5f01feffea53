//! Reports what a run did.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize, Serializer};

use super::evaluate::Evaluation;
use super::files::PROVENANCE_FILE;
use super::loss_change::{LossChange, last_evaluation};
use super::settings::Settings;
use crate::fs;
use crate::loss::Weighting;
use crate::model::ModelSource;

/// Report on a run.
#[derive(Debug, Serialize)]
pub struct AnnealReport {
    /// The annealed model's folder.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The model was there already, made by the very same run.
    pub was_finished: bool,
    /// The initial model.
    pub model: String,
    /// Weighting of targets.
    pub weighting: Weighting,
    /// Steps in all.
    pub steps: u64,
    /// The step that this run resumed after; 0 if it started at the beginning.
    pub resumed_after: u64,
    /// Steps that this run skipped.
    pub skipped_steps: u64,
    /// Number of last steps that were skipped, one after another.
    pub skipped_at_end: u64,
    /// Tokens trained on, in all.
    pub tokens: u64,
    /// Tokens that this run trained on.
    pub own_tokens: u64,
    /// Duration of all steps of this run, seconds.
    pub seconds: f64,
    /// Losses at the beginning and at the end, interrupted runs included; `None` if every step was skipped.
    pub losses: Option<LossChange>,
    /// The last evaluation, by source; `None` without evaluation rows.
    pub evaluation: Option<Evaluation>,
}

/// Serializes a path with replacement characters where it is not Unicode.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Reports on a run that was finished before.
///
/// # Errors
///
/// When the model's provenance or the run's logs can't be read.
pub(super) fn finished(
    output: &Path,
    source: &ModelSource,
    settings: &Settings,
) -> Result<AnnealReport> {
    /// The part of the provenance that is read.
    #[derive(Deserialize)]
    struct Provenance {
        tokens: u64,
    }
    let steps = settings.schedule.num_steps;
    let provenance = fs::read(&output.join(PROVENANCE_FILE))?;
    let Provenance { tokens } = serde_json::from_slice(&provenance)?;
    Ok(AnnealReport {
        output: output.to_owned(),
        was_finished: true,
        model: source.name(),
        weighting: settings.objective.weighting,
        steps,
        resumed_after: steps,
        skipped_steps: 0,
        skipped_at_end: 0,
        tokens,
        own_tokens: 0,
        seconds: 0.0,
        losses: LossChange::read(output, settings.schedule.first_step, steps)?,
        evaluation: last_evaluation(output)?,
    })
}
