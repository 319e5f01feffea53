//! The command line of remit-score.

use std::path::{Path, PathBuf};

use anyhow::Result;
use chrono::NaiveDate;
use clap::Parser;

use super::progress::Console;
use super::rescore::Rescoring;
use super::values::{
    Devices, TopKWhere, above_zero, bytes, devices, distributions, epsilon, extension, fraction,
    input_format, name_pattern, positive, row_length, temperature, top_k, top_k_where,
};
use super::worker::Worker;
use super::{output, report, score_text, version};
use crate::corpus::{DEFAULT_MAX_RECORD_BYTES, DEFAULT_ZSTD_WINDOW_LOG, Input};
use crate::demo;
use crate::escape::Show as _;
use crate::fs::{self, NamePattern, StdinCopy};
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::pack::Packing;
use crate::pipeline::score::{
    AddOptions, AddToken, CertifyOptions, ComputeOptions, InputOptions, RowOptions, ScoreOptions,
    SetOptions, WorkerOptions,
};
use crate::pipeline::{self, BadInput, Progress, StopFlag, Usage};
use crate::shard::schema::ShardFormat;
use crate::tokenize::SpecialTokensInText;
use crate::types::{OnBadRecord, TokenDtype, TokenId, WeightBounds};
use crate::weight::{DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// Score a corpus with an RL-tuned model: one log-probability per token, in Parquet shards
///
/// Reads .txt and .md (one document per file), .jsonl, .ndjson and .json (one per line), .parquet and .arrow, each
/// plain, .gz or .zst; and token ids: lists of integers in any of these, .npy and .bin.
/// Running the same command again does only what is missing.
#[derive(Debug, Parser)]
#[command(
    name = "remit-score",
    version,
    long_version = version::LONG.as_str(),
    max_term_width = 100,
    after_help = EXAMPLES
)]
pub struct ScoreArgs {
    /// Files and folders to score; a pattern with *, ? or [...] is expanded, ** reaches into folders; - is stdin
    #[arg(required_unless_present_any = ["files_from", "add"], conflicts_with = "add", value_name = "INPUT")]
    inputs: Vec<PathBuf>,

    /// File that lists more files to score, one per line; - reads the list from stdin
    #[arg(long, value_name = "FILE")]
    files_from: Option<PathBuf>,

    /// Ending that says what stdin holds, as jsonl, txt or parquet.zst
    #[arg(long, value_name = "ENDING", default_value = "jsonl", value_parser = input_format)]
    input_format: String,

    /// Read only files that the pattern matches; repeatable. Without / in it, it matches names of files and folders
    #[arg(long, value_name = "PATTERN", value_parser = name_pattern)]
    include: Vec<NamePattern>,

    /// Leave out files that the pattern matches; repeatable
    #[arg(long, value_name = "PATTERN", value_parser = name_pattern)]
    exclude: Vec<NamePattern>,

    /// Folder for the shards and the manifest [default: with --add, SET.NAME beside the set]
    #[arg(short, long, value_name = "DIR", required_unless_present_any = ["add", "certify"])]
    output: Option<PathBuf>,

    /// Score the rows of this finished set with another --rl-model, into a sidecar beside it: a column that
    /// remit-anneal --rl-column takes; the set stays as it is
    #[arg(long, value_name = "SET", requires = "as_name")]
    add: Option<PathBuf>,

    /// Name of the column that --add makes
    #[arg(long = "as", value_name = "NAME", requires = "add")]
    as_name: Option<String>,

