//! Corpora as they lie about: files that are none, files under other names, files that are there twice.

use std::path::Path;

use tempfile::TempDir;

use super::tests::{documents, gzip, message, put, read, text_of, zstd};
use super::*;
use crate::fs::NamePattern;

const LINE: &str = "{\"text\": \"a\"}\n";

fn patterns(patterns: &[&str]) -> Vec<NamePattern> {
    let parse = |pattern: &&str| NamePattern::new(pattern).unwrap();
    patterns.iter().map(parse).collect()
}

fn select(dir: &Path, include: &[&str], exclude: &[&str]) -> Result<Corpus, Error> {
    let options = CorpusOptions {
        include: patterns(include),
        exclude: patterns(exclude),
        ..CorpusOptions::default()
    };
    Corpus::discover(&[dir.to_owned()], &options)
}

fn sources(corpus: &Corpus) -> Vec<&str> {
    corpus.files().iter().map(|file| &*file.source).collect()
}

#[test]
fn json_files_hold_a_record_a_line_packed_or_not() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "a.json", LINE);
    put(dir.path(), "b.json.gz", gzip(LINE.as_bytes()));
    put(dir.path(), "c.JSON.zst", zstd(LINE.as_bytes()));
    let texts = read(dir.path()).unwrap();
    assert_eq!(texts.iter().map(text_of).collect::<Vec<_>>(), ["a"; 3]);
    for (name, bytes, shown) in [
        (
            "x.json",
            b"[{\"text\": \"a\"}]".to_vec(),
            "jq -c '.[]' x.json > x.jsonl",
        ),
        (
            "x.jsonl",
            b"[\n{\"text\": \"a\"}\n]".to_vec(),
            "jq -c '.[]' x.jsonl > x.jsonl",
        ),
        (
            "x.json.gz",
            gzip(b"\n [1]"),
            "gzip -dc x.json.gz | jq -c '.[]' > x.jsonl",
        ),
        (
            "x.json",
            b"{\n  \"text\": \"a\"\n}".to_vec(),
            "jq -c . x.json > x.jsonl",
        ),
    ] {
        let found = message(name, bytes);
        assert!(
            found.contains("expected one JSON object per line\nhint: ") && found.contains(shown),
            "{found}"
        );
    }
}

#[test]
fn what_lies_beside_data_is_no_corpus_and_text_alone_is() {
    let dir = TempDir::new().unwrap();
    for name in [
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "notes.txt",
        "data/dataset_info.json",
    ] {
        put(dir.path(), name, "{\"x\": 1}");
    }
    put(dir.path(), "essays/README.md", "Read this.");
    put(dir.path(), "data/a.jsonl", LINE);
    let corpus = select(dir.path(), &[], &[]).unwrap();
    assert_eq!(
        sources(&corpus),
        ["data/a.jsonl", "essays/README.md", "notes.txt"]
    );
    let beside: Vec<_> = corpus
        .left_out()
        .beside
        .iter()
        .map(|path| path.strip_prefix(dir.path()).unwrap())
        .collect();
    assert_eq!(
        beside,
        [
            "LICENSE",
            "LICENSE.txt",
            "README.md",
            "data/dataset_info.json"
        ]
        .map(Path::new)
    );
    // What is asked for is read.
    let named = Corpus::discover(
        &[
            dir.path().join("README.md"),
            dir.path().join("data/a.jsonl"),
        ],
        &CorpusOptions::default(),
    )
    .unwrap();
    assert_eq!(sources(&named), ["README.md", "a.jsonl"]);
    let included = select(dir.path(), &["*.md", "a.jsonl"], &["essays"]).unwrap();
    assert_eq!(sources(&included), ["README.md", "data/a.jsonl"]);
    assert_eq!(included.left_out().num_excluded, 5);
}

