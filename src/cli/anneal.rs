//! The command line of remit-anneal.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use super::progress::Console;
use super::report::grouped;
use crate::loss::Weighting;
use crate::model::{DeviceChoice, ModelSource};
use crate::optim::{
    AdamWOptions, DEFAULT_ADAM_EPS, DEFAULT_BETAS, DEFAULT_CLIP, DEFAULT_LEARNING_RATE,
    DEFAULT_WEIGHT_DECAY,
};
use crate::pipeline::anneal::{
    AnnealOptions, AnnealReport, DEFAULT_BATCH_TOKENS, DEFAULT_MICRO_BATCH_TOKENS, Length,
};
use crate::pipeline::{self, StopFlag, Usage};

/// Train a base model on a scored set, each token weighted by what an RL-tuned model thinks of it
///
/// Writes a Hugging Face directory with the tensor names and dtypes of the model it began with, and
/// metrics.jsonl with one object a step.
#[derive(Debug, Parser)]
#[command(name = "remit-anneal", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct AnnealArgs {
    /// Folder that remit-score made
    #[arg(long, value_name = "DIR")]
    weights: PathBuf,

    /// Model to begin with, a Hugging Face directory [default: the base that the set was scored with]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Folder for the annealed model
    #[arg(short, long, value_name = "DIR", default_value = "annealed")]
    output: PathBuf,

    /// dynamic: from the learner as it is now; static: the stored weights; uniform: plain next-token
    /// prediction
    #[arg(long, value_enum, default_value_t)]
    weighting: Weighting,

    /// Weights lie within 1 - EPSILON and 1 + EPSILON [default: as scored, else 0.2]
    #[arg(long)]
    epsilon: Option<f32>,

    /// Divisor of the difference of log-probs, in nats [default: as scored, else 1]
    #[arg(long)]
    temperature: Option<f32>,

    /// Peak learning rate; it decays linearly to zero
    #[arg(long, default_value_t = DEFAULT_LEARNING_RATE, value_parser = super::above_zero)]
    lr: f64,

    /// Steps of linear warm-up
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_steps: u64,

    /// Optimizer steps, over as many epochs as they need
    #[arg(long, value_name = "N", conflicts_with = "epochs", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,

    /// Times over the set [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,

    /// Tokens of an optimizer step
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_BATCH_TOKENS, value_parser = super::positive)]
    batch_tokens: usize,

    /// Tokens that are in memory at a time; gradients of a step are summed over its micro-batches
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_MICRO_BATCH_TOKENS, value_parser = super::positive)]
    micro_batch_tokens: usize,

    /// Decoupled weight decay, on matrices other than the embedding
    #[arg(long, default_value_t = DEFAULT_WEIGHT_DECAY, value_parser = super::not_negative)]
    weight_decay: f64,

    /// Largest norm of the gradient, or "none"
    #[arg(long, value_name = "NORM", default_value_t = Clip(Some(DEFAULT_CLIP)))]
    clip: Clip,

    /// Seed of the order of the rows
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Device to compute on: auto, cpu, cuda or cuda:N; auto takes a GPU if it can
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,

    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    threads: Option<usize>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  remit-anneal --weights weights/
  remit-anneal --weights weights/ --model Qwen3-0.6B-Base/ -o annealed-uniform/ --weighting uniform --seed 1";

/// A clipping norm, or "none".
#[derive(Debug, Clone, Copy)]
struct Clip(Option<f64>);

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
            norm => super::above_zero(norm).map(|norm| Self(Some(norm))),
        }
    }
}

/// What the arguments come to.
struct Resolved {
    options: AnnealOptions,
    threads: Option<usize>,
    json: bool,
}

fn resolve(args: AnnealArgs) -> Result<Resolved> {
    let AnnealArgs {
        weights,
        model,
        output,
        weighting,
        epsilon,
        temperature,
        lr,
        warmup_steps,
        steps,
        epochs,
        batch_tokens,
        micro_batch_tokens,
        weight_decay,
        clip,
        seed,
        device,
        threads,
        json,
    } = args;
    if lr * weight_decay >= 1.0 {
        bail!(Usage(format!(
            "--lr {lr} times --weight-decay {weight_decay} is {}; from 1 on a step wipes out the weights",
            lr * weight_decay
        )));
    }
    let length = match (steps, epochs) {
        (Some(steps), _) => Length::Steps(steps),
        (None, epochs) => Length::Epochs(epochs.unwrap_or(1)),
    };
    Ok(Resolved {
        options: AnnealOptions {
            weights,
            model: model.map(ModelSource::Directory),
            output,
            weighting,
            epsilon,
            temperature,
            learning_rate: lr,
            warmup_steps,
            length,
            batch_tokens,
            micro_batch_tokens,
            optimizer: AdamWOptions {
                betas: DEFAULT_BETAS,
                eps: DEFAULT_ADAM_EPS,
                weight_decay,
                clip: clip.0,
            },
            seed,
            device,
        },
        threads,
        json,
    })
}

/// Runs remit-anneal.
pub fn run(args: AnnealArgs) -> Result<()> {
    let Resolved {
        options,
        threads,
        json,
    } = resolve(args)?;
    super::set_threads(threads)?;
    let stop = StopFlag::on_signals()?;
    let report = pipeline::anneal::run(&options, &stop, &Console::new(json))?;
    super::print(&if json {
        as_json(&report)?
    } else {
        as_text(&report)
    })
}

fn as_text(report: &AnnealReport) -> String {
    let output = report.output.display();
    let mut text = format!(
        "annealed {} with {} weights: {} tokens in {:.1} s, {:.0} tokens/s\n",
        report.model,
        report.weighting,
        grouped(report.tokens),
        report.seconds,
        report.tokens as f64 / report.seconds.max(1e-9)
    );
    if let Some((first, last)) = &report.ends {
        text.push_str(&format!(
            "loss {:.4} -> {:.4}, plain {:.4} -> {:.4} (step 1 -> {})\n",
            first.loss, last.loss, first.ntp_loss, last.ntp_loss, last.step
        ));
    }
    text.push_str(&format!(
        "{output} is a Hugging Face directory; {output}/metrics.jsonl has every step\n"
    ));
    text
}

fn as_json(report: &AnnealReport) -> Result<String> {
    let value = serde_json::json!({
        "output": report.output,
        "model": report.model,
        "weighting": report.weighting,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "first_step": report.ends.as_ref().map(|(first, _)| first),
        "last_step": report.ends.as_ref().map(|(_, last)| last),
    });
    Ok(format!("{}\n", serde_json::to_string(&value)?))
}
