//! The command line of remit-anneal.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Parser;
use serde::{Serialize, Serializer};

use super::output;
use super::progress::Console;
use super::report::grouped;
use super::values::{
    above_zero, bytes, decay_rate, epsilon, fraction, not_negative, open_fraction, positive,
    temperature,
};
use crate::escape::Show as _;
use crate::loss::{
    DEFAULT_ALPHA, DEFAULT_SWITCH_FRACTION, DEFAULT_TOP_K_FRACTION, Normalize, Weighting,
};
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::optim::{
    AdamWOptions, DEFAULT_ADAM_EPS, DEFAULT_BETAS, DEFAULT_CLIP, DEFAULT_LR, DEFAULT_WEIGHT_DECAY,
    DecayOn,
};
use crate::pipeline::anneal::{
    AnnealOptions, AnnealReport, CheckpointOptions, ComputeOptions, DEFAULT_BATCH_TOKENS,
    DEFAULT_KEEP, DEFAULT_MAX_SHARD_BYTES, DEFAULT_MICRO_BATCH_TOKENS, DEFAULT_SAVE_EVERY,
    EvalOptions, EvalRows, ExtendOptions, Invocation, Length, LossChange, LossOptions,
    METRICS_FILE, OnNonFinite, OptimizationOptions, OutputOptions, Resume,
};
use crate::pipeline::{self, StopFlag, Usage};
use crate::schedule::Decay;
use crate::types::Divergence;
use crate::weight::{Center, shortest_decimal};

