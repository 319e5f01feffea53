//! Tables: compressed whole, with dictionaries, with codecs that are not there; and files that are
//! written to while they are read.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::parquet::basic::Compression as Codec;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, RecordBatch, StringArray};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use tempfile::TempDir;

use super::tests::{discover, documents, gzip, message, parquet, put, read, text_of, texts, zstd};
use super::*;
use crate::fs::Digest;

fn batches(num_rows: usize, rows: usize) -> Vec<RecordBatch> {
    let texts = texts(num_rows);
    let batch = |texts: &[String]| {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        RecordBatch::try_from_iter([("text", column)]).unwrap()
    };
    texts.chunks(rows).map(batch).collect()
}

fn arrow_file(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = FileWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches
        .iter()
        .for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

fn arrow_stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches
        .iter()
        .for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

#[test]
fn a_compressed_table_is_cut_and_read_as_the_table_in_it() {
    let strings: ArrayRef = Arc::new(StringArray::from(texts(300)));
    let batches = batches(300, 70);
    for (name, bytes) in [
        (
            "x.parquet",
            parquet(vec![("text", strings)], Codec::SNAPPY, 70),
        ),
        ("x.arrow", arrow_file(&batches)),
        ("y.arrow", arrow_stream(&batches)),
    ] {
        let dir = TempDir::new().unwrap();
        let plain = discover(&[&put(dir.path(), name, &bytes)], Some(1)).unwrap();
        assert_eq!(plain.parts().len(), 5, "{name}");
        for (suffix, packed) in [("gz", gzip(&bytes)), ("zst", zstd(&bytes))] {
            let name = format!("{name}.{suffix}");
            let path = put(dir.path(), &name, &packed);
            let corpus = discover(&[&path], Some(1)).unwrap();
            assert_eq!(corpus.parts(), plain.parts(), "{name}");
            assert_eq!(corpus.files()[0].digest, Digest::of(&packed));
            // One reader for all parts unpacks once; one a part, each time.
            let mut reader = corpus.reader();
            let mut by_one = Vec::new();
            for part in corpus.parts() {
                reader.begin(part);
                by_one.extend(reader.by_ref().map(|document| document.unwrap()));
            }
            assert_eq!(by_one, documents(&corpus).unwrap());
            let read = by_one
                .iter()
                .map(|document| (document.index, text_of(document)));
            let expected = texts(300);
            assert!(
                read.eq((0..).zip(expected.iter().map(String::as_str))),
                "{name}"
            );
        }
    }
}

#[test]
fn a_compressed_table_is_damaged_where_its_stream_or_what_is_in_it_is() {
    let strings: ArrayRef = Arc::new(StringArray::from(texts(300)));
    let bytes = parquet(vec![("text", strings)], Codec::SNAPPY, 70);
    let packed = gzip(&bytes);
    let found = message("x.parquet.gz", &packed[..packed.len() - 20]);
    assert_eq!(found, "x.parquet.gz: the gzip data is damaged or cut short");
    let found = message("x.parquet.zst", zstd(&bytes[..bytes.len() - 9]));
    assert_eq!(
        found,
        "x.parquet.zst: not a readable Parquet file: Parquet error: Invalid Parquet file. Corrupt footer"
    );
    let found = message("x.arrow.gz", b"ARROW1");
    assert_eq!(
        found,
        "x.arrow.gz: no compressed data, which its name does not say\nhint: rename it to x.arrow"
    );
}

#[test]
fn a_table_that_unpacks_to_far_too_much_is_refused_before_it_is_all_there() {
    let zeros = || io::repeat(0).take(1 << 30);
    let bomb = zstd::encode_all(zeros(), 1).unwrap();
    for name in ["x.parquet.zst", "x.arrow.zst"] {
        let found = message(name, &bomb);
        assert!(
            found.starts_with(&format!(
                "{name}: the zstd data unpacks to more than 256 times its size; "
            )),
            "{found}"
        );
    }
}

#[test]
fn a_codec_that_is_not_built_in_is_named_with_its_column() {
    let strings: ArrayRef = Arc::new(StringArray::from(texts(30)));
    let mut bytes = parquet(vec![("text", strings)], Codec::SNAPPY, 30);
    // In the footer: the column's name, and the number of the codec, 1, as Thrift writes it.
    let codec = memchr::memmem::rfind(&bytes, b"text\x15\x02\x16").unwrap() + 5;
    for (number, name) in [(4, "brotli"), (3, "lzo")] {
        bytes[codec] = 2 * number;
        assert_eq!(
            message("x.parquet", &bytes),
            format!(
                "x.parquet: the column \"text\" is compressed with {name}, which is not supported; \
                 supported are zstd, snappy, gzip, lz4 and none: write the file again with one of them"
            )
        );
    }
}

/// Looking a row up made the keys of all rows anew, so that time grew with their square: twice as many
/// rows took four times as long, 200,000 of them half a minute.
#[test]
fn the_time_for_a_dictionary_grows_with_its_rows() {
    let rows = 200_000;
    let dir = TempDir::new().unwrap();
    let strings = || (0..rows).map(|row| ["one", "two", "three"][row % 3]);
    let mut took = Vec::new();
    for (name, column) in [
        (
            "plain.arrow",
            Arc::new(StringArray::from_iter_values(strings())) as ArrayRef,
        ),
        (
            "dictionary.arrow",
            Arc::new(strings().collect::<DictionaryArray<Int32Type>>()),
        ),
    ] {
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let path = put(dir.path(), name, arrow_file(&[batch]));
        let started = Instant::now();
        let documents = read(&path).unwrap();
        took.push(started.elapsed());
        assert!(documents.iter().map(text_of).eq(strings()), "{name}");
    }
    assert!(
        took[1] < 5 * took[0] + Duration::from_secs(1),
        "plain and as a dictionary: {took:?}"
    );
}

#[test]
fn a_dictionary_has_nulls_in_keys_and_in_values() {
    let dir = TempDir::new().unwrap();
    let column: DictionaryArray<Int32Type> = [Some("a"), None, Some("b")].into_iter().collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(column) as ArrayRef)]).unwrap();
    let path = put(dir.path(), "x.arrow", arrow_file(&[batch]));
    let corpus = discover(&[&path], None).unwrap();
    let read: Vec<_> = corpus.documents(&corpus.parts()[0]).collect();
    assert_eq!(text_of(read[0].as_ref().unwrap()), "a");
    let error = read[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("row 1: the text in column \"text\" is null"));
    assert_eq!(text_of(read[2].as_ref().unwrap()), "b");
}

