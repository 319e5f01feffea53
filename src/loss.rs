//! The loss of annealing: sums over targets, divided once by the step's count.

use serde::{Deserialize, Serialize};

use crate::types::ScoredRow;
use crate::weight::WeightFormula;

/// What a target's negative log-prob is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Weighting {
    /// The method of the paper: from the stored RL log-prob and the learner as it is now.
    #[default]
    Dynamic,
    /// The stored weight, made from the RL model and the frozen base.
    Static,
    /// 1: plain next-token prediction.
    Uniform,
}

impl std::fmt::Display for Weighting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
            Self::Uniform => "uniform",
        })
    }
}

impl Weighting {
    /// Fills `weights`, one a target of `row`, given the learner's log-probs.
    ///
    /// # Errors
    ///
    /// [`NoStoredWeights`] for `Static` on a row that has none.
    pub fn weigh(
        self,
        formula: &WeightFormula,
        row: &ScoredRow,
        learner: &[f32],
        weights: &mut [f32],
    ) -> Result<(), NoStoredWeights> {
        match self {
            Self::Dynamic => formula.weights(&row.rl_logprobs, learner, weights),
            Self::Static => weights.copy_from_slice(row.weights.as_ref().ok_or(NoStoredWeights)?),
            Self::Uniform => weights.fill(1.0),
        }
        Ok(())
    }
}

/// Static weighting was asked of rows without weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the set stores no static weights, because it was scored without a base model")]
pub struct NoStoredWeights;

/// Sums over the targets of one optimizer step, in f64.
///
/// Rows are added one by one in the order of the step, so that the sums do not depend on how the
/// step is split into micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSums {
    /// Number of targets.
    pub targets: u64,
    /// Sum of `-log p`, nats.
    pub nll: f64,
    /// Sum of `weight * -log p`, nats.
    pub weighted_nll: f64,
    /// Sum of the weights.
    pub weight: f64,
    /// Targets whose weight is at either bound.
    pub at_bounds: u64,
}

impl LossSums {
    /// Adds a row's targets: log-probs in nats, and as many weights.
    pub fn add(&mut self, log_probs: &[f32], weights: &[f32], formula: &WeightFormula) {
        for (log_prob, weight) in log_probs.iter().zip(weights) {
            let nll = -f64::from(*log_prob);
            self.nll += nll;
            self.weighted_nll += f64::from(*weight) * nll;
            self.weight += f64::from(*weight);
        }
        self.targets += log_probs.len() as u64;
        let (lower, upper) = formula.at_bounds(weights);
        self.at_bounds += (lower + upper) as u64;
    }

    /// The weighted loss that is minimised: nats a target.
    pub fn loss(&self) -> f64 {
        self.weighted_nll / self.normalizer()
    }

    /// The plain next-token loss, nats a target.
    pub fn ntp_loss(&self) -> f64 {
        self.nll / self.normalizer()
    }

    /// Mean weight of a target.
    pub fn weight_mean(&self) -> f64 {
        self.weight / self.normalizer()
    }

    /// Share of the targets whose weight is at a bound, in [0, 1].
    pub fn weight_at_bounds(&self) -> f64 {
        self.at_bounds as f64 / self.normalizer()
    }

    /// What sums are divided by: the number of targets.
    pub fn normalizer(&self) -> f64 {
        self.targets.max(1) as f64
    }
}
