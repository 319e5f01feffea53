//! remit-inspect rank.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::output;
use super::progress::Console;
use super::report::grouped;
use super::values::positive;
use crate::escape::Show as _;
use crate::model::ModelSource;
use crate::pipeline::StopFlag;
use crate::pipeline::rank::{self, RankBy, RankOf, RankOptions, Ranked};

/// Arguments of remit-inspect rank.
#[derive(Debug, Args)]
pub(super) struct RankArgs {
    /// A folder that remit-score made
    #[arg(value_name = "DIR")]
    set: PathBuf,
    /// What to rank by, the largest first
    #[arg(long, value_enum, default_value = "rl-bits-per-byte")]
    by: RankBy,
    /// What is ranked
    #[arg(long, value_enum, default_value_t)]
    of: RankOf,
    /// Print the smallest first
    #[arg(long)]
    ascending: bool,
    /// Most to print
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive, conflicts_with = "all")]
    limit: usize,
    /// Print all
    #[arg(long)]
    all: bool,
    /// Column that remit-score --add made, in place of the RL model's log-probs
    #[arg(long, value_name = "NAME")]
    rl_column: Option<String>,
    /// Model whose tokenizer.json decodes the ids [default: the one that the set was made with]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: RankArgs) -> Result<()> {
    let RankArgs {
        set,
        by,
        of,
        ascending,
        limit,
        all,
        rl_column,
        tokenizer,
        json,
    } = args;
    let options = RankOptions {
        set,
        by,
        of,
        ascending,
        limit: (!all).then_some(limit),
        rl_column,
        tokenizer: tokenizer.map(ModelSource::Directory),
    };
    let stop = StopFlag::on_signals()?;
    let ranked = rank::rank(&options, &stop, &Console::new(false))?;
    if json {
        for ranked in &ranked {
            output::print_json(&serde_json::to_string(ranked)?)?;
        }
        return Ok(());
    }
    output::print(&table(&ranked))
}

fn table(ranked: &[Ranked]) -> String {
    let name = |ranked: &Ranked| match ranked.doc_index {
        Some(index) => format!("{}:{index}", ranked.source.shown()),
        None => ranked.source.shown().to_string(),
    };
    let width = ranked.iter().map(|ranked| name(ranked).chars().count());
    let width = width.max().unwrap_or(0).clamp(8, 48);
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let mut text = format!(
        "{:<width$} {:>20} {:>9} {:>10} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6}\n",
        "",
        "row_id",
        "tokens",
        "bytes",
        "rl bpb",
        "base bpb",
        "rl loss",
        "base",
        "entropy",
        "weight"
    );
    for ranked in ranked {
        let _ = writeln!(
            text,
            "{:<width$} {:>20} {:>9} {:>10} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6}",
            name(ranked),
            ranked.row_id,
            grouped(ranked.tokens),
            ranked.bytes.map_or("-".to_owned(), grouped),
            number(ranked.rl_bits_per_byte),
            number(ranked.base_bits_per_byte),
            number(Some(ranked.rl_loss)),
            number(ranked.base_loss),
            number(ranked.entropy),
            number(ranked.weight)
        );
    }
    text
}
