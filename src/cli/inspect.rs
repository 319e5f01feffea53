//! The command line of remit-inspect.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{CommandFactory, Parser, Subcommand};

use super::anneal::AnnealArgs;
use super::progress::Console;
use super::score::ScoreArgs;
use super::values::{open_fraction, positive};
use super::{generate, look, mistakes, model_report, output, report, show, version};
use crate::escape::Show as _;
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::pipeline::compare::{self, CompareOptions};
use crate::pipeline::export::ExportOptions;
use crate::pipeline::inspect::RowChoice;
use crate::pipeline::score::DEFAULT_BATCH_TOKENS;
use crate::pipeline::{self, StopFlag, Usage, anneal};

/// Inspect scored sets and models: summary, verification, rows, losses, cost
#[derive(Debug, Parser)]
#[command(
    name = "remit-inspect",
    version,
    long_version = version::LONG.as_str(),
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct InspectArgs {
    #[command(subcommand)]
    command: Option<Command>,

    /// A folder that remit-score made: print its summary
    #[arg(value_name = "DIR", required = true)]
    set: Option<PathBuf>,

    /// Print the whole manifest as one JSON object
    #[arg(long)]
    json: bool,
}

const VERIFY_CODES: &str = "\
Lists every file with a problem, and exits with the code of the worst: 65 if one is damaged, else 66 if one is \
missing, else 74 if one can't be read.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a set down to the last value: digests, columns, counts, and the rules that rows keep
    #[command(after_help = VERIFY_CODES)]
    Verify {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
        /// Threads [default: one per core]
        #[arg(long, value_name = "N", value_parser = positive)]
        threads: Option<usize>,
        /// Print one JSON object that lists every file with a problem
        #[arg(long)]
        json: bool,
    },
    /// Print a row: its text, coloured by weight, or a table of its tokens
    Show {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
        /// Number of the row in the set's order, from 0
        #[arg(
            long,
            value_name = "N",
            required_unless_present = "row_id",
            conflicts_with = "row_id"
        )]
        row: Option<u64>,
        /// row_id of the row
        #[arg(long, value_name = "ID")]
        row_id: Option<u64>,
        /// Model whose tokenizer.json decodes the ids [default: the one that the set was made with]
        #[arg(long, value_name = "DIR")]
        tokenizer: Option<PathBuf>,
        /// Whether to print coloured text, or a table
        #[arg(long, value_enum, default_value_t)]
        color: show::Color,
    },
    /// Write a table with a row for each token, for DuckDB, pandas and spreadsheets
    Export {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
        /// File to write: .parquet or .csv
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// Model whose tokenizer.json decodes the ids [default: the one that the set was made with]
        #[arg(long, value_name = "DIR")]
        tokenizer: Option<PathBuf>,
        /// Leave cells of a .csv as they are that a spreadsheet takes for formulas: those that begin with =,
        /// +, -, @, a tab or a line break. By default an apostrophe goes before them
        #[arg(long)]
        raw_cells: bool,
    },
    /// Write a page for a browser: what the weights do to a corpus, by source and token by token
    #[command(after_help = look::REPORT_USE)]
    Report(look::ReportArgs),
    /// Try other epsilons and temperatures: mean weights, shares at the bounds, effective targets
    #[command(after_help = look::SWEEP_USE)]
    Sweep(look::SweepArgs),
    /// Rank documents or sources by what the models say of them: bits per byte, nats per token, entropy, weight
    Rank(super::rank::RankArgs),
    /// Measure the losses of two models on a set, by source: plain, and weighted with the model as the learner
    Compare {
        /// The first model, a Hugging Face directory
        #[arg(value_name = "A")]
        a: PathBuf,
        /// The second
        #[arg(value_name = "B")]
        b: PathBuf,
        /// A folder that remit-score made
        #[arg(long, value_name = "DIR")]
        weights: PathBuf,
        /// Tokens computed at a time
        #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_BATCH_TOKENS, value_parser = positive)]
        batch_tokens: usize,
        /// Dtype that matrices are kept in
        #[arg(long, value_enum, default_value_t)]
        dtype: ComputeDtype,
        /// Device to compute on: auto, cpu, cuda or cuda:N; auto takes a GPU if it can
        #[arg(long, value_name = "DEVICE", default_value_t)]
        device: DeviceChoice,
        /// Threads [default: one per core]
        #[arg(long, value_name = "N", value_parser = positive)]
        threads: Option<usize>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the rows of every optimizer step of a training run, one object per line
    Order {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
        /// Seed, as for remit-anneal
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Tokens of an optimizer step, as for remit-anneal
        #[arg(long, value_name = "TOKENS", default_value_t = anneal::DEFAULT_BATCH_TOKENS, value_parser = positive)]
        batch_tokens: usize,
        /// Number of steps [default: one epoch's]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        steps: Option<u64>,
        /// Share of the documents that is held out, as for remit-anneal
        #[arg(long, value_name = "FRACTION", value_parser = open_fraction)]
        holdout: Option<f64>,
    },
    /// Print the records that could not be read, one object per line
    Rejects {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
    },
    /// Describe a model: its blocks, parameters, cost, and whether every tensor is there. A config.json alone is enough
    /// for all but the last
    Model {
        /// A Hugging Face directory
        #[arg(value_name = "DIR")]
        model: PathBuf,
        /// Length of the rows that cost and memory are computed for [default: 4096, or what the model allows]
        #[arg(long, value_name = "TOKENS", value_parser = positive)]
        seq_len: Option<usize>,
        /// Read every weight, and name the first that is not finite
        #[arg(long)]
        check_values: bool,
        /// Accept this field of config.json though it is not understood; may be repeated
        #[arg(long = "ignore-config-field", value_name = "NAME")]
        ignore_config_fields: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write man pages and shell completions of remit-score, remit-anneal and remit-inspect
    #[command(after_help = GENERATE_USE)]
    Generate {
        /// Folder for man/*.1 and completions/SHELL/; files of the same names are replaced
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

const GENERATE_USE: &str = "\
Examples:
  remit-inspect generate share/
  man -l share/man/remit-score.1
  source share/completions/bash/remit-score.bash";

/// Runs remit-inspect.
pub fn run(args: InspectArgs) -> Result<()> {
    let InspectArgs { command, set, json } = args;
    match (command, set) {
        (Some(Command::Verify { set, threads, json }), _) => {
            super::set_threads(threads)?;
            let verification = match pipeline::inspect::verify(&set) {
                Err(error) if json => {
                    output::print_json(&report::unverifiable_json(&super::exit::chain(&error)))?;
                    return Err(error);
                }
                outcome => outcome?,
            };
            if json {
                output::print_json(&report::verification_json(&verification))?;
            } else if verification.problems.is_empty() {
                output::print(&report::verified(&set, &verification.manifest))?;
            }
            verification.into_result(&set)
        }
        (
            Some(Command::Show {
                set,
                row,
                row_id,
                tokenizer,
                color,
            }),
            _,
        ) => {
            let choice = match (row, row_id) {
                (Some(row), _) => RowChoice::Number(row),
                (None, Some(id)) => RowChoice::Id(id),
                (None, None) => bail!(Usage("--row or --row-id is needed".to_owned())),
            };
            let tokenizer = tokenizer.map(ModelSource::Directory);
            let row = pipeline::inspect::row(&set, choice, tokenizer, &Console::new(false))?;
            output::print_coloured(&show::row(&row, color))
        }
        (
            Some(Command::Export {
                set,
                tokens,
                tokenizer,
                raw_cells,
            }),
            _,
        ) => {
            let options = ExportOptions {
                set,
                output: tokens,
                tokenizer: tokenizer.map(ModelSource::Directory),
                raw_cells,
            };
            let stop = StopFlag::on_signals()?;
            let tokens = pipeline::export::tokens(&options, &stop, &Console::new(false))?;
            output::print(&format!(
                "{}: {} tokens\n",
                options.output.shown(),
                report::grouped(tokens)
            ))
        }
        (Some(Command::Report(args)), _) => look::report(args),
        (Some(Command::Sweep(args)), _) => look::sweep(args),
        (Some(Command::Rank(args)), _) => super::rank::run(args),
        (
            Some(Command::Compare {
                a,
                b,
                weights,
                batch_tokens,
                dtype,
                device,
                threads,
                json,
            }),
            _,
        ) => {
            super::set_threads(threads)?;
            let options = CompareOptions {
                models: [a, b],
                weights,
                batch_tokens,
                device,
                dtype,
            };
            let stop = StopFlag::on_signals()?;
            let comparison = compare::compare(&options, &stop, &Console::new(false))?;
            if json {
                output::print_json(&serde_json::to_string(&comparison)?)
            } else {
                output::print(&report::comparison(&comparison))
            }
        }
        (
            Some(Command::Order {
                set,
                seed,
                batch_tokens,
                steps,
                holdout,
            }),
            _,
        ) => compare::order(&set, seed, batch_tokens, steps, holdout, &mut |step| {
            output::print_json(&serde_json::to_string(&step)?)
        }),
        (Some(Command::Rejects { set }), _) => {
            for reject in pipeline::inspect::rejects(&set)? {
                output::print_json(&serde_json::to_string(&reject)?)?;
            }
            Ok(())
        }
        (
            Some(Command::Model {
                model,
                seq_len,
                check_values,
                ignore_config_fields,
                json,
            }),
            _,
        ) => {
            let source = ModelSource::Directory(model);
            let report =
                pipeline::inspect::model(&source, seq_len, check_values, &ignore_config_fields)?;
            if json {
                output::print_json(&serde_json::to_string(&report)?)
            } else {
                output::print(&model_report::text(&report))
            }
        }
        (Some(Command::Generate { dir }), _) => {
            let programs = vec![
                ScoreArgs::command(),
                AnnealArgs::command(),
                InspectArgs::command(),
            ];
            let written = generate::write(&dir, programs)?;
            output::print(&format!(
                "{}: {} man pages and completions\n",
                dir.shown(),
                written.len()
            ))
        }
        (None, Some(set)) => {
            if let Some(word) = set.to_str()
                && let Some(name) = mistakes::subcommand(&InspectArgs::command(), word)
            {
                bail!(Usage(format!(
                    "no such folder: {}\nhint: if a subcommand was meant, a similar one is {name}",
                    word.shown()
                )));
            }
            let manifest = pipeline::inspect::summary(&set)?;
            if json {
                output::print_json(&serde_json::to_string(&manifest)?)
            } else {
                output::print(&report::summary(&manifest))
            }
        }
        (None, None) => bail!(Usage("a folder is needed".to_owned())),
    }
}
