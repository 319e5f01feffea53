//! Tells what was meant where an argument is not known: by another name of the same thing, by the program that has
//! it, or by a subcommand that is spelled almost so.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

/// Names that flags have in other programs, and the flags here. The first that the program has counts.
const SYNONYMS: &[(&[&str], &[&str])] = &[
    (
        &[
            "max-steps",
            "num-steps",
            "total-steps",
            "train-steps",
            "num-train-steps",
            "max-iters",
            "iterations",
        ],
        &["steps"],
    ),
    (
        &["max-tokens", "num-tokens", "total-tokens", "train-tokens"],
        &["tokens"],
    ),
    (
        &["num-epochs", "num-train-epochs", "max-epochs", "epoch"],
        &["epochs"],
    ),
    (&["learning-rate", "max-lr", "peak-lr"], &["lr"]),
    (
        &[
            "lr-scheduler-type",
            "lr-schedule",
            "lr-scheduler",
            "scheduler",
            "decay",
        ],
        &["schedule"],
    ),
    (
        &[
            "warmup",
            "num-warmup-steps",
            "warmup-ratio",
            "lr-warmup-steps",
        ],
        &["warmup-steps"],
    ),
    (
        &[
            "batch-size",
            "global-batch-size",
            "train-batch-size",
            "per-device-batch-size",
            "per-device-train-batch-size",
            "max-batch-tokens",
        ],
        &["batch-tokens"],
    ),
    (
        &[
            "micro-batch-size",
            "gradient-accumulation-steps",
            "grad-accum",
        ],
        &["micro-batch-tokens"],
    ),
    (
        &["gradient-checkpointing", "recompute"],
        &["activation-checkpointing"],
    ),
    (
        &[
            "max-grad-norm",
            "grad-clip",
            "clip-grad",
            "gradient-clipping",
            "clip-grad-norm",
        ],
        &["clip"],
    ),
    (&["wd"], &["weight-decay"]),
    (&["adam-beta1"], &["beta1"]),
    (&["adam-beta2"], &["beta2"]),
    (&["adam-epsilon"], &["adam-eps"]),
    (
        &["save-steps", "save-interval", "checkpoint-every"],
        &["save-every"],
    ),
    (&["save-total-limit", "keep-last"], &["keep"]),
    (&["eval-steps", "eval-interval"], &["eval-every"]),
    (
        &["eval-data", "eval-set", "eval-dataset"],
        &["eval-weights"],
    ),
    (
        &["output-dir", "out", "out-dir", "output-path", "save-dir"],
        &["output"],
    ),
    (
        &[
            "model-name-or-path",
            "init",
            "learner",
            "student",
            "base-model",
            "base",
        ],
        &["base-model", "model"],
    ),
    (
        &[
            "model",
            "reference",
            "reference-model",
            "ref-model",
            "policy",
            "teacher",
            "rl",
        ],
        &["rl-model"],
    ),
    (
        &["data", "dataset", "train-data", "set", "shards"],
        &["weights"],
    ),
    (
        &[
            "max-length",
            "max-seq-len",
            "max-seq-length",
            "seq-length",
            "sequence-length",
            "block-size",
            "context-length",
            "max-len",
        ],
        &["seq-len"],
    ),
    (
        &[
            "text-column",
            "text-key",
            "content-field",
            "column",
            "field",
        ],
        &["text-field"],
    ),
    (&["eps"], &["epsilon"]),
    (&["tau", "temp"], &["temperature"]),
    (&["workers", "world-size", "num-shards"], &["num-workers"]),
    (&["rank", "shard-index", "worker"], &["worker-index"]),
    (&["shard-size", "chunk-size", "part-size"], &["part-bytes"]),
    (
        &["limit", "max-docs", "num-docs", "max-samples"],
        &["limit-docs"],
    ),
    (&["bf16", "fp16", "precision", "torch-dtype"], &["dtype"]),
    (&["gpu", "cpu"], &["device"]),
    (&["num-threads", "jobs", "num-proc"], &["threads"]),
    (
        &["resume-from-checkpoint", "load-checkpoint"],
        &["resume-from"],
    ),
];

