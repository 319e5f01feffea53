//! Tests that whatever call to the operating system fails, and whenever, the error names the path, no part of a
//! file is under its name, and a later run completes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use clap::Parser;

use super::exit;
use super::score::{ScoreArgs, resolve};
use crate::fs::fault::{ALL, Fault, Injection};
use crate::fs::{self, TEMP_SUFFIX};
use crate::pipeline::{self, Progress, StopFlag};

pub(super) struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// A file in every container, and records that can't be read.
fn write_corpus(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let lines = "{\"text\": \"What is 1+2? It is 3.\"}\n{\n{\"text\": \"And 2+2 is 4.\"}\n";
    fs::write_atomic(&dir.join("a.jsonl"), lines.as_bytes()).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    fs::write_atomic(&dir.join("b.jsonl.gz"), &gzip.finish().unwrap()).unwrap();
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["3+4 is 7", "12-5 is 7"]));
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let mut parquet =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    parquet.write(&batch).unwrap();
    fs::write_atomic(&dir.join("c.parquet"), &parquet.into_inner().unwrap()).unwrap();
    let mut arrow = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    arrow.write(&batch).unwrap();
    fs::write_atomic(&dir.join("d.arrow"), &arrow.into_inner().unwrap()).unwrap();
    fs::write_atomic(&dir.join("e.bin"), &[9, 0, 8, 0, 7, 0, 0, 0]).unwrap();
    fs::write_atomic(&dir.join("f.md"), b"8+1 is 9.").unwrap();
}

fn score(root: &Path, output: &Path) -> anyhow::Result<()> {
    let words =
        "remit-score --part-bytes 30 --on-bad-record skip --token-dtype uint16 --device cpu";
    let mut args: Vec<PathBuf> = words.split(' ').map(PathBuf::from).collect();
    args.extend([root.join("corpus"), "-o".into(), output.to_owned()]);
    let options = resolve(ScoreArgs::try_parse_from(args)?)?.options;
    let report = pipeline::score::run(&options, &StopFlag::default(), &Quiet)?;
    assert!(report.manifest.is_some());
    Ok(())
}

type Snapshot = BTreeMap<String, Vec<u8>>;

fn snapshot(dir: &Path) -> Snapshot {
    if !fs::is_dir(dir).unwrap() {
        return Snapshot::new();
    }
    let mut files = Snapshot::new();
    for name in fs::list(dir).unwrap() {
        let path = dir.join(&name);
        let name = name.into_string().unwrap();
        if fs::is_dir(&path).unwrap() {
            let below = snapshot(&path).into_iter();
            files.extend(below.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Checks that an error names a path, and has the exit code of a failure that may pass.
pub(super) fn assert_clear(error: &anyhow::Error, root: &Path, what: &str) {
    let text = exit::chain(error);
    assert!(text.contains(root.to_str().unwrap()), "{what}: {text}");
    let code = if text.contains("No space left") {
        75
    } else {
        74
    };
    assert_eq!(exit::code(error), code, "{what}: {text}");
}

#[test]
fn wherever_io_fails_nothing_partial_is_published_and_a_later_run_completes() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    write_corpus(&root.join("corpus"));
    score(&root, &root.join("whole")).unwrap();
    let whole = snapshot(&root.join("whole"));
    let shards = whole
        .keys()
        .filter(|name| name.starts_with("part-"))
        .count();
    assert!(shards >= 4, "{shards} shards");
    assert!(whole.contains_key("_remit/rejects.parquet"));

    for fault in ALL {
        let mut failures = 0;
        for nth in 1.. {
            let what = format!("{fault:?}, call {nth}");
            let output = root.join(format!("{fault:?}-{nth}"));
            let injection = Injection::new(&root, fault, nth);
            let outcome = score(&root, &output);
            let tripped = injection.tripped();
            drop(injection);

            let left = snapshot(&output);
            for (name, bytes) in left.iter().filter(|(name, _)| !name.ends_with(TEMP_SUFFIX)) {
                assert!(
                    whole.get(name) == Some(bytes),
                    "{what}: {name} is not what it should be"
                );
            }
            match &outcome {
                Ok(()) => assert!(
                    !tripped || fault == Fault::ShortWrite,
                    "{what} went unnoticed"
                ),
                Err(error) => {
                    assert!(tripped, "{what}: {error:#}");
                    assert_clear(error, &root, &what);
                    failures += 1;
                }
            }
            score(&root, &output).unwrap();
            assert!(
                snapshot(&output) == whole,
                "{what}: the later run gives another set"
            );
            if !tripped {
                break;
            }
        }
        assert_eq!(failures == 0, fault == Fault::ShortWrite);
    }

    // Reading a set.
    let mut failures = 0;
    for nth in 1.. {
        let injection = Injection::new(&root.join("whole"), Fault::Io, nth);
        let outcome = pipeline::inspect::verify(&root.join("whole"))
            .and_then(|verification| verification.into_result(&root));
        if !injection.tripped() {
            outcome.unwrap();
            break;
        }
        assert_clear(&outcome.unwrap_err(), &root, &format!("verify, call {nth}"));
        failures += 1;
    }
    assert!(failures > shards);
}
