//! Parsers of other libraries panic on some damaged files. Nothing of it gets out: the error names the
//! file, and no panic is printed.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_ipc::CompressionType;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::harness::{ANNEAL, Ended, INSPECT, SCORE, Workspace};

const BAD_DATA: i32 = 65;

/// Most flips of a file that the programs are run with.
const MAX_RUNS: usize = 5;

fn by_parquet(bytes: Bytes) {
    if let Ok(builder) = ParquetRecordBatchReaderBuilder::try_new(bytes)
        && let Ok(reader) = builder.build()
    {
        reader.take_while(Result::is_ok).for_each(drop);
    }
}

fn by_arrow_file(bytes: Bytes) {
    if let Ok(reader) = FileReader::try_new(Cursor::new(bytes), None) {
        reader.take_while(Result::is_ok).for_each(drop);
    }
}

fn by_arrow_stream(bytes: Bytes) {
    if let Ok(reader) = StreamReader::try_new(Cursor::new(bytes), None) {
        reader.take_while(Result::is_ok).for_each(drop);
    }
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    damaged
}

/// Bits whose flip makes a parser panic when nothing guards it; from the end, where footers are.
fn panicking(bytes: &[u8], parse: impl Fn(Bytes)) -> Vec<usize> {
    let panics = |bit: &usize| {
        let damaged = Bytes::from(flipped(bytes, *bit));
        catch_unwind(AssertUnwindSafe(|| parse(damaged))).is_err()
    };
    let bits = (0..bytes.len() * 8).rev().step_by(5);
    bits.take(20_000).filter(panics).take(MAX_RUNS).collect()
}

#[track_caller]
fn check_refused(ended: &Ended, name: &str) {
    ended.check(ended.status.code() == Some(BAD_DATA), "it is bad data");
    ended.check(
        !ended.stderr.contains("panicked") && !ended.stderr.contains("RUST_BACKTRACE"),
        "no panic is printed",
    );
    ended.check(ended.stderr.contains(name), "the file is named");
    ended.check(ended.stdout.is_empty(), "there is no result");
}

fn texts(num: usize) -> RecordBatch {
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..num).map(|n| format!("{n} and {n} is {}.", n + n)),
    ));
    RecordBatch::try_from_iter([("text", texts)]).unwrap()
}

