//! The files of a model are opened once per run, however many checks, fingerprints and exports need them.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::anneal::{AnnealArgs, resolve as resolve_anneal};
use super::score::{ScoreArgs, resolve as resolve_score};
use super::tests::Quiet;
use crate::fs;
use crate::fs::fault::OpenCounter;
use crate::pipeline::{self, StopFlag};

fn copy_model(name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/models")
        .join(name);
    fs::create_dir_all(to).unwrap();
    for file in fs::list(&from).unwrap() {
        let bytes = fs::read(&from.join(&file)).unwrap();
        fs::write_atomic(&to.join(&file), &bytes).unwrap();
    }
}

fn arguments(words: &str, root: &Path) -> Vec<PathBuf> {
    let words = words.split_whitespace();
    words
        .map(|word| match word.strip_prefix("./") {
            Some(relative) => root.join(relative),
            None => PathBuf::from(word),
        })
        .collect()
}

fn score(root: &Path, output: &str) {
    let words =
        "remit-score ./corpus --rl-model ./models/rl --base-model ./models/base --device cpu -o";
    let args = arguments(&format!("{words} ./{output}"), root);
    let options = resolve_score(ScoreArgs::try_parse_from(args).unwrap())
        .unwrap()
        .options;
    pipeline::score::run(&options, &StopFlag::default(), &Quiet).unwrap();
}

fn anneal(root: &Path) {
    let words = "remit-anneal --weights ./set --eval-weights ./other --steps 2 --batch-tokens 300 --device cpu -o ./out";
    let options = resolve_anneal(AnnealArgs::try_parse_from(arguments(words, root)).unwrap())
        .unwrap()
        .options;
    pipeline::anneal::run(&options, &StopFlag::default(), &Quiet).unwrap();
}

/// Runs a command; returns the files of the models that it opened, each of them once.
fn opened_once(root: &Path, run: impl FnOnce()) -> Vec<String> {
    let counter = OpenCounter::new(&root.join("models"));
    run();
    let counts = counter.counts();
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    counts
        .keys()
        .map(|path| path.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_run_opens_each_file_of_a_model_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    copy_model("demo-rl", &root.join("models/rl"));
    copy_model("demo-base", &root.join("models/base"));
    fs::create_dir_all(&root.join("corpus")).unwrap();
    let line = "{\"text\": \"What is 1+2? It is 3, and 2+2 is 4.\"}\n";
    fs::write_atomic(&root.join("corpus/a.jsonl"), line.repeat(30).as_bytes()).unwrap();

    let scored = opened_once(&root, || score(&root, "set"));
    for model in ["rl", "base"] {
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(scored.contains(&format!("{model}/{file}")), "{scored:?}");
        }
    }
    score(&root, "other");
    let annealed = opened_once(&root, || anneal(&root));
    assert_eq!(
        annealed,
        [
            "base/config.json",
            "base/generation_config.json",
            "base/model.safetensors",
            "base/tokenizer.json",
            "base/tokenizer_config.json",
        ]
    );
    // The run is finished, and found to be so by the fingerprint.
    let again = opened_once(&root, || anneal(&root));
    assert!(
        again.contains(&"base/model.safetensors".to_owned()),
        "{again:?}"
    );
}
