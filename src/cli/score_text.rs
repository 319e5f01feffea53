//! What remit-score prints about a run.

use std::collections::BTreeSet;

use super::report;
use crate::escape::Show as _;
use crate::pipeline::score::{Checked, ScoreOptions, ScoreReport, WorkerOptions};

pub(super) fn as_text(options: &ScoreOptions, report: &ScoreReport) -> String {
    let output = options.shards.output.shown();
    let mut text = String::new();
    if report.scored_parts > 0 {
        text.push_str(&format!(
            "scored {} of {} parts: {} tokens in {:.1} s, {:.0} tokens/s\n",
            report.scored_parts,
            report.num_parts,
            report::grouped(report.scored_tokens),
            report.seconds,
            report.scored_tokens as f64 / report.seconds.max(1e-9)
        ));
    } else if options.worker.index as usize >= report.num_parts {
        text.push_str(&format!(
            "nothing to score: the corpus has {} parts, so worker {} has none\n",
            report.num_parts, options.worker.index
        ));
    } else {
        text.push_str("nothing to score: all parts of this worker are there already\n");
        match (report.checked, &report.manifest) {
            (Some(Checked::Sizes), Some(manifest)) => text.push_str(&format!(
                "{} shards have the sizes that the manifest says; --verify compares their digests too\n",
                manifest.shards.len()
            )),
            (Some(Checked::Digests), Some(manifest)) => text.push_str(&format!(
                "{} shards have the digests that the manifest says\n",
                manifest.shards.len()
            )),
            _ => {}
        }
    }
    match &report.manifest {
        Some(manifest) => {
            text.push_str(&format!(
                "{output} is complete\n\n{}",
                report::summary(manifest)
            ));
        }
        None => text.push_str(&format!(
            "{output} is not complete: {} of {} parts are missing ({})\n{}",
            report.missing_parts.len(),
            report.num_parts,
            listed(&report.missing_parts),
            how_to_run(options.worker, &report.missing_parts)
        )),
    }
    text
}

/// Lists the first few of many numbers.
fn listed(numbers: &[u32]) -> String {
    let first: Vec<String> = numbers.iter().take(10).map(u32::to_string).collect();
    let more = if numbers.len() > first.len() {
        ", ..."
    } else {
        ""
    };
    format!("{}{more}", first.join(", "))
}

/// Tells how to make the missing parts.
fn how_to_run(worker: WorkerOptions, missing: &[u32]) -> String {
    let workers: BTreeSet<u32> = missing.iter().map(|part| worker.of_part(*part)).collect();
    let workers: Vec<u32> = workers.into_iter().collect();
    format!(
        "to make them, run the same command with --num-workers {} and --worker-index {}, or with \
         --num-workers 1 for all of them\n",
        worker.count,
        listed(&workers)
    )
}
