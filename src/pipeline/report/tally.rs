//! Sums over the rows of a source, or of several, in one pass.

use std::collections::{BTreeMap, HashMap};

use super::extremes::Extremes;
use super::histogram::{Histogram, WeightTotals};
use super::repeats::{Duplicates, LongRuns, runs};
use crate::shard::row::StoredRow;
use crate::types::TokenId;
use crate::weight::WeightFormula;

/// Ranges of positions that are told apart: 1, 2 to 3, 4 to 7, and so on.
pub const POSITION_RANGES: usize = 24;

/// Sums over targets of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Number of targets.
    pub targets: u64,
    /// Sum of log-probs under the RL model, nats.
    pub rl: f64,
    /// The same under the base.
    pub base: f64,
    /// Sum of the stored weights.
    pub weight: f64,
}

impl Sums {
    fn add(&mut self, target: &Target) {
        self.targets += 1;
        self.rl += target.rl;
        self.base += target.base;
        self.weight += target.weight;
    }

    /// Adds other sums.
    pub fn merge(&mut self, other: &Self) {
        self.targets += other.targets;
        self.rl += other.rl;
        self.base += other.base;
        self.weight += other.weight;
    }
}

struct Target {
    rl: f64,
    base: f64,
    weight: f64,
}

/// What else than differences is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Differences alone.
    Differences,
    /// Everything.
    All,
}

/// Everything that is summed over some rows.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Documents that begin in them.
    pub documents: u64,
    /// Tokens.
    pub tokens: u64,
    /// Sums over all targets.
    pub sums: Sums,
    /// Sum of `|log p_RL - log p_base|`, nats.
    pub distance: f64,
    /// Sums over the stored weights.
    pub stored: WeightTotals,
    /// Differences, less the mean of their row.
    pub centred: Histogram,
    /// Differences as they are.
    pub raw: Histogram,
    /// Rows by their number of targets.
    pub row_targets: BTreeMap<usize, u64>,
    /// Sums by range of positions.
    pub positions: [Sums; POSITION_RANGES],
    /// Sums by token.
    pub by_token: HashMap<TokenId, Sums>,
    /// Targets with the largest differences above their row's mean.
    pub raised: Extremes,
    /// Those with the largest below it.
    pub lowered: Extremes,
    /// Sums over targets in runs that the learner knows.
    pub known: Sums,
    /// Number of these runs.
    pub known_runs: u64,
    /// The longest of them.
    pub longest: LongRuns,
    /// Rows of the same tokens.
    pub duplicates: Duplicates,
}

impl Tally {
    /// Adds a row; `formula` is the one its weights were made with. Returns the mean of its differences, nats.
    pub fn add(
        &mut self,
        stored: &StoredRow,
        formula: Option<&WeightFormula>,
        detail: Detail,
    ) -> f64 {
        let row = &stored.scored;
        let num_targets = row.num_targets();
        self.rows += 1;
        self.documents += row.doc_starts.len() as u64;
        self.tokens += row.num_tokens() as u64;
        *self.row_targets.entry(num_targets).or_default() += 1;
        let delta = |target: usize| -> Option<f64> {
            let rl = row.rl_logprobs.get(target)?;
            let base = row.base_logprobs.as_ref()?.get(target)?;
            Some(f64::from(*rl) - f64::from(*base))
        };
        let targets = || (0..row.rl_logprobs.len()).filter(|target| row.is_target(*target));
        let mean = targets().filter_map(delta).sum::<f64>() / num_targets.max(1) as f64;
        for target in targets() {
            let of = |values: Option<&Vec<f32>>| {
                let value = values.and_then(|values| values.get(target));
                value.copied().map_or(0.0, f64::from)
            };
            let values = Target {
                rl: of(Some(&row.rl_logprobs)),
                base: of(row.base_logprobs.as_ref()),
                weight: of(row.weights.as_ref()),
            };
            self.sums.add(&values);
            let position = target + 1;
            if let Some(delta) = delta(target) {
                let centred = delta - mean;
                self.distance += delta.abs();
                self.centred.add(centred);
                self.raw.add(delta);
                if detail == Detail::All {
                    if centred > 0.0 {
                        self.raised.offer(centred, target, stored);
                    } else {
                        self.lowered.offer(centred, target, stored);
                    }
                }
            }
            if detail == Detail::All {
                let range = position.ilog2() as usize;
                if let Some(sums) = self.positions.get_mut(range.min(POSITION_RANGES - 1)) {
                    sums.add(&values);
                }
                if let Some(id) = row.input_ids.get(position) {
                    self.by_token.entry(*id).or_default().add(&values);
                }
            }
        }
        if let (Some(formula), Some(weights)) = (formula, &row.weights) {
            let of_targets: Vec<f32> = targets().filter_map(|t| weights.get(t).copied()).collect();
            let (lower, upper) = formula.at_bounds(&of_targets);
            let wide = || of_targets.iter().map(|w| f64::from(*w));
            self.stored.merge(&WeightTotals {
                targets: of_targets.len() as f64,
                sum: wide().sum(),
                squares: wide().map(|w| w * w).sum(),
                at_lower: lower as f64,
                at_upper: upper as f64,
            });
        }
        if detail == Detail::All {
            self.add_repeats(stored);
        }
        mean
    }

