use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression as Codec, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, DictionaryArray, Int64Array, LargeStringArray, RecordBatch, StringArray,
    StringViewArray,
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::fs::{self, Digest};
use crate::types::{Content, Document};

pub(super) fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write_atomic(&path, bytes.as_ref()).unwrap();
    path
}

pub(super) fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 1).unwrap()
}

/// A Parquet file with an `id` column and the given columns, in row groups of `group_rows`.
pub(super) fn parquet(columns: Vec<(&str, ArrayRef)>, codec: Codec, group_rows: usize) -> Vec<u8> {
    let num_rows = columns.first().unwrap().1.len() as i64;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..num_rows));
    let columns = std::iter::once(("id", ids)).chain(columns);
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true)))
            .unwrap();
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_max_row_group_row_count(Some(group_rows))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

pub(super) fn texts(num: usize) -> Vec<String> {
    (0..num)
        .map(|n| format!("row {n} {}", "x".repeat(n % 50)))
        .collect()
}

pub(super) fn discover(inputs: &[&Path], part_bytes: Option<u64>) -> Result<Corpus, Error> {
    let inputs: Vec<_> = inputs.iter().map(|path| path.to_path_buf()).collect();
    let options = CorpusOptions {
        part_bytes,
        ..CorpusOptions::default()
    };
    Corpus::discover(&inputs, &options)
}

pub(super) fn text_of(document: &Document) -> &str {
    match &document.content {
        Content::Text(text) => text,
        other => panic!("{other:?} is no text"),
    }
}

pub(super) fn documents(corpus: &Corpus) -> Result<Vec<Document>, Error> {
    corpus
        .parts()
        .iter()
        .flat_map(|part| corpus.documents(part))
        .collect()
}

pub(super) fn read(path: &Path) -> Result<Vec<Document>, Error> {
    documents(&discover(&[path], None)?)
}

/// The message for a corpus of one file, without the folder and the hint that all bad records have.
pub(super) fn message(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let dir = TempDir::new().unwrap();
    let path = put(dir.path(), name, bytes);
    let error = read(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadData);
    let text = error.to_string();
    let hint = "\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it";
    let is_record = matches!(error, Error::BadRecord { .. });
    assert_eq!(is_record, text.ends_with(hint), "{text}");
    let text = text.strip_suffix(hint).unwrap_or(&text);
    text.replace(&format!("{}/", dir.path().display()), "")
}

/// One file of every kind; returns the sources.
fn mixed_corpus(dir: &Path) -> Vec<&'static str> {
    let lines = |from: usize, to: usize| -> String {
        (from..to)
            .map(|n| {
                format!(
                    "{{\"id\": {n}, \"text\": \"doc {n} \\u00e9{}\"}}\n",
                    "y".repeat(n % 40)
                )
            })
            .collect()
    };
    put(
        dir,
        "b/plain.jsonl",
        lines(0, 200) + "\n  \r\n" + lines(200, 300).trim_end(),
    );
    put(dir, "b/crlf.ndjson", lines(0, 30).replace('\n', "\r\n"));
    let gz = [
        gzip(lines(0, 20).as_bytes()),
        gzip(lines(20, 40).as_bytes()),
    ]
    .concat();
    put(dir, "a/two-members.jsonl.gz", gz);
    let zst = [
        zstd(lines(0, 25).as_bytes()),
        zstd(lines(25, 50).as_bytes()),
    ]
    .concat();
    put(dir, "a/two-frames.jsonl.zst", zst);
    put(dir, "a.txt", "\u{feff}plain text\r\n");
    put(dir, "a-b.md", "# Title\n");
    put(dir, "empty.txt", "");
    put(dir, "packed.txt.GZ", gzip(b"packed text"));
    let strings: ArrayRef = Arc::new(StringArray::from(texts(500)));
    put(
        dir,
        "c/snappy.parquet",
        parquet(vec![("text", strings.clone())], Codec::SNAPPY, 90),
    );
    let codec = Codec::ZSTD(ZstdLevel::try_new(1).unwrap());
    put(
        dir,
        "c/zstd.parquet",
        parquet(vec![("text", strings)], codec, 200),
    );
    put(dir, "notes.html", "<p>");
    put(dir, ".hidden.txt", "hidden");
    vec![
        "a-b.md",
        "a.txt",
        "a/two-frames.jsonl.zst",
        "a/two-members.jsonl.gz",
        "b/crlf.ndjson",
        "b/plain.jsonl",
        "c/snappy.parquet",
        "c/zstd.parquet",
        "empty.txt",
        "packed.txt.GZ",
    ]
}

