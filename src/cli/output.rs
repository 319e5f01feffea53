//! The only place that writes to stdout and stderr, and the only one that decides what a failure to do so means.
//!
//! - **stderr** carries logs, progress and errors for people. A run is worth more than what it says about itself:
//!   a reader that is gone, a full disk and a closed terminal change nothing, neither the work nor the exit code.
//!   Everything goes through [`Stderr`], whose writes never fail: the log, lines of JSON, the error at the end, the
//!   message of a panic. Bars are drawn by a library that ignores such failures by itself.
//! - **stdout** carries results. When they can't be written, the command has failed: 75 for a full disk, 74 for
//!   anything else, and 141 without a word where the reader has gone away, as `| head` does.
//!
//! On the way out, both escape what a terminal would take for something else (see [`crate::escape`]).
//! Colours are the exception, and whoever prints them escapes the rest first.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::Result;
use tracing_subscriber::fmt::format::debug_fn;

use crate::{escape, fs};

/// Writes to stderr, and claims that it succeeded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines to stderr in one piece.
pub(super) fn log(lines: &str) {
    let _ = writeln!(Stderr, "{}", escape::lines(lines));
}

/// Writes an object to stderr, as one line.
pub(super) fn log_json(object: &serde_json::Value) {
    let _ = writeln!(Stderr, "{}", escape::json(&object.to_string()));
}

/// Writes a result to stdout.
pub(super) fn print(text: &str) -> Result<()> {
    write_out(&escape::lines(text))
}

/// Writes a result that is JSON, and has no line end yet.
pub(super) fn print_json(object: &str) -> Result<()> {
    write_out(&format!("{}\n", escape::json(object)))
}

/// Writes a result that has colours. Whatever else a terminal would obey has to be escaped already.
pub(super) fn print_coloured(text: &str) -> Result<()> {
    write_out(text)
}

/// Writes a result that is TOML.
pub(super) fn print_toml(text: &str) -> Result<()> {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => escaped.push(c),
            c if escape::is_control(c) => {
                let _ = write!(escaped, "\\U{:08x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    write_out(&escaped)
}

fn write_out(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(stdout_failed)
}

/// Prints what clap says: help and the version to stdout, usage errors to stderr.
pub(super) fn print_clap(error: &clap::Error) -> Result<()> {
    if error.use_stderr() {
        let _ = error.print();
        return Ok(());
    }
    error
        .print()
        .and_then(|()| io::stdout().flush())
        .map_err(stdout_failed)
}

fn stdout_failed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error.into(),
        _ => fs::write_error(Path::new("stdout"), error).into(),
    }
}

/// Makes logs go to stderr, and panics too: as one line, whatever becomes of it.
pub(super) fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map_or(String::new(), |place| {
            format!(" at {}:{}", place.file(), place.line())
        });
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        log(&format!(
            "error: internal error{at}: {}\nhint: this is a bug in remit, please report it with the command{backtrace}",
            panic
                .payload_as_str()
                .unwrap_or("a panic without a message"),
        ));
    }));
    let escaped = debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        let text = escape::lines(&text);
        match field.name() {
            "message" => write!(writer, "{text}"),
            name => write!(writer, " {name}={text}"),
        }
    });
    tracing_subscriber::fmt()
        .fmt_fields(escaped)
        .with_writer(|| Stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
