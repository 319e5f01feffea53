//! Rows that are shown: drawn by row_id and a seed, as many tokens of each source as there are to give.
//!
//! A row's rank is a digest of the seed and its row_id, so that which rows are shown depends on neither the order of reading
//! nor on other rows. Of each source the rows of lowest rank are kept, up to its share of the tokens.

use std::collections::BTreeMap;

use crate::shard::row::StoredRow;

/// Tokens of a row that are kept; what follows is left out.
pub const MAX_ROW_TOKENS: usize = 1024;
/// The same for a row that was asked for.
pub const MAX_WANTED_ROW_TOKENS: usize = 16_384;

/// A row that is shown, or its beginning.
#[derive(Debug, Clone)]
pub struct SampledRow {
    /// Rank among the rows of its source; 0 for one that was asked for.
    pub rank: u64,
    /// The row, without what is beyond the limit.
    pub row: StoredRow,
    /// Tokens of the whole row.
    pub num_tokens: usize,
    /// Targets of the whole row.
    pub num_targets: usize,
    /// Mean over the targets of the whole row of `log p_RL - log p_base`, nats.
    pub delta_mean: f64,
    /// For each position after the first the rank of its difference among the targets of the whole row, from 0 for
    /// the largest.
    pub ranks: Vec<u32>,
}

/// Returns the rank of a row.
pub fn rank(seed: u64, row_id: u64) -> u64 {
    let mut key = Vec::from(*b"remit report 1");
    key.extend(seed.to_le_bytes());
    key.extend(row_id.to_le_bytes());
    let digest = blake3::hash(&key);
    let first = digest.as_bytes().first_chunk::<8>().copied();
    // 0 is for rows that were asked for.
    u64::from_le_bytes(first.unwrap_or_default()).max(1)
}

/// Rows of a source with the lowest ranks.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Tokens that may be kept; the row of lowest rank is kept in any case.
    quota_tokens: usize,
    kept: BTreeMap<(u64, u64), SampledRow>,
    num_tokens: usize,
    /// Rows that were asked for. They take no room from others.
    wanted: Vec<SampledRow>,
}

impl Sample {
    /// Returns an empty sample for this many tokens.
    pub fn new(quota_tokens: usize) -> Self {
        Self {
            quota_tokens,
            ..Self::default()
        }
    }

    /// Returns whether a row of this rank would be kept now.
    pub fn has_room(&self, rank: u64) -> bool {
        let highest = self.kept.last_key_value();
        self.num_tokens < self.quota_tokens
            || highest.is_none_or(|((highest, _), _)| rank < *highest)
    }

    /// Adds a row, and drops those of highest rank that there is no room for any more.
    pub fn add(&mut self, sampled: SampledRow) {
        if sampled.rank == 0 {
            self.wanted.push(sampled);
            return;
        }
        self.num_tokens += sampled.row.num_tokens();
        let key = (sampled.rank, sampled.row.row_id);
        self.kept.insert(key, sampled);
        while let Some((_, highest)) = self.kept.last_key_value() {
            let without = self.num_tokens - highest.row.num_tokens();
            // A row that begins within the quota is kept.
            if self.kept.len() == 1 || without < self.quota_tokens {
                break;
            }
            self.num_tokens = without;
            self.kept.pop_last();
        }
    }

    /// Returns the rows, lowest rank first: before all others those that were asked for.
    pub fn rows(self) -> Vec<SampledRow> {
        self.wanted
            .into_iter()
            .chain(self.kept.into_values())
            .collect()
    }
}

/// Divides tokens among sources: equally, but to none more than it has.
pub fn quotas(tokens: usize, available: &[u64]) -> Vec<usize> {
    let mut quotas = vec![0; available.len()];
    let mut order: Vec<usize> = (0..available.len()).collect();
    order.sort_by_key(|&source| available[source]);
    let mut left = tokens;
    for (done, &source) in order.iter().enumerate() {
        let share = left / (order.len() - done);
        let has = usize::try_from(available[source]).unwrap_or(usize::MAX);
        quotas[source] = share.min(has);
        left -= quotas[source];
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ScoredRow;

    fn sampled(row_id: u64, len: usize) -> SampledRow {
        let scored = ScoredRow {
            source: "a".into(),
            doc_index: 0,
            doc_starts: vec![0],
            input_ids: vec![1; len],
            rl_logprobs: vec![-1.0; len - 1],
            base_logprobs: None,
            weights: None,
            target_mask: None,
            distributions: crate::types::Distributions::default(),
        };
        SampledRow {
            rank: rank(7, row_id),
            row: StoredRow { row_id, scored },
            num_tokens: len,
            num_targets: len - 1,
            delta_mean: 0.0,
            ranks: Vec::new(),
        }
    }

    #[test]
    fn what_is_kept_does_not_depend_on_the_order_of_reading() {
        let draw = |ids: &mut dyn Iterator<Item = u64>| {
            let mut sample = Sample::new(300);
            for id in ids {
                let row = sampled(id, 2 + (id as usize * 37) % 90);
                if sample.has_room(row.rank) {
                    sample.add(row);
                }
            }
            let rows = sample.rows();
            let ids: Vec<u64> = rows.iter().map(|row| row.row.row_id).collect();
            (ids, rows.iter().map(|r| r.num_tokens).sum::<usize>())
        };
        let (forward, tokens) = draw(&mut (0..500));
        let (backward, _) = draw(&mut (0..500).rev());
        assert_eq!(forward, backward);
        assert!((300..400).contains(&tokens), "{tokens}");
    }

    #[test]
    fn rows_that_were_asked_for_come_besides_the_others() {
        let draw = |wanted: Option<u64>| -> Vec<u64> {
            let mut sample = Sample::new(100);
            for id in 0..50 {
                let mut row = sampled(id, 20);
                if wanted == Some(id) {
                    row.rank = 0;
                }
                sample.add(row);
            }
            sample.rows().iter().map(|row| row.row.row_id).collect()
        };
        let usual = draw(None);
        let other = (0..50).find(|id| !usual.contains(id)).unwrap();
        assert_eq!(usual.len(), 5);
        assert_eq!(draw(Some(other)), [&[other], usual.as_slice()].concat());
    }

    #[test]
    fn sources_get_equal_shares_of_what_is_left() {
        assert_eq!(quotas(100, &[1000, 10, 1000]), [45, 10, 45]);
        assert_eq!(quotas(100, &[3, 4]), [3, 4]);
        assert!(quotas(5, &[]).is_empty());
    }
}
