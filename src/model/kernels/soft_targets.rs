//! Targets whose whole distribution is learnt: a divergence from the most likely tokens of another model, and its tail.
//!
//! With the learner's probabilities `s` of the `k` tokens and of the tail, and the other model's `q`, at one temperature
//! `T`:
//!
//! ```text
//! reverse: R = sum of s (log s - log q)     dR/dlogit_v = p_v (log s - log q, of the class of v, - R) / T
//! forward: F = sum of q (log q - log s)     dF/dlogit_v = (p_v sum of q - q_v) / T for the k tokens, and
//!                                                         p_v (sum of q - q_tail / s_tail) / T for all others
//! ```
//!
//! So at all tokens the gradient is one factor on the learner's probability `p_v`, but for the `k`, where something is
//! added.

use super::super::Error;
use crate::types::Divergence;

/// Largest quotient of the tails' probabilities that a forward divergence is computed with: where the learner's is less
/// than that, f32 has no such probabilities.
const MAX_TAIL_RATIO: f64 = 1e30;

/// The targets of a batch whose distribution is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftTargets {
    /// The divergence that is minimised.
    pub divergence: Divergence,
    /// Divisor of the logits.
    pub temperature: f64,
    /// Factor on each divergence.
    pub coefficient: f64,
    /// Most likely tokens per target.
    pub k: usize,
    /// Numbers of the targets among all positions of the batch that are not the first of a row, ascending.
    pub targets: Vec<usize>,
    /// `k` ids for each.
    pub ids: Vec<u32>,
    /// Their log-probs under the other model.
    pub log_probs: Vec<f32>,
    /// Log of the probability of all other tokens, for each.
    pub tail_log_probs: Vec<f32>,
}

impl SoftTargets {
    /// Checks that ids lie within a vocabulary, and leave something of it for the tail.
    pub(crate) fn check(&self, vocab_size: usize) -> Result<(), Error> {
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange {
                id: *id,
                position: 0,
                vocab_size,
            });
        }
        let stored = self.targets.len();
        if self.k >= vocab_size
            || self.ids.len() != stored * self.k
            || self.log_probs.len() != stored * self.k
            || self.tail_log_probs.len() != stored
        {
            return Err(Error::Internal("soft targets that do not fit together"));
        }
        Ok(())
    }

    /// Returns the ids of a target.
    pub(super) fn ids_of(&self, i: usize) -> &[u32] {
        &self.ids[i * self.k..(i + 1) * self.k]
    }

    /// Returns the divergence of the learner, given its log-probs of these ids and of the tail, and its gradient, all
    /// times the coefficient.
    pub(super) fn terms(&self, i: usize, learner: &[f64], learner_tail: f64) -> Terms {
        let rl = &self.log_probs[i * self.k..(i + 1) * self.k];
        let tail = f64::from(self.tail_log_probs[i]);
        let pairs = || learner.iter().zip(rl.iter().map(|&rl| f64::from(rl)));
        let factor = self.coefficient / self.temperature;
        match self.divergence {
            Divergence::Reverse => {
                let of_tail = learner_tail - tail;
                let sum: f64 = pairs().map(|(s, q)| s.exp() * (s - q)).sum();
                let divergence = sum + learner_tail.exp() * of_tail;
                Terms {
                    divergence: self.coefficient * divergence,
                    at_all: factor * (of_tail - divergence),
                    at_ids: pairs()
                        .map(|(s, q)| factor * s.exp() * (s - q - of_tail))
                        .collect(),
                }
            }
            Divergence::Forward => {
                let sum: f64 = pairs().map(|(s, q)| q.exp() * (q - s)).sum();
                let divergence = sum + tail.exp() * (tail - learner_tail);
                let total = pairs().map(|(_, q)| q.exp()).sum::<f64>() + tail.exp();
                let ratio = (tail - learner_tail).exp().min(MAX_TAIL_RATIO);
                Terms {
                    divergence: self.coefficient * divergence,
                    at_all: factor * (total - ratio),
                    at_ids: pairs()
                        .map(|(s, q)| factor * (s.exp() * ratio - q.exp()))
                        .collect(),
                }
            }
        }
    }
}

/// A divergence, and what its gradient with respect to the logits is made of.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub divergence: f64,
    /// Factor on the learner's probability of every token.
    pub at_all: f64,
    /// Added at the most likely tokens.
    pub at_ids: Vec<f64>,
}

/// The part of a loss that is over [`SoftTargets`].
pub struct SoftLoss<'a> {
    /// The targets.
    pub targets: &'a SoftTargets,
    /// Filled with the divergence of each, times the coefficient.
    pub divergences: &'a mut [f64],
}
