//! What another process found in the files is taken for what is in them, as long as they look the same.

use std::path::Path;

use tempfile::TempDir;

use super::scans::Scans;
use super::tests::{gzip, put};
use super::{Corpus, CorpusOptions, Input};
use crate::fs::Digest;

/// A file of each kind that is scanned in its own way.
fn corpus() -> TempDir {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "a.txt", "one");
    put(
        dir.path(),
        "b.jsonl",
        "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n",
    );
    let messages = b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n";
    put(dir.path(), "c.jsonl.gz", gzip(messages));
    put(dir.path(), "d.bin", [1, 0, 2, 0, 1, 0, 0, 0]);
    dir
}

fn discover(dir: &Path, known: &Scans) -> Corpus {
    let options = CorpusOptions {
        part_bytes: Some(4),
        separator: Some(1),
        token_dtype: Some(crate::types::TokenDtype::Uint16),
        ..CorpusOptions::default()
    };
    Corpus::discover_known(&[Input::Path(dir.to_owned())], &options, known).unwrap()
}

fn through_json(scans: &Scans) -> Scans {
    serde_json::from_str(&serde_json::to_string(scans).unwrap()).unwrap()
}

#[test]
fn files_that_are_known_are_not_read_and_give_the_same_corpus() {
    let dir = corpus();
    let read = discover(dir.path(), &Scans::default());
    assert!(read.may_hold_messages());
    let told = through_json(&read.scans());
    assert_eq!(told, read.scans());
    let known = discover(dir.path(), &told);
    assert_eq!((known.files(), known.parts()), (read.files(), read.parts()));
    // A digest that no file has can't be from reading one.
    let mut wrong = told;
    for scan in &mut wrong.0 {
        scan.digest = Digest::of(b"another");
        scan.may_hold_messages = false;
    }
    let known = discover(dir.path(), &wrong);
    let digests = known.files().iter().map(|file| file.digest);
    assert!(digests.eq(wrong.0.iter().map(|scan| scan.digest)));
    assert!(!known.may_hold_messages());
    assert_eq!(known.parts(), read.parts());
}

#[test]
fn a_file_that_changed_or_is_not_known_is_read() {
    let dir = corpus();
    let mut told = discover(dir.path(), &Scans::default()).scans();
    for scan in &mut told.0 {
        scan.digest = Digest::of(b"another");
    }
    put(dir.path(), "a.txt", "three");
    put(dir.path(), "e.txt", "four");
    let found = discover(dir.path(), &told);
    let of = |source: &str| {
        let mut files = found.files().iter();
        files.find(|file| &*file.source == source).unwrap().digest
    };
    assert_eq!(of("a.txt"), Digest::of(b"three"));
    assert_eq!(of("e.txt"), Digest::of(b"four"));
    assert_eq!(of("b.jsonl"), Digest::of(b"another"));
}