#[test]
fn every_format_gives_its_documents_in_byte_order_of_sources() {
    let dir = TempDir::new().unwrap();
    let sources = mixed_corpus(dir.path());
    let corpus = discover(&[dir.path()], Some(u64::MAX)).unwrap();
    assert!(
        corpus
            .files()
            .iter()
            .map(|file| &*file.source)
            .eq(sources.iter().copied())
    );
    assert_eq!(
        corpus.left_out().unsupported,
        [dir.path().join("notes.html")]
    );
    assert_eq!(corpus.parts().len(), 1);
    for file in corpus.files() {
        let bytes = fs::read(&file.path).unwrap();
        assert_eq!(file.size_bytes, bytes.len() as u64);
        assert_eq!(file.digest, Digest::of(&bytes));
    }

    let all = documents(&corpus).unwrap();
    let of = |source: &str| -> Vec<(u64, &str)> {
        let docs = all.iter().filter(|doc| &*doc.source == source);
        docs.map(|doc| (doc.index, text_of(doc))).collect()
    };
    assert_eq!(of("a.txt"), [(0, "plain text\r\n")]);
    assert_eq!(of("a-b.md"), [(0, "# Title\n")]);
    assert_eq!(of("empty.txt"), [(0, "")]);
    assert_eq!(of("packed.txt.GZ"), [(0, "packed text")]);
    let line = |n: usize| format!("doc {n} é{}", "y".repeat(n % 40));
    for (source, num) in [
        ("a/two-members.jsonl.gz", 40),
        ("a/two-frames.jsonl.zst", 50),
        ("b/crlf.ndjson", 30),
    ] {
        let expected: Vec<_> = (0..num).map(line).collect();
        let expected = expected
            .iter()
            .enumerate()
            .map(|(n, text)| (n as u64, text.as_str()));
        assert!(of(source).into_iter().eq(expected), "{source}");
    }
    // Two blank lines after line 199 have numbers but are no documents.
    let plain = of("b/plain.jsonl");
    assert_eq!(plain.len(), 300);
    assert_eq!(plain[199], (199, line(199).as_str()));
    assert_eq!(plain[200], (202, line(200).as_str()));
    for source in ["c/snappy.parquet", "c/zstd.parquet"] {
        let expected = texts(500);
        let expected = expected
            .iter()
            .enumerate()
            .map(|(n, text)| (n as u64, text.as_str()));
        assert!(of(source).into_iter().eq(expected), "{source}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn parts_of_any_size_hold_the_same_documents_as_one_part(exponent in 0_f64..16.0) {
        let part_bytes = exponent.exp2() as u64;
        let dir = TempDir::new().unwrap();
        mixed_corpus(dir.path());
        let whole = discover(&[dir.path()], Some(u64::MAX)).unwrap();
        let corpus = discover(&[dir.path()], Some(part_bytes)).unwrap();
        prop_assert_eq!(documents(&corpus).unwrap(), documents(&whole).unwrap());
        let again = discover(&[dir.path()], Some(part_bytes)).unwrap();
        prop_assert_eq!(corpus.parts(), again.parts());
        prop_assert_eq!(corpus.files(), again.files());
        for (index, part) in corpus.parts().iter().enumerate() {
            prop_assert_eq!(part.index as usize, index);
            prop_assert!(!part.slices.is_empty());
            prop_assert!(part.size_bytes <= part_bytes || part.slices.len() == 1);
        }
        let bytes: u64 = corpus.parts().iter().map(|part| part.size_bytes).sum();
        prop_assert_eq!(bytes, whole.parts()[0].size_bytes);
    }

    #[test]
    fn no_bytes_make_the_jsonl_reader_panic(lines in prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..30),
            r#"\{"text": ?("[a-z\\\\]{0,5}"|[0-9\[\]{}]{0,6}),?("k":1)?\}?"#.prop_map(String::into_bytes),
        ],
        1..6,
    )) {
        let dir = TempDir::new().unwrap();
        let path = put(dir.path(), "x.jsonl", lines.join(&b'\n'));
        let _ = read(&path);
    }

    #[test]
    fn a_damaged_parquet_or_compressed_file_is_an_error_or_reads(
        at in 0_f64..1.0, byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let strings: ArrayRef = Arc::new(StringArray::from(texts(100)));
        let files = [
            ("x.parquet", parquet(vec![("text", strings)], Codec::SNAPPY, 30)),
            ("x.jsonl.gz", gzip(b"{\"text\": \"abc\"}\n")),
            ("x.jsonl.zst", zstd(b"{\"text\": \"abc\"}\n")),
        ];
        for (name, mut bytes) in files {
            let at = (at * bytes.len() as f64) as usize;
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let dir = TempDir::new().unwrap();
            let path = put(dir.path(), name, bytes);
            if let Err(error) = read(&path) {
                prop_assert_eq!(error.kind(), ErrorKind::BadData);
            }
        }
    }
}

