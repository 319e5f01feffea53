//! The command line of remit-inspect.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use super::{model_report, report};
use crate::model::ModelSource;
use crate::pipeline::{self, Usage};

/// Look at what lies between scoring and annealing
#[derive(Debug, Parser)]
#[command(
    name = "remit-inspect",
    version,
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a set down to the last value: digests, columns, counts, and the rules that rows keep
    Verify {
        /// A folder that remit-score made
        #[arg(value_name = "DIR")]
        set: PathBuf,
        /// Threads [default: one a core]
        #[arg(long, value_name = "N", value_parser = super::positive)]
        threads: Option<usize>,
    },
    /// Describe a model: its blocks, parameters, cost, and whether every tensor is there
    Model {
        /// A Hugging Face directory
        #[arg(value_name = "DIR")]
        model: PathBuf,
        /// Length of the rows that cost and memory are for [default: 4096, or what the model allows]
        #[arg(long, value_name = "TOKENS", value_parser = super::positive)]
        seq_len: Option<usize>,
        /// Read every weight, and name the first that is not a number
        #[arg(long)]
        check_values: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs remit-inspect.
pub fn run(args: InspectArgs) -> Result<()> {
    let InspectArgs { command, set, json } = args;
    match (command, set) {
        (Some(Command::Verify { set, threads }), _) => {
            super::set_threads(threads)?;
            let manifest = pipeline::inspect::verify(&set)?;
            super::print(&format!(
                "{}: {} shards, {} rows, {} tokens: digests, columns, counts and every value are as they should be\n",
                set.display(),
                manifest.shards.len(),
                report::grouped(manifest.totals.rows),
                report::grouped(manifest.totals.tokens)
            ))
        }
        (
            Some(Command::Model {
                model,
                seq_len,
                check_values,
                json,
            }),
            _,
        ) => {
            let source = ModelSource::Directory(model);
            let report = pipeline::inspect::model(&source, seq_len, check_values)?;
            super::print(&if json {
                format!("{}\n", serde_json::to_string(&report)?)
            } else {
                model_report::text(&report)
            })
        }
        (None, Some(set)) => {
            let manifest = pipeline::inspect::summary(&set)?;
            super::print(&if json {
                format!("{}\n", serde_json::to_string(&manifest)?)
            } else {
                report::summary(&manifest)
            })
        }
        (None, None) => bail!(Usage("a folder is needed".to_owned())),
    }
}
