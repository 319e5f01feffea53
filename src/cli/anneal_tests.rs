//! Tests that whatever call to the operating system fails while a model is trained, the error names the path, no
//! part of a file is under its name, and a later run comes to the same model.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::anneal::{AnnealArgs, resolve};
use super::exit;
use super::score::{ScoreArgs, resolve as resolve_score};
use super::tests::{Quiet, assert_clear};
use crate::fs::fault::{ALL, Fault, Injection};
use crate::fs::{self, TEMP_SUFFIX};
use crate::pipeline::{self, StopFlag};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/models")
        .join(name)
}

fn score(root: &Path) {
    fs::create_dir_all(&root.join("corpus")).unwrap();
    let line = "{\"text\": \"What is 1+2? It is 3, and 2+2 is 4.\"}\n";
    fs::write_atomic(&root.join("corpus/a.jsonl"), line.repeat(30).as_bytes()).unwrap();
    let mut args = vec![PathBuf::from("remit-score"), root.join("corpus")];
    args.extend(["--device", "cpu", "--rl-model"].map(PathBuf::from));
    args.extend([model("tiny-llama"), "-o".into(), root.join("set")]);
    let options = resolve_score(ScoreArgs::try_parse_from(args).unwrap())
        .unwrap()
        .options;
    pipeline::score::run(&options, &StopFlag::default(), &Quiet).unwrap();
}

fn anneal(root: &Path, output: &Path) -> anyhow::Result<()> {
    let words = "remit-anneal --batch-tokens 300 --save-every 1 --keep 1 --steps 2 --lr 1e-3 --holdout 0.2 --max-shard-bytes 200K --device cpu --model";
    let mut args: Vec<PathBuf> = words.split_whitespace().map(PathBuf::from).collect();
    args.extend([
        model("tiny-llama-base"),
        "--weights".into(),
        root.join("set"),
    ]);
    args.extend(["-o".into(), output.to_owned()]);
    let options = resolve(AnnealArgs::try_parse_from(args)?)?.options;
    pipeline::anneal::run(&options, &StopFlag::default(), &Quiet).map(|_| ())
}

/// Lists the names in a folder, without temporary files of failed runs.
fn names(dir: &Path) -> Vec<String> {
    if !fs::is_dir(dir).unwrap() {
        return Vec::new();
    }
    let names = fs::list(dir).unwrap().into_iter();
    names
        .map(|name| name.into_string().unwrap())
        .filter(|name| !name.ends_with(TEMP_SUFFIX))
        .collect()
}

/// Reads the weights that a run came to.
fn weights(output: &Path) -> Vec<Vec<u8>> {
    let shards = names(output).into_iter();
    let shards = shards.filter(|name| name.ends_with(".safetensors"));
    shards
        .map(|name| fs::read(&output.join(name)).unwrap())
        .collect()
}

#[test]
fn wherever_io_fails_training_names_the_path_and_a_later_run_comes_to_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    score(&root);
    let whole = root.join("whole");
    anneal(&root, &whole).unwrap();
    let expected = weights(&whole);
    assert!(expected.len() > 1, "several shards");

    for fault in ALL {
        let mut failures = 0;
        // Not every call, as these are some hundred of few kinds: every third, and other ones for each fault.
        for nth in (1 + fault as u64 % 3..).step_by(3) {
            let what = format!("{fault:?}, call {nth}");
            let output = root.join(format!("{fault:?}-{nth}"));
            let injection = Injection::new(&root, fault, nth);
            let outcome = anneal(&root, &output);
            let tripped = injection.tripped();
            drop(injection);

            let left = names(&output);
            match &outcome {
                Ok(()) => assert!(
                    !tripped || fault == Fault::ShortWrite,
                    "{what} went unnoticed"
                ),
                Err(error) => {
                    assert!(tripped, "{what}: {}", exit::chain(error));
                    assert_clear(error, &root, &what);
                    failures += 1;
                    // What comes last may be there if it was the folder that could not be synced.
                    if fault != Fault::Sync && fault != Fault::Io {
                        assert!(
                            !left.contains(&"config.json".to_owned()),
                            "{what}: {left:?}"
                        );
                    }
                }
            }
            anneal(&root, &output).unwrap_or_else(|error| panic!("{what}, then: {error:#}"));
            assert!(weights(&output) == expected, "{what}: another model");
            assert_eq!(names(&output), names(&whole), "{what}");
            if !tripped {
                break;
            }
        }
        assert_eq!(failures == 0, fault == Fault::ShortWrite, "{fault:?}");
    }
}
