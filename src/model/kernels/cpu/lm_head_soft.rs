//! Targets whose distribution is learnt, in the gradient of the output head.

use super::simd::{VOCAB_TILE, exp, max, soft_cap_slope, squeeze, sums_exp_scaled, vectorized};
use crate::model::kernels::soft_targets::SoftTargets;

/// What the gradient of a target's logits is made of.
pub(super) struct SoftRow {
    /// The divergence, times its coefficient.
    pub divergence: f64,
    ids: Vec<u32>,
    /// Added at these ids.
    at_ids: Vec<f32>,
    /// The largest logit.
    shift: f32,
    /// One over the temperature.
    factor: f32,
    /// Factor on `e^((logit - shift) * factor)`.
    slope: f32,
}

/// The largest logit, and the sum of `e^((logit - largest) * factor)`.
fn sum_exp(logits: &[f32], factor: f32) -> (f32, f64) {
    vectorized(
        #[inline(always)]
        || {
            let largest = max(logits);
            let mut sum = 0.0;
            for block in logits.chunks(VOCAB_TILE) {
                sum += f64::from(sums_exp_scaled(block, largest, factor).0);
            }
            (largest, sum)
        },
    )
}

impl SoftRow {
    /// Looks at the logits of soft target `i`, after squeezing them into the range of the cap, if there is one.
    pub fn new(targets: &SoftTargets, i: usize, logits: &mut [f32], cap: Option<f32>) -> Self {
        squeeze(logits, cap);
        let factor = targets.temperature.recip() as f32;
        let (shift, all) = sum_exp(logits, factor);
        let ids = targets.ids_of(i);
        let own: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        // The tail is summed by itself: as 1 minus the others, it would be lost where they are nearly 1.
        for &id in ids {
            logits[id as usize] = f32::NEG_INFINITY;
        }
        let (of_tail, tail) = sum_exp(logits, factor);
        for (&id, &logit) in ids.iter().zip(&own) {
            logits[id as usize] = logit;
        }
        let log_prob =
            |logit: f32| (f64::from(logit) - f64::from(shift)) / targets.temperature - all.ln();
        let learner: Vec<f64> = own.iter().map(|logit| log_prob(*logit)).collect();
        let terms = targets.terms(i, &learner, log_prob(of_tail) + tail.ln());
        Self {
            divergence: terms.divergence,
            ids: ids.to_vec(),
            at_ids: terms.at_ids.iter().map(|added| *added as f32).collect(),
            shift,
            factor,
            slope: (terms.at_all / all) as f32,
        }
    }

    /// Turns the logits, which went through the cap, into their gradient: that of the divergence, and as for other
    /// targets of `weight * -log p` and the z-loss, `e^(logit - shift) * slope_term`, minus the weight at the target.
    pub fn gradient(
        &self,
        logits: &mut [f32],
        (shift, slope_term): (f32, f32),
        (id, weight): (u32, f32),
        cap: Option<f32>,
    ) {
        let slope_of = |logit: f32| cap.map_or(1.0, |cap| soft_cap_slope(logit, cap));
        let at_target = weight * slope_of(logits[id as usize]);
        let ids = self.ids.iter().zip(&self.at_ids);
        let at_ids: Vec<f32> = ids
            .map(|(&id, added)| added * slope_of(logits[id as usize]))
            .collect();
        vectorized(
            #[inline(always)]
            || {
                for logit in logits.iter_mut() {
                    let hard = match slope_term == 0.0 {
                        true => 0.0,
                        false => exp(*logit - shift) * slope_term,
                    };
                    let soft = exp((*logit - self.shift) * self.factor) * self.slope;
                    *logit = (hard + soft) * slope_of(*logit);
                }
            },
        );
        for (&id, added) in self.ids.iter().zip(at_ids) {
            logits[id as usize] += added;
        }
        logits[id as usize] -= at_target;
    }
}
