//! remit-score: corpus to shards.
//!
//! [`stages`] turn parts into shards; a shard appears under its name only when it is complete. When the shards of
//! all parts are there, the manifest is made from them, and from nothing else: it is the same whoever computed
//! them, in however many attempts.

mod add;
mod batches;
mod certify;
mod chat;
mod left_out;
mod models;
pub(super) mod options;
mod prepare;
mod rescore;
mod resume;
mod scorer;
mod share;

use anyhow::{Context, Result};
use serde::Serialize;

use super::signals;
use super::stages::{self, InOrder, PartQueue, ShardSink};
use super::{Progress, StopFlag};
use crate::corpus::Part;
use crate::escape::Show as _;
use crate::fs::{self, Digest};
use crate::shard;
use crate::shard::layout::shard_name;
use crate::shard::manifest::Manifest;
use crate::shard::plan::{Plan, columns_of};
use crate::shard::write::ShardOptions;
use crate::types::WeightBounds;

pub use add::{AddOptions, AddReport, run as add};
pub use certify::{Certificate, CertifyOptions, ColumnDifference, run as certify};
pub use options::*;
pub(super) use prepare::Prepared;
pub use prepare::scan_corpus;
pub use resume::Checked;
pub(super) use resume::{compare_plan, missing_parts};
use resume::{complete, settle_plan};
pub use share::{FromWorker, Share, ToWorker};

/// Report on a run.
#[derive(Debug, Default, Serialize)]
pub struct ScoreReport {
    /// Parts that this run computed.
    pub scored_parts: usize,
    /// Number of parts in all.
    pub num_parts: usize,
    /// Tokens that this run computed.
    pub scored_tokens: u64,
    /// Seconds it spent with the models loaded.
    pub seconds: f64,
    /// Parts that are still missing.
    pub missing_parts: Vec<u32>,
    /// The finished set; `None` while parts of other workers are missing.
    pub manifest: Option<Manifest>,
    /// What its shards were compared with; `None` with `manifest`.
    pub checked: Option<Checked>,
}

/// Scores what is missing of a set and completes it if it can.
///
/// # Errors
///
/// When an input is missing or bad, when the output folder belongs to another plan, and when reading
/// or writing fails. Finished parts are kept in every case.
pub fn run(
    options: &ScoreOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<ScoreReport> {
    run_from(options, &InOrder::default(), stop, progress)
}

/// [`run`] for the parts that a queue hands out.
///
/// # Errors
///
/// As [`run`].
pub fn run_from(
    options: &ScoreOptions,
    queue: &dyn PartQueue,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<ScoreReport> {
    let Prepared {
        corpus,
        models,
        compute,
        plan,
    } = Prepared::new(options, queue, stop, progress)?;
    let SetOptions { output, format, .. } = &options.shards;
    fs::create_dir_all(output)?;
    let plan = settle_plan(output, plan)?;

    let mut missing = missing_parts(output, *format, corpus.parts())?;
    let mine: Vec<&Part> = corpus
        .parts()
        .iter()
        .filter(|part| missing.contains(&part.index))
        .filter(|part| options.worker.has_part(part.index))
        .collect();
    let mut report = ScoreReport {
        scored_parts: mine.len(),
        num_parts: corpus.parts().len(),
        scored_tokens: 0,
        seconds: 0.0,
        missing_parts: Vec::new(),
        manifest: None,
        checked: None,
    };
    queue.begin(
        mine.iter()
            .map(|part| (part.index, part.size_bytes))
            .collect(),
    )?;
    if mine.is_empty() {
        // Nothing is left, unless others still work.
        queue.next()?;
    } else {
        let done_before = corpus.parts().len() - missing.len();
        if done_before > 0 {
            progress.note(&format!("{done_before} parts are there already"));
        }
        let scorer = models.load(&options.compute, &options.shards, &compute, progress)?;
        let started = std::time::Instant::now();
        let source = models.source(&options.rows, options.corpus.on_bad_record, &corpus);
        let sink = ShardSink {
            dir: output,
            options: shard_options(options, plan.identity()?),
        };
        let bytes = mine.iter().map(|part| part.size_bytes).sum();
        report.scored_tokens =
            stages::run_from(&source, bytes, queue, &scorer, &sink, stop, progress)?;
        report.seconds = started.elapsed().as_secs_f64();
        missing = missing_parts(output, *format, corpus.parts())?;
        if let Some(gone) = mine.iter().find(|part| missing.contains(&part.index)) {
            stop.check("finished parts are kept, and it does the rest")?;
            let path = output.join(shard_name(gone.index, *format));
            return Err(shard::Error::MissingShard { path }.into());
        }
    }
    if missing.is_empty() && queue.completes() {
        let verify = options.shards.verify;
        let (manifest, checked) = complete(output, plan, &mine, verify, progress)?;
        let signals = signals::of_statistics(
            &manifest.totals,
            &manifest.sources,
            manifest.plan.formula.as_ref(),
            models.vocab_size,
            is_one_model(&manifest.plan),
        );
        signals::report(&signals, options.strict, progress)
            .with_context(|| format!("{} is complete, but", output.shown()))?;
        report.manifest = Some(manifest);
        report.checked = Some(checked);
    }
    report.missing_parts = missing;
    Ok(report)
}

/// Returns whether the RL model and the base are the same files, which was told before.
pub(super) fn is_one_model(plan: &Plan) -> bool {
    plan.base
        .as_ref()
        .is_some_and(|base| base.fingerprint == plan.rl.fingerprint)
}

/// Returns what every shard is made with; the part is filled in for each.
pub(super) fn shard_options(options: &ScoreOptions, plan: Digest) -> ShardOptions {
    let shards = &options.shards;
    ShardOptions {
        part: 0,
        format: shards.format,
        columns: columns_of(
            options.compute.base.is_some(),
            shards.distributions.as_ref(),
        ),
        exact: shards.exact,
        exact_weights: match shards.weight_bounds {
            WeightBounds::Exact => Some(shards.formula.bounds()),
            WeightBounds::Rounded => None,
        },
        lowest_entropy: shards
            .distributions
            .and_then(|stored| stored.top_k?.lowest_entropy),
        plan,
    }
}