    fn add_repeats(&mut self, stored: &StoredRow) {
        let row = &stored.scored;
        self.duplicates.add(stored);
        for run in runs(stored) {
            self.known_runs += 1;
            for target in run.position - 1..run.position - 1 + run.len {
                let of = |values: Option<&Vec<f32>>| {
                    let value = values.and_then(|values| values.get(target));
                    value.copied().map_or(0.0, f64::from)
                };
                self.known.add(&Target {
                    rl: of(Some(&row.rl_logprobs)),
                    base: of(row.base_logprobs.as_ref()),
                    weight: of(row.weights.as_ref()),
                });
            }
            self.longest.offer(run, stored);
        }
    }

    /// Returns how many targets excess-top-k weighting selects.
    pub fn selected(&self, fraction: f64) -> u64 {
        let of_rows = self.row_targets.iter();
        of_rows
            .map(|(targets, rows)| num_selected(fraction, *targets) as u64 * rows)
            .sum()
    }
}

/// Returns how many targets of a row excess-top-k weighting selects, as [`crate::weight::excess_top_k`] does.
pub fn num_selected(fraction: f64, targets: usize) -> usize {
    let selected = (fraction * targets as f64 - 1e-9).ceil() as usize;
    selected.max(1).min(targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ScoredRow;
    use crate::weight::excess_top_k;

    #[test]
    fn as_many_targets_are_counted_as_excess_top_k_selects() {
        for targets in [1, 2, 3, 7, 100, 101] {
            for fraction in [0.01, 0.07, 0.3, 0.5, 0.6, 1.0] {
                let rl: Vec<f32> = (0..targets).map(|i| -(i as f32)).collect();
                let mut weights = vec![0.0; targets];
                excess_top_k(fraction, &rl, &vec![-1.0; targets], &mut weights);
                let selected = weights.iter().filter(|w| **w == 1.0).count();
                assert_eq!(num_selected(fraction, targets), selected);
            }
        }
    }

    #[test]
    fn what_is_no_target_is_counted_nowhere() {
        let row = |mask: Option<Vec<bool>>, values: [f32; 3]| StoredRow {
            row_id: 0,
            scored: ScoredRow {
                source: "a".into(),
                doc_index: 0,
                doc_starts: vec![0],
                input_ids: vec![5, 6, 7, 8],
                rl_logprobs: values.to_vec(),
                base_logprobs: Some(vec![-1.0, if mask.is_some() { 0.0 } else { -1.0 }, -1.5]),
                weights: Some(vec![0.8, 0.0, 1.2]),
                target_mask: mask,
                distributions: crate::types::Distributions::default(),
            },
        };
        let formula = WeightFormula::default();
        let mut tally = Tally::default();
        let masked = row(Some(vec![true, false, true]), [-2.0, 0.0, -1.0]);
        let mean = tally.add(&masked, Some(&formula), Detail::All);
        assert_eq!(mean, -0.25);
        assert_eq!((tally.sums.targets, tally.tokens, tally.rows), (2, 4, 1));
        assert_eq!(tally.sums.rl, -3.0);
        assert_eq!(tally.distance, 1.5);
        let stored = &tally.stored;
        assert_eq!(
            (stored.targets, stored.at_lower, stored.at_upper),
            (2.0, 1.0, 1.0)
        );
        assert_eq!(tally.centred.bins().weights(0.2, 1.0).targets, 2.0);
        assert_eq!(tally.by_token.len(), 2);
        assert_eq!(tally.selected(0.5), 1);
    }
}
