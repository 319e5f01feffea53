//! Numbers about a set: perplexities and the distribution of weights, per source and in all.
//!
//! Sums are f64 and are taken in row order within a shard, shard after shard, so they come out the
//! same in every run. Quantiles are read off a histogram of [`WEIGHT_BINS`] bins between the bounds.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::ScoredRow;
use crate::weight::WeightFormula;

/// Bins of the histogram of weights; one is epsilon / 2048 wide.
pub const WEIGHT_BINS: u16 = 4096;

/// Quantiles that are reported.
pub const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Numbers about some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub targets: u64,
    /// Mean log-prob of a target under the RL model, nats; null without targets.
    pub rl_logprob_mean: Option<f64>,
    /// `exp(-rl_logprob_mean)`.
    pub rl_perplexity: Option<f64>,
    /// Mean log-prob of a target under the base, nats.
    pub base_logprob_mean: Option<f64>,
    /// `exp(-base_logprob_mean)`.
    pub base_perplexity: Option<f64>,
    /// About the weights; null without a base.
    pub weight: Option<WeightStatistics>,
}

/// Numbers about the weights of some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightStatistics {
    /// Mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Quantiles at 5, 25, 50, 75 and 95 %.
    pub p05: f64,
    /// First quartile.
    pub p25: f64,
    /// Median.
    pub p50: f64,
    /// Third quartile.
    pub p75: f64,
    /// 95 % quantile.
    pub p95: f64,
    /// Largest.
    pub max: f64,
    /// Share of the targets at the lower bound, in [0, 1].
    pub share_at_lower: f64,
    /// Share of the targets at the upper bound, in [0, 1].
    pub share_at_upper: f64,
}

/// Takes rows in and gives [`Statistics`] out.
#[derive(Debug, Clone, Default)]
pub struct Accumulator {
    rows: u64,
    tokens: u64,
    targets: u64,
    rl_sum: f64,
    base_sum: f64,
    weights: Option<WeightSums>,
}

#[derive(Debug, Clone)]
struct WeightSums {
    sum: f64,
    min: f32,
    max: f32,
    at_lower: u64,
    at_upper: u64,
    /// Targets by bin; only bins that have some.
    bins: BTreeMap<u16, u64>,
}

impl Accumulator {
    /// Adds a row; `formula` is the one its weights were made with.
    pub fn add(&mut self, row: &ScoredRow, formula: &WeightFormula) {
        // Of what is no target, the value is 0.
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        self.rows += 1;
        self.tokens += row.num_tokens() as u64;
        self.targets += row.num_targets() as u64;
        self.rl_sum += sum(&row.rl_logprobs);
        self.base_sum += row.base_logprobs.as_deref().map_or(0.0, sum);
        let Some(weights) = &row.weights else { return };
        let weights: Cow<'_, [f32]> = match &row.target_mask {
            None => Cow::Borrowed(weights),
            Some(mask) => {
                let targets = weights.iter().zip(mask).filter(|(_, is)| **is);
                targets.map(|(weight, _)| *weight).collect()
            }
        };
        let sums = self.weights.get_or_insert_with(|| WeightSums {
            sum: 0.0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            at_lower: 0,
            at_upper: 0,
            bins: BTreeMap::new(),
        });
        let (lower, upper) = formula.bounds();
        let scale = f32::from(WEIGHT_BINS) / (upper - lower).max(f32::MIN_POSITIVE);
        for &weight in weights.iter() {
            sums.sum += f64::from(weight);
            sums.min = sums.min.min(weight);
            sums.max = sums.max.max(weight);
            // Saturating: a weight just outside the bounds, from rounding, is in the outermost bin.
            let bin = ((weight - lower) * scale) as u16;
            *sums.bins.entry(bin.min(WEIGHT_BINS - 1)).or_default() += 1;
        }
        let (at_lower, at_upper) = formula.at_bounds(&weights);
        sums.at_lower += at_lower as u64;
        sums.at_upper += at_upper as u64;
    }

    /// Adds what another accumulator has taken in.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.tokens += other.tokens;
        self.targets += other.targets;
        self.rl_sum += other.rl_sum;
        self.base_sum += other.base_sum;
        match (&mut self.weights, &other.weights) {
            (Some(mine), Some(theirs)) => {
                mine.sum += theirs.sum;
                mine.min = mine.min.min(theirs.min);
                mine.max = mine.max.max(theirs.max);
                mine.at_lower += theirs.at_lower;
                mine.at_upper += theirs.at_upper;
                for (bin, count) in &theirs.bins {
                    *mine.bins.entry(*bin).or_default() += count;
                }
            }
            (None, Some(theirs)) => self.weights = Some(theirs.clone()),
            (_, None) => {}
        }
    }

    /// Returns the numbers so far.
    pub fn statistics(&self, formula: &WeightFormula) -> Statistics {
        let mean = |sum: f64| (self.targets > 0).then(|| sum / self.targets as f64);
        let rl_logprob_mean = mean(self.rl_sum);
        let base_logprob_mean = self.weights.as_ref().and_then(|_| mean(self.base_sum));
        Statistics {
            rows: self.rows,
            tokens: self.tokens,
            targets: self.targets,
            rl_logprob_mean,
            rl_perplexity: rl_logprob_mean.map(|mean| (-mean).exp()),
            base_logprob_mean,
            base_perplexity: base_logprob_mean.map(|mean| (-mean).exp()),
            weight: self.weights.as_ref().map(|sums| sums.statistics(formula)),
        }
    }
}

impl WeightSums {
    fn statistics(&self, formula: &WeightFormula) -> WeightStatistics {
        let count: u64 = self.bins.values().sum();
        let (lower, upper) = formula.bounds();
        let width = (f64::from(upper) - f64::from(lower)) / f64::from(WEIGHT_BINS);
        let quantile = |q: f64| {
            let rank = q * count as f64;
            let mut below = 0.0;
            for (&bin, &n) in &self.bins {
                below += n as f64;
                if below >= rank && n > 0 {
                    let middle = f64::from(lower) + (f64::from(bin) + 0.5) * width;
                    return middle.clamp(f64::from(self.min), f64::from(self.max));
                }
            }
            f64::from(self.max)
        };
        let [p05, p25, p50, p75, p95] = QUANTILES.map(quantile);
        let share = |n: u64| n as f64 / count.max(1) as f64;
        WeightStatistics {
            mean: self.sum / count.max(1) as f64,
            min: f64::from(self.min),
            p05,
            p25,
            p50,
            p75,
            p95,
            max: f64::from(self.max),
            share_at_lower: share(self.at_lower),
            share_at_upper: share(self.at_upper),
        }
    }
}

/// Accumulators of a set or a shard: one for each source, and the sum of all is their merge in the
/// order of the names.
pub type BySource = BTreeMap<String, Accumulator>;
