//! Both formats hold the same, in the same groups.

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use proptest::prelude::*;

use super::container::{Batches, Container};
use super::plan::Plan;
use super::read::ShardFile;
use super::row::StoredRow;
use super::schema::{
    BATCH_ROWS_KEY, FORMAT_VERSION_KEY, PACK_STATS_KEY, PLAN_KEY, REJECTS_KEY, ShardFormat, columns,
};
use super::tests::{arbitrary_row, plan, rounded, row};
use super::write::{ROW_GROUP_TOKENS, ShardOptions, ShardWriter};
use super::{Error, ErrorKind};
use crate::fs::{self, Digest};
use crate::pack::PackStats;
use crate::types::{Reject, ScoredRow};

const FORMATS: [ShardFormat; 2] = [ShardFormat::Parquet, ShardFormat::Arrow];

fn written(format: ShardFormat, part: u32, rows: &[ScoredRow], exact: bool) -> Vec<u8> {
    let options = ShardOptions {
        part,
        format,
        columns: rows.first().is_some_and(|row| row.weights.is_some()).into(),
        exact,
        exact_weights: None,
        lowest_entropy: None,
        plan: Digest::of(b"plan"),
    };
    let mut writer = ShardWriter::new(Vec::new(), options).unwrap();
    rows.iter().for_each(|row| writer.push(row).unwrap());
    writer.reject(Reject {
        source: "a.jsonl".to_owned(),
        doc_index: 3,
        reason: "it is bad".to_owned(),
    });
    writer.finish(&PackStats::default()).unwrap().0
}

fn put(dir: &Path, format: ShardFormat, bytes: &[u8]) -> PathBuf {
    let path = dir.join("shard").with_extension(format.extension());
    fs::write_atomic(&path, bytes).unwrap();
    path
}

fn groups(shard: &ShardFile) -> Vec<Vec<StoredRow>> {
    (0..shard.num_row_groups())
        .map(|group| {
            let rows = shard.read_row_group(group).unwrap();
            let lengths = rows.iter().map(|row| row.num_tokens() as u32);
            assert!(lengths.eq(shard.row_lengths(group).unwrap()));
            rows
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_in_either_format_is_read_back(
        with_base in proptest::collection::vec(arbitrary_row(true), 0..8),
        without in proptest::collection::vec(arbitrary_row(false), 0..8),
        exact in any::<bool>(),
        part in any::<u32>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        for rows in [with_base, without] {
            let has_base = rows.first().is_some_and(|row| row.weights.is_some());
            for format in FORMATS {
                let bytes = written(format, part, &rows, exact);
                prop_assert_eq!(&bytes, &written(format, part, &rows, exact));
                let path = put(dir.path(), format, &bytes);
                let shard = ShardFile::open(&path, format, part, has_base).unwrap();
                let want: Vec<ScoredRow> =
                    rows.iter().map(|row| if exact { row.clone() } else { rounded(row) }).collect();
                let read = groups(&shard).concat();
                for (index, row) in read.iter().enumerate() {
                    prop_assert_eq!(row.row_id, u64::from(part) << 32 | index as u64);
                }
                prop_assert_eq!(read.into_iter().map(|row| row.scored).collect::<Vec<_>>(), want);
            }
        }
    }
}

#[test]
fn groups_end_at_the_same_rows_in_both_formats() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = [ROW_GROUP_TOKENS - 1, 2, 5, ROW_GROUP_TOKENS, 3]
        .into_iter()
        .map(|len| {
            let mut row = row(0, len, false);
            row.rl_logprobs.fill(-1.0);
            row
        })
        .collect();
    let read = FORMATS.map(|format| {
        let path = put(dir.path(), format, &written(format, 0, &rows, false));
        let shard = ShardFile::open(&path, format, 0, false).unwrap();
        assert_eq!(shard.num_rows(), 5);
        groups(&shard)
    });
    assert_eq!(read[0].iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert!(read[0] == read[1]);
}

#[test]
fn the_footers_of_both_formats_say_the_same() {
    let rows: Vec<ScoredRow> = (0..5).map(|i| row(i, 9, true)).collect();
    let footers = FORMATS
        .map(|format| Container::parse(format, &written(format, 2, &rows, false).into()).unwrap());
    for key in [FORMAT_VERSION_KEY, PLAN_KEY, PACK_STATS_KEY, REJECTS_KEY] {
        let [parquet, arrow] = footers.each_ref().map(|footer| footer.value(key));
        assert!(parquet.is_some() && parquet == arrow, "{key}");
    }
    assert_eq!(
        footers
            .each_ref()
            .map(|footer| footer.value(BATCH_ROWS_KEY)),
        [None, Some("[5]")]
    );
}

#[test]
fn arrays_of_an_arrow_shard_lie_in_the_mapped_file() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..50).map(|i| row(i, 20, true)).collect();
    let format = ShardFormat::Arrow;
    let path = put(dir.path(), format, &written(format, 0, &rows, false));
    let map = bytes::Bytes::from_owner(fs::MappedFile::open(&path).unwrap());
    let place = map.as_ptr_range();
    let container = Container::parse(format, &map).unwrap();
    for column in [None, Some(columns::INPUT_IDS)] {
        let batches = container.batches(&map, 0, column).unwrap();
        let Batches::Arrow(Some(batch)) = batches else {
            panic!("one batch");
        };
        assert_eq!(batch.num_columns(), if column.is_some() { 1 } else { 8 });
        let ids = batch.column_by_name(columns::INPUT_IDS).unwrap();
        let ids = ids.as_list::<i32>();
        for buffer in [
            ids.offsets().inner().inner(),
            ids.values().to_data().buffers().first().unwrap(),
        ] {
            assert!(place.contains(&buffer.as_ptr()));
            // 64 bytes in the file, which is mapped at the start of a page.
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }
}

#[test]
fn a_damaged_shard_of_either_format_is_an_error_or_keeps_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..6).map(|i| row(i, 9, true)).collect();
    for format in FORMATS {
        let intact = written(format, 0, &rows, true);
        let mut errors = 0;
        for bit in (0..intact.len() * 8).step_by(61) {
            let mut damaged = intact.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let path = put_unsynced(dir.path(), format, &damaged);
            let sealed = ShardFile::open(&path, format, 0, true).unwrap_err();
            assert_eq!(sealed.kind(), ErrorKind::BadData, "{format}, bit {bit}");
            let read = ShardFile::open_unsealed(&path, format, 0, true).and_then(|shard| {
                (0..shard.num_row_groups())
                    .try_for_each(|group| shard.read_row_group(group).map(drop))
            });
            if let Err(error) = read {
                assert_eq!(
                    error.kind(),
                    ErrorKind::BadData,
                    "{format}, bit {bit}: {error}"
                );
                assert!(
                    error.to_string().contains(path.to_str().unwrap()),
                    "{error}"
                );
                errors += 1;
            }
        }
        assert!(errors > 100, "{format}: {errors}");
    }
}