/// Train a base model on a scored set, each token weighted by what an RL-tuned model says about it
///
/// Writes a Hugging Face directory with the tensor names and dtypes of the initial model. Beside it, during
/// training: metrics.jsonl with one object per step, tensorboard/, run.json, and checkpoints/, from which the same
/// command resumes after an interruption.
#[derive(Debug, Parser, Serialize)]
#[command(
    name = "remit-anneal",
    version,
    long_version = super::version::LONG.as_str(),
    max_term_width = 100,
    after_help = EXAMPLES
)]
#[serde(rename_all = "kebab-case")]
pub struct AnnealArgs {
    /// Folder that remit-score made
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "lossy")]
    weights: PathBuf,

    /// Columns of log-probs to weigh by: names that remit-score --add gave, and rl for the set's own; several are
    /// averaged [default: rl]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rl_column: Vec<String>,

    /// Initial model, a Hugging Face directory [default: the base that the set was scored with]
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "lossy_option")]
    model: Option<PathBuf>,

    /// Train on a set even if its documents begin or end with other tokens than the initial model's own
    #[arg(long)]
    keep_special_tokens: bool,

    /// Accept this field of config.json though it is not understood; may be repeated [default: as scored]
    #[arg(long = "ignore-config-field", value_name = "NAME")]
    #[serde(rename = "ignore-config-field", skip_serializing_if = "Vec::is_empty")]
    ignore_config_fields: Vec<String>,

    /// Make warnings about models and weights that can't be meant an error
    #[arg(long)]
    strict: bool,

    /// Folder for the annealed model
    #[arg(short, long, value_name = "DIR", default_value = "annealed")]
    #[serde(serialize_with = "lossy")]
    output: PathBuf,

    /// TOML file of options, by the names of these flags; flags override the file
    #[arg(long, value_name = "FILE", help_heading = None)]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Print every option in force, as TOML for --config, and exit
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,

    /// Source of the weights of tokens
    #[arg(long, value_enum, default_value_t, help_heading = LOSS)]
    weighting: Weighting,

    /// Weights lie within 1 - EPSILON and 1 + EPSILON [default: as scored, else 0.2]
    #[arg(long, value_parser = epsilon, help_heading = LOSS)]
    #[serde(serialize_with = "shortest")]
    epsilon: Option<f32>,

    /// Divisor of the difference of log-probs, in nats [default: as scored, else 1]
    #[arg(long, value_parser = temperature, help_heading = LOSS)]
    #[serde(serialize_with = "shortest")]
    temperature: Option<f32>,

    /// Offset to subtract from differences of log-probs: the mean of their row, or nothing
    #[arg(long, value_enum, default_value_t, help_heading = LOSS)]
    center: Center,

    /// Divisor of the loss of a step: the number of its targets, or the sum of their weights
    /// [default: targets; with excess-top-k weights, as Rho-1]
    #[arg(long, value_enum, help_heading = LOSS)]
    normalize: Option<Normalize>,

    /// Fraction of a row's targets that excess-top-k trains on: those whose log-prob under the RL model exceeds
    /// that under the learner most
    #[arg(long, value_name = "FRACTION", default_value_t = DEFAULT_TOP_K_FRACTION, value_parser = fraction, help_heading = LOSS)]
    top_k_fraction: f64,

    /// Switch: fraction of a step's targets that learn the RL model's distribution, those where its entropy is lowest
    #[arg(long, value_name = "FRACTION", default_value_t = DEFAULT_SWITCH_FRACTION, value_parser = fraction, help_heading = LOSS)]
    switch_fraction: f64,

    /// Kd: share of the divergence in the loss, the rest being the next token's
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_ALPHA, value_parser = fraction, help_heading = LOSS)]
    alpha: f64,

    /// Switch and kd: divergence from the RL model's distribution, at the temperature that the set was scored with
    #[arg(long, value_enum, default_value_t, help_heading = LOSS)]
    divergence: Divergence,

    /// Coefficient of the squared log-sum-exp of the logits, which keeps it near 0; OLMo 2 uses 1e-5
    #[arg(long, value_name = "COEFFICIENT", default_value_t = 0.0, value_parser = not_negative, help_heading = LOSS)]
    z_loss: f64,

    /// Peak learning rate
    #[arg(long, default_value_t = DEFAULT_LR, value_parser = above_zero, help_heading = OPTIMIZER)]
    lr: f64,

    /// How the learning rate falls from --lr to --min-lr over the steps after the warm-up
    #[arg(long, value_enum, default_value_t, help_heading = OPTIMIZER)]
    schedule: Decay,

    /// Learning rate that the schedule falls to
    #[arg(long, value_name = "LR", default_value_t = 0.0, value_parser = not_negative, help_heading = OPTIMIZER)]
    min_lr: f64,

    /// Steps of linear warm-up
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OPTIMIZER)]
    warmup_steps: u64,

    /// Optimizer steps, over as many epochs as they need
    #[arg(long, value_name = "N", conflicts_with_all = ["tokens", "epochs"], value_parser = clap::value_parser!(u64).range(1..), help_heading = OPTIMIZER)]
    steps: Option<u64>,

    /// Tokens to train on, over as many epochs as they need; the last step is a full one
    #[arg(long, value_name = "N", conflicts_with = "epochs", value_parser = clap::value_parser!(u64).range(1..), help_heading = OPTIMIZER)]
    tokens: Option<u64>,

    /// Times over the set [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = OPTIMIZER)]
    epochs: Option<u64>,

    /// Output folder of another run to go on with, from its newest checkpoint: weights, moments and place in the rows;
    /// the schedule begins anew
    #[arg(long, value_name = "DIR", requires = "extend_steps", help_heading = OPTIMIZER)]
    #[serde(serialize_with = "lossy_option")]
    resume_from: Option<PathBuf>,

    /// Optimizer steps to take after those of --resume-from
    #[arg(long, value_name = "N", requires = "resume_from", conflicts_with_all = ["steps", "tokens", "epochs"], value_parser = clap::value_parser!(u64).range(1..), help_heading = OPTIMIZER)]
    extend_steps: Option<u64>,

    /// Tokens of an optimizer step
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_BATCH_TOKENS, value_parser = positive, help_heading = OPTIMIZER)]
    batch_tokens: usize,

    /// Decay rate of AdamW's first moment
    #[arg(long, value_name = "RATE", default_value_t = DEFAULT_BETAS.0, value_parser = decay_rate, help_heading = OPTIMIZER)]
    beta1: f64,

    /// Decay rate of AdamW's second moment
    #[arg(long, value_name = "RATE", default_value_t = DEFAULT_BETAS.1, value_parser = decay_rate, help_heading = OPTIMIZER)]
    beta2: f64,

    /// Added to the root of the second moment
    #[arg(long, value_name = "EPS", default_value_t = DEFAULT_ADAM_EPS, value_parser = above_zero, help_heading = OPTIMIZER)]
    adam_eps: f64,

    /// Decoupled weight decay
    #[arg(long, default_value_t = DEFAULT_WEIGHT_DECAY, value_parser = not_negative, help_heading = OPTIMIZER)]
    weight_decay: f64,

    /// Parameters that decay: matrices other than the embedding, all matrices, or norms and biases too
    #[arg(long, value_enum, default_value_t, help_heading = OPTIMIZER)]
    decay_on: DecayOn,

    /// Largest norm of the gradient, or "none"
    #[arg(long, value_name = "NORM", default_value_t = Clip(Some(DEFAULT_CLIP)), help_heading = OPTIMIZER)]
    clip: Clip,

    /// Reaction to a loss or gradient that is not finite; ten skipped steps in a row stop the run
    #[arg(long, value_enum, default_value_t, help_heading = OPTIMIZER)]
    on_nonfinite: OnNonFinite,

    /// Seed of the order of the rows
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64), help_heading = OPTIMIZER)]
    seed: u64,

    /// Tokens in memory at a time. The gradients of a step are summed over its micro-batches. On the CPU, sizes of
    /// 1024 tokens and more all give the same bits
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_MICRO_BATCH_TOKENS, value_parser = positive, help_heading = COMPUTE)]
    micro_batch_tokens: usize,

    /// Keep only the inputs of blocks, and compute blocks again for their gradients: less memory, about a third
    /// more time, and the same result
    #[arg(long, help_heading = COMPUTE)]
    activation_checkpointing: bool,

    /// Dtype of matrix products; weights, gradients and moments are kept in f32
    #[arg(long, value_enum, default_value_t, help_heading = COMPUTE)]
    dtype: ComputeDtype,

    /// Device to compute on: auto, cpu, cuda or cuda:N; auto takes a GPU if it can
    #[arg(long, value_name = "DEVICE", default_value_t, help_heading = COMPUTE)]
    #[serde(serialize_with = "displayed")]
    device: DeviceChoice,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = COMPUTE)]
    threads: Option<usize>,

    /// Refuse a run that needs more memory than this (K, M and G are units) [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = COMPUTE)]
    max_memory_bytes: Option<u64>,

    /// Steps between two checkpoints; an interruption writes one as well
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SAVE_EVERY, value_parser = clap::value_parser!(u64).range(1..), help_heading = OUTPUT)]
    save_every: u64,

    /// Number of newest checkpoints to keep
    #[arg(long, value_name = "N", default_value_t = DEFAULT_KEEP, value_parser = positive, help_heading = OUTPUT)]
    keep: usize,

    /// Use of checkpoints that are in the output folder
    #[arg(long, value_enum, value_name = "MODE", num_args = 0..=1, require_equals = true, default_value_t, default_missing_value = "auto", help_heading = OUTPUT)]
    resume: Resume,

    /// Folder of another set to measure losses on, by source, into eval.jsonl
    #[arg(long, value_name = "DIR", conflicts_with = "holdout", help_heading = OUTPUT)]
    #[serde(serialize_with = "lossy_option")]
    eval_weights: Option<PathBuf>,

    /// Fraction of the documents to measure losses on, which is never trained on
    #[arg(long, value_name = "FRACTION", value_parser = open_fraction, help_heading = OUTPUT)]
    holdout: Option<f64>,

    /// Steps between two such measurements [default: a tenth of the run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = OUTPUT)]
    eval_every: Option<u64>,

    /// Most bytes of a file of weights (K, M and G are units)
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_SHARD_BYTES, value_parser = bytes, help_heading = OUTPUT)]
    max_shard_bytes: u64,

    /// Print the result as one JSON object, and progress as one object per line
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