#[test]
fn patterns_choose_files_and_those_that_match_none_are_known() {
    let dir = TempDir::new().unwrap();
    for name in ["a/x.jsonl", "b/y.jsonl", "b/z.txt"] {
        put(dir.path(), name, LINE);
    }
    let chosen = |include: &[&str], exclude: &[&str]| {
        let corpus = select(dir.path(), include, exclude).unwrap();
        sources(&corpus)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(chosen(&["*.jsonl"], &[]), ["a/x.jsonl", "b/y.jsonl"]);
    assert_eq!(chosen(&[], &["b"]), ["a/x.jsonl"]);
    assert_eq!(chosen(&["b/*"], &["*.txt"]), ["b/y.jsonl"]);
    let corpus = select(dir.path(), &["*.jsonl", "*.parquet"], &["c/"]).unwrap();
    assert_eq!(
        corpus.left_out().idle_patterns,
        ["--include *.parquet", "--exclude c/"]
    );
    let error = select(dir.path(), &["none"], &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("empty corpus: --include and --exclude leave out all 3 files found"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_file_that_is_reached_twice_is_refused_with_both_ways() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let file = put(root, "corpus/a.jsonl", LINE);
    let refused = |inputs: &[&Path]| {
        let inputs: Vec<_> = inputs.iter().map(|path| path.to_path_buf()).collect();
        let error = Corpus::discover(&inputs, &CorpusOptions::default()).unwrap_err();
        assert!(matches!(error, Error::SameFile { .. }), "{error}");
        error
            .to_string()
            .replace(&format!("{}/", root.display()), "")
    };
    assert!(refused(&[&root.join("corpus"), &file]).starts_with("corpus/a.jsonl was given twice;"));
    assert!(
        refused(&[&root.join("corpus"), &root.join("corpus/../corpus")])
            .contains("corpus/a.jsonl and corpus/../corpus/a.jsonl are the same file")
    );
    for (link, name) in [(true, "hub/r1/a.jsonl"), (false, "hub/r2/a.jsonl")] {
        let link_path = root.join(name);
        fs_create(&link_path, &file, link);
        assert!(
            refused(&[&root.join("corpus"), &root.join("hub")])
                .starts_with(&format!("corpus/a.jsonl and {name} are the same file"))
        );
        crate::fs::remove_file(&link_path).unwrap();
    }
    // A copy is a file of its own, and told.
    put(root, "corpus/copy.jsonl", LINE);
    let corpus = select(&root.join("corpus"), &[], &[]).unwrap();
    let copies: Vec<_> = corpus
        .copies()
        .iter()
        .map(|(first, copy)| (&*first.source, &*copy.source))
        .collect();
    assert_eq!(copies, [("a.jsonl", "copy.jsonl")]);
}

#[cfg(unix)]
#[expect(clippy::disallowed_methods, reason = "nothing else makes links")]
fn fs_create(link: &Path, target: &Path, symbolic: bool) {
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    if symbolic {
        std::os::unix::fs::symlink(target, link).unwrap();
    } else {
        std::fs::hard_link(target, link).unwrap();
    }
}

#[test]
fn files_under_another_name_are_called_what_they_are() {
    let utf16: Vec<u8> = LINE.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark = [b"\xff\xfe".as_slice(), &utf16].concat();
    let mut tar = vec![b'x'; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n";
    for (name, bytes, expected) in [
        (
            "x.jsonl",
            gzip(LINE.as_bytes()),
            "gzip data, which its name does not say\nhint: rename it to x.jsonl.gz",
        ),
        (
            "x.txt",
            zstd(b"text"),
            "zstd data, which its name does not say\nhint: rename it to x.txt.zst",
        ),
        (
            "x.jsonl.gz",
            zstd(b"text"),
            "zstd data, which its name does not say\nhint: rename it to x.jsonl.zst",
        ),
        (
            "x.jsonl.zst",
            gzip(b"text"),
            "gzip data, which its name does not say\nhint: rename it to x.jsonl.gz",
        ),
        (
            "x.jsonl.zst",
            b"BZh91AY&SY".to_vec(),
            "bzip2 data, which its name does not say\nhint: bzip2 -dc x.jsonl.zst > unpacked-x.jsonl",
        ),
        (
            "x.jsonl",
            b"\xfd7zXZ\x00\x00\x04".to_vec(),
            "xz data, which its name does not say\nhint: xz -dc x.jsonl > unpacked-x.jsonl",
        ),
        (
            "x.jsonl",
            b"PK\x03\x04\x14\x00".to_vec(),
            "a ZIP archive, which its name does not say\nhint: unpack it, and give the folder",
        ),
        (
            "x.jsonl.gz",
            gzip(&tar),
            "in the gzip data is a tar archive, which its name does not say\nhint: unpack it, and give the folder",
        ),
        (
            "x.jsonl.gz",
            gzip(&gzip(LINE.as_bytes())),
            "in the gzip data is gzip data, which its name does not say\nhint: it was packed twice: unpack it once",
        ),
        (
            "x.jsonl.gz",
            LINE.into(),
            "no compressed data, which its name does not say\nhint: rename it to x.jsonl",
        ),
        (
            "x.parquet",
            pointer.to_vec(),
            "a pointer of Git LFS or git-annex, not the data itself\nhint: fetch the data with git lfs pull, git annex get or hf download",
        ),
        (
            "x.txt",
            pointer.to_vec(),
            "a pointer of Git LFS or git-annex, not the data itself\nhint: fetch the data with git lfs pull, git annex get or hf download",
        ),
        (
            "x.npy",
            pointer.to_vec(),
            "a pointer of Git LFS or git-annex, not the data itself\nhint: fetch the data with git lfs pull, git annex get or hf download",
        ),
        (
            "x.jsonl.gz",
            pointer.to_vec(),
            "a pointer of Git LFS or git-annex, not the data itself\nhint: fetch the data with git lfs pull, git annex get or hf download",
        ),
        (
            "x.txt",
            with_mark.clone(),
            "text in UTF-16; expected UTF-8\nhint: iconv -f UTF-16 -t UTF-8 x.txt > converted-x.txt",
        ),
        (
            "x.txt",
            utf16.clone(),
            "text in UTF-16; expected UTF-8\nhint: iconv -f UTF-16 -t UTF-8 x.txt > converted-x.txt",
        ),
        (
            "x.jsonl.zst",
            zstd(&with_mark),
            "in the zstd data is text in UTF-16; expected UTF-8\nhint: zstd -dc x.jsonl.zst | iconv -f UTF-16 -t UTF-8 > converted-x.jsonl",
        ),
        (
            "x.jsonl",
            b"PAR1\x15\x04".to_vec(),
            "a Parquet file, which its name does not say\nhint: rename it to x.parquet",
        ),
        (
            "x.jsonl",
            b"<!DOCTYPE html>".to_vec(),
            "HTML or XML, which its name does not say\nhint: if a download gave it, look into it: it may be an error page",
        ),
    ] {
        assert_eq!(message(name, bytes), format!("{name}: {expected}"));
    }
}

#[test]
fn what_other_writers_call_json_is_named() {
    for (line, expected) in [
        (
            "{\"text\": \"a\", \"score\": NaN}",
            "NaN is no JSON, though Python's json.dumps writes it",
        ),
        (
            "{\"score\": -Infinity, \"text\": \"a\"}",
            "Infinity is no JSON, though",
        ),
        ("{\"text\": None}", "None is Python, not JSON"),
        ("{'text': 'a'}", "JSON has double quotes"),
        (
            "{\"text\": \"a \\ud83d b\"}",
            "\\ud83d is half of a surrogate pair",
        ),
        (
            "{\"text\": \"a \\udc00\"}",
            "\\udc00 is half of a surrogate pair",
        ),
        (
            "{\"text\": \"a \\ud83d\\u0041\"}",
            "\\ud83d is half of a surrogate pair",
        ),
    ] {
        let found = message("x.jsonl", format!("{line}\n"));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn zeros_after_and_between_members_of_gzip_are_skipped_and_anything_else_is_not() {
    let dir = TempDir::new().unwrap();
    let member = gzip(LINE.as_bytes());
    let zeros = vec![0; 300_000];
    for parts in [
        vec![&member, &zeros],
        vec![&member, &zeros, &member],
        vec![&member, &member, &zeros, &member, &zeros],
    ] {
        let members = parts.iter().filter(|part| ***part == member).count();
        let path = put(
            dir.path(),
            "x.jsonl.gz",
            parts.into_iter().flatten().copied().collect::<Vec<u8>>(),
        );
        let corpus = Corpus::discover(&[path], &CorpusOptions::default()).unwrap();
        assert_eq!(documents(&corpus).unwrap().len(), members);
    }
    let garbage = [member.as_slice(), b"garbage"].concat();
    assert_eq!(
        message("x.jsonl.gz", garbage),
        "x.jsonl.gz: the gzip data is damaged or cut short"
    );
}
