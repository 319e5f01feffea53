//! The command line of remit-inspect.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use super::report;
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