/// What other programs have flags for, and this one needs none.
const NEEDLESS: &[(&[&str], &str)] = &[
    (
        &["overwrite", "force", "overwrite-output-dir"],
        "nothing is ever written over; remove the output folder, or give another -o",
    ),
    (
        &["resume", "continue"],
        "the same command, run again, resumes by itself",
    ),
];

/// Similarity of two words, from 0 to 1, from which one may be meant by the other.
const SIMILAR: f64 = 0.8;

/// Options of the programs; a test compares them with the programs themselves.
const OPTIONS: [(&str, &[&str]); 2] = [
    (
        "remit-score",
        &[
            "add",
            "as",
            "base-model",
            "batch-tokens",
            "bos",
            "certify",
            "certify-seed",
            "chat-date",
            "chat-template",
            "device",
            "dry-run",
            "dtype",
            "entropy",
            "entropy-temperature",
            "eos",
            "epsilon",
            "exact",
            "exclude",
            "files-from",
            "format",
            "gpu-process",
            "ignore-config-field",
            "import",
            "include",
            "input-format",
            "json",
            "limit-docs",
            "max-record-bytes",
            "min-tokens",
            "num-workers",
            "on-bad-record",
            "output",
            "packing",
            "part-bytes",
            "rl-model",
            "separator",
            "seq-len",
            "special-tokens-in-text",
            "stream-weights",
            "strict",
            "temperature",
            "text-ext",
            "text-field",
            "threads",
            "token-dtype",
            "tokenizer",
            "top-k",
            "top-k-where",
            "verify",
            "weight-bounds",
            "worker-index",
            "zstd-window-log",
        ],
    ),
    (
        "remit-anneal",
        &[
            "activation-checkpointing",
            "adam-eps",
            "alpha",
            "batch-tokens",
            "beta1",
            "beta2",
            "center",
            "clip",
            "config",
            "decay-on",
            "device",
            "divergence",
            "dtype",
            "epochs",
            "epsilon",
            "eval-every",
            "eval-weights",
            "extend-steps",
            "holdout",
            "ignore-config-field",
            "json",
            "keep",
            "keep-special-tokens",
            "lr",
            "max-memory-bytes",
            "max-shard-bytes",
            "micro-batch-tokens",
            "min-lr",
            "model",
            "normalize",
            "on-nonfinite",
            "output",
            "print-config",
            "resume",
            "resume-from",
            "rl-column",
            "save-every",
            "schedule",
            "seed",
            "steps",
            "strict",
            "switch-fraction",
            "temperature",
            "threads",
            "tokens",
            "top-k-fraction",
            "warmup-steps",
            "weight-decay",
            "weighting",
            "weights",
            "z-loss",
        ],
    ),
];

/// Returns an error of a command line with what was meant.
pub(super) fn explained<A: CommandFactory>(
    mut error: clap::Error,
    typed: &[OsString],
) -> clap::Error {
    if !matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict
    ) {
        return error;
    }
    let command = A::command();
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.clone(),
        _ => String::new(),
    };
    if !argument.starts_with('-') {
        // A folder was expected, and a word came first that is none.
        let mut words = typed.iter().skip(1).map(|word| word.to_string_lossy());
        if let Some(first) = words.find(|word| !word.starts_with('-'))
            && let Some(name) = subcommand(&command, &first)
        {
            let tip = format!("there is no subcommand {first}; a similar one is {name}");
            set_tip(&mut error, &tip);
        }
        return error;
    }
    if error.kind() == ErrorKind::ArgumentConflict {
        return error;
    }
    let name = argument.trim_start_matches('-').to_owned();
    let tip = meant(&command, &name)
        .map(|flag| format!("here it is --{flag}"))
        .or_else(|| needless(&name).map(str::to_owned))
        .or_else(|| elsewhere(&command, &name))
        .or_else(|| one_dash(&command, typed));
    match tip {
        Some(tip) => set_tip(&mut error, &tip),
        // "to pass '--x' as a value, use '-- --x'" leads nowhere: no argument here begins with a dash.
        None => {
            let is_similar = error.get(ContextKind::SuggestedArg).is_some();
            if !is_similar {
                error.remove(ContextKind::Suggested);
            }
        }
    }
    error
}

