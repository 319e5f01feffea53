use std::path::Path;

use super::assemble::{assemble, save};
use super::description;
use super::layout::{Description, shard_name};
use super::manifest::Manifest;
use super::plan::{CorpusEntry, FORMAT_VERSION, ModelIdentity, Plan, TokenizerIdentity};
use super::read::{ShardFile, ShardSet};
use super::schema::ShardFormat;
use super::write::{ShardOptions, ShardWriter};
use super::{Error, ErrorKind};
use crate::fs::{self, Digest};
use crate::pack::{PackStats, Packing};
use crate::types::{OnBadRecord, Row, ScoredRow, round_mantissa};
use proptest::prelude::*;

/// The manifest of a set of Parquet shards.
const MANIFEST: &str = "_remit/manifest.parquet";

pub(super) fn row(first_id: u32, len: usize, has_base: bool) -> ScoredRow {
    let log_probs = |shift: f32| {
        (1..len)
            .map(|i| -0.01 * i as f32 - shift)
            .collect::<Vec<_>>()
    };
    ScoredRow {
        source: format!("dir/{}.txt", first_id % 3).into(),
        doc_index: u64::from(first_id),
        doc_starts: vec![0],
        input_ids: (0..len as u32).map(|i| first_id + i * 1000).collect(),
        rl_logprobs: log_probs(0.1),
        base_logprobs: has_base.then(|| log_probs(0.2)),
        weights: has_base.then(|| vec![1.0; len - 1]),
        target_mask: None,
        distributions: crate::types::Distributions::default(),
    }
}

fn shard_bytes(rows: &[ScoredRow], part: u32, has_base: bool, exact: bool) -> Vec<u8> {
    shard_of_plan(rows, part, has_base, exact, Digest::of(b"none"))
}

fn shard_of_plan(
    rows: &[ScoredRow],
    part: u32,
    has_base: bool,
    exact: bool,
    plan: Digest,
) -> Vec<u8> {
    let options = ShardOptions {
        format: ShardFormat::Parquet,
        part,
        columns: has_base.into(),
        exact,
        exact_weights: None,
        lowest_entropy: None,
        plan,
    };
    let mut writer = ShardWriter::new(Vec::new(), options).unwrap();
    for row in rows {
        writer.push(row).unwrap();
    }
    let stats = PackStats {
        rows: rows.len() as u64,
        ..PackStats::default()
    };
    writer.finish(&stats).unwrap().0
}

pub(super) fn plan(num_parts: u32) -> Plan {
    let model = ModelIdentity {
        path: "models/x".to_owned(),
        fingerprint: Digest::of(b"model"),
        model_type: "llama".to_owned(),
        dtype: "f32".to_owned(),
        device: "cpu".to_owned(),
    };
    Plan {
        format_version: FORMAT_VERSION,
        tool_version: "0".to_owned(),
        rl: model.clone(),
        base: Some(model),
        tokenizer: TokenizerIdentity {
            path: "models/x".to_owned(),
            fingerprint: Digest::of(b"tokenizer"),
            vocab_size: 1_000_000,
            special_fingerprint: None,
            document_tokens: None,
        },
        packing: Packing::Document,
        seq_len: 64,
        special_tokens: Default::default(),
        special_tokens_in_text: Default::default(),
        formula: Some(Default::default()),
        weight_bounds: Default::default(),
        distributions: None,
        exact: false,
        format: ShardFormat::Parquet,
        text_field: None,
        part_bytes: 1,
        text_ext: Vec::new(),
        ignored_config_fields: Vec::new(),
        min_tokens: 0,
        chat_template: None,
        chat_date: None,
        limit_docs: None,
        on_bad_record: OnBadRecord::Fail,
        max_record_bytes: 1 << 24,
        token_dtype: None,
        separator: None,
        num_parts,
        corpus: vec![CorpusEntry {
            source: "a.txt".to_owned(),
            size_bytes: 3,
            blake3: Digest::of(b"abc"),
        }],
    }
}

/// A finished set of `parts` shards of `rows` rows; the first id of each row is its number.
pub(crate) fn finished_set(dir: &Path, parts: u32, rows: u32) -> ShardSet {
    for part in 0..parts {
        let rows: Vec<ScoredRow> = (0..rows)
            .map(|i| row(part * rows + i, 2 + (i as usize * 7) % 11, true))
            .collect();
        let bytes = shard_of_plan(&rows, part, true, false, plan(parts).identity().unwrap());
        fs::write_atomic(&dir.join(shard_name(part, ShardFormat::Parquet)), &bytes).unwrap();
    }
    assemble(dir, plan(parts)).unwrap().save(dir).unwrap();
    ShardSet::open(dir).unwrap()
}

