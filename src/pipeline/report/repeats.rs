//! Suspects for boilerplate and duplicates: runs of targets that the learner knows already, and rows of the same tokens.

use crate::shard::row::StoredRow;

/// Loss of a target below which a model knows it, nats: it gives it nine chances of ten.
pub const KNOWN_NATS: f32 = 0.105;
/// Targets in a row that make a run.
pub const LEAST_RUN: usize = 32;
/// Longest runs that are kept.
const KEPT: usize = 12;
/// Rows that are compared with each other at most, 8 bytes of memory each.
const MAX_COMPARED_ROWS: usize = 4_000_000;
/// Tokens of a run that are kept as its text.
const SHOWN_TOKENS: usize = 48;

/// Targets one after another that a model knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Position of its first token in its row.
    pub position: usize,
    /// Number of targets.
    pub len: usize,
}

/// Returns the runs of a row: by the base, or by the RL model where there is none.
pub fn runs(stored: &StoredRow) -> Vec<Run> {
    let row = &stored.scored;
    let log_probs = row.base_logprobs.as_ref().unwrap_or(&row.rl_logprobs);
    let mut found = Vec::new();
    let mut len = 0;
    for target in 0..=log_probs.len() {
        let is_known = log_probs
            .get(target)
            .is_some_and(|log_prob| row.is_target(target) && -log_prob <= KNOWN_NATS);
        if is_known {
            len += 1;
            continue;
        }
        if len >= LEAST_RUN {
            let position = target - len + 1;
            found.push(Run { position, len });
        }
        len = 0;
    }
    found
}

/// A run, and how it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongRun {
    /// The row.
    pub row_id: u64,
    /// The run.
    pub run: Run,
    /// Ids of its first tokens.
    pub ids: Vec<u32>,
}

/// The longest runs of a source.
#[derive(Debug, Clone, Default)]
pub struct LongRuns(Vec<LongRun>);

impl LongRuns {
    /// Offers a run.
    pub fn offer(&mut self, run: Run, stored: &StoredRow) {
        let is_full = self.0.len() >= KEPT;
        if is_full && self.0.last().is_some_and(|last| last.run.len >= run.len) {
            return;
        }
        let end = run.position + run.len.min(SHOWN_TOKENS);
        let ids = stored.scored.input_ids.get(run.position..end);
        let place = self.0.iter().take_while(|kept| kept.run.len >= run.len);
        let place = place.count();
        self.0.insert(
            place,
            LongRun {
                row_id: stored.row_id,
                run,
                ids: ids.unwrap_or_default().to_vec(),
            },
        );
        self.0.truncate(KEPT);
    }

    /// Returns them, longest first.
    pub fn all(self) -> Vec<LongRun> {
        self.0
    }
}

/// Tells rows of the same tokens by a digest.
#[derive(Debug, Clone, Default)]
pub struct Duplicates {
    digests: Vec<u64>,
    rows: u64,
}

impl Duplicates {
    /// Adds a row.
    pub fn add(&mut self, stored: &StoredRow) {
        self.rows += 1;
        if self.digests.len() >= MAX_COMPARED_ROWS {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        for id in stored.ids() {
            hasher.update(&id.to_le_bytes());
        }
        let first = hasher.finalize();
        let first = first.as_bytes().first_chunk::<8>().copied();
        self.digests
            .push(u64::from_le_bytes(first.unwrap_or_default()));
    }

    /// Returns how many rows have the tokens of an earlier one; `None` where there were too many rows to tell.
    pub fn count(mut self) -> Option<u64> {
        if self.rows > self.digests.len() as u64 {
            return None;
        }
        self.digests.sort_unstable();
        self.digests.dedup();
        Some(self.rows - self.digests.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ScoredRow;

    fn stored(base: Vec<f32>, mask: Option<Vec<bool>>) -> StoredRow {
        StoredRow {
            row_id: 1,
            scored: ScoredRow {
                source: "a".into(),
                doc_index: 0,
                doc_starts: vec![0],
                input_ids: (0..=base.len() as u32).collect(),
                rl_logprobs: vec![-5.0; base.len()],
                base_logprobs: Some(base),
                weights: None,
                target_mask: mask,
                distributions: crate::types::Distributions::default(),
            },
        }
    }

    #[test]
    fn a_run_ends_with_the_row_at_a_surprise_and_at_what_is_no_target() {
        let mut base = vec![-0.01; 100];
        base[39] = -1.0;
        let run = |position, len| Run { position, len };
        assert_eq!(runs(&stored(base.clone(), None)), [run(1, 39), run(41, 60)]);
        let mut mask = vec![true; 100];
        mask[70] = false;
        assert_eq!(runs(&stored(base, Some(mask))), [run(1, 39)]);
        assert_eq!(runs(&stored(vec![-0.01; 31], None)), []);
    }

    #[test]
    fn the_longest_runs_are_kept() {
        let row = stored(vec![-0.01; 200], None);
        let mut longest = LongRuns::default();
        for len in (32..60).chain([45]) {
            longest.offer(Run { position: 1, len }, &row);
        }
        let all = longest.all();
        assert_eq!((all.len(), all[0].run.len, all[11].run.len), (12, 59, 48));
        assert_eq!(all[0].ids.len(), SHOWN_TOKENS);
    }

    #[test]
    fn rows_of_the_same_tokens_are_counted_from_the_second_on() {
        let mut duplicates = Duplicates::default();
        for len in [3, 4, 3, 3, 5] {
            duplicates.add(&stored(vec![-1.0; len], None));
        }
        assert_eq!(duplicates.count(), Some(2));
    }
}