#[test]
fn string_columns_of_every_arrow_type_are_read() {
    let texts = texts(150);
    let strings = || texts.iter().map(String::as_str);
    let columns: [(&str, ArrayRef); 4] = [
        ("utf8", Arc::new(StringArray::from_iter_values(strings()))),
        (
            "large",
            Arc::new(LargeStringArray::from_iter_values(strings())),
        ),
        (
            "view",
            Arc::new(StringViewArray::from_iter_values(strings())),
        ),
        (
            "dictionary",
            Arc::new(strings().collect::<DictionaryArray<Int32Type>>()),
        ),
    ];
    let dir = TempDir::new().unwrap();
    let path = put(
        dir.path(),
        "x.parquet",
        parquet(columns.to_vec(), Codec::SNAPPY, 40),
    );
    for (text_field, _) in columns {
        let options = CorpusOptions {
            text_field: Some(text_field.to_owned()),
            part_bytes: Some(1),
            ..CorpusOptions::default()
        };
        let corpus = Corpus::discover(std::slice::from_ref(&path), &options).unwrap();
        assert_eq!(corpus.parts().len(), 4);
        let read = documents(&corpus).unwrap();
        assert!(read.iter().map(text_of).eq(strings()), "{text_field}");
        assert!(read.iter().map(|doc| doc.index).eq(0..150));
    }
}

#[test]
fn several_inputs_carry_the_folder_name_and_collisions_are_refused() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    put(root, "one/x.txt", "1");
    put(root, "two/sub/x.txt", "2");
    put(root, "far/one/x.txt", "3");
    let file = put(root, "z.txt", "4");
    let corpus = discover(&[&root.join("two/"), &root.join("one/../one"), &file], None).unwrap();
    let sources: Vec<_> = corpus.files().iter().map(|file| &*file.source).collect();
    assert_eq!(sources, ["one/x.txt", "two/sub/x.txt", "z.txt"]);
    let corpus = discover(&[&root.join("two/sub/.."), &root.join("one")], None).unwrap();
    assert_eq!(&*corpus.files()[1].source, "two/sub/x.txt");

    let error = discover(&[&root.join("one"), &root.join("far/one")], None).unwrap_err();
    assert_eq!(
        error.to_string().replace(&root.display().to_string(), ""),
        "/one/x.txt and /far/one/x.txt would both be called \"one/x.txt\" in the output; rename \
         one, or give their common parent folder as the only input"
    );
}

#[test]
fn inputs_that_are_missing_unsupported_or_empty_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let gone = root.join("gone");
    let error = discover(&[&gone], None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert_eq!(
        error.to_string(),
        format!("no such file or folder: {}", gone.display())
    );

    assert_eq!(
        message("x.html", "{}"),
        "x.html: a file of this type is not supported; supported are .txt, .md, .jsonl, \
         .ndjson, .json, .parquet and .arrow (each plain, .gz or .zst), .npy and .bin\nhint: if it \
         is text, --text-ext html reads it, as one document"
    );
    let empty = || {
        let error = discover(&[root], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadData);
        error.to_string()
    };
    assert!(empty().starts_with("empty corpus: no file was found"));
    put(root, "x.pdf", "x");
    assert!(empty().starts_with("empty corpus: none of the 1 files found is of a supported type"));
    put(root, "x.txt", "");
    assert!(empty().starts_with("empty corpus: all 1 supported files are empty"));
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff.txt"));
    fs::write_atomic(&path, b"x").unwrap();
    for input in [dir.path(), &path] {
        let error = discover(&[input], None).unwrap_err();
        assert!(matches!(&error, Error::NameNotUtf8 { path: named } if *named == path));
    }
}

