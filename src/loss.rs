//! The loss of annealing: sums over targets, divided once by the step's count.

use serde::{Deserialize, Serialize};

use crate::types::{Divergence, ScoredRow, is_of_target};
use crate::weight::{Center, WeightFormula, excess_top_k, of_targets};

/// Default for the fraction of targets that switch weighting learns distributions for: that of its paper.
pub const DEFAULT_SWITCH_FRACTION: f64 = 0.2;

/// Default for the share of the divergence in kd weighting.
pub const DEFAULT_ALPHA: f64 = 0.5;

/// Default for the fraction of targets that excess-top-k trains on: what Rho-1 uses for a general corpus.
pub const DEFAULT_TOP_K_FRACTION: f64 = 0.6;

/// Source of the weight of a target's negative log-prob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Weighting {
    /// The method of the paper: from the stored RL log-prob and the current learner.
    #[default]
    Dynamic,
    /// The stored weight, made from the RL model and the frozen base.
    Static,
    /// 1: plain next-token prediction.
    Uniform,
    /// Rho-1's selection: 1 for the fraction of a row's targets with the largest excess loss,
    /// `log p_RL - log p_theta`, and 0 for the others.
    ExcessTopK,
    /// Dynamic's formula of the RL model's loss alone, `-log p_RL` in place of the difference: what it finds hard weighs
    /// more.
    RlNll,
    /// Switch Distillation: the RL model's distribution for the targets where its entropy is lowest, the next token for
    /// the others, each with its own mean.
    Switch,
    /// Distillation: the RL model's distribution and the next token for every target.
    Kd,
}

impl Weighting {
    /// Returns whether it learns distributions of the RL model.
    pub fn is_distillation(self) -> bool {
        matches!(self, Self::Switch | Self::Kd)
    }
}

impl std::fmt::Display for Weighting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
            Self::Uniform => "uniform",
            Self::ExcessTopK => "excess-top-k",
            Self::RlNll => "rl-nll",
            Self::Switch => "switch",
            Self::Kd => "kd",
        })
    }
}

/// Divisor of a step's sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// The number of its targets.
    #[default]
    Targets,
    /// The sum of their weights.
    Weights,
}

/// How distributions of the RL model are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// The divergence that is minimised.
    pub divergence: Divergence,
    /// Divisor of the logits, as the set stores distributions.
    pub temperature: f64,
    /// Fraction of a step's targets that learn them, those where the RL model's entropy is lowest; for switch weighting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Share of the divergence in the loss of every target, the rest being that of the next token; for kd weighting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
}

/// The loss that is minimised: `sum of weight * -log p + z_loss * sum of (log-sum-exp of the logits)²`, divided by
/// what [`Normalize`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Source of the weights.
    pub weighting: Weighting,
    /// Formula of the weights; for dynamic weighting.
    pub formula: WeightFormula,
    /// Offset that is subtracted from differences; for dynamic weighting.
    pub center: Center,
    /// Divisor of sums.
    pub normalize: Normalize,
    /// Fraction of a row's targets that are trained on, in (0, 1]; for excess-top-k weighting.
    pub top_k_fraction: f64,
    /// How distributions are learnt; for switch and kd weighting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
    /// Coefficient of the squared log-sum-exp of the logits (PaLM, arXiv 2204.02311); files have 0 for none.
    #[serde(with = "off_as_zero")]
    pub z_loss: Option<f64>,
}

/// A coefficient in a file: 0 where the term is off.
mod off_as_zero {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.unwrap_or(0.0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        f64::deserialize(deserializer).map(|value| (value != 0.0).then_some(value))
    }
}