const LOSS: &str = "Loss";
const OPTIMIZER: &str = "Optimization";
const COMPUTE: &str = "Computation";
const OUTPUT: &str = "Checkpoints, evaluation and output";

const EXAMPLES: &str = "\
Examples:
  remit-anneal --weights weights/
  remit-anneal --weights weights/ --model Qwen3-0.6B-Base/ -o uniform/ --weighting uniform --holdout 0.01
  remit-anneal --weights weights/ --lr 1e-4 --print-config > run.toml; remit-anneal --config run.toml";

/// Serializes a number of single precision with as many digits as it needs.
fn shortest<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(shortest_decimal).serialize(serializer)
}

/// Serializes a path with replacement characters where it is not Unicode.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Does the same as [`lossy`].
fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = path.as_ref().map(|path| path.display().to_string());
    text.serialize(serializer)
}

fn displayed<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A clipping norm, or "none".
#[derive(Debug, Clone, Copy)]
struct Clip(Option<f64>);

impl Serialize for Clip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(norm) => serializer.serialize_f64(norm),
            None => serializer.serialize_str("none"),
        }
    }
}

impl std::fmt::Display for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(norm) => norm.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl std::str::FromStr for Clip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            norm => above_zero(norm).map(|norm| Self(Some(norm))),
        }
    }
}

