//! The plan of a run, after everything that can refuse it has been checked.

use std::path::Path;

use super::carried::Carried;
use super::evaluate::Rows;
use super::extend::ExtendedRun;
use super::options::{CheckpointOptions, Invocation, OutputOptions};
use super::resume::ResumePoint;
use super::settings::Settings;
use super::state::State;
use crate::batch::Order;
use crate::fs::Log;
use crate::model::{Compute, OpenModel};
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;

/// A run that nothing speaks against.
pub(super) struct Plan<'a> {
    /// The initial model.
    pub initial: &'a OpenModel,
    /// What the export carries over from it.
    pub carried: &'a Carried,
    /// The set to train on, as its manifest describes it.
    pub manifest: &'a Manifest,
    /// Its rows, in the order of training.
    pub order: Order<'a>,
    /// Another set to measure losses on, if one was given.
    pub eval_set: Option<&'a ShardSet>,
    /// Steps between two evaluations.
    pub eval_every: u64,
    /// Everything that decides the result.
    pub settings: Settings,
    /// The run that this one goes on from, for the record.
    pub extended_run: Option<ExtendedRun>,
    /// Device and dtype that the learner computes in.
    pub compute: Compute,
    /// Tokens in memory at a time.
    pub micro_batch_tokens: usize,
    /// Blocks are computed a second time in the backward pass.
    pub activation_checkpointing: bool,
    /// When checkpoints are written and how many are kept.
    pub checkpoints: CheckpointOptions,
    /// Destination of the annealed model.
    pub output: &'a OutputOptions,
    /// The set's folder as it was given, for the record.
    pub weights: &'a Path,
    /// Makes signals that mean nothing an error.
    pub strict: bool,
    /// The command that was invoked, for the record.
    pub invocation: &'a Invocation,
}

impl Plan<'_> {
    /// Returns the rows that losses are measured on, if there are any.
    pub fn eval_rows(&self) -> Option<Rows<'_>> {
        match (self.eval_set, self.settings.holdout) {
            (Some(set), _) => Some(Rows::Set(set)),
            (None, Some(_)) => Some(Rows::HeldOut(&self.order)),
            (None, None) => None,
        }
    }

    /// Returns the number of steps that another run took before this one.
    pub fn first_step(&self) -> u64 {
        self.settings.schedule.first_step
    }

    /// Returns the number of optimizer steps of the whole run, those that another took before included.
    pub fn num_steps(&self) -> u64 {
        self.settings.schedule.num_steps
    }
}

/// Starting point of a run.
pub(super) struct Start {
    /// metrics.jsonl, which is locked: no other run writes to the output folder.
    pub metrics_log: Log,
    /// The state to start from.
    pub state: State,
    /// The checkpoint that the state is from; `None` at the beginning of a run.
    pub checkpoint: Option<ResumePoint>,
}