/// Nothing of this has to survive a power cut.
fn put_unsynced(dir: &Path, format: ShardFormat, bytes: &[u8]) -> PathBuf {
    let path = dir.join("damaged").with_extension(format.extension());
    let mut log = fs::Log::open(&path).unwrap();
    log.resume_at(0).unwrap();
    log.append(bytes).unwrap();
    path
}

#[test]
fn a_shard_without_a_digest_of_its_own_needs_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..5).map(|i| row(i, 9, true)).collect();
    for format in FORMATS {
        let mut bytes = written(format, 0, &rows, false);
        let key = memchr::memmem::rfind(&bytes, b"remit.content_blake3").unwrap();
        bytes[key] = b'x';
        let path = put(dir.path(), format, &bytes);
        let error = ShardFile::open(&path, format, 0, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the shard {} is not one of this format: its footer has no readable \
                 remit.content_blake3\nhint: remove this file and run the same remit-score command \
                 again; it makes what is missing",
                path.display()
            )
        );
        assert!(ShardFile::open_unsealed(&path, format, 0, true).is_ok());
    }
}

#[test]
fn a_shard_of_the_other_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..5).map(|i| row(i, 9, true)).collect();
    for (format, other) in [(FORMATS[0], FORMATS[1]), (FORMATS[1], FORMATS[0])] {
        for bytes in [
            written(other, 0, &rows, false),
            Vec::new(),
            b"ARROW1PAR1".to_vec(),
        ] {
            let path = put(dir.path(), format, &bytes);
            let error = ShardFile::open(&path, format, 0, true).unwrap_err();
            assert!(matches!(error, Error::Unreadable { .. }), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(&format!("is not a readable {format} file: ")),
                "{text}"
            );
        }
    }
}

#[test]
fn a_compressed_batch_is_refused() {
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..5).map(|i| row(i, 9, false)).collect();
    let format = ShardFormat::Arrow;
    let map = bytes::Bytes::from(written(format, 0, &rows, false));
    let container = Container::parse(format, &map).unwrap();
    let Ok(Batches::Arrow(Some(batch))) = container.batches(&map, 0, None) else {
        panic!("one batch");
    };
    let options = IpcWriteOptions::default()
        .try_with_compression(Some(CompressionType::LZ4_FRAME))
        .unwrap();
    let mut writer =
        FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(&batch).unwrap();
    writer.write_metadata(FORMAT_VERSION_KEY, "1");
    writer.write_metadata(BATCH_ROWS_KEY, "[5]");
    let path = put(dir.path(), format, &writer.into_inner().unwrap());
    let shard = ShardFile::open_unsealed(&path, format, 0, false).unwrap();
    let error = shard.read_row_group(0).unwrap_err().to_string();
    assert!(
        error.contains("its record batch 0 is compressed\nhint: "),
        "{error}"
    );
}

#[test]
fn another_format_is_another_plan() {
    let parquet = plan(1);
    let arrow = Plan {
        format: ShardFormat::Arrow,
        ..plan(1)
    };
    assert_eq!(
        parquet.difference(&arrow),
        ["format was \"parquet\", is now \"arrow\""]
    );
    assert_ne!(parquet.identity().unwrap(), arrow.identity().unwrap());
}