impl Objective {
    /// Fills `weights`, one per position of `row` after the first, given the learner's log-probs. Positions that are no
    /// targets get [`NO_TARGET`](crate::types::NO_TARGET), and the weights of the others do not depend on them.
    /// Switch and kd weighting give 1 here: which targets learn distributions is decided for a step, not for a row.
    ///
    /// # Errors
    ///
    /// [`NoStoredWeights`] for static weighting of a row that has none.
    pub fn token_weights(
        &self,
        row: &ScoredRow,
        learner: &[f32],
        weights: &mut [f32],
    ) -> Result<(), NoStoredWeights> {
        let mask = row.target_mask.as_deref();
        let rl = match self.weighting {
            // Those who need no log-probs of the RL model get what they need in their place.
            Weighting::Static => row.weights.as_ref().ok_or(NoStoredWeights)?,
            _ => &row.rl_logprobs,
        };
        of_targets(mask, rl, learner, weights, |rl, learner, weights| {
            match self.weighting {
                Weighting::Dynamic => {
                    self.formula.weights_from(self.center, rl, learner, weights);
                }
                // A stored -0 is a weight.
                Weighting::Static => weights
                    .iter_mut()
                    .zip(rl)
                    .for_each(|(w, &rl)| *w = rl + 0.0),
                Weighting::Uniform | Weighting::Switch | Weighting::Kd => weights.fill(1.0),
                Weighting::RlNll => {
                    let nothing = vec![0.0; rl.len()];
                    self.formula
                        .weights_from(self.center, &nothing, rl, weights);
                }
                Weighting::ExcessTopK => {
                    excess_top_k(self.top_k_fraction, rl, learner, weights);
                }
            }
        });
        Ok(())
    }

    /// Counts the weights of targets that are at a bound. Weights of excess-top-k always are.
    fn at_bounds(&self, weights: &[f32]) -> usize {
        let num_others = weights.iter().filter(|w| !is_of_target(**w)).count();
        match self.weighting {
            Weighting::Uniform | Weighting::Switch | Weighting::Kd => 0,
            Weighting::ExcessTopK => weights.len() - num_others,
            Weighting::Dynamic | Weighting::Static | Weighting::RlNll => {
                // A bound of a formula is more than 0, and so below every position that is no target.
                let (lower, upper) = self.formula.at_bounds(weights);
                lower - num_others + upper
            }
        }
    }
}

/// Static weighting was asked for, but rows have no weights.
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
    /// Sum of divergences from distributions, times their coefficients.
    pub divergence: f64,
    /// Number of targets that have one.
    pub distilled: u64,
    /// Sum of the weights.
    pub weight: f64,
    /// Targets whose weight is at either bound.
    pub at_bounds: u64,
    /// Sum of the squared log-sum-exps of the logits.
    pub squared_log_normalizers: f64,
}

impl LossSums {
    /// Adds a row's targets: log-probs in nats, log-sum-exps of the logits (none where there is no z-loss),
    /// and as many weights. What has the weight [`NO_TARGET`](crate::types::NO_TARGET) is none and adds nothing.
    pub fn add(
        &mut self,
        log_probs: &[f32],
        log_normalizers: &[f64],
        weights: &[f32],
        objective: &Objective,
    ) {
        let mut others = 0;
        for (log_prob, weight) in log_probs.iter().zip(weights) {
            if !is_of_target(*weight) {
                others += 1;
                continue;
            }
            let nll = -f64::from(*log_prob);
            self.nll += nll;
            self.weighted_nll += f64::from(*weight) * nll;
            self.weight += f64::from(*weight);
        }
        let of_targets = |(_, weight): &(&f64, &f32)| is_of_target(**weight);
        for (log_normalizer, _) in log_normalizers.iter().zip(weights).filter(of_targets) {
            self.squared_log_normalizers += log_normalizer * log_normalizer;
        }
        self.targets += (log_probs.len() - others) as u64;
        self.at_bounds += objective.at_bounds(weights) as u64;
    }

    /// Adds divergences of targets from the RL model's distributions, times their coefficients, one by one.
    pub fn add_divergences(&mut self, divergences: &[f64]) {
        for divergence in divergences {
            self.divergence += divergence;
        }
        self.distilled += divergences.len() as u64;
    }

    /// Adds the sums of other rows.
    pub fn merge(&mut self, other: &Self) {
        self.targets += other.targets;
        self.nll += other.nll;
        self.weighted_nll += other.weighted_nll;
        self.divergence += other.divergence;
        self.distilled += other.distilled;
        self.weight += other.weight;
        self.at_bounds += other.at_bounds;
        self.squared_log_normalizers += other.squared_log_normalizers;
    }

    /// Returns the weighted loss: nats per target, or per unit of weight.
    pub fn loss(&self, normalize: Normalize) -> f64 {
        (self.weighted_nll + self.divergence) / self.normalizer(normalize)
    }

    /// Returns the part of it that is of divergences.
    pub fn divergence_loss(&self, normalize: Normalize) -> f64 {
        self.divergence / self.normalizer(normalize)
    }

