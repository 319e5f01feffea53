//! remit-inspect report and sweep: their arguments, and what they print.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::output;
use super::progress::Console;
use super::report::grouped;
use super::values::{epsilon, fraction, positive, temperature};
use crate::escape::Show as _;
use crate::model::ModelSource;
use crate::pipeline::StopFlag;
use crate::pipeline::report::{
    self, DEFAULT_SAMPLE_TOKENS, MAX_PAGE_BYTES, ReportOptions, Sweep, SweepOptions, SweptNumbers,
    SweptWeights,
};
use crate::weight::Center;

pub(super) const REPORT_USE: &str = "\
Examples:
  remit-inspect report weights/ -o report.html
  remit-inspect report weights/ -o runs.html --run uniform/ --run dynamic/
  remit-inspect report rl-a/ rl-b/ -o both.html";

pub(super) const SWEEP_USE: &str = "\
Weights are those of the first step, when the base is the learner. Shares at the bounds are exact for an epsilon of two \
decimals and the usual temperatures (0.05 to 10: those of the slider in the page of remit-inspect report, which shows the \
same numbers); for others, what lies in the bin at a bound is divided as if it lay evenly there.";

/// Arguments of remit-inspect report.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// A folder that remit-score made; with a second one, both are shown side by side
    #[arg(value_name = "DIR", required = true, num_args = 1..=2)]
    sets: Vec<PathBuf>,
    /// File to write: .html
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The folder of a training run, to draw its losses, weights and learning rate; may be repeated
    #[arg(long = "run", value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// Losses of two models, to be shown side by side: a file that remit-inspect compare --json printed
    #[arg(long, value_name = "FILE")]
    losses: Option<PathBuf>,
    /// Tokens of the rows that are shown, of each set; sources get equal shares
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_SAMPLE_TOKENS, value_parser = positive)]
    sample: usize,
    /// Seed of the rows that are shown
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Show the row with this row_id besides; may be repeated
    #[arg(long = "row-id", value_name = "ID")]
    row_ids: Vec<u64>,
    /// Model whose tokenizer.json decodes the ids [default: the one that the set was made with]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

/// Arguments of remit-inspect sweep.
#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// A folder that remit-score made, with a base
    #[arg(value_name = "DIR")]
    set: PathBuf,
    /// Half-widths of the interval of weights
    #[arg(long, value_name = "EPSILON,...", value_delimiter = ',', value_parser = epsilon, default_values_t = [0.1, 0.2, 0.5])]
    epsilon: Vec<f32>,
    /// Divisors of the centred differences, nats
    #[arg(long, value_name = "NATS,...", value_delimiter = ',', value_parser = temperature, default_values_t = [0.25, 1.0])]
    temperature: Vec<f32>,
    /// What is subtracted from the differences of a row
    #[arg(long, value_enum, value_name = "CENTER,...", value_delimiter = ',', default_values_t = [Center::Row])]
    center: Vec<Center>,
    /// Fractions that excess-top-k weighting selects
    #[arg(long, value_name = "FRACTION,...", value_delimiter = ',', value_parser = fraction)]
    top_k_fraction: Vec<f64>,
    /// Print a line for every source
    #[arg(long)]
    by_source: bool,
    /// Print one JSON object, sources included
    #[arg(long)]
    json: bool,
}

pub(super) fn report(args: ReportArgs) -> Result<()> {
    let ReportArgs {
        sets,
        output,
        runs,
        losses,
        sample,
        seed,
        row_ids,
        tokenizer,
    } = args;
    let options = ReportOptions {
        sets,
        output,
        runs,
        losses,
        sample_tokens: sample,
        seed,
        row_ids,
        max_page_bytes: MAX_PAGE_BYTES,
        tokenizer: tokenizer.map(ModelSource::Directory),
    };
    let stop = StopFlag::on_signals()?;
    let written = report::write(&options, &stop, &Console::new(false))?;
    let mut text = String::new();
    for (set, (headlines, odd)) in options.sets.iter().zip(&written.verdicts) {
        if options.sets.len() > 1 {
            let _ = writeln!(text, "{}", set.shown());
        }
        for line in headlines {
            let _ = writeln!(text, "{line}");
        }
        for line in odd {
            let _ = writeln!(text, "odd: {line}");
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "{}: {} bytes; {} of {} rows are shown",
        options.output.shown(),
        grouped(written.bytes as u64),
        grouped(written.rows),
        grouped(written.all_rows)
    );
    output::print(&text)
}

pub(super) fn sweep(args: SweepArgs) -> Result<()> {
    let SweepArgs {
        set,
        epsilon,
        temperature,
        center,
        top_k_fraction,
        by_source,
        json,
    } = args;
    let options = SweepOptions {
        set,
        epsilons: epsilon,
        temperatures: temperature,
        centers: center,
        top_k_fractions: top_k_fraction,
    };
    let stop = StopFlag::on_signals()?;
    let sweep = report::sweep(&options, &stop, &Console::new(false))?;
    if json {
        return output::print_json(&serde_json::to_string(&sweep)?);
    }
    output::print(&table(&sweep, by_source))
}

fn table(sweep: &Sweep, by_source: bool) -> String {
    let sources = sweep.weights.iter().flat_map(|weights| &weights.sources);
    let width = sources.filter_map(|numbers| numbers.source.as_ref());
    let width = width.map(|source| source.shown().to_string().chars().count());
    let width = width.max().unwrap_or(0).clamp("the others".len(), 48);
    let mut text = format!(
        "{:<12} {:>7} {:>11} {:>6}",
        "weighting", "epsilon", "temperature", "center"
    );
    if by_source {
        let _ = write!(text, "  {:<width$}", "source");
    }
    let _ = writeln!(
        text,
        "  {:>12} {:>7} {:>9} {:>7} {:>7}",
        "targets", "w mean", "effective", "at low", "at high"
    );
    for weights in &sweep.weights {
        let mut line = |name: &str, numbers: &SweptNumbers| {
            let _ = write!(text, "{}", formula(weights));
            if by_source {
                let _ = write!(text, "  {name:<width$}");
            }
            let targets = numbers.targets.max(1) as f64;
            let _ = writeln!(
                text,
                "  {:>12} {:>7.4} {:>8.2}% {:>6.2}% {:>6.2}%",
                grouped(numbers.targets),
                numbers.weight_mean,
                100.0 * numbers.effective_targets / targets,
                100.0 * numbers.share_at_lower,
                100.0 * numbers.share_at_upper
            );
        };
        if by_source {
            for numbers in &weights.sources {
                let name = numbers.source.as_deref().unwrap_or("the others");
                line(&name.shown().to_string(), numbers);
            }
        }
        line("all", &weights.all);
    }
    text
}

fn formula(weights: &SweptWeights) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let center = weights.center.map_or("-", |center| match center {
        Center::Row => "row",
        Center::None => "none",
    });
    match weights.top_k_fraction {
        None => format!(
            "{:<12} {:>7} {:>11} {center:>6}",
            weights.weighting.to_string(),
            number(weights.epsilon),
            number(weights.temperature),
        ),
        Some(fraction) => format!("{:<39}", format!("{} {fraction}", weights.weighting)),
    }
}
