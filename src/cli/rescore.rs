//! What remit-score does with a finished set: adds a column, or certifies a sample.

use std::fmt::Write as _;

use anyhow::Result;

use super::output;
use super::progress::Console;
use super::report::grouped;
use crate::pipeline::StopFlag;
use crate::pipeline::score::{self, AddOptions, AddReport, Certificate, CertifyOptions};

/// What is done with a finished set.
pub(super) enum Rescoring {
    /// Adds a column to it.
    Add(Box<AddOptions>),
    /// Scores a sample of it again.
    Certify(Box<CertifyOptions>),
}

/// Does it, and reports.
pub(super) fn run(what: &Rescoring, json: bool, stop: &StopFlag, console: &Console) -> Result<()> {
    match what {
        Rescoring::Add(options) => {
            let report = score::add(options, stop, console)?;
            match json {
                true => output::print_json(&serde_json::to_string(&report)?),
                false => output::print(&added(options, &report)),
            }
        }
        Rescoring::Certify(options) => {
            let certificate = score::certify(options, stop, console)?;
            match json {
                true => output::print_json(&serde_json::to_string(&certificate)?),
                false => output::print(&certified(&certificate)),
            }
        }
    }
}

fn added(options: &AddOptions, report: &AddReport) -> String {
    let mut text = format!(
        "added {} of {} parts: {} tokens in {:.1} s\n",
        report.added_parts,
        report.num_parts,
        grouped(report.tokens),
        report.seconds
    );
    let _ = match report.missing_parts.len() {
        0 => writeln!(
            text,
            "{} is complete; remit-anneal --rl-column {} trains with it",
            report.sidecar, options.name
        ),
        missing => writeln!(
            text,
            "{} is not complete: {missing} of {} parts are missing\nto make them, run the same command with \
             --num-workers 1, or as the other workers",
            report.sidecar, report.num_parts
        ),
    };
    text
}

fn certified(certificate: &Certificate) -> String {
    let mut text = format!(
        "{} of {} rows scored again, {} tokens: made with {}, computed here with {}\n\n{:<14} {:>12} {:>10} {:>12} {:>12}  at\n",
        grouped(certificate.rows),
        grouped(certificate.of_rows),
        grouped(certificate.tokens),
        certificate.made_with,
        certificate.computed_with,
        "column",
        "values",
        "identical",
        "largest",
        "mean"
    );
    for column in &certificate.columns {
        let _ = writeln!(
            text,
            "{:<14} {:>12} {:>9.2}% {:>12.3e} {:>12.3e}  {}",
            column.column,
            grouped(column.values),
            100.0 * column.identical as f64 / column.values as f64,
            column.max_nats,
            column.mean_nats,
            match column.max_nats > 0.0 {
                true => format!("row {} position {}", column.row_id, column.position),
                false => "-".to_owned(),
            }
        );
    }
    text
}