pub(super) fn arbitrary_row(has_base: bool) -> impl Strategy<Value = ScoredRow> {
    (2_usize..40, any::<u64>(), "[a-z/]{1,12}").prop_flat_map(move |(len, doc_index, source)| {
        let floats = || proptest::collection::vec(-30.0_f32..0.0, len - 1);
        let weights = proptest::collection::vec(0.8_f32..1.2, len - 1);
        let ids = proptest::collection::vec(any::<u32>(), len);
        let starts = proptest::collection::btree_set(0..len as u32, 0..4);
        let mask = proptest::option::of(proptest::collection::vec(any::<bool>(), len - 1));
        (floats(), floats(), weights, ids, starts, mask).prop_map(
            move |(rl, base, weights, ids, starts, mask)| {
                let mask = mask.filter(|mask| mask.contains(&true) && mask.contains(&false));
                let row = Row {
                    source: source.as_str().into(),
                    doc_index,
                    doc_starts: starts.into_iter().collect(),
                    input_ids: ids,
                    loss_mask: mask.map(|mask| [vec![true], mask].concat()),
                };
                let (base, weights) = (has_base.then_some(base), has_base.then_some(weights));
                row.scored(rl, base, weights)
            },
        )
    })
}

pub(super) fn rounded(row: &ScoredRow) -> ScoredRow {
    let round = |values: &[f32]| {
        values
            .iter()
            .map(|v| round_mantissa(*v))
            .collect::<Vec<_>>()
    };
    ScoredRow {
        rl_logprobs: round(&row.rl_logprobs),
        base_logprobs: row.base_logprobs.as_deref().map(round),
        weights: row.weights.as_deref().map(round),
        ..row.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_back(
        with_base in proptest::collection::vec(arbitrary_row(true), 0..8),
        without in proptest::collection::vec(arbitrary_row(false), 0..8),
        exact in any::<bool>(),
        part in any::<u32>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (rows, has_base) in [(with_base, true), (without, false)] {
            let path = dir.path().join("shard.parquet");
            let bytes = shard_bytes(&rows, part, has_base, exact);
            prop_assert_eq!(&bytes, &shard_bytes(&rows, part, has_base, exact));
            fs::write_atomic(&path, &bytes).unwrap();
            let shard = ShardFile::open(&path, ShardFormat::Parquet, part, has_base).unwrap();
            let mut read = Vec::new();
            let mut lengths = Vec::new();
            for group in 0..shard.num_row_groups() {
                read.extend(shard.read_row_group(group).unwrap());
                lengths.extend(shard.row_lengths(group).unwrap());
            }
            let want: Vec<ScoredRow> =
                rows.iter().map(|row| if exact { row.clone() } else { rounded(row) }).collect();
            prop_assert_eq!(read.iter().map(|row| row.scored.clone()).collect::<Vec<_>>(), want);
            for (i, (row, len)) in read.iter().zip(lengths).enumerate() {
                prop_assert_eq!(row.row_id, u64::from(part) << 32 | i as u64);
                prop_assert_eq!(row.num_tokens(), len as usize);
            }
        }
    }

    #[test]
    fn rounding_keeps_12_bits_and_is_within_half_a_unit_of_them(value in -40.0_f32..0.0) {
        let rounded = round_mantissa(value);
        prop_assert_eq!(rounded.to_bits() & 0x7ff, 0);
        prop_assert!((rounded - value).abs() <= value.abs() * 2.0_f32.powi(-13));
    }
}

#[test]
fn the_layout_is_what_the_schema_says() {
    use parquet::basic::{Compression, Encoding};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let rows: Vec<ScoredRow> = (0..50).map(|i| row(i, 20, true)).collect();
    let bytes = shard_bytes(&rows, 0, true, false);
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    let group = reader.metadata().row_group(0);
    let mut seen = Vec::new();
    for column in group.columns() {
        let path = column.column_path().string();
        assert!(
            matches!(column.compression(), Compression::ZSTD(_)),
            "{path}"
        );
        let encodings: Vec<Encoding> = column.encodings().collect();
        let is = |encoding| encodings.contains(&encoding);
        let dictionary = is(Encoding::RLE_DICTIONARY) || is(Encoding::PLAIN_DICTIONARY);
        match path.as_str() {
            "rl_logprob.list.element" | "base_logprob.list.element" | "weight.list.element" => {
                assert!(
                    is(Encoding::BYTE_STREAM_SPLIT) && !dictionary,
                    "{path}: {encodings:?}"
                );
                assert!(column.statistics().is_none(), "{path}");
            }
            "input_ids.list.element" | "doc_starts.list.element" => {
                assert!(is(Encoding::PLAIN) && !dictionary, "{path}: {encodings:?}");
                assert!(column.statistics().is_none(), "{path}");
            }
            "row_id" | "doc_index" => assert!(column.statistics().is_some(), "{path}"),
            "source" => assert!(dictionary, "{path}: {encodings:?}"),
            other => panic!("unexpected column {other}"),
        }
        seen.push(path);
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn a_flipped_bit_anywhere_is_found_before_a_row_is_returned() {
    let dir = tempfile::tempdir().unwrap();
    drop(finished_set(dir.path(), 2, 12));
    for name in ["part-000000.parquet", "part-000001.parquet", MANIFEST] {
        let path = dir.path().join(name);
        let intact = fs::read(&path).unwrap();
        for at in (0..intact.len()).step_by(intact.len() / 97 + 1) {
            let mut damaged = intact.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write_atomic(&path, &damaged).unwrap();
            let error = ShardSet::open(dir.path()).expect_err(&format!("{name}, byte {at}"));
            assert_eq!(
                error.kind(),
                ErrorKind::BadData,
                "{name}, byte {at}: {error}"
            );
        }
        for len in [0, 1, intact.len() / 2, intact.len() - 1] {
            fs::write_atomic(&path, &intact[..len]).unwrap();
            ShardSet::open(dir.path()).expect_err(&format!("{name} cut to {len}"));
        }
        fs::write_atomic(&path, &intact).unwrap();
    }
    let manifest = Manifest::load(dir.path()).unwrap();
    assert!(
        super::verify::check(dir.path(), &manifest)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_damaged_shard_that_nothing_vouches_for_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ScoredRow> = (0..30).map(|i| row(i, 30, true)).collect();
    let intact = shard_bytes(&rows, 0, true, true);
    let path = dir.path().join("shard.parquet");
    for at in (0..intact.len()).step_by(intact.len() / 150 + 1) {
        let mut damaged = intact.clone();
        damaged[at] ^= 0x40;
        fs::write_atomic(&path, &damaged).unwrap();
        let error = ShardFile::open(&path, ShardFormat::Parquet, 0, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadData, "byte {at}: {error}");
        // Not every flip is an error to the parser, which is why there are digests; none may panic.
        if let Ok(shard) = ShardFile::open_unsealed(&path, ShardFormat::Parquet, 0, true) {
            for group in 0..shard.num_row_groups() {
                let _ = shard.read_row_group(group);
                let _ = shard.row_lengths(group);
            }
        }
    }
}

#[test]
fn a_shard_of_another_kind_is_refused_even_with_the_right_digest() {
    let dir = tempfile::tempdir().unwrap();
    drop(finished_set(dir.path(), 1, 5));
    let path = dir.path().join(shard_name(0, ShardFormat::Parquet));
    let rows: Vec<ScoredRow> = (0..5)
        .map(|i| row(i, 2 + (i as usize * 7) % 11, false))
        .collect();
    let bytes = shard_bytes(&rows, 0, false, false);
    fs::write_atomic(&path, &bytes).unwrap();
    let mut manifest = Manifest::load(dir.path()).unwrap();
    manifest.shards[0].size_bytes = bytes.len() as u64;
    manifest.shards[0].blake3 = Digest::of(&bytes);
    fs::remove_file(&dir.path().join(MANIFEST)).unwrap();
    save(manifest, dir.path()).unwrap();
    let error = ShardSet::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Schema { .. }), "{error}");
}

#[test]
fn a_shard_of_another_plan_is_refused_with_and_without_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    drop(finished_set(dir.path(), 1, 5));
    let mut other = plan(1);
    other.rl.path = "elsewhere".to_owned();
    assert_eq!(other.identity().unwrap(), plan(1).identity().unwrap());
    other.seq_len = 63;
    let error = assemble(dir.path(), other).unwrap_err();
    assert!(matches!(error, Error::OtherPlan { .. }), "{error}");
    let mut manifest = Manifest::load(dir.path()).unwrap();
    manifest.plan.exact = true;
    fs::remove_file(&dir.path().join(MANIFEST)).unwrap();
    save(manifest, dir.path()).unwrap();
    let error = ShardSet::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::OtherPlan { .. }), "{error}");
}

