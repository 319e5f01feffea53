//! Finds the checkpoint that a run resumes from.

use std::path::Path;

use anyhow::Result;

use super::super::{Progress, Usage};
use super::options::Resume;
use super::settings::Settings;
use super::state::State;
use crate::checkpoint::{self, CHECKPOINTS_DIR, TrainingCheckpoint};
use crate::escape::Show as _;

/// An intact checkpoint of a run with the same settings.
pub(super) struct ResumePoint {
    pub checkpoint: TrainingCheckpoint,
    /// Steps of newer checkpoints, which are damaged.
    pub damaged_steps: Vec<u64>,
}

/// Returns the newest intact checkpoint in the output folder and its state, if there is one.
///
/// # Errors
///
/// When checkpoints are not to be resumed from and there are some, when none of them is intact, and when the
/// run was started with other settings.
pub(super) fn find(
    output: &Path,
    mode: Resume,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Option<(ResumePoint, State)>> {
    let dir = output.join(CHECKPOINTS_DIR);
    if mode == Resume::Never {
        let Some(step) = checkpoint::steps(&dir)?.pop() else {
            return Ok(None);
        };
        return Err(Usage(format!(
            "{} has checkpoints, up to step {step}\nhint: leave out --resume=never to resume from there, give another -o, or remove the folder",
            dir.shown()
        ))
        .into());
    }
    let Some((point, state)) = newest(&dir, progress)? else {
        return Ok(None);
    };
    let differences = state.settings.differences(settings);
    if !differences.is_empty() {
        return Err(Usage(format!(
            "the run in {} was started with other settings:\n  {}\nhint: give the settings it was started with to resume it, or another -o",
            output.shown(),
            differences.join("\n  ")
        ))
        .into());
    }
    Ok(Some((point, state)))
}

/// Returns the newest intact checkpoint in a folder and its state, if there is one.
///
/// # Errors
///
/// When none of those that are there is intact.
pub(super) fn newest(dir: &Path, progress: &dyn Progress) -> Result<Option<(ResumePoint, State)>> {
    let checkpoint::Newest { intact, damaged } = TrainingCheckpoint::newest(dir)?;
    for (_, problem) in &damaged {
        let cause = std::error::Error::source(problem).map(|cause| format!(": {cause}"));
        let cause = cause.unwrap_or_default();
        progress.note(&format!("{problem}{cause}; trying the one before it"));
    }
    let Some(newest) = intact else {
        return match damaged.into_iter().next() {
            None => Ok(None),
            Some((_, problem)) => Err(anyhow::Error::new(problem).context(format!(
                "no checkpoint in {} is intact, the newest for this reason\nhint: remove the folder to start over",
                dir.shown()
            ))),
        };
    };
    let state: State = newest.state()?;
    let damaged_steps = damaged.into_iter().map(|(step, _)| step).collect();
    let point = ResumePoint {
        checkpoint: newest,
        damaged_steps,
    };
    Ok(Some((point, state)))
}
