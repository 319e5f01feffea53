//! The command lines: what was typed, what it resolves to, and how a run reports back.
//!
//! Results go to stdout, progress and logs to stderr. An error is printed once, as a chain from
//! what was attempted to why it failed, and decides the exit code.

pub mod anneal;
#[cfg(test)]
mod anneal_tests;
mod config;
mod exit;
pub mod inspect;
mod model_report;
#[cfg(test)]
mod open_once_tests;
mod progress;
mod report;
pub mod score;
mod show;
#[cfg(test)]
mod tests;
mod worker;

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
    let args = match config::parse::<A>(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(error) => {
            let Some(error) = error.downcast_ref::<clap::Error>() else {
                return fail(&error);
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

/// Most threads that can be asked for where there are not more than 64 cores; else four a core.
const MAX_THREADS: usize = 256;

/// Uses this many threads for everything, or one a core.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = MAX_THREADS.max(cores.saturating_mul(4));
        if threads > most {
            bail!(Usage(format!(
                "--threads {threads} is more than {most}, the most that can be asked for here\nhint: without \
                 it there is one a core, {cores}"
            )));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
    }
    Ok(())
}

/// Parses a number greater than 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("it is not a whole number".to_owned()),
    }
}

/// Parses a number of bytes greater than 0: `1048576`, `1024K`, `1M`, `1MiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is no unit; there are K, M and G")),
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => Err("it must be at least 1".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("it is not a number of bytes".to_owned()),
    }
}

/// Parses a finite number that is not negative.
pub(crate) fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        Ok(value) => Err(format!("{value} is not a finite number of at least 0")),
        Err(_) => Err("it is not a number".to_owned()),
    }
}

/// Parses a share in (0, 1].
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match above_zero(text)? {
        value if value <= 1.0 => Ok(value),
        value => Err(format!("{value} is more than 1, which is all")),
    }
}

/// Parses a share in (0, 1).
pub(crate) fn part(text: &str) -> Result<f64, String> {
    match share(text)? {
        1.0 => Err("it must leave something, so be less than 1".to_owned()),
        value => Ok(value),
    }
}

/// Parses a decay rate in [0, 1).
pub(crate) fn decay_rate(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        value if value < 1.0 => Ok(value),
        value => Err(format!("{value} is not less than 1")),
    }
}

/// Parses a finite number greater than 0.
pub(crate) fn above_zero(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        0.0 => Err("it must be greater than 0".to_owned()),
        value => Ok(value),
    }
}
