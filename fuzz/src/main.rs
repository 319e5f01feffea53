//! Runs remit's programs in one process, one command line after another: what scripts/mutate.py needs to try a hundred
//! thousand inputs in minutes.
//!
//! ```text
//! cargo build --release --locked -p remit-fuzz
//! ```
//!
//! A command line comes over stdin, its words separated by 0x1f, with 0x1e at its end. The answer is a line of stdout
//! that begins with 0x1e, which no program prints, and has the exit code and the microseconds that all of this
//! process and of those that it started have computed for it. What the programs print comes before it. A panic is
//! exit code 1 and a message, as in the programs; whatever ends this process ends the programs too.
//!
//! Besides the programs there are words for damage that is meant to be found by nothing but the rules of the format:
//! `seal FILE ORIGINAL` puts the digest that a damaged shard or description has into its footer, `digest FILE` prints a
//! file's digest, and `describe SET WHAT` and `pack WHAT FORMAT TEXT FILE` take a description apart and together.

#![expect(
    clippy::disallowed_methods,
    reason = "the files here are made to be damaged, and are no user's"
)]

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Instant;

use remit::cli;
use remit::fs::Digest;
use remit::shard::description;
use remit::shard::layout::Description;
use remit::shard::schema::ShardFormat;

/// Ends a command line, and begins an answer.
const END: u8 = 0x1e;
/// Between words.
const SEPARATOR: u8 = 0x1f;

fn main() -> io::Result<()> {
    if cli::begin() {
        return Ok(());
    }
    let mut stdin = io::stdin().lock();
    let mut line = Vec::new();
    while stdin.read_until(END, &mut line)? > 0 {
        line.pop();
        let words: Vec<OsString> = line
            .split(|byte| *byte == SEPARATOR)
            .map(|word| String::from_utf8_lossy(word).into_owned().into())
            .collect();
        let started = Instant::now();
        let code = run(words);
        let micros = started.elapsed().as_micros();
        let mut stdout = io::stdout().lock();
        stdout.write_all(&[b'\n', END])?;
        writeln!(stdout, "{code} {micros}")?;
        stdout.flush()?;
        line.clear();
    }
    Ok(())
}

fn run(words: Vec<OsString>) -> u8 {
    let texts: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    match texts.as_slice() {
        ["remit-score", ..] => cli::call(words, cli::score::run),
        ["remit-anneal", ..] => cli::call(words, cli::anneal::run),
        ["remit-inspect", ..] => cli::call(words, cli::inspect::run),
        ["seal", file, original] => done(seal(Path::new(file), Path::new(original))),
        ["digest", file] => done(std::fs::read(file).map(|bytes| {
            println!("{}", Digest::of(&bytes));
        })),
        ["describe", set, what] => done(describe(Path::new(set), what)),
        ["pack", what, format, text, file] => done(pack(what, format, text, file)),
        _ => done(Err(io::Error::other("no such word"))),
    }
}

fn done(outcome: io::Result<()>) -> u8 {
    outcome.map_or_else(
        |error| {
            eprintln!("error: {error}");
            1
        },
        |()| 0,
    )
}

fn what_of(name: &str) -> io::Result<Description> {
    [
        Description::Plan,
        Description::Manifest,
        Description::Rejects,
    ]
    .into_iter()
    .find(|what| what.name() == name)
    .ok_or_else(|| io::Error::other("no such description"))
}

fn describe(set: &Path, what: &str) -> io::Result<()> {
    let found = description::read(set, what_of(what)?).map_err(io::Error::other)?;
    let found = found.ok_or_else(|| io::Error::other("the set has none"))?;
    io::stdout().write_all(&found.text)
}

fn pack(what: &str, format: &str, text: &str, file: &str) -> io::Result<()> {
    let format = match format {
        "arrow" => ShardFormat::Arrow,
        _ => ShardFormat::Parquet,
    };
    let text = std::fs::read(text)?;
    let packed = description::pack(what_of(what)?, format, true, &text);
    std::fs::write(file, packed.map_err(io::Error::other)?)
}

/// Puts the right seal into a damaged copy of a sealed file, where the digits of the original's are still in it.
fn seal(path: &Path, original: &Path) -> io::Result<()> {
    let place = seal_of(&std::fs::read(original)?);
    let digits = place.ok_or_else(|| io::Error::other("the original has no seal"))?;
    let mut bytes = std::fs::read(path)?;
    let found = bytes.windows(64).rposition(|window| window == digits);
    let at = found.ok_or_else(|| io::Error::other("the copy has no seal"))?;
    bytes[at..at + 64].fill(b'0');
    let digest = Digest::of(&bytes).to_string();
    bytes[at..at + 64].copy_from_slice(digest.as_bytes());
    std::fs::write(path, bytes)
}

/// Returns the digits of a file's seal: those that are the digest of the file with zeros in their place.
fn seal_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    (0..bytes.len().saturating_sub(63)).rev().find_map(|at| {
        let digits = bytes[at..at + 64].to_vec();
        if !digits.iter().all(is_digit) {
            return None;
        }
        let mut blank = bytes.to_vec();
        blank[at..at + 64].fill(b'0');
        (Digest::of(&blank).to_string().as_bytes() == digits).then_some(digits)
    })
}