/// The arguments, resolved.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) options: AnnealOptions,
    threads: Option<usize>,
    json: bool,
}

pub(super) fn resolve(args: AnnealArgs) -> Result<Resolved> {
    let invocation = Invocation {
        command: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        config: serde_json::to_value(&args)?,
    };
    let AnnealArgs {
        weights,
        rl_column,
        model,
        keep_special_tokens,
        ignore_config_fields,
        strict,
        output,
        config: _,
        print_config: _,
        weighting,
        epsilon,
        temperature,
        center,
        normalize,
        top_k_fraction,
        switch_fraction,
        alpha,
        divergence,
        z_loss,
        lr,
        schedule,
        min_lr,
        warmup_steps,
        steps,
        tokens,
        epochs,
        resume_from,
        extend_steps,
        batch_tokens,
        beta1,
        beta2,
        adam_eps,
        weight_decay,
        decay_on,
        clip,
        on_nonfinite,
        seed,
        micro_batch_tokens,
        activation_checkpointing,
        dtype,
        device,
        threads,
        max_memory_bytes,
        save_every,
        keep,
        resume,
        eval_weights,
        holdout,
        eval_every,
        max_shard_bytes,
        json,
    } = args;
    if lr * weight_decay >= 1.0 {
        bail!(Usage(format!(
            "--lr {lr} times --weight-decay {weight_decay} is {}; it must be less than 1, or a step wipes out the weights\nhint: lower either of them",
            lr * weight_decay
        )));
    }
    if min_lr > lr {
        bail!(Usage(format!(
            "--min-lr {min_lr} is above the peak, --lr {lr}\nhint: lower --min-lr, or raise --lr"
        )));
    }
    if schedule == Decay::Constant && min_lr > 0.0 {
        bail!(Usage(format!(
            "--min-lr {min_lr} says where the learning rate falls to, but with --schedule constant it does not fall\nhint: leave out --min-lr, or give another --schedule"
        )));
    }
    let eval_rows = eval_weights
        .map(EvalRows::Set)
        .or(holdout.map(EvalRows::Holdout));
    if eval_every.is_some() && eval_rows.is_none() {
        bail!(Usage(
            "--eval-every has nothing to measure losses on\nhint: give --eval-weights DIR or --holdout FRACTION".to_owned()
        ));
    }
    let extend = resume_from
        .zip(extend_steps)
        .map(|(run, steps)| ExtendOptions { run, steps });
    let length = match (steps.or(extend_steps), tokens) {
        (Some(steps), _) => Length::Steps(steps),
        (None, Some(tokens)) => Length::Tokens(tokens),
        (None, None) => Length::Epochs(epochs.unwrap_or(1)),
    };
    Ok(Resolved {
        options: AnnealOptions {
            weights,
            rl_columns: rl_column,
            model: model.map(ModelSource::Directory),
            keep_special_tokens,
            ignored_fields: ignore_config_fields,
            strict,
            loss: LossOptions {
                weighting,
                epsilon,
                temperature,
                center,
                normalize,
                top_k_fraction,
                switch_fraction,
                alpha,
                divergence,
                z_loss: (z_loss > 0.0).then_some(z_loss),
            },
            optimization: OptimizationOptions {
                lr,
                min_lr,
                decay: schedule,
                warmup_steps,
                length,
                batch_tokens,
                adamw: AdamWOptions {
                    betas: (beta1, beta2),
                    eps: adam_eps,
                    weight_decay,
                    decay_on,
                    clip: clip.0,
                },
                on_nonfinite,
                seed,
            },
            extend,
            compute: ComputeOptions {
                device,
                dtype,
                micro_batch_tokens,
                activation_checkpointing,
                max_memory_bytes,
            },
            checkpoints: CheckpointOptions {
                save_every,
                keep,
                resume,
            },
            eval: eval_rows.map(|rows| EvalOptions {
                rows,
                every: eval_every,
            }),
            output: OutputOptions {
                dir: output,
                max_shard_bytes,
            },
            invocation,
        },
        threads,
        json,
    })
}

