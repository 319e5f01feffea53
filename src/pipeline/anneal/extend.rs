//! Goes on with another run: from its newest checkpoint, for more steps, with a schedule of its own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::{Progress, Usage};
use super::options::ExtendOptions;
use super::resume::{ResumePoint, newest};
use super::settings::{Extended, Settings};
use super::state::State;
use crate::checkpoint::{self, CHECKPOINTS_DIR};
use crate::escape::Show as _;
use crate::fs;

/// What run.json records of the run that another goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExtendedRun {
    /// Its folder, as given.
    pub run: PathBuf,
    /// Settings that changed, one line each.
    pub changed: Vec<String>,
}

/// A run to go on from.
pub(super) struct Extension {
    pub point: ResumePoint,
    pub state: State,
    pub extended: Extended,
}

impl Extension {
    /// Opens the newest intact checkpoint of the run.
    ///
    /// # Errors
    ///
    /// When it has none, and when `output` is the same folder.
    pub fn open(options: &ExtendOptions, output: &Path, progress: &dyn Progress) -> Result<Self> {
        let run = &options.run;
        if fs::canonicalize_missing(run)? == fs::canonicalize_missing(output)? {
            return Err(Usage(format!(
                "--resume-from {} is the output folder itself, and remit never writes over a run\nhint: give another -o; the \
                 same command as before, without --resume-from, resumes an interrupted run",
                run.shown()
            ))
            .into());
        }
        let dir = run.join(CHECKPOINTS_DIR);
        let Some((point, state)) = newest(&dir, progress)? else {
            return Err(Usage(format!(
                "--resume-from {}: there is no checkpoint in {}\nhint: give the output folder of a run of remit-anneal; \
                 --model begins with the weights of any model, and moments of zero",
                run.shown(),
                dir.shown()
            ))
            .into());
        };
        let planned = state.settings.schedule.num_steps;
        if state.step < planned {
            progress.note(&format!(
                "{} was planned for {planned} steps; this run goes on after step {}",
                run.shown(),
                state.step
            ));
        }
        let extended = Extended {
            after_step: state.step,
            checkpoint_blake3: checkpoint::recorded_digest(&dir, state.step)?.to_string(),
        };
        Ok(Self {
            point: ResumePoint {
                // They are another run's, and stay.
                damaged_steps: Vec::new(),
                ..point
            },
            state,
            extended,
        })
    }

    /// Returns the state to begin with, and what run.json records. `settings` are those of the run that goes on.
    ///
    /// # Errors
    ///
    /// When it is of other rows, or of another initial model: the position in the order of the rows, and the weights,
    /// would mean nothing.
    pub fn begin(
        self,
        run: &Path,
        settings: &Settings,
    ) -> Result<(ResumePoint, State, ExtendedRun)> {
        let before = &self.state.settings;
        let fixed = before.of_rows_and_model();
        let differences = fixed.differences(&settings.of_rows_and_model());
        if !differences.is_empty() {
            return Err(Usage(format!(
                "the run in {} can't be gone on with, since its rows or its initial model are others:\n  {}\nhint: give those it \
                 was started with; or begin another run with --model {}",
                run.shown(),
                differences.join("\n  "),
                run.shown()
            ))
            .into());
        }
        let mut comparable = settings.clone();
        comparable.extends = before.extends.clone();
        comparable.schedule.first_step = before.schedule.first_step;
        let record = ExtendedRun {
            run: run.to_owned(),
            changed: before.differences(&comparable),
        };
        let state = State {
            step: self.state.step,
            optimizer_steps: self.state.optimizer_steps,
            skipped_in_a_row: self.state.skipped_in_a_row,
            tokens: self.state.tokens,
            cursor: self.state.cursor,
            ..State::initial(settings.clone())
        };
        Ok((self.point, state, record))
    }
}
