//! Options of a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::loss::{Normalize, Weighting};
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::optim::AdamWOptions;
use crate::schedule::Decay;
use crate::types::Divergence;
use crate::weight::Center;

/// Default for the tokens of an optimizer step.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;
/// Default for the tokens that are in memory at a time.
pub const DEFAULT_MICRO_BATCH_TOKENS: usize = 4096;
/// Default for the steps between two checkpoints.
pub const DEFAULT_SAVE_EVERY: u64 = 100;
/// Default for the number of checkpoints that are kept.
pub const DEFAULT_KEEP: usize = 2;
/// Default for the largest file of weights: 5 GB, as in transformers.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Length of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// This many optimizer steps, over as many epochs as they need.
    Steps(u64),
    /// As many steps as it takes to train on this many tokens, over as many epochs as they need.
    Tokens(u64),
    /// This many times over the set.
    Epochs(u64),
}

/// Reaction to a loss or gradient that is not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// End the run.
    #[default]
    Stop,
    /// Leave the step out and count it; several in a row end the run all the same.
    Skip,
}

/// Use of checkpoints that are in the output folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// Resume from the newest intact checkpoint; start where there is none.
    #[default]
    Auto,
    /// Start, in a folder without checkpoints.
    Never,
}

/// Rows that losses are measured on during training.
#[derive(Debug, Clone, PartialEq)]
pub enum EvalRows {
    /// All rows of another set.
    Set(PathBuf),
    /// This fraction of the documents, in (0, 1), which is never trained on.
    Holdout(f64),
}

/// Everything that a run is asked for.
#[derive(Debug, Clone)]
pub struct AnnealOptions {
    /// Folder of the set.
    pub weights: PathBuf,
    /// Names of columns that stand for the RL model's log-probs, `rl` being the set's own; none for that alone.
    pub rl_columns: Vec<String>,
    /// The initial model; `None` for the base of the manifest.
    pub model: Option<ModelSource>,
    /// Takes a set even if BOS and EOS of its documents are not those of the initial model.
    pub keep_special_tokens: bool,
    /// Fields of its config.json that are accepted though they are not understood, besides those that the set was
    /// scored with.
    pub ignored_fields: Vec<String>,
    /// Makes signals that mean nothing an error.
    pub strict: bool,
    /// The loss to minimise.
    pub loss: LossOptions,
    /// The optimizer and its schedule.
    pub optimization: OptimizationOptions,
    /// Another run to go on with; `None` to begin with the initial model.
    pub extend: Option<ExtendOptions>,
    /// The device, dtypes and memory.
    pub compute: ComputeOptions,
    /// Checkpoints and evaluations.
    pub checkpoints: CheckpointOptions,
    /// Losses to measure during training; `None` for none.
    pub eval: Option<EvalOptions>,
    /// The annealed model.
    pub output: OutputOptions,
    /// The command line and its effective options, for run.json.
    pub invocation: Invocation,
}

/// Another run to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendOptions {
    /// Its output folder.
    pub run: PathBuf,
    /// Optimizer steps to take after those of its newest checkpoint.
    pub steps: u64,
}

/// The loss to minimise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// Source of the weights of targets.
    pub weighting: Weighting,
    /// Half-width of the interval of weights; `None` for the set's, or the default.
    pub epsilon: Option<f32>,
    /// Temperature of the weights; `None` for the set's, or the default.
    pub temperature: Option<f32>,
    /// Offset that is subtracted from the differences of log-probs.
    pub center: Center,
    /// Divisor of sums; `None` for targets, with excess-top-k weights.
    pub normalize: Option<Normalize>,
    /// Fraction of a row's targets that excess-top-k selects, in (0, 1].
    pub top_k_fraction: f64,
    /// Fraction of a step's targets that switch learns distributions for, in (0, 1].
    pub switch_fraction: f64,
    /// Share of the divergence in kd's loss, in (0, 1].
    pub alpha: f64,
    /// Divergence that switch and kd minimise.
    pub divergence: Divergence,
    /// Coefficient of the squared log-sum-exp of the logits, above 0; `None` for no z-loss.
    pub z_loss: Option<f64>,
}

/// The optimizer and its schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizationOptions {
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate that the schedule falls to.
    pub min_lr: f64,
    /// Shape of the fall of the learning rate.
    pub decay: Decay,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Length of the run.
    pub length: Length,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Moments, weight decay and clipping.
    pub adamw: AdamWOptions,
    /// Reaction to a loss or gradient that is not finite.
    pub on_nonfinite: OnNonFinite,
    /// Seed of the order of the rows.
    pub seed: u64,
}

/// The device, dtypes and memory of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComputeOptions {
    /// Device that the learner computes on.
    pub device: DeviceChoice,
    /// Dtype of matrix products. Weights, gradients and moments are kept in f32.
    pub dtype: ComputeDtype,
    /// Tokens in memory at a time.
    pub micro_batch_tokens: usize,
    /// Computes blocks a second time in the backward pass, which saves memory.
    pub activation_checkpointing: bool,
    /// Most memory that the run may plan with, bytes; `None` for what the machine has.
    pub max_memory_bytes: Option<u64>,
}

/// When checkpoints are written, kept and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Number of checkpoints that are kept.
    pub keep: usize,
    /// Use of checkpoints that are in the output folder.
    pub resume: Resume,
}

/// Losses that are measured during training.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOptions {
    /// Rows to measure them on.
    pub rows: EvalRows,
    /// Steps between two evaluations; `None` for a tenth of the run.
    pub every: Option<u64>,
}

/// Destination of the annealed model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// Most bytes of a file of weights.
    pub max_shard_bytes: u64,
}

/// The command that was invoked, for the record.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Invocation {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Every option in force, as `--print-config` prints it.
    pub config: serde_json::Value,
}