fn parquet_file(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_file(batch: &RecordBatch, codec: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default()
        .try_with_compression(codec)
        .unwrap();
    let mut writer =
        FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_stream(batch: &RecordBatch, codec: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default()
        .try_with_compression(codec)
        .unwrap();
    let mut writer =
        StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn a_corpus_that_makes_a_parser_panic_is_named_and_nothing_is_printed() {
    let workspace = Workspace::new();
    let batch = texts(40);
    let mut panics = 0;
    for (name, bytes, parse) in [
        ("t.parquet", parquet_file(&batch), by_parquet as fn(Bytes)),
        ("t.arrow", arrow_file(&batch, None), by_arrow_file),
        ("s.arrow", arrow_stream(&batch, None), by_arrow_stream),
    ] {
        workspace.write(name, &bytes);
        workspace.command(SCORE).arg(name).args("-o intact").ok();
        workspace.remove("intact");
        for bit in panicking(&bytes, parse) {
            panics += 1;
            workspace.write(name, flipped(&bytes, bit));
            let ended = workspace.command(SCORE).arg(name).args("-o out").run();
            check_refused(&ended, name);
        }
    }
    assert!(
        panics > 0,
        "no flip makes a parser panic: nothing was tested"
    );
}

#[test]
fn a_shard_that_makes_a_parser_panic_before_there_is_a_manifest_is_named_too() {
    let mut panics = 0;
    for (format, parse) in [
        ("parquet", by_parquet as fn(Bytes)),
        ("arrow", by_arrow_file),
    ] {
        let workspace = Workspace::new();
        workspace.write_corpus("corpus/a.jsonl", 12);
        let score = || {
            workspace
                .command(SCORE)
                .args("corpus -o set --format")
                .arg(format)
        };
        score().ok();
        workspace.remove(&format!("set/_remit/manifest.{format}"));
        let name = format!("set/part-000000.{format}");
        let bytes = workspace.read(&name);
        for bit in panicking(&bytes, parse) {
            panics += 1;
            workspace.write(&name, flipped(&bytes, bit));
            check_refused(&score().run(), &name);
        }
        workspace.write(&name, &bytes);
        score().ok();
    }
    assert!(
        panics > 0,
        "no flip makes a parser panic: nothing was tested"
    );
}

#[test]
fn a_compressed_buffer_that_claims_a_terabyte_is_refused_before_memory_is_reserved() {
    let batch = texts(1000);
    let len: usize = batch.column(0).to_data().buffers()[1].len();
    let claim = (len as u64).to_le_bytes();
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        for write in [arrow_file, arrow_stream] {
            let workspace = Workspace::new();
            let mut bytes = write(&batch, Some(codec));
            workspace.write("t.arrow", &bytes);
            workspace.command(SCORE).args("t.arrow -o intact").ok();
            let places: Vec<usize> = (0..bytes.len() - 8)
                .step_by(8)
                .filter(|&at| bytes[at..at + 8] == claim)
                .collect();
            // The last offset may look like it, and comes before.
            bytes[places.last().unwrap() + 5] ^= 1;
            workspace.write("t.arrow", &bytes);
            let ended = workspace.command(SCORE).args("t.arrow -o out").run();
            check_refused(&ended, "t.arrow");
            ended.check(
                ended
                    .stderr
                    .contains(&format!(" is said to unpack to {}", len + (1 << 40))),
                "the claim is told",
            );
        }
    }
}

#[test]
fn no_flipped_bit_of_a_compressed_arrow_file_ends_the_process() {
    use remit::corpus::{Corpus, CorpusOptions};
    let batch = texts(30);
    let workspace = Workspace::new();
    let path = workspace.path("t.arrow");
    let step = std::env::var("REMIT_FLIP_STEP").map_or(11, |step| step.parse().unwrap());
    let mut errors = 0;
    for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        for write in [arrow_file, arrow_stream] {
            let bytes = write(&batch, Some(codec));
            for bit in (0..bytes.len() * 8).step_by(step) {
                workspace.write("t.arrow", flipped(&bytes, bit));
                let corpus =
                    Corpus::discover(std::slice::from_ref(&path), &CorpusOptions::default());
                let read = corpus.and_then(|corpus| {
                    let parts = corpus.parts().iter();
                    parts
                        .flat_map(|part| corpus.documents(part))
                        .try_for_each(|document| document.map(drop))
                });
                errors += usize::from(read.is_err());
            }
        }
    }
    assert!(errors > 100, "{errors} errors");
}

#[test]
fn every_program_refuses_a_damaged_set_without_a_panic() {
    for format in ["parquet", "arrow"] {
        let workspace = Workspace::new();
        workspace.write_corpus("corpus/a.jsonl", 12);
        workspace
            .command(SCORE)
            .args("corpus -o set --format")
            .arg(format)
            .ok();
        for name in [
            format!("set/part-000000.{format}"),
            format!("set/_remit/manifest.{format}"),
        ] {
            let bytes = workspace.read(&name);
            let cut = bytes[..bytes.len() - 3].to_vec();
            for damaged in [
                flipped(&bytes, 8 * 700 + 1),
                flipped(&bytes, 8 * (bytes.len() - 60) + 6),
                cut,
                Vec::new(),
            ] {
                workspace.write(&name, &damaged);
                for (program, args) in [
                    (ANNEAL, "--weights set -o out --steps 1"),
                    (INSPECT, "verify set"),
                    (INSPECT, "show set --row 0"),
                    (INSPECT, "export set --tokens tokens.csv"),
                ] {
                    let ended = workspace.command(program).args(args).run();
                    check_refused(&ended, &name);
                }
                for left in ["out", "tokens.csv"] {
                    assert!(!workspace.path(left).exists(), "{left} after {name}");
                }
            }
            workspace.write(&name, &bytes);
        }
        workspace.command(INSPECT).args("verify set").ok();
    }
}
