//! The command lines: arguments, what they resolve to, and how a run reports back.
//!
//! Results go to stdout, progress and logs to stderr. An error is printed once, as a chain from
//! what was attempted to why it failed, and decides the exit code.

pub mod anneal;
#[cfg(test)]
mod anneal_tests;
mod config;
mod exit;
mod generate;
mod gpu_worker;
mod gpus;
pub mod inspect;
mod look;
mod mistakes;
mod model_report;
#[cfg(test)]
mod open_once_tests;
mod output;
mod progress;
mod rank;
mod report;
mod rescore;
pub mod score;
mod score_text;
mod show;
#[cfg(test)]
mod tests;
mod values;
mod version;
mod worker;

use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Parser;

use crate::corpus;
use crate::guard::process;
use crate::pipeline::Usage;
use crate::{shard, tokenize};

/// The only argument of a process that parses files for another; `ps` shows it.
const PARSER_ARGUMENT: &str = "--parse-files-for-parent";

/// What is parsed in a process of its own.
const PARSED_APART: &[process::Kind] = &[
    corpus::TABLES,
    tokenize::TOKENIZERS,
    tokenize::CHAT_TEMPLATES,
    shard::import::IMPORTS,
];

/// Runs one program: parses its arguments, sets up logging, runs it, and maps the outcome to an
/// exit code.
pub fn main<A: Parser>(run: impl FnOnce(A) -> Result<()>) -> ExitCode {
    if begin() {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(call(std::env::args_os().collect(), run))
}

/// Prepares this process to run programs. Where it was started to parse files for another, it does that until the
/// other has no more, and the result is true: there is nothing left to do.
pub fn begin() -> bool {
    if std::env::args_os()
        .skip(1)
        .eq([OsStr::new(PARSER_ARGUMENT)])
    {
        process::serve(PARSED_APART);
        return true;
    }
    process::use_program(PARSER_ARGUMENT);
    output::install();
    // A file that outgrows `ulimit -f` makes a write fail, which is told, rather than end the process. The only error is
    // that the signal can't be caught, and then it ends the process as it always did.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    false
}

/// Runs a program with the words of a command line, its own name first, and returns the exit code. May be called
/// again and again after [`begin`], as the harness in `fuzz/` does.
pub fn call<A: Parser>(words: Vec<OsString>, run: impl FnOnce(A) -> Result<()>) -> u8 {
    // A panic has told about itself by then.
    catch_unwind(AssertUnwindSafe(|| parse_and_run(words, run))).unwrap_or(exit::OTHER)
}

fn parse_and_run<A: Parser>(typed: Vec<OsString>, run: impl FnOnce(A) -> Result<()>) -> u8 {
    let args = match config::parse::<A>(typed.clone()) {
        Ok(args) => args,
        Err(error) => {
            let error = match error.downcast::<clap::Error>() {
                Ok(error) => mistakes::explained::<A>(error, &typed),
                Err(error) => return fail(&error),
            };
            // Help and version go to stdout with 0, usage errors to stderr with 2.
            return match output::print_clap(&error) {
                Ok(()) if error.use_stderr() => exit::USAGE,
                Ok(()) => 0,
                Err(error) => fail(&error),
            };
        }
    };
    match run(args) {
        Ok(()) => 0,
        Err(error) => fail(&error),
    }
}

/// Prints an error, and returns its exit code.
fn fail(error: &anyhow::Error) -> u8 {
    let code = exit::code(error);
    if code != exit::BROKEN_PIPE {
        output::log(&format!("error: {}", exit::chain(error)));
    }
    code
}

/// Most threads that can be asked for on up to 64 cores; on more, there are four per core.
const MAX_THREADS: usize = 256;

/// Uses this many threads for everything, or one per core.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = MAX_THREADS.max(cores.saturating_mul(4));
        if threads > most {
            bail!(Usage(format!(
                "--threads {threads} is more than {most}, the most that can be asked for here\nhint: without \
                 it there is one per core, {cores}"
            )));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
    }
    Ok(())
}
