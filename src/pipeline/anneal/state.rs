//! The state of a run, as its checkpoints record it.

use serde::{Deserialize, Serialize};

use super::logs::LogSizes;
use super::settings::Settings;
use crate::batch::Cursor;

/// Tells what the same command does after an interruption.
pub(super) const RESUMES: &str =
    "it resumes from the newest checkpoint and comes to the same model";

/// The part of a checkpoint besides weights and moments. Fields that earlier versions wrote are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Version of remit that wrote it.
    pub tool_version: String,
    /// Settings that the run was started with.
    pub settings: Settings,
    /// Steps done.
    pub step: u64,
    /// Steps that the optimizer took: all but those that were skipped.
    pub optimizer_steps: u64,
    /// Steps skipped just before this one, without another one in between.
    pub skipped_in_a_row: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Position at which the next step begins. With the seed it is all that the order of the rows needs.
    pub cursor: Cursor,
    /// Sizes of the logs.
    pub logs: LogSizes,
    /// The step after which losses were last measured, if they were.
    pub evaluated_step: Option<u64>,
}

impl State {
    /// Returns the state before the first step.
    pub fn initial(settings: Settings) -> Self {
        Self {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            settings,
            step: 0,
            optimizer_steps: 0,
            skipped_in_a_row: 0,
            tokens: 0,
            cursor: Cursor::default(),
            logs: LogSizes::default(),
            evaluated_step: None,
        }
    }
}
