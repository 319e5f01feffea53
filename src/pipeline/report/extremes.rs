//! The targets of a source that its RL model raises and lowers most, with their contexts.

use crate::shard::row::StoredRow;
use crate::types::TokenId;

/// Targets that are kept on either side, each of another token.
const KEPT: usize = 6;
/// Tokens of context before a target, and after it.
const BEFORE: usize = 24;
const AFTER: usize = 8;

/// A target and the tokens around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Extreme {
    /// Its difference, less the mean of its row, nats.
    pub centred: f64,
    /// The row.
    pub row_id: u64,
    /// Its position there.
    pub position: usize,
    /// Log-probs under the RL model and the base, nats.
    pub log_probs: [f32; 2],
    /// Ids of the tokens before it, itself, and the tokens after it.
    pub ids: Vec<TokenId>,
    /// Its index in `ids`.
    pub at: usize,
}

/// Targets with the largest differences of one sign.
#[derive(Debug, Clone, Default)]
pub struct Extremes {
    /// Largest first.
    kept: Vec<(TokenId, Extreme)>,
}

impl Extremes {
    /// Offers a target; of each token the first one with the largest difference is kept.
    pub fn offer(&mut self, centred: f64, target: usize, stored: &StoredRow) {
        let is_full = self.kept.len() >= KEPT;
        let least = self.kept.last().map_or(0.0, |(_, e)| e.centred.abs());
        if centred == 0.0 || is_full && centred.abs() <= least {
            return;
        }
        let row = &stored.scored;
        let position = target + 1;
        let (Some(&id), Some(&rl)) = (row.input_ids.get(position), row.rl_logprobs.get(target))
        else {
            return;
        };
        let base = row.base_logprobs.as_ref().and_then(|base| base.get(target));
        let same = self.kept.iter().position(|(kept, _)| *kept == id);
        if let Some(same) = same {
            if self.kept[same].1.centred.abs() >= centred.abs() {
                return;
            }
            self.kept.remove(same);
        }
        let from = position.saturating_sub(BEFORE);
        let to = (position + 1 + AFTER).min(row.input_ids.len());
        let extreme = Extreme {
            centred,
            row_id: stored.row_id,
            position,
            log_probs: [rl, base.copied().unwrap_or(rl)],
            ids: row.input_ids.get(from..to).unwrap_or_default().to_vec(),
            at: position - from,
        };
        let place = |(_, kept): &(TokenId, Extreme)| kept.centred.abs() >= centred.abs();
        let place = self.kept.iter().take_while(|kept| place(kept)).count();
        self.kept.insert(place, (id, extreme));
        self.kept.truncate(KEPT);
    }

    /// Returns them, largest first.
    pub fn all(self) -> Vec<Extreme> {
        self.kept.into_iter().map(|(_, extreme)| extreme).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ScoredRow;

    #[test]
    fn each_token_is_kept_once_where_its_difference_is_largest() {
        let ids: Vec<u32> = vec![9, 1, 2, 1, 3, 4, 5, 6, 7, 8];
        let stored = StoredRow {
            row_id: 3,
            scored: ScoredRow {
                source: "a".into(),
                doc_index: 0,
                doc_starts: vec![0],
                rl_logprobs: vec![-1.0; ids.len() - 1],
                base_logprobs: Some(vec![-2.0; ids.len() - 1]),
                weights: None,
                target_mask: None,
                distributions: crate::types::Distributions::default(),
                input_ids: ids,
            },
        };
        let mut extremes = Extremes::default();
        for (target, centred) in [0.5, 0.1, 3.0, 0.0, 2.0, 1.0, 1.5, 1.7, 1.8]
            .iter()
            .enumerate()
        {
            extremes.offer(*centred, target, &stored);
        }
        let all = extremes.all();
        let found: Vec<(f64, u32)> = all.iter().map(|e| (e.centred, e.ids[e.at])).collect();
        assert_eq!(
            found,
            [(3.0, 1), (2.0, 4), (1.8, 8), (1.7, 7), (1.5, 6), (1.0, 5)]
        );
        assert_eq!((all[0].position, all[0].log_probs), (3, [-1.0, -2.0]));
    }
}