    /// Returns what the z-loss adds to it.
    pub fn z_loss(&self, objective: &Objective) -> f64 {
        objective.z_loss.unwrap_or(0.0) * self.squared_log_normalizers
            / self.normalizer(objective.normalize)
    }

    /// Returns the plain next-token loss, nats per target.
    pub fn ntp_loss(&self) -> f64 {
        self.nll / self.num_targets()
    }

    /// Returns the mean weight of a target.
    pub fn weight_mean(&self) -> f64 {
        self.weight / self.num_targets()
    }

    /// Returns the fraction of the targets whose weight is at a bound, in [0, 1].
    pub fn weight_at_bounds(&self) -> f64 {
        self.at_bounds as f64 / self.num_targets()
    }

    /// Returns what sums are divided by; 1 where there is nothing to divide.
    pub fn normalizer(&self, normalize: Normalize) -> f64 {
        match normalize {
            Normalize::Targets => self.num_targets(),
            Normalize::Weights if self.weight > 0.0 => self.weight,
            Normalize::Weights => 1.0,
        }
    }

    fn num_targets(&self) -> f64 {
        self.targets.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_target_counts_nowhere_in_any_weighting() {
        let row = |mask: Option<Vec<bool>>, keep: &[usize]| {
            let of = |values: &[f32]| keep.iter().map(|&i| values[i]).collect::<Vec<_>>();
            ScoredRow {
                source: "a".into(),
                doc_index: 0,
                doc_starts: vec![0],
                input_ids: (0..=keep.len() as u32).collect(),
                rl_logprobs: of(&[-1.0, -2.0, 0.0, -0.5, -9.0]),
                base_logprobs: None,
                weights: Some(of(&[0.9, 0.0, 0.0, 1.2, 1.1])),
                target_mask: mask,
                distributions: crate::types::Distributions::default(),
            }
        };
        let learner = [-2.0, -1.0, -30.0, -3.0, -4.0];
        let normalizers = [1.0, 2.0, 100.0, 3.0, 4.0];
        let kept = [0, 1, 3, 4];
        for weighting in [
            Weighting::Dynamic,
            Weighting::Static,
            Weighting::Uniform,
            Weighting::ExcessTopK,
            Weighting::RlNll,
        ] {
            let objective = Objective {
                weighting,
                formula: WeightFormula::default(),
                center: Center::Row,
                normalize: Normalize::Targets,
                top_k_fraction: 0.5,
                distillation: None,
                z_loss: Some(0.1),
            };
            let sums = |row: &ScoredRow, learner: &[f32], normalizers: &[f64]| {
                let mut weights = vec![7.0; learner.len()];
                objective.token_weights(row, learner, &mut weights).unwrap();
                let mut sums = LossSums::default();
                sums.add(learner, normalizers, &weights, &objective);
                (sums, weights)
            };
            let masked = row(Some(vec![true, true, false, true, true]), &[0, 1, 2, 3, 4]);
            let (found, weights) = sums(&masked, &learner, &normalizers);
            assert!(!is_of_target(weights[2]) && weights[2] == 0.0);
            // As if the position were not there at all.
            let (expected, _) = sums(
                &row(None, &kept),
                &kept.map(|i| learner[i]),
                &kept.map(|i| normalizers[i]),
            );
            assert_eq!(found, expected, "{weighting}");
            assert_eq!(masked.num_targets(), 4);
        }
    }

    #[test]
    fn the_normalizer_divides_what_is_minimised_and_nothing_else() {
        let objective = Objective {
            weighting: Weighting::ExcessTopK,
            formula: WeightFormula::default(),
            center: Center::Row,
            normalize: Normalize::Weights,
            top_k_fraction: 0.5,
            distillation: None,
            z_loss: Some(0.5),
        };
        let mut sums = LossSums::default();
        sums.add(
            &[-1.0, -3.0, -5.0, -7.0],
            &[2.0; 4],
            &[0.0, 1.0, 1.0, 0.0],
            &objective,
        );
        assert_eq!(sums.loss(Normalize::Weights), (3.0 + 5.0) / 2.0);
        assert_eq!(sums.loss(Normalize::Targets), (3.0 + 5.0) / 4.0);
        assert_eq!(sums.z_loss(&objective), 0.5 * 16.0 / 2.0);
        assert_eq!(sums.ntp_loss(), 4.0);
        assert_eq!((sums.weight_mean(), sums.weight_at_bounds()), (0.5, 1.0));
    }
}
