//! Options from a TOML file: its keys are the names of the flags, and flags override the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command, Parser};

use crate::escape::Show as _;
use crate::fs;
use crate::pipeline::{BadInput, Usage};

/// Most bytes of the file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The flag that names the file.
const CONFIG: &str = "config";

/// Parses a command line that may name a file with `--config`, if the program has that option. Flags override the
/// file: its options are put before them, except for those that are among the flags or contradict one of them.
///
/// # Errors
///
/// clap's, and when the file can't be read, is no TOML, or has a key that is no option.
pub(super) fn parse<A: Parser>(typed: Vec<OsString>) -> Result<A> {
    // The file may have what is required.
    let lenient = A::command().mut_args(|arg| arg.required(false));
    let Ok(matches) = lenient.clone().try_get_matches_from(&typed) else {
        return Ok(parse_words(typed)?);
    };
    let Some(path) = matches.try_get_one::<PathBuf>(CONFIG).ok().flatten() else {
        return Ok(parse_words(typed)?);
    };
    let is_typed =
        |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let mut words = typed;
    let rest = words.split_off(1.min(words.len()));
    for (key, value) in read(path)? {
        let arg = find(&lenient, path, &key)?;
        // Either of two options may declare that they contradict each other.
        let contradict = |a: &Arg, b: &Arg| {
            let others = lenient.get_arg_conflicts_with(a);
            others.iter().any(|other| other.get_id() == b.get_id())
        };
        let is_overruled = lenient
            .get_arguments()
            .filter(|other| is_typed(other))
            .any(|typed| {
                typed.get_id() == arg.get_id() || contradict(typed, arg) || contradict(arg, typed)
            });
        if is_overruled {
            continue;
        }
        words.extend(words_of(arg, path, &key, &value)?);
    }
    words.extend(rest);
    parse_words(words).map_err(|error: clap::Error| match error.kind() {
        ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.into()
        }
        // What was typed can be parsed by itself, so it is the file's.
        _ => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let what = text.split("\n\n").next().unwrap_or_default();
            Usage(format!("{}: {}", path.shown(), what.trim_end())).into()
        }
    })
}

/// Parses words. An error quotes some of them, which a pattern may have made of names of files: then it has them as
/// they may be shown.
fn parse_words<A: Parser>(words: Vec<OsString>) -> Result<A, clap::Error> {
    let shown: Vec<OsString> = words
        .iter()
        .map(|word| word.shown().to_string().into())
        .collect();
    let is_plain = shown == words;
    A::try_parse_from(words).map_err(|error| match is_plain {
        true => error,
        false => A::try_parse_from(shown).err().unwrap_or(error),
    })
}

fn read(path: &Path) -> Result<toml::Table> {
    let bytes = fs::read_given(path, MAX_CONFIG_BYTES)?;
    let parsed = str::from_utf8(&bytes)
        .map_err(|error| error.to_string())
        .and_then(|text| {
            text.parse()
                .map_err(|error: toml::de::Error| error.to_string())
        });
    parsed.map_err(|error| {
        BadInput(format!(
            "{} is not TOML: {}",
            path.shown(),
            shortened(error.trim_end())
        ))
        .into()
    })
}

/// Cuts the lines of a message that quotes a file.
fn shortened(text: &str) -> String {
    /// Most characters of a line.
    const MAX_CHARS: usize = 160;
    let lines = text
        .lines()
        .map(|line| match line.char_indices().nth(MAX_CHARS) {
            None => line.to_owned(),
            Some((at, _)) => format!("{} ...", line.get(..at).unwrap_or_default()),
        });
    lines.collect::<Vec<_>>().join("\n")
}

/// Finds the option of this name.
fn find<'a>(command: &'a Command, path: &Path, key: &str) -> Result<&'a Arg> {
    let mut options = command
        .get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), CONFIG | "print_config"));
    if let Some(arg) = options.find(|arg| arg.get_long() == Some(key)) {
        return Ok(arg);
    }
    let with_dashes = key.replace('_', "-");
    let hint = match command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(&with_dashes))
    {
        false if let Some(meant) = super::mistakes::meant(command, key) => {
            format!("here it is {meant}")
        }
        true if with_dashes != key => format!("it is spelled {with_dashes}"),
        _ => "keys are the names of the flags, without the dashes before them; --help lists them"
            .to_owned(),
    };
    bail!(Usage(format!(
        "{}: {key} is no option of {}\nhint: {hint}",
        path.shown(),
        command.get_name()
    )))
}

/// Returns the arguments that give a value; none for a switch that is off, and one for each of a list.
fn words_of(arg: &Arg, path: &Path, key: &str, value: &toml::Value) -> Result<Vec<OsString>> {
    let values = match value {
        toml::Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => values,
        one => return Ok(word(arg, path, key, one)?.into_iter().collect()),
    };
    values
        .iter()
        .filter_map(|value| word(arg, path, key, value).transpose())
        .collect()
}

/// Returns the argument that gives a single value; nothing for a switch that is off.
fn word(arg: &Arg, path: &Path, key: &str, value: &toml::Value) -> Result<Option<OsString>> {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let text = match value {
        toml::Value::Boolean(on) if is_switch => {
            return Ok(on.then(|| format!("--{key}").into()));
        }
        _ if is_switch => bail!(Usage(format!(
            "{}: {key} is {value}; it takes true or false",
            path.shown()
        ))),
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        other => bail!(Usage(format!(
            "{}: {key} is {other}; it takes a string or a number",
            path.shown()
        ))),
    };
    Ok(Some(format!("--{key}={text}").into()))
}