/// Runs remit-anneal.
pub fn run(args: AnnealArgs) -> Result<()> {
    let config = args.print_config.then(|| toml::to_string(&args));
    let Resolved {
        options,
        threads,
        json,
    } = resolve(args)?;
    if let Some(config) = config {
        return output::print_toml(&config?);
    }
    super::set_threads(threads)?;
    let stop = StopFlag::on_signals()?;
    let report = pipeline::anneal::run(&options, &stop, &Console::new(json))?;
    if json {
        output::print_json(&serde_json::to_string(&report)?)
    } else {
        output::print(&as_text(&report))
    }
}

fn as_text(report: &AnnealReport) -> String {
    let output = report.output.shown();
    if report.was_finished {
        return format!("{output} was finished already: {} steps\n", report.steps);
    }
    let mut text = format!(
        "annealed {} with {} weights: {} tokens in {:.1} s, {:.0} tokens/s\n",
        report.model.shown(),
        report.weighting,
        grouped(report.own_tokens),
        report.seconds,
        report.own_tokens as f64 / report.seconds.max(1e-9)
    );
    if report.resumed_after > 0 {
        text.push_str(&format!(
            "resumed after step {}; {} tokens in all\n",
            report.resumed_after,
            grouped(report.tokens)
        ));
    }
    if report.skipped_steps > 0 {
        text.push_str(&format!(
            "{} steps were skipped, since their loss or gradient was not finite{}\n",
            report.skipped_steps,
            match report.skipped_at_end {
                0 => String::new(),
                n => format!("; the last {n} were among them, so the model may have diverged"),
            }
        ));
    }
    if let Some(losses) = &report.losses {
        text.push_str(&change(losses));
    }
    text.push_str(&format!(
        "{output} is a Hugging Face directory; {} has every step\n",
        report.output.join(METRICS_FILE).shown()
    ));
    text
}

/// Tells what a run changed, as a line.
fn change(losses: &LossChange) -> String {
    let from_to = |loss: [f64; 2], plain: [f64; 2]| {
        format!(
            "loss {:.4} -> {:.4}, plain {:.4} -> {:.4}",
            loss[0], loss[1], plain[0], plain[1]
        )
    };
    match losses {
        LossChange::EvaluationRows { first, last } => format!(
            "{} on {} evaluation targets, after step {} and after step {}\n",
            from_to([first.loss, last.loss], [first.ntp_loss, last.ntp_loss]),
            grouped(last.targets),
            first.step,
            last.step
        ),
        LossChange::TrainingRows { first, last } => format!(
            "{}, means of steps {}-{} and {}-{}, each on rows of its own; with --holdout, the rows are the same\n",
            from_to([first.loss, last.loss], [first.ntp_loss, last.ntp_loss]),
            first.first_step,
            first.last_step,
            last.first_step,
            last.last_step
        ),
        LossChange::AllTrainingRows { all } => format!(
            "loss {:.4}, plain {:.4}, means of all steps, which are too few to tell a change; --holdout tells one\n",
            all.loss, all.ntp_loss
        ),
    }
}
