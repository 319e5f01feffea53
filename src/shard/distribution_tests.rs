//! The columns of the RL model's distributions, written and read back.

use super::read::ShardFile;
use super::schema::{ColumnSet, ShardFormat};
use super::tests::row;
use super::write::{ShardOptions, ShardWriter};
use crate::fs::{self, Digest};
use crate::pack::PackStats;
use crate::types::{Distributions, ScoredRow, TopTokens};

const K: usize = 2;

/// A row of 5 tokens whose targets have these entropies.
fn row_with(first_id: u32, entropies: [f32; 4], mask: Option<Vec<bool>>) -> ScoredRow {
    let top = TopTokens {
        k: K,
        targets: vec![0, 1, 2, 3],
        ids: (0..8).map(|i| first_id + i).collect(),
        log_probs: [-0.5, -1.25].repeat(4),
        tail_log_probs: vec![-2.0, -2.5, -3.0, -3.5],
    };
    let distributions = Distributions {
        entropies: Some(entropies.to_vec()),
        top: Some(top),
    };
    let row = ScoredRow {
        target_mask: mask,
        ..row(first_id, 5, false)
    };
    let mut row = row.with_distributions(distributions);
    if let Some(mask) = &row.target_mask {
        for (value, is_target) in row.rl_logprobs.iter_mut().zip(mask) {
            *value = if *is_target { *value } else { 0.0 };
        }
    }
    row
}

fn options(format: ShardFormat, lowest_entropy: Option<f64>) -> ShardOptions {
    ShardOptions {
        part: 0,
        format,
        columns: ColumnSet {
            base: false,
            entropy: true,
            top_k: Some(K),
        },
        exact: true,
        exact_weights: None,
        lowest_entropy,
        plan: Digest::of(b"plan"),
    }
}

fn written_and_read(rows: &[ScoredRow], options: ShardOptions) -> Vec<ScoredRow> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard");
    let mut writer = ShardWriter::new(Vec::new(), options).unwrap();
    rows.iter().for_each(|row| writer.push(row).unwrap());
    let (bytes, _) = writer.finish(&PackStats::default()).unwrap();
    fs::write_atomic(&path, &bytes).unwrap();
    let shard = ShardFile::open(&path, options.format, 0, options.columns).unwrap();
    (0..shard.num_row_groups())
        .flat_map(|group| shard.read_row_group(group).unwrap())
        .map(|row| row.scored)
        .collect()
}

#[test]
fn distributions_are_read_back_as_they_were_written() {
    let masked = Some(vec![true, false, true, true]);
    let rows = [
        row_with(1, [0.5, 0.25, 1.5, 0.0], None),
        row_with(100, [0.125, 9.0, 2.0, 0.75], masked),
    ];
    assert_eq!(
        rows[1].distributions.top.as_ref().unwrap().targets,
        [0, 2, 3]
    );
    for format in [ShardFormat::Parquet, ShardFormat::Arrow] {
        assert_eq!(
            written_and_read(&rows, options(format, None)),
            rows,
            "{format}"
        );
    }
}

#[test]
fn the_lowest_entropies_of_a_row_group_keep_their_tokens() {
    let rows = [
        row_with(1, [0.5, 0.25, 1.5, 0.0], None),
        row_with(100, [0.125, 9.0, 0.25, 0.75], None),
    ];
    // Of 8 targets 3: entropies 0, 0.125, and the earlier of two of 0.25.
    let read = written_and_read(&rows, options(ShardFormat::Parquet, Some(0.3)));
    let targets = |row: &ScoredRow| row.distributions.top.clone().unwrap().targets;
    assert_eq!(
        (targets(&read[0]), targets(&read[1])),
        (vec![1, 3], vec![0])
    );
    let top = read[0].distributions.top.as_ref().unwrap();
    assert_eq!(
        (&top.ids, &top.tail_log_probs),
        (&vec![3, 4, 7, 8], &vec![-2.5, -3.5])
    );
    assert_eq!(
        read[0].distributions.entropies,
        rows[0].distributions.entropies
    );
}

#[test]
fn distributions_that_break_a_rule_are_not_written() {
    let good = row_with(1, [0.5, 0.25, 1.5, 0.0], None);
    let refused = |change: &dyn Fn(&mut ScoredRow), expected: &str| {
        let mut row = good.clone();
        change(&mut row);
        let mut writer = ShardWriter::new(Vec::new(), options(ShardFormat::Parquet, None)).unwrap();
        let error = writer.push(&row).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let top = |row: &mut ScoredRow, change: &dyn Fn(&mut TopTokens)| {
        change(row.distributions.top.as_mut().unwrap());
    };
    let at = "the most likely tokens at position 2: ";
    refused(
        &|row| row.distributions.entropies.as_mut().unwrap()[2] = -0.5,
        "rl_entropy at position 3 is -0.5; an entropy is finite and not negative",
    );
    refused(
        &|row| row.distributions.entropies = None,
        "has not the columns",
    );
    refused(
        &|row| top(row, &|top| top.k = 4),
        "rl_top_logprobs has 8 values",
    );
    refused(
        &|row| top(row, &|top| top.ids[3] = top.ids[2]),
        &format!("{at}an id comes twice"),
    );
    refused(
        &|row| top(row, &|top| top.log_probs[3] = -0.25),
        &format!("{at}the most likely comes first"),
    );
    refused(
        &|row| top(row, &|top| top.tail_log_probs[1] = f32::NAN),
        &format!("{at}a log-probability is finite and at most 0"),
    );
    refused(
        &|row| top(row, &|top| top.targets[3] = 4),
        "position 5: this is no target",
    );
}
