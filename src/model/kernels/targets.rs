//! The targets of a batch, what the learner says about them, and how their weights are asked for.

use crate::model::Error;
use crate::model::row_layout::RowLayout;
use crate::types::is_of_target;

/// What the learner says about the targets of a row.
#[derive(Debug, Clone, Copy)]
pub struct RowOutputs<'a> {
    /// Number of the row in the batch.
    pub row: usize,
    /// `log p(x_t | x_<t)`, nats, one per target.
    pub log_probs: &'a [f32],
    /// Log-sum-exp of the logits, one per target.
    pub log_normalizers: &'a [f64],
}

/// Decides what a row's targets count for, given what the learner says.
///
/// Called once per row, in order; has to fill one weight per target. The weights are constants to the
/// gradient. A position with the weight [`NO_TARGET`](crate::types::NO_TARGET) has no part in the z-loss either.
pub type WeightFn<'a> = dyn FnMut(RowOutputs<'_>, &mut [f32]) -> Result<(), Error> + 'a;

/// Returns the positions whose hidden state predicts a target, and the targets' ids.
pub(super) fn targets(ids: &[u32], layout: &RowLayout) -> (Vec<usize>, Vec<u32>) {
    let mut positions = Vec::with_capacity(ids.len());
    let mut next = Vec::with_capacity(ids.len());
    for row in layout.rows() {
        for t in row.start..row.end.saturating_sub(1) {
            positions.push(t);
            next.push(ids[t + 1]);
        }
    }
    (positions, next)
}

/// Returns what a z-loss adds to the factor of a target's probabilities in the gradient of its logits: the
/// slope of `z_loss * s²`, with `s` the log-sum-exp, whose own gradient is the probabilities.
#[inline]
pub(super) fn z_slope(z_loss: Option<f32>, log_normalizer: f64, weight: f32) -> f32 {
    let z_loss = z_loss.filter(|_| is_of_target(weight));
    z_loss.map_or(0.0, |z_loss| {
        (2.0 * f64::from(z_loss) * log_normalizer) as f32
    })
}

/// Asks for the weights of every row of a layout, of which the first has the number `first`, with its part
/// of the log-probs, log-sum-exps and weights of all.
pub(super) fn token_weights(
    layout: &RowLayout,
    first: usize,
    (log_probs, log_normalizers): (&[f32], &[f64]),
    weights: &mut [f32],
    weight_fn: &mut WeightFn<'_>,
) -> Result<(), Error> {
    let mut at = 0;
    for (i, row) in layout.rows().enumerate() {
        let end = at + row.len().saturating_sub(1);
        let outputs = RowOutputs {
            row: first + i,
            log_probs: &log_probs[at..end],
            log_normalizers: &log_normalizers[at..end],
        };
        weight_fn(outputs, &mut weights[at..end])?;
        at = end;
    }
    Ok(())
}

/// A log-sum-exp over blocks of logits: exact in its maximum, its sum in f64.
#[derive(Clone, Copy)]
pub(super) struct LogSumExp {
    max: f32,
    sum: f64,
}

impl LogSumExp {
    pub const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// Takes in a block whose largest logit is `block_max`, and whose sum of `e^(logit - block_max)`
    /// is `sum`.
    pub fn merge(&mut self, block_max: f32, sum: f32) {
        self.raise(block_max);
        self.sum += f64::from(sum) * f64::from(block_max - self.max).exp();
    }

    /// Counts the sum from the largest logit so far, that of a new block included, and returns that.
    #[inline(always)]
    pub fn raise(&mut self, block_max: f32) -> f32 {
        if block_max > self.max {
            self.sum *= f64::from(self.max - block_max).exp();
            self.max = block_max;
        }
        self.max
    }

    /// Takes in a block whose sum of `e^(logit - m)` is `sum`, with `m` what [`LogSumExp::raise`] returned.
    #[inline(always)]
    pub fn add(&mut self, sum: f32) {
        self.sum += f64::from(sum);
    }

    pub fn value(self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    pub fn log_prob(self, logit: f32) -> f32 {
        (f64::from(logit) - self.value()) as f32
    }
}