/// Writes into a file that is there, and gives it its old time back; as long as clocks are coarse, that
/// is not sooner than some milliseconds after it was made.
fn rewrite(path: &Path, bytes: &[u8]) {
    std::thread::sleep(Duration::from_millis(30));
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    io::Write::write_all(&mut file, bytes).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_file_that_is_written_to_is_noticed_though_its_size_stays() {
    let lines = |letter: &str| {
        let line = format!("{{\"text\": \"{}\"}}\n", letter.repeat(1000));
        line.repeat(1000)
    };
    let strings = |letter: &str| -> Vec<u8> {
        let texts: Vec<_> = (0..3000).map(|_| letter.repeat(100)).collect();
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        parquet(vec![("text", column)], Codec::UNCOMPRESSED, 100)
    };
    for (name, before, after) in [
        ("x.jsonl", lines("a").into_bytes(), lines("b").into_bytes()),
        ("x.parquet", strings("a"), strings("b")),
        ("x.txt", b"aaa".to_vec(), b"bbb".to_vec()),
    ] {
        assert_eq!(before.len(), after.len());
        let dir = TempDir::new().unwrap();
        let path = put(dir.path(), name, &before);
        let expected = format!(
            "{}: the file changed while it was in use: it has {} bytes as before, but was written to; \
             start again once nothing writes to the corpus",
            path.display(),
            before.len()
        );
        let corpus = discover(&[&path], None).unwrap();
        let mut reader = corpus.documents(&corpus.parts()[0]);
        reader.next().unwrap().unwrap();
        rewrite(&path, &after);
        let error = reader.find_map(Result::err).unwrap();
        assert_eq!(error.to_string(), expected, "in the middle of {name}");
        let error = documents(&corpus).unwrap_err();
        assert_eq!(error.to_string(), expected, "before {name}");
        assert_eq!(error.kind(), ErrorKind::BadData);
        documents(&discover(&[&path], None).unwrap()).unwrap();
    }
}