    /// Let --add take numbers per token from the column of this name in a Parquet file, joined by row_id, instead of
    /// scoring
    #[arg(
        long,
        value_name = "FILE",
        requires = "add",
        conflicts_with = "rl_model"
    )]
    import: Option<PathBuf>,

    /// Score this fraction of the rows of a finished set, which INPUT is then, again on this machine, and print how far
    /// its log-probs are from those that are stored
    #[arg(long, value_name = "FRACTION", value_parser = fraction, conflicts_with_all = ["add", "output", "dry_run", "files_from"])]
    certify: Option<f64>,

    /// Seed of the sample of --certify
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "certify")]
    certify_seed: u64,

    /// RL-tuned model, a Hugging Face directory [default: the built-in demo pair]
    #[arg(long, value_name = "DIR")]
    rl_model: Option<PathBuf>,

    /// The model before RL; with it, static weights are stored as well
    #[arg(long, value_name = "DIR", requires = "rl_model")]
    base_model: Option<PathBuf>,

    /// Folder whose tokenizer decides the ids [default: the base, or the RL model without one]
    #[arg(long, value_name = "DIR", requires = "rl_model")]
    tokenizer: Option<PathBuf>,

    /// Longest row in tokens [default: 4096, or what the models allow]
    #[arg(long, value_name = "TOKENS", value_parser = row_length)]
    seq_len: Option<u32>,

    /// How documents become rows: one document per row, or windows over concatenated documents
    #[arg(long, value_enum, default_value_t)]
    packing: Packing,

    /// Key or column that holds the text, token ids or messages; a.b for nested ones [default: text, else input_ids, else messages]
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,

    /// Jinja template that makes text of records of messages [default: the base's, else the RL model's]
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// Date that a chat template is told if it asks for the time, as 2026-01-31 [default: today]
    #[arg(long, value_name = "DATE")]
    chat_date: Option<NaiveDate>,
    /// Endings of files to take for text, one document each, besides .txt and .md: py,html
    #[arg(long, value_name = "EXT,...", value_delimiter = ',', value_parser = extension)]
    text_ext: Vec<String>,

    /// Score the first N documents only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit_docs: Option<u64>,

    /// Leave out documents of fewer tokens, BOS and EOS included
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,

    /// Reaction to a record that can't be read: stop, or leave it out
    #[arg(long, value_enum, default_value_t)]
    on_bad_record: OnBadRecord,

    /// Most bytes of one record: a line, a file of text, a value; K, M and G stand for 2^10, 2^20, 2^30
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_RECORD_BYTES, value_parser = bytes)]
    max_record_bytes: u64,

    /// Largest window of a zstd frame, as a power of two; files made with zstd --long=31 need 31
    #[arg(long, value_name = "LOG2", default_value_t = DEFAULT_ZSTD_WINDOW_LOG, value_parser = clap::value_parser!(u32).range(10..=31))]
    zstd_window_log: u32,

    /// How ids are stored in .npy and .bin files that don't say it themselves
    #[arg(long, value_enum, value_name = "DTYPE")]
    token_dtype: Option<TokenDtype>,

    /// Id that ends a document in .npy and .bin files [default: the model's EOS]
    #[arg(long, value_name = "ID")]
    separator: Option<TokenId>,

    /// Begin documents with BOS; auto: if the tokenizer's template says so
    #[arg(long, value_enum, default_value_t)]
    bos: AddToken,

    /// End documents with EOS; auto: if the tokenizer or config.json names one
    #[arg(long, value_enum, default_value_t)]
    eos: AddToken,

    /// Reading of text that spells out a special token, such as <|endoftext|> [default: parse, or literal where
    /// tokenizer_config.json sets split_special_tokens]
    #[arg(long, value_enum, value_name = "HOW")]
    special_tokens_in_text: Option<SpecialTokensInText>,

    /// Most tokens in a batch; the results do not depend on it [default: 16384, or 131072 with
    /// --stream-weights; on a GPU what its memory has room for]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    batch_tokens: Option<usize>,

    /// Leave the weights on disk and read them once for each batch, a block at a time: for models that are larger than
    /// memory; the results are the same
    #[arg(long)]
    stream_weights: bool,

    /// Dtype that the models compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: ComputeDtype,

    /// Device to compute on: auto, cpu, cuda or cuda:N; cuda:0,1 or cuda:all for several GPUs; auto takes one if it can
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = devices)]
    device: Devices,

    /// Work on this device for the process that started this one
    #[arg(long, value_name = "DEVICE", hide = true)]
    gpu_process: Option<DeviceChoice>,

    /// Static weights lie within 1 - EPSILON and 1 + EPSILON
    #[arg(long, default_value_t = DEFAULT_EPSILON, value_parser = epsilon)]
    epsilon: f32,

    /// Static weights: divisor of the difference of log-probs, in nats
    #[arg(long, default_value_t = DEFAULT_TEMPERATURE, value_parser = temperature)]
    temperature: f32,

    /// Store log-probs in full (23 bits of mantissa) instead of rounded to 12
    #[arg(long)]
    exact: bool,

    /// How weights at a bound, 1 - EPSILON or 1 + EPSILON, are stored
    #[arg(long, value_enum, default_value_t = WeightBounds::Exact)]
    weight_bounds: WeightBounds,

    /// Store the entropy of the RL model's distribution at every target, in nats
    #[arg(long)]
    entropy: bool,

    /// Store the K most likely tokens of the RL model with their log-probs, and the log-prob of all others together
    #[arg(long, value_name = "K", value_parser = top_k)]
    top_k: Option<u32>,

    /// Targets to store the most likely tokens for: all, or entropy<=q20, the 20 % of each row group with the lowest
    /// entropy
    #[arg(long, value_name = "WHERE", default_value = "all", requires = "top_k", value_parser = top_k_where)]
    top_k_where: TopKWhere,

    /// Temperature of the distributions that --entropy and --top-k store: the divisor of the logits
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = above_zero)]
    entropy_temperature: f64,

    /// How shards are stored: Parquet, or Arrow, larger and without compression, for your own readers
    #[arg(long, value_enum, default_value_t)]
    format: ShardFormat,

    /// Target size of a part, the unit of resumption [default: a 64th of the corpus, within 256 KiB
    /// and 16 MiB]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    part_bytes: Option<u64>,

    /// Number of workers that share the parts [default: from SLURM, torchrun or MPI, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    num_workers: Option<u32>,

    /// Number of this worker, from 0 [default: from SLURM, Kubernetes, torchrun or MPI, else 0]
    #[arg(long, value_name = "I")]
    worker_index: Option<u32>,

    /// Read and hash all shards if the set is complete already; without it, only their sizes are compared
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,

    /// Accept this field of config.json though it is not understood; may be repeated
    #[arg(long = "ignore-config-field", value_name = "NAME")]
    ignore_config_fields: Vec<String>,

    /// Make warnings about models and weights that can't be meant an error
    #[arg(long)]
    strict: bool,

    /// Estimate what a run would take, from a few rows that are scored; write nothing
    #[arg(long)]
    dry_run: bool,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,

    /// Print the result as one JSON object, and progress on stderr as one per line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  remit-score corpus/ -o weights/
  remit-score data/*.jsonl.zst -o weights/ --rl-model Qwen3-0.6B/ --base-model Qwen3-0.6B-Base/ --seq-len 4096";

/// What is done with a finished set, as given.
enum Rescored {
    Add(PathBuf, String, Option<PathBuf>),
    Certify(PathBuf, f64),
}

/// The arguments and the environment, resolved.
pub(super) struct Resolved {
    pub(super) options: ScoreOptions,
    /// What is done with a finished set instead.
    rescoring: Option<Rescoring>,
    /// What stdin holds, if it is an input.
    input_format: String,
    threads: Option<usize>,
    dry_run: bool,
    json: bool,
    is_demo: bool,
    /// All devices, where there are several.
    devices: Option<Vec<DeviceChoice>>,
    /// Whether another process hands out the parts.
    is_gpu_process: bool,
    /// The variable that this worker's number is from, if it was not given.
    worker_from: Option<&'static str>,
}

pub(super) fn resolve(args: ScoreArgs) -> Result<Resolved> {
    let ScoreArgs {
        inputs,
        files_from,
        input_format,
        include,
        exclude,
        output,
        add,
        as_name,
        import,
        certify,
        certify_seed,
        rl_model,
        base_model,
        tokenizer,
        seq_len,
        packing,
        text_field,
        chat_template,
        chat_date,
        mut text_ext,
        limit_docs,
        min_tokens,
        on_bad_record,
        max_record_bytes,
        zstd_window_log,
        token_dtype,
        separator,
        bos,
        eos,
        special_tokens_in_text,
        batch_tokens,
        stream_weights,
        dtype,
        device,
        gpu_process,
        epsilon,
        temperature,
        exact,
        weight_bounds,
        entropy,
        top_k,
        top_k_where,
        entropy_temperature,
        format,
        part_bytes,
        num_workers,
        worker_index,
        verify,
        ignore_config_fields,
        strict,
        dry_run,
        threads,
        json,
    } = args;
    let worker = Worker::find(num_workers, worker_index, |name| std::env::var(name).ok())?;
    let mut all_inputs: Vec<Input> = inputs.into_iter().map(Input::Path).collect();
    let stdin_inputs = all_inputs.iter().filter(|input| is_stdin(input)).count();
    let reads_list = files_from.as_deref() == Some(Path::new("-"));
    if stdin_inputs + usize::from(reads_list) > 1 {
        return Err(Usage(
            "stdin, -, was given more than once, and can be read only once".to_owned(),
        )
        .into());
    }
    if let Some(list) = files_from {
        let files = fs::read_list(&list)?;
        if files.is_empty() && all_inputs.is_empty() {
            return Err(BadInput(format!("{}: the list names no file", list.shown())).into());
        }
        all_inputs.push(Input::List(files));
    }
    let is_gpu_process = gpu_process.is_some();
    let devices = match (gpu_process, device) {
        (Some(device), _) | (None, Devices::One(device)) => vec![device],
        (None, Devices::Several(devices)) => devices,
        (None, Devices::All(one)) => one.all_of_its_kind()?,
    };
    if devices.len() > 1 && stdin_inputs + usize::from(reads_list) > 0 {
        return Err(Usage(
            "stdin, -, can't be read by a process for each GPU\nhint: write it to a file, and give that".to_owned(),
        )
        .into());
    }
    let is_demo = rl_model.is_none();
    let (output, rescoring) = match (add, certify) {
        (None, None) => (output.unwrap_or_default(), None),
        (Some(_), _) if is_demo && import.is_none() => {
            return Err(Usage(
                "--add needs a model or a file\nhint: give --rl-model DIR, or --import FILE"
                    .to_owned(),
            )
            .into());
        }
        (Some(set), _) => (
            output.unwrap_or_default(),
            Some(Rescored::Add(set, as_name.unwrap_or_default(), import)),
        ),
        (None, Some(fraction)) => {
            let [Input::Path(set)] = all_inputs.as_slice() else {
                return Err(
                    Usage("--certify takes one INPUT, the folder of a set".to_owned()).into(),
                );
            };
            (
                PathBuf::new(),
                Some(Rescored::Certify(set.clone(), fraction)),
            )
        }
    };
    let (rl, base) = match rl_model {
        Some(dir) => (
            ModelSource::Directory(dir),
            base_model.map(ModelSource::Directory),
        ),
        None => (demo::rl_model(), Some(demo::base_model())),
    };
    let formula =
        WeightFormula::new(epsilon, temperature).map_err(|error| Usage(error.to_string()))?;
    let distributions = distributions(entropy, top_k, top_k_where, entropy_temperature)?;
    let compute = ComputeOptions {
        rl,
        base,
        tokenizer: tokenizer.map(ModelSource::Directory),
        batch_tokens,
        stream_weights,
        dtype,
        device: devices.first().copied().unwrap_or_default(),
        ignored_fields: ignore_config_fields,
    };
    let worker_options = WorkerOptions {
        count: worker.count,
        index: worker.index,
    };
    let rescoring = rescoring.map(|what| match what {
        Rescored::Add(set, name, import) => Rescoring::Add(Box::new(AddOptions {
            import: import.map(|file| (file, name.clone())),
            set,
            name,
            compute: compute.clone(),
            output: (!output.as_os_str().is_empty()).then(|| output.clone()),
            exact,
            worker: worker_options,
        })),
        Rescored::Certify(set, fraction) => Rescoring::Certify(Box::new(CertifyOptions {
            set,
            fraction,
            seed: certify_seed,
            compute: compute.clone(),
            has_models: !is_demo,
        })),
    });
    Ok(Resolved {
        rescoring,
        options: ScoreOptions {
            corpus: InputOptions {
                inputs: all_inputs,
                include,
                exclude,
                text_field,
                chat_template,
                chat_date,
                text_ext: {
                    text_ext.sort_unstable();
                    text_ext.dedup();
                    text_ext
                },
                on_bad_record,
                max_record_bytes,
                limit_docs,
                token_dtype,
                separator,
                zstd_window_log,
                part_bytes,
            },
            rows: RowOptions {
                packing,
                seq_len,
                min_tokens,
                bos,
                eos,
                special_tokens_in_text,
            },
            compute,
            shards: SetOptions {
                output,
                format,
                exact,
                formula,
                weight_bounds,
                distributions,
                verify,
            },
            worker: worker_options,
            strict,
        },
        input_format,
        threads,
        dry_run,
        json,
        is_demo,
        devices: (devices.len() > 1).then_some(devices),
        is_gpu_process,
        worker_from: worker.from,
    })
}

/// Runs remit-score.
pub fn run(args: ScoreArgs) -> Result<()> {
    let Resolved {
        mut options,
        rescoring,
        input_format,
        threads,
        dry_run,
        json,
        is_demo,
        devices,
        is_gpu_process,
        worker_from,
    } = resolve(args)?;
    super::set_threads(threads)?;
    let stop = StopFlag::on_signals()?;
    if is_gpu_process {
        return super::gpu_worker::run(&options, &stop);
    }
    let console = Console::new(json);
    if let Some(what) = rescoring {
        return super::rescore::run(&what, json, &stop, &console);
    }
    if is_demo {
        console.warn(
            "DEMO: no --rl-model was given, so a tiny built-in pair of models that only knows arithmetic scores the corpus",
        );
    }
    if let Some(variable) = worker_from {
        console.note(&format!(
            "{variable} is set: this is worker {} of {}",
            options.worker.index, options.worker.count
        ));
    }
    // It is read at random, and more than once.
    let mut copy = None;
    for input in options
        .corpus
        .inputs
        .iter_mut()
        .filter(|input| is_stdin(input))
    {
        let stdin = copy.insert(StdinCopy::read(&format!("stdin.{input_format}"))?);
        *input = Input::Path(stdin.path());
    }
    if dry_run {
        if let Some(devices) = &devices {
            console.note(&format!(
                "the estimate is for {} alone; {} share the work",
                options.compute.device,
                devices.len()
            ));
        }
        let estimate = pipeline::estimate::run(&options, &stop, &console)?;
        return if json {
            output::print_json(&serde_json::to_string(&estimate)?)
        } else {
            output::print(&report::estimate(&estimate))
        };
    }
    let report = match devices {
        Some(devices) => super::gpus::run(&options, &devices, threads.is_some(), &stop, &console)?,
        None => pipeline::score::run(&options, &stop, &console)?,
    };
    if let Some(manifest) = &report.manifest
        && manifest.totals.rows == 0
    {
        console.warn(&format!(
            "the set has no rows: of its records, {} held no text, {} were too short, and {} could not be read",
            manifest.documents.empty_documents,
            manifest.documents.short_documents + manifest.documents.dropped_rows,
            manifest.documents.rejected_records
        ));
    }
    if json {
        output::print_json(&serde_json::to_string(&report)?)
    } else {
        output::print(&score_text::as_text(&options, &report))
    }
}

fn is_stdin(input: &Input) -> bool {
    matches!(input, Input::Path(path) if path == Path::new("-"))
}
