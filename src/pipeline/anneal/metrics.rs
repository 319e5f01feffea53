//! The log entry of a step.

use serde::Serialize;

/// One line of metrics.jsonl. A loss, norm or mean of a skipped step is NaN, in JSON null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch that its rows are from, from 0.
    pub epoch: u64,
    /// The weighted loss: nats per target, or per unit of weight. With the z-loss it is what is minimised.
    pub loss: f64,
    /// The plain next-token loss, nats per target.
    pub ntp_loss: f64,
    /// Addition of the z-loss.
    pub z_loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Mean weight of a target.
    pub weight_mean: f64,
    /// Fraction of the targets whose weight is at a bound.
    pub weight_at_bounds: f64,
    /// The part of the loss that is of divergences from the RL model's distributions; `None` in other weightings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// Targets that learnt a distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distilled: Option<u64>,
    /// Targets of the step.
    pub targets: u64,
    /// Tokens trained on so far, those of this step included.
    pub tokens: u64,
    /// The step was skipped because a loss or gradient was not finite.
    pub skipped: bool,
    /// Tokens of the step over its duration.
    pub tokens_per_second: f64,
}