#[test]
fn a_file_that_changed_since_discovery_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = put(dir.path(), "x.txt", "abc");
    let corpus = discover(&[&path], None).unwrap();
    put(dir.path(), "x.txt", "abcd");
    let error = documents(&corpus).unwrap_err();
    assert!(
        error.to_string().contains("it had 3 bytes and now has 4"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(documents(&corpus).unwrap_err().kind(), ErrorKind::Missing);
}

#[test]
fn jsonl_errors_name_file_line_and_way_out() {
    let good = "{\"text\": \"a\"}\n\n";
    assert_eq!(
        message("x.jsonl", format!("{good}{{\"text\": \"a\"")),
        "x.jsonl, line 3: not valid JSON: EOF while parsing an object (column 12)"
    );
    assert_eq!(
        message("x.jsonl", format!("{good}{{\"text\": \"a\"}} 1\n")),
        "x.jsonl, line 3: not valid JSON: trailing characters (column 15)"
    );
    assert_eq!(
        message(
            "x.jsonl.zst",
            zstd(format!("{good}{{\"content\": \"a\", \"id\": [1]}}\n").as_bytes())
        ),
        "x.jsonl.zst, line 3: no field \"text\"; the record has \"content\", \"id\"; name the field \
         that holds the text with --text-field"
    );
    assert_eq!(
        message("x.jsonl", "{}\n"),
        "x.jsonl, line 1: no field \"text\"; the record has none; name the field that holds the \
         text with --text-field"
    );
    for (value, found) in [
        ("null", "null"),
        ("1", "a number"),
        ("-1.5", "a number"),
        ("true", "a boolean"),
        ("[\"a\"]", "an array"),
        ("{\"a\": 1}", "an object"),
    ] {
        assert_eq!(
            message("x.jsonl", format!("{{\"text\": {value}}}\n")),
            format!(
                "x.jsonl, line 1: the field \"text\" is {found}, not a string; name the field that \
                 holds the text with --text-field"
            )
        );
        if found != "an object" {
            assert_eq!(
                message("x.jsonl", format!("{value}\n")),
                format!(
                    "x.jsonl, line 1: expected an object like {{\"text\": \"...\"}}, found {found}"
                )
            );
        }
    }
    assert_eq!(
        message("x.jsonl", "{\"text\": \"a\", \"text\": \"b\"}\n"),
        "x.jsonl, line 1: not valid JSON: duplicate field \"text\" (column 20)"
    );
}

#[test]
fn bytes_that_are_not_utf8_are_located() {
    assert_eq!(
        message("x.md", b"\xef\xbb\xbfab\nc\xffd"),
        "x.md, line 2: not valid UTF-8 at byte 7 of the text; convert the file to UTF-8"
    );
    assert_eq!(
        message(
            "x.jsonl.gz",
            gzip(b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n")
        ),
        "x.jsonl.gz, line 2: not valid UTF-8 at byte 24 of the text; convert the file to UTF-8"
    );
    assert_eq!(
        message("x.jsonl", b"\xef\xbb\xbf{\"text\": \"\xe9\"}\n"),
        "x.jsonl, line 1: not valid UTF-8 at byte 13 of the text; convert the file to UTF-8"
    );
}

#[test]
fn a_byte_order_mark_and_empty_text_are_no_trouble() {
    let dir = TempDir::new().unwrap();
    let path = put(
        dir.path(),
        "x.jsonl",
        "\u{feff}{\"text\": \"a\"}\n{\"text\": \"\"}",
    );
    let read = read(&path).unwrap();
    let read: Vec<_> = read.iter().map(|doc| (doc.index, text_of(doc))).collect();
    assert_eq!(read, [(0, "a"), (1, "")]);
}

#[test]
fn cut_off_compressed_files_are_errors_with_the_decoders_reason() {
    // Incompressible enough that the cut is inside a block.
    let text: String = (0..5000_u32)
        .map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)))
        .collect();
    for (name, mut bytes, kind) in [
        ("x.txt.gz", gzip(text.as_bytes()), "gzip"),
        ("x.txt.zst", zstd(text.as_bytes()), "zstd"),
    ] {
        bytes.truncate(bytes.len() / 2);
        let expected = format!("{name}: the {kind} data is damaged or cut short");
        assert_eq!(message(name, &bytes), expected);
        let dir = TempDir::new().unwrap();
        let error = read(&put(dir.path(), name, &bytes)).unwrap_err();
        assert!(std::error::Error::source(&error).is_some());
    }
    assert_eq!(
        message("x.txt.gz", b"\x1f\x8b gzip in name only"),
        "x.txt.gz: the gzip data is damaged or cut short"
    );
}

