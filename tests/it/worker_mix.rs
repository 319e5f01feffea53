//! Workers that go by different plans and meet in one folder.

use anyhow::Result;
use remit::corpus::{Corpus, CorpusOptions, Part};
use remit::fs::Digest;
use remit::pack::Packing;
use remit::pipeline::stages::{self, RowScorer, RowSource, ShardSink};
use remit::pipeline::{Progress, StopFlag};
use remit::shard::Error;
use remit::shard::schema::ShardFormat;
use remit::shard::write::ShardOptions;
use remit::tokenize::TextTokenizer;
use remit::types::{OnBadRecord, Row, ScoredRow};

use crate::harness::{Workspace, model};

struct Constant;

impl RowScorer for Constant {
    fn batch_tokens(&self) -> usize {
        100
    }

    fn score(&self, rows: Vec<Row>) -> Result<Vec<ScoredRow>> {
        let scored = |row: Row| {
            let log_probs = vec![-1.0; row.num_tokens().saturating_sub(1)];
            row.scored(log_probs, None, None)
        };
        Ok(rows.into_iter().map(scored).collect())
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

/// A shard that was there already passed for the one that was to be made, so that a worker whose plan
/// was replaced while it ran showed only once all parts were there.
#[test]
fn a_worker_that_finds_its_shard_made_under_another_plan_says_so_at_once() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 12);
    workspace.write("set/keep", "");
    let corpus = Corpus::discover(&[workspace.path("corpus")], &CorpusOptions::default()).unwrap();
    let json = std::fs::read(model("demo-rl").join("tokenizer.json")).unwrap();
    let tokenizer = TextTokenizer::from_bytes(&json, "demo-rl").unwrap();
    let source = RowSource {
        corpus: &corpus,
        tokenizer: &tokenizer,
        packing: Packing::Document,
        seq_len: 64,
        min_tokens: 0,
        on_bad_record: OnBadRecord::Fail,
    };
    let parts: Vec<&Part> = corpus.parts().iter().collect();
    let dir = workspace.path("set");
    let run = |plan: &str| {
        let options = ShardOptions {
            part: 0,
            format: ShardFormat::Parquet,
            columns: false.into(),
            exact_weights: None,
            lowest_entropy: None,
            exact: false,
            plan: Digest::of(plan.as_bytes()),
        };
        let sink = ShardSink { dir: &dir, options };
        stages::run(
            &source,
            &parts,
            &Constant,
            &sink,
            &StopFlag::default(),
            &Quiet,
        )
    };
    run("one").unwrap();
    let before = workspace.snapshot("set");
    // Two workers with one plan may meet.
    run("one").unwrap();
    let error = run("another").unwrap_err();
    let error = error.downcast_ref::<Error>().unwrap();
    assert!(matches!(error, Error::OtherPlan { .. }), "{error}");
    assert_eq!(before, workspace.snapshot("set"));
}
