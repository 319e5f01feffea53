//! The command line of remit-score.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use super::progress::Console;
use super::report;
use crate::corpus::DEFAULT_TEXT_FIELD;
use crate::demo;
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::pack::Packing;
use crate::pipeline::score::{AddToken, DEFAULT_BATCH_TOKENS, ScoreOptions, ScoreReport};
use crate::pipeline::{self, StopFlag, Usage};
use crate::weight::{DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// Score a corpus with an RL-tuned model: one log-probability a token, in Parquet shards
///
/// Reads .txt and .md (a document a file), .jsonl and .ndjson, each plain, .gz or .zst, and .parquet.
/// Running the same command again does only what is missing.
#[derive(Debug, Parser)]
#[command(name = "remit-score", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct ScoreArgs {
    /// Files and folders to score
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,

    /// Folder for the shards and the manifest
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// RL-tuned model, a Hugging Face directory [default: the built-in demo pair]
    #[arg(long, value_name = "DIR")]
    rl_model: Option<PathBuf>,

    /// The model before RL; with it, static weights are stored as well
    #[arg(long, value_name = "DIR", requires = "rl_model")]
    base_model: Option<PathBuf>,

    /// Longest row in tokens [default: 4096, or what the models allow]
    #[arg(long, value_name = "TOKENS")]
    seq_len: Option<u32>,

    /// How documents become rows: one document a row, or windows over documents in a line
    #[arg(long, value_enum, default_value_t)]
    packing: Packing,

    /// JSONL key or Parquet column that holds the text
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TEXT_FIELD)]
    text_field: String,

    /// Whether a document begins with BOS; auto: if the tokenizer's template says so
    #[arg(long, value_enum, default_value_t)]
    bos: AddToken,

    /// Whether a document ends with EOS; auto: if the model has one
    #[arg(long, value_enum, default_value_t)]
    eos: AddToken,

    /// Most tokens in a batch; the results do not depend on it
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_BATCH_TOKENS, value_parser = super::positive)]
    batch_tokens: usize,

    /// Dtype that the models compute in; on the CPU bf16 is for their matrices alone
    #[arg(long, value_enum, default_value_t)]
    dtype: ComputeDtype,

    /// Device to compute on: auto, cpu, cuda or cuda:N; auto takes a GPU if it can
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,

    /// Static weights lie within 1 - EPSILON and 1 + EPSILON
    #[arg(long, default_value_t = DEFAULT_EPSILON)]
    epsilon: f32,

    /// Static weights: divisor of the difference of log-probs, in nats
    #[arg(long, default_value_t = DEFAULT_TEMPERATURE)]
    temperature: f32,

    /// Store log-probs in full (23 bits of mantissa) instead of rounded to 12
    #[arg(long)]
    exact: bool,

    /// Target size of a part, the unit of resumption [default: a 64th of the corpus, within 256 KiB
    /// and 16 MiB]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    part_bytes: Option<u64>,

    /// Number of workers that share the parts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    num_workers: u32,

    /// Number of this worker, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    worker_index: u32,

    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    threads: Option<usize>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  remit-score corpus/ -o weights/
  remit-score data/*.jsonl.zst -o weights/ --rl-model Qwen3-0.6B/ --base-model Qwen3-0.6B-Base/ --seq-len 4096";

/// What the arguments come to, once the environment was looked at.
struct Resolved {
    options: ScoreOptions,
    threads: Option<usize>,
    json: bool,
    is_demo: bool,
}

fn resolve(args: ScoreArgs) -> Result<Resolved> {
    let ScoreArgs {
        inputs,
        output,
        rl_model,
        base_model,
        seq_len,
        packing,
        text_field,
        bos,
        eos,
        batch_tokens,
        dtype,
        device,
        epsilon,
        temperature,
        exact,
        part_bytes,
        num_workers,
        worker_index,
        threads,
        json,
    } = args;
    if worker_index >= num_workers {
        bail!(Usage(format!(
            "--worker-index {worker_index} is not below --num-workers {num_workers}"
        )));
    }
    let is_demo = rl_model.is_none();
    let (rl, base) = match rl_model {
        Some(dir) => (
            ModelSource::Directory(dir),
            base_model.map(ModelSource::Directory),
        ),
        None => (demo::rl_model(), Some(demo::base_model())),
    };
    let formula =
        WeightFormula::new(epsilon, temperature).map_err(|error| Usage(error.to_string()))?;
    Ok(Resolved {
        options: ScoreOptions {
            inputs,
            output,
            rl,
            base,
            seq_len,
            packing,
            text_field,
            bos,
            eos,
            batch_tokens,
            dtype,
            device,
            formula,
            exact,
            part_bytes,
            num_workers,
            worker_index,
        },
        threads,
        json,
        is_demo,
    })
}

/// Runs remit-score.
pub fn run(args: ScoreArgs) -> Result<()> {
    let Resolved {
        options,
        threads,
        json,
        is_demo,
    } = resolve(args)?;
    super::set_threads(threads)?;
    let stop = StopFlag::on_signals()?;
    if is_demo {
        tracing::warn!(
            "DEMO: no --rl-model was given, so a tiny built-in pair of models that only knows arithmetic scores the corpus"
        );
    }
    let report = pipeline::score::run(&options, &stop, &Console::new())?;
    super::print(&if json {
        as_json(&report)?
    } else {
        as_text(&options, &report)
    })
}

fn as_text(options: &ScoreOptions, report: &ScoreReport) -> String {
    let output = options.output.display();
    let mut text = String::new();
    if report.scored_parts > 0 {
        text.push_str(&format!(
            "scored {} of {} parts: {} tokens in {:.1} s, {:.0} tokens/s\n",
            report.scored_parts,
            report.num_parts,
            report::grouped(report.scored_tokens),
            report.seconds,
            report.scored_tokens as f64 / report.seconds.max(1e-9)
        ));
    } else if options.worker_index as usize >= report.num_parts {
        text.push_str(&format!(
            "nothing to score: the corpus has {} parts, so worker {} has none\n",
            report.num_parts, options.worker_index
        ));
    } else {
        text.push_str("nothing to score: all parts of this worker are there already\n");
    }
    match &report.manifest {
        Some(manifest) => {
            text.push_str(&format!(
                "{output} is complete\n\n{}",
                report::summary(manifest)
            ));
        }
        None => {
            let listed: Vec<String> = report
                .missing_parts
                .iter()
                .take(10)
                .map(u32::to_string)
                .collect();
            text.push_str(&format!(
                "{output} is not complete: {} of {} parts are missing ({}{}); run the other workers, then any of them once more\n",
                report.missing_parts.len(),
                report.num_parts,
                listed.join(", "),
                if report.missing_parts.len() > 10 { ", ..." } else { "" }
            ));
        }
    }
    text
}

fn as_json(report: &ScoreReport) -> Result<String> {
    let value = serde_json::json!({
        "scored_parts": report.scored_parts,
        "num_parts": report.num_parts,
        "scored_tokens": report.scored_tokens,
        "seconds": report.seconds,
        "missing_parts": report.missing_parts,
        "manifest": report.manifest,
    });
    Ok(format!("{}\n", serde_json::to_string(&value)?))
}
