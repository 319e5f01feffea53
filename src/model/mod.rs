//! The decoder: description, weights, forward and backward.
//!
//! A model goes from files to numbers in three steps: config.json is read into an [`Architecture`],
//! [`OpenModel`] finds and checks the tensors, [`Decoder`] computes.
//!
//! On the CPU a row's log-probs depend on that row alone, bit for bit: not on the other rows of its
//! batch, its place among them, or the number of threads.

mod architecture;
mod block;
mod block_params;
mod composed_head;
mod config;
mod cost;
mod decoder;
mod device;
mod error;
mod files;
mod gemm;
#[cfg(test)]
mod gradient_tests;
mod head;
mod memory;
mod ops;
mod parameters;
mod simd;
#[cfg(test)]
mod tests;

pub use architecture::{
    Activation, Architecture, BlockConfig, LongRopeConfig, MlaConfig, NormPlacement, Projections,
    QkNorm, RopeConfig,
};
pub use config::SUPPORTED_MODEL_TYPES;
pub use cost::{AnnealingMemory, AnnealingShape, SCORING_ACTIVATION_BYTES};
pub use decoder::Decoder;
pub use device::{Compute, ComputeDevice, ComputeDtype, DeviceChoice};
pub use error::Error;
pub use files::{Builtin, ModelFile, ModelSource, ModelWeights, OpenModel};
pub(crate) use files::{Entry, Values, check_exportable, widened, write_tensors, write_weights};
pub use head::{RowOutputs, Weigh};
pub(crate) use ops::adamw::{Moments, Step as AdamWStep};
pub use ops::{RowLayout, UNIT_TOKENS};
pub use parameters::{Gradients, Parameter};

use crate::types::TokenId;

/// How [`Decoder::accumulate_gradients`] goes about it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backward {
    /// Coefficient of the squared log-sum-exp of the logits; 0 for none.
    pub z_loss: f32,
    /// Whether only the inputs of blocks are kept, and each block is computed a second time when its
    /// gradients are. Changes no bit of the result on the CPU; costs about a third more time.
    pub activation_checkpointing: bool,
}

impl Decoder {
    /// `log p(x_t | x_<t)` of every target of every row: one vector a row, with one value less than
    /// the row has tokens. Natural logarithms, f32.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] when an id has no embedding, [`Error::NotFiniteLogProb`] when a
    /// log-prob is NaN or infinite.
    ///
    /// # Examples
    ///
    /// ```
    /// use remit::{demo, model::Decoder};
    ///
    /// let model = Decoder::load(&demo::rl_model())?;
    /// let log_probs = model.target_log_probs(&[&[5, 6, 7], &[8, 9]])?;
    /// assert_eq!([log_probs[0].len(), log_probs[1].len()], [2, 1]);
    /// # Ok::<(), remit::model::Error>(())
    /// ```
    pub fn target_log_probs(&self, rows: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, Error> {
        let batch = self.batch(rows)?;
        let hidden = self.forward(&batch, None)?;
        let all = head::log_probs(&hidden, self.head().1, &batch.ids, &batch.layout)?;
        let mut rest = all.as_slice();
        let mut out = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let (mine, after) = rest.split_at(row.len().saturating_sub(1));
            rest = after;
            self.check_finite(number, mine)?;
            out.push(mine.to_vec());
        }
        Ok(out)
    }

    /// Adds to `gradients` those of `sum over targets of weight * -log p + z_loss * (log-sum-exp)²`, not
    /// divided by anything, for all rows of a micro-batch.
    ///
    /// `weigh` is called once a row, in order, with what the learner says about its targets and a slice to
    /// fill with one weight a target. The weights are constants to the gradient.
    ///
    /// On the CPU the sums are the same, bit for bit, however rows are divided between calls, as long as
    /// none of the [units](RowLayout::units) of all rows is.
    ///
    /// # Errors
    ///
    /// As [`Decoder::target_log_probs`], and what `weigh` returns.
    pub fn accumulate_gradients(
        &self,
        rows: &[&[TokenId]],
        gradients: &mut Gradients,
        how: &Backward,
        weigh: &mut Weigh<'_>,
    ) -> Result<(), Error> {
        let batch = self.batch(rows)?;
        let mut tape = self.tape(how.activation_checkpointing)?;
        let hidden = self.forward(&batch, Some(&mut tape))?;
        let (id, head) = self.head();
        let head_sum = gradients.sum(id, head.weight)?;
        let d_hidden = head::gradients(
            &hidden,
            head,
            &head_sum,
            &batch.ids,
            &batch.layout,
            how.z_loss,
            &mut |outputs, weights| {
                self.check_finite(outputs.row, outputs.log_probs)?;
                weigh(outputs, weights)
            },
        )?;
        drop(hidden);
        self.backward(&batch, tape, &d_hidden, gradients)
    }

    fn check_finite(&self, row: usize, log_probs: &[f32]) -> Result<(), Error> {
        match log_probs.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Error::NotFiniteLogProb {
                model: self.name().to_owned(),
                row,
                position: i + 1,
                value: log_probs[i],
            }),
        }
    }
}
