//! remit-anneal: shards to an annealed model.
//!
//! A run has three parts. `prepare` opens, checks and plans; whatever can refuse a run is there. `train` takes the
//! steps of the plan, and writes logs and checkpoints. `finish` exports the model and reports.

mod carried;
mod compat;
mod evaluate;
mod export;
mod extend;
mod files;
mod finish;
mod inputs;
mod length;
mod logs;
mod loss_change;
mod memory;
mod metrics;
mod nonfinite;
mod options;
mod plan;
mod prepare;
mod report;
mod resume;
mod run_file;
mod settings;
mod state;
mod steps;
mod train;
mod trainer;

use anyhow::Result;

use super::{Progress, StopFlag};

pub(super) use compat::{check_positions, check_tokenizer, longest_row};
pub use evaluate::{Evaluation, SourceLosses};
pub(super) use evaluate::{Rows, evaluation, losses};
pub use files::{EVAL_FILE, METRICS_FILE, PROVENANCE_FILE, RUN_FILE};
pub use loss_change::{EvaluationLosses, LossChange, MeanLosses};
pub use metrics::StepMetrics;
pub use nonfinite::NonFinite;
pub use options::*;
pub use report::AnnealReport;
pub use settings::Extended;

use finish::finish;
use inputs::Inputs;
use prepare::{Prepared, prepare};
use train::train;

/// Trains and writes the annealed model.
///
/// # Errors
///
/// When the set or the model is missing or damaged, when they don't belong together, when the run does not
/// fit into memory, when the folder holds another run, when a loss is not finite, and when writing fails.
pub fn run(
    options: &AnnealOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<AnnealReport> {
    let inputs = Inputs::open(options, progress)?;
    let (plan, start) = match prepare(options, &inputs, stop, progress)? {
        Prepared::Finished(report) => return Ok(*report),
        Prepared::Ready(plan, start) => (plan, start),
    };
    let trained = train(&plan, *start, stop, progress)?;
    finish(&plan, &trained, progress)
}
