//! The data plane without models: reads, encodes, packs and writes a corpus with log-probs that are
//! made up, and prints how fast each stage is.
//!
//! ```text
//! cargo run --release --example data_plane -- tokenizer.json corpus.jsonl out/ [tokenize|all|both]
//! ```
//!
//! `tokenize` encodes documents that are in memory already, `all` does everything that remit-score
//! does but the models. scripts/bench/data_plane.py runs both in turn, beside Python's tokenizers.

#![allow(clippy::print_stdout, reason = "it prints its results")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use remit::corpus::{Corpus, CorpusOptions, Part};
use remit::fs::Digest;
use remit::pack::Packing;
use remit::pipeline::stages::{self, RowScorer, RowSource, ShardSink};
use remit::pipeline::{Progress, StopFlag};
use remit::shard::schema::ShardFormat;
use remit::shard::write::ShardOptions;
use remit::tokenize::TextTokenizer;
use remit::types::{Document, OnBadRecord, Row, ScoredRow, round_mantissa};

/// Text that is encoded at a time, as in remit-score.
const ENCODE_BYTES: usize = 1 << 20;

/// Gives every target a log-prob that depends on its id alone, in no time.
struct Constant;

impl RowScorer for Constant {
    fn batch_tokens(&self) -> usize {
        16_384
    }

    fn score(&self, rows: Vec<Row>) -> Result<Vec<ScoredRow>> {
        Ok(rows
            .into_iter()
            .map(|row| {
                let rl_logprobs = row.input_ids[1..]
                    .iter()
                    .map(|id| round_mantissa(-1e-4 * (*id as f32) - 0.5))
                    .collect();
                row.scored(rl_logprobs, None, None)
            })
            .collect())
    }
}

struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [tokenizer, corpus, output, rest @ ..] = args.as_slice() else {
        bail!("usage: data_plane TOKENIZER.json CORPUS OUTPUT [tokenize|all|both]");
    };
    let mode = rest
        .first()
        .and_then(|mode| mode.to_str())
        .unwrap_or("both");
    let tokenizer = TextTokenizer::from_bytes(&remit::fs::read(tokenizer)?, "tokenizer")?;

    let started = Instant::now();
    let corpus = Corpus::discover(std::slice::from_ref(corpus), &CorpusOptions::default())?;
    let bytes = corpus.total_bytes();
    report("plan", started, bytes, None);

    if mode == "tokenize" || mode == "both" {
        tokenize(&tokenizer, &corpus)?;
    }
    if mode == "all" || mode == "both" {
        all(&tokenizer, &corpus, output)?;
    }
    Ok(())
}

fn tokenize(tokenizer: &TextTokenizer, corpus: &Corpus) -> Result<()> {
    let started = Instant::now();
    let mut batches: Vec<Vec<Document>> = Vec::new();
    let mut bytes = 0;
    let mut batch_bytes = usize::MAX;
    let mut reader = corpus.reader();
    for part in corpus.parts() {
        reader.begin(part);
        for document in &mut reader {
            let document = document?;
            let len = document.content.size_bytes();
            if batch_bytes >= ENCODE_BYTES {
                batches.push(Vec::new());
                batch_bytes = 0;
            }
            batch_bytes += len;
            bytes += len as u64;
            batches
                .last_mut()
                .context("a batch was begun")?
                .push(document);
        }
    }
    report("read", started, bytes, None);
    let started = Instant::now();
    let mut tokens = 0;
    for batch in batches {
        for document in tokenizer.encode_batch(batch) {
            tokens += document?.input_ids.len() as u64;
        }
    }
    report("tokenize", started, bytes, Some(tokens));
    Ok(())
}

fn all(tokenizer: &TextTokenizer, corpus: &Corpus, output: &Path) -> Result<()> {
    remit::fs::create_dir_all(output)?;
    let source = RowSource {
        corpus,
        tokenizer,
        packing: Packing::Document,
        seq_len: 4096,
        min_tokens: 0,
        on_bad_record: OnBadRecord::Fail,
    };
    let sink = ShardSink {
        dir: output,
        options: ShardOptions {
            part: 0,
            format: ShardFormat::Parquet,
            columns: false.into(),
            exact: false,
            exact_weights: None,
            lowest_entropy: None,
            plan: Digest::of(b""),
        },
    };
    let parts: Vec<&Part> = corpus.parts().iter().collect();
    let started = Instant::now();
    let tokens = stages::run(
        &source,
        &parts,
        &Constant,
        &sink,
        &StopFlag::default(),
        &Quiet,
    )?;
    let bytes = parts.iter().map(|part| part.size_bytes).sum();
    report("all", started, bytes, Some(tokens));
    Ok(())
}

fn report(stage: &str, started: Instant, bytes: u64, tokens: Option<u64>) {
    let seconds = started.elapsed().as_secs_f64();
    let tokens = tokens.map_or_else(String::new, |tokens| {
        format!(
            ", \"tokens\": {tokens}, \"tokens_per_second\": {:.0}",
            tokens as f64 / seconds
        )
    });
    println!(
        "{{\"stage\": \"{stage}\", \"seconds\": {seconds:.3}, \"mb_per_second\": {:.1}{tokens}}}",
        bytes as f64 / 1e6 / seconds
    );
}