#[test]
fn a_compressed_file_without_a_byte_is_an_error_beside_others() {
    for name in ["b.jsonl.gz", "b.txt.zst"] {
        let dir = TempDir::new().unwrap();
        put(dir.path(), "a.txt", "a");
        put(dir.path(), name, "");
        let error = read(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Decompress { .. }), "{error}");
    }
}

#[test]
fn records_beyond_the_limit_are_errors_and_at_the_limit_are_read() {
    let dir = TempDir::new().unwrap();
    put(
        dir.path(),
        "a.jsonl",
        "{\"text\":\"aaaa\"}\n{\"text\":\"aaaaa\"}\n",
    );
    put(dir.path(), "b.txt", "x".repeat(16));
    put(dir.path(), "c.jsonl", "{\"text\":\"c\"}");
    let read = |max_record_bytes| {
        let options = CorpusOptions {
            max_record_bytes,
            ..CorpusOptions::default()
        };
        let corpus = Corpus::discover(&[dir.path().to_owned()], &options).unwrap();
        let read: Vec<_> = corpus.documents(&corpus.parts()[0]).collect();
        read
    };
    assert!(read(16).iter().all(Result::is_ok));
    // A record that can't be read does not end the file, nor the part.
    let read = read(15);
    let good: Vec<_> = read.iter().flatten().map(text_of).collect();
    assert_eq!(good, ["aaaa", "c"]);
    let bad: Vec<_> = read.iter().filter_map(|read| read.as_ref().err()).collect();
    let message = bad[0].to_string();
    assert!(
        message.contains("a.jsonl, line 2: longer than 15 bytes"),
        "{message}"
    );
    let rejects: Vec<_> = bad.iter().map(|error| error.reject("s").unwrap()).collect();
    assert_eq!(rejects[0].doc_index, 1);
    assert_eq!(rejects[1].reason, rejects[0].reason);
    assert!(!rejects[1].reason.contains("b.txt"));
}

#[test]
fn parquet_errors_name_column_row_and_way_out() {
    let strings = |texts: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(texts)) };
    let file = |name, column| parquet(vec![(name, column)], Codec::SNAPPY, 2);
    assert_eq!(
        message("x.parquet", file("content", strings(vec![Some("a")]))),
        "x.parquet: no column \"text\"; the file has \"id\", \"content\"; name the column that \
         holds the text with --text-field"
    );
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert_eq!(
        message("x.parquet", file("text", numbers)),
        "x.parquet: the column \"text\" is of type Int64, not a string or a list of integers; name the \
         column that holds the text or the token ids with --text-field"
    );
    assert_eq!(
        message(
            "x.parquet",
            file("text", strings(vec![Some("a"), Some("b"), None]))
        ),
        "x.parquet, row 2: the text in column \"text\" is null; remove the row"
    );
    assert_eq!(
        message("x.parquet", "PAR1 or not"),
        "x.parquet: not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer"
    );
    let mut cut = file("text", strings(vec![Some("a")]));
    cut.truncate(cut.len() - 20);
    assert_eq!(
        message("x.parquet", cut),
        "x.parquet: not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer"
    );
}

#[test]
fn documents_can_be_read_on_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Documents<'_>>();
    is_send::<Error>();
}