fn set_tip(error: &mut clap::Error, tip: &str) {
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::SuggestedSubcommand);
    let tip = ContextValue::StyledStrs(vec![tip.to_owned().into()]);
    error.insert(ContextKind::Suggested, tip);
}

fn has(command: &Command, flag: &str) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(flag))
}

/// Returns the flag of a program that goes by another name elsewhere.
pub(super) fn meant(command: &Command, name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    SYNONYMS
        .iter()
        .filter(|(names, _)| names.contains(&name.as_str()))
        .flat_map(|(_, flags)| flags.iter().copied())
        .find(|flag| has(command, flag) && *flag != name)
}

fn needless(name: &str) -> Option<&'static str> {
    let (_, reason) = NEEDLESS.iter().find(|(names, _)| names.contains(&name))?;
    Some(reason)
}

/// Tells which other program has a flag.
fn elsewhere(command: &Command, name: &str) -> Option<String> {
    let (other, _) = OPTIONS
        .iter()
        .find(|(program, flags)| *program != command.get_name() && flags.contains(&name))?;
    let why = match (command.get_name(), name) {
        ("remit-score", "seed") => ": scoring draws no random numbers",
        ("remit-anneal", "rl-model") => ": a set has the log-probs of its RL model already",
        _ => "",
    };
    Some(format!(
        "--{name} is an option of {other}, not of {}{why}",
        command.get_name()
    ))
}

/// Tells which word is a long option behind one dash.
fn one_dash(command: &Command, typed: &[OsString]) -> Option<String> {
    typed.iter().skip(1).find_map(|word| {
        let name = word.to_str()?.strip_prefix('-')?;
        let flag = name.split('=').next()?;
        (!flag.starts_with('-') && has(command, flag))
            .then(|| format!("long options have two dashes: --{flag}"))
    })
}

/// Returns the subcommand that a word is almost spelled like; `None` if it is a path, too.
pub(super) fn subcommand(command: &Command, word: &str) -> Option<String> {
    if Path::new(word).components().count() != 1
        || crate::fs::exists(Path::new(word)).unwrap_or(true)
    {
        return None;
    }
    let names = command.get_subcommands().map(Command::get_name);
    let similarity = |name: &str| strsim::normalized_damerau_levenshtein(name, word);
    let best = names.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    let is_near = strsim::jaro_winkler(best, word) >= SIMILAR;
    is_near.then(|| best.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{anneal::AnnealArgs, score::ScoreArgs};
    use super::*;

    #[test]
    fn the_options_of_the_programs_are_those_that_they_have() {
        for (command, (name, options)) in [ScoreArgs::command(), AnnealArgs::command()]
            .iter()
            .zip(OPTIONS)
        {
            assert_eq!(command.get_name(), name);
            let mut found: Vec<&str> = command
                .get_arguments()
                .filter_map(|arg| arg.get_long())
                .collect();
            found.sort_unstable();
            assert_eq!(found, options);
        }
    }

    #[test]
    fn every_synonym_is_a_flag_of_a_program_and_none_is_one_of_all() {
        let programs = [ScoreArgs::command(), AnnealArgs::command()];
        for (names, flags) in SYNONYMS {
            for flag in *flags {
                assert!(
                    programs.iter().any(|program| has(program, flag)),
                    "--{flag}"
                );
            }
            for name in *names {
                assert!(
                    programs
                        .iter()
                        .any(|program| meant(program, name).is_some()),
                    "--{name}"
                );
            }
        }
    }
}