#[test]
fn a_plan_that_is_there_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    assert!(plan(1).save(dir.path()).unwrap());
    assert!(!plan(2).save(dir.path()).unwrap());
    let arrow = Plan {
        format: ShardFormat::Arrow,
        ..plan(1)
    };
    assert!(!arrow.save(dir.path()).unwrap());
    assert_eq!(Plan::load(dir.path()).unwrap().unwrap(), plan(1));
}

#[test]
fn rows_that_break_a_rule_are_not_written() {
    type Damage = Box<dyn Fn(&mut ScoredRow)>;
    let bad: Vec<(&str, Damage)> = vec![
        ("it has 1 tokens", Box::new(|r| r.input_ids.truncate(1))),
        (
            "rl_logprob has 3 values",
            Box::new(|r| r.rl_logprobs.truncate(3)),
        ),
        (
            "rl_logprob at position 1 is NaN",
            Box::new(|r| r.rl_logprobs[0] = f32::NAN),
        ),
        (
            "rl_logprob at position 2 is 0.5",
            Box::new(|r| r.rl_logprobs[1] = 0.5),
        ),
        (
            "weight at position 1 is inf",
            Box::new(|r| {
                r.weights.as_mut().unwrap()[0] = f32::INFINITY;
            }),
        ),
        (
            "the mask of its targets has 2 values",
            Box::new(|r| r.target_mask = Some(vec![true, false])),
        ),
        (
            "the mask of its targets has 9 values, 0 of them true",
            Box::new(|r| r.target_mask = Some(vec![false; 9])),
        ),
        (
            "weight at position 3 is 1; this is no target",
            Box::new(|r| {
                r.target_mask = Some((0..9).map(|i| i != 2).collect());
            }),
        ),
        ("doc_starts is not", Box::new(|r| r.doc_starts = vec![3, 3])),
        ("doc_starts is not", Box::new(|r| r.doc_starts = vec![10])),
        ("come together", Box::new(|r| r.weights = None)),
    ];
    for (message, damage) in bad {
        let mut damaged = row(1, 10, true);
        damage(&mut damaged);
        let options = ShardOptions {
            format: ShardFormat::Parquet,
            part: 0,
            columns: true.into(),
            exact: false,
            exact_weights: None,
            lowest_entropy: None,
            plan: Digest::of(b"none"),
        };
        let mut writer = ShardWriter::new(Vec::new(), options).unwrap();
        let error = writer.push(&damaged).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_is_missing_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    assert!(matches!(
        ShardSet::open(&absent),
        Err(Error::NoFolder { .. })
    ));
    assert!(matches!(
        ShardSet::open(dir.path()),
        Err(Error::NoManifest { .. })
    ));
    plan(1).save(dir.path()).unwrap();
    assert!(matches!(
        ShardSet::open(dir.path()),
        Err(Error::Unfinished { .. })
    ));
    drop(finished_set(dir.path(), 2, 3));
    fs::remove_file(&dir.path().join(shard_name(1, ShardFormat::Parquet))).unwrap();
    assert!(matches!(
        ShardSet::open(dir.path()),
        Err(Error::MissingShard { .. })
    ));
}

#[test]
fn a_plan_spells_out_every_difference_and_ignores_paths() {
    let before = plan(2);
    let mut now = before.clone();
    now.rl.path = "elsewhere".to_owned();
    assert_eq!(before.difference(&now), Vec::<String>::new());
    now.seq_len = 128;
    now.rl.fingerprint = Digest::of(b"other");
    now.corpus[0].size_bytes = 4;
    now.corpus.push(CorpusEntry {
        source: "b.txt".to_owned(),
        ..now.corpus[0].clone()
    });
    let lines = before.difference(&now);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(
        lines.contains(&"seq_len was 64, is now 128".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"the corpus file a.txt has changed".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"the corpus file b.txt is new".to_owned()),
        "{lines:?}"
    );
}

#[test]
fn a_manifest_of_another_version_says_both() {
    let dir = tempfile::tempdir().unwrap();
    drop(finished_set(dir.path(), 1, 3));
    let found = description::read(dir.path(), Description::Manifest);
    let found = found.unwrap().unwrap();
    let text = String::from_utf8(found.text).unwrap();
    let newer = text.replace("\"format_version\": 2", "\"format_version\": 7");
    let format = ShardFormat::Parquet;
    let file = description::pack(Description::Manifest, format, true, newer.as_bytes()).unwrap();
    fs::write_atomic(&found.path, &file).unwrap();
    let message = ShardSet::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.ends_with("has format version 7; this remit reads version 2"),
        "{message}"
    );
}
