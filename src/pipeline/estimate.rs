//! Estimates a run of remit-score: its files and parts; and its tokens, bytes and time, from a few rows that are
//! encoded, scored and written to memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::score::{
    Prepared, ScoreOptions, compare_plan, is_one_model, missing_parts, shard_options,
};
use super::stages::{InOrder, RowScorer};
use super::{Progress, StopFlag, signals};
use crate::corpus::Part;
use crate::fs::{self, Digest};
use crate::pack::PackStats;
use crate::shard::statistics::Accumulator;
use crate::shard::write::ShardWriter;
use crate::tokenize::DocumentTokens;
use crate::types::Row;

/// Parts that are sampled, evenly over the corpus.
const MAX_SAMPLED_PARTS: usize = 32;
/// Text that is taken of each.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Time that the models are measured for, if there are enough rows.
const CALIBRATION: Duration = Duration::from_secs(5);
/// Tokens that are scored before the measurement starts.
const WARM_UP_TOKENS: u64 = 64;

/// Estimate of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Files of the corpus.
    pub files: usize,
    /// Bytes of these as stored.
    pub stored_bytes: u64,
    /// Bytes of text, unpacked.
    pub text_bytes: u64,
    /// Parts, which is the number of shards.
    pub parts: usize,
    /// Parts that are there already.
    pub finished_parts: usize,
    /// Parts that this worker would compute.
    pub parts_of_this_worker: usize,
    /// Documents that the figures below are from.
    pub sampled_documents: u64,
    /// Tokens of these.
    pub sampled_tokens: u64,
    /// Tokens that documents begin and end with.
    pub document_tokens: DocumentTokens,
    /// Tokens of all rows, about.
    pub tokens: u64,
    /// Rows, about.
    pub rows: u64,
    /// Bytes of all shards, about.
    pub output_bytes: u64,
    /// Tokens per second that this machine scores; null if there was nothing to measure.
    pub tokens_per_second: Option<f64>,
    /// Seconds that this worker would take for its parts, about.
    pub seconds: Option<f64>,
}

