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
pub mod inspect;
mod mistakes;
mod model_report;
#[cfg(test)]
mod open_once_tests;
mod progress;
mod report;
pub mod score;
mod show;
#[cfg(test)]
mod tests;
mod values;
mod version;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use crate::pipeline::Usage;

/// Runs one program: parses its arguments, sets up logging, runs it, and maps the outcome to an
/// exit code.
#[expect(
    clippy::print_stderr,
    reason = "the one place where an error chain is printed"
)]
pub fn main<A: Parser>(run: impl FnOnce(A) -> Result<()>) -> ExitCode {
    let fail = |error: &anyhow::Error| {
        let code = exit::code(error);
        if code != exit::BROKEN_PIPE {
            eprintln!("error: {}", exit::chain(error));
        }
        ExitCode::from(code)
    };
    let typed: Vec<OsString> = std::env::args_os().collect();
    let args = match config::parse::<A>(typed.clone()) {
        Ok(args) => args,
        Err(error) => {
            let error = match error.downcast::<clap::Error>() {
                Ok(error) => mistakes::explained::<A>(error, &typed),
                Err(error) => return fail(&error),
            };
            // Help and version go to stdout with 0, usage errors to stderr with 2.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Writes a result to stdout.
pub(crate) fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
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