/// Estimates a run. Nothing is written.
///
/// # Errors
///
/// Those of [`score::run`](super::score::run), as far as they show before the end.
pub fn run(options: &ScoreOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<Estimate> {
    let prepared = Prepared::new(options, &InOrder::default(), stop, progress)?;
    let parts = prepared.corpus.parts();
    let output = &options.shards.output;
    let missing = if fs::is_dir(output)? {
        compare_plan(output, &prepared.plan)?;
        missing_parts(output, options.shards.format, parts)?
    } else {
        parts.iter().map(|part| part.index).collect()
    };
    let mine: Vec<&Part> = parts
        .iter()
        .filter(|part| missing.contains(&part.index) && options.worker.has_part(part.index))
        .collect();

    let scorer = prepared.models.load(
        &options.compute,
        &options.shards,
        &prepared.compute,
        progress,
    )?;
    let on_bad_record = options.corpus.on_bad_record;
    let source = prepared
        .models
        .source(&options.rows, on_bad_record, &prepared.corpus);
    let mut rows: Vec<Row> = Vec::new();
    let (mut documents, mut bytes) = (0, 0);
    let mut reader = prepared.corpus.reader();
    let step = parts.len().div_ceil(MAX_SAMPLED_PARTS).max(1);
    for part in parts.iter().step_by(step) {
        stop.check("nothing was written")?;
        let sample = source.sample(&mut reader, part, SAMPLE_BYTES)?;
        rows.extend(sample.0);
        documents += sample.1;
        bytes += sample.2;
    }
    let sampled_rows = rows.len();
    let sampled_tokens: u64 = rows.iter().map(|row| row.input_ids.len() as u64).sum();
    progress.note(&format!(
        "scoring for up to {} seconds to see how fast this machine is",
        CALIBRATION.as_secs()
    ));
    let measured = calibrate(options, &scorer, rows, stop)?;
    let formula = prepared.plan.formula;
    let signals = signals::of_statistics(
        &measured.statistics.statistics(&options.shards.formula),
        &BTreeMap::new(),
        formula.as_ref(),
        prepared.models.vocab_size,
        is_one_model(&prepared.plan),
    );
    signals::report(&signals, options.strict, progress)?;

    let size = |parts: &mut dyn Iterator<Item = &Part>| {
        parts.fold(0, |sum: u64, part| sum.saturating_add(part.size_bytes))
    };
    let text_bytes = size(&mut parts.iter());
    let scaled = |count: f64, bytes_of: u64| count * bytes_of as f64 / bytes.max(1) as f64;
    let tokens = scaled(sampled_tokens as f64, text_bytes);
    let my_tokens = scaled(sampled_tokens as f64, size(&mut mine.iter().copied()));
    Ok(Estimate {
        files: prepared.corpus.files().len(),
        stored_bytes: prepared.corpus.total_bytes(),
        text_bytes,
        parts: parts.len(),
        finished_parts: parts.len() - missing.len(),
        parts_of_this_worker: mine.len(),
        sampled_documents: documents,
        sampled_tokens,
        document_tokens: prepared.models.document_tokens.clone(),
        tokens: tokens.round() as u64,
        rows: scaled(sampled_rows as f64, text_bytes).round() as u64,
        output_bytes: (tokens * measured.bytes_per_token).round() as u64
            + measured.bytes_per_shard * parts.len() as u64,
        tokens_per_second: measured.tokens_per_second,
        seconds: measured.tokens_per_second.map(|rate| my_tokens / rate),
    })
}

struct Measured {
    tokens_per_second: Option<f64>,
    bytes_per_token: f64,
    /// Bytes of a shard without rows.
    bytes_per_shard: u64,
    /// Log-probs and weights of the rows.
    statistics: Accumulator,
}

/// Scores rows until the time is over, and writes them to memory. Rows are taken from all over the
/// sample, so that it has short and long ones.
fn calibrate(
    options: &ScoreOptions,
    scorer: &impl RowScorer,
    rows: Vec<Row>,
    stop: &StopFlag,
) -> Result<Measured> {
    let stride = 7;
    let mut order: Vec<Row> = Vec::with_capacity(rows.len());
    let mut strides: Vec<Vec<Row>> = (0..stride).map(|_| Vec::new()).collect();
    for (index, row) in rows.into_iter().enumerate() {
        if let Some(rows) = strides.get_mut(index % stride) {
            rows.push(row);
        }
    }
    strides.into_iter().for_each(|rows| order.extend(rows));

    let mut writer = ShardWriter::new(Vec::new(), shard_options(options, Digest::of(b"")))?;
    let mut statistics = Accumulator::default();
    let (mut tokens, mut timed_tokens) = (0_u64, 0_u64);
    let mut timed = Duration::ZERO;
    let mut batch: Vec<Row> = Vec::new();
    let mut batch_tokens = 0;
    let mut rows = order.into_iter().peekable();
    while let Some(row) = rows.next() {
        batch_tokens += row.input_ids.len();
        batch.push(row);
        let next = rows.peek().map_or(usize::MAX, |row| row.input_ids.len());
        // Small batches at first, so that a slow machine is done in time too.
        let limit = scorer
            .batch_tokens()
            .min(256 + usize::try_from(tokens).unwrap_or(usize::MAX));
        if batch_tokens.saturating_add(next) <= limit {
            continue;
        }
        stop.check("nothing was written")?;
        let started = Instant::now();
        let scored = scorer.score(std::mem::take(&mut batch))?;
        if tokens >= WARM_UP_TOKENS || rows.peek().is_none() {
            timed += started.elapsed();
            timed_tokens += batch_tokens as u64;
        }
        tokens += batch_tokens as u64;
        batch_tokens = 0;
        for row in &scored {
            writer.push(row)?;
            statistics.add(row, &options.shards.formula);
        }
        if timed >= CALIBRATION {
            break;
        }
    }
    let (bytes, _) = writer.finish(&PackStats::default())?;
    let empty = ShardWriter::new(Vec::new(), shard_options(options, Digest::of(b"")))?;
    let (empty, _) = empty.finish(&PackStats::default())?;
    let seconds = timed.as_secs_f64();
    Ok(Measured {
        tokens_per_second: (timed_tokens > 0 && seconds > 0.0)
            .then(|| timed_tokens as f64 / seconds),
        bytes_per_token: bytes.len().saturating_sub(empty.len()) as f64 / tokens.max(1) as f64,
        bytes_per_shard: empty.len() as u64,
        statistics,
    })
}
