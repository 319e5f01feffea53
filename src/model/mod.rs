//! The decoder: description, weights, forward and backward.
//!
//! A model goes from files to numbers in three steps: config.json is read into an
//! [`Architecture`], [`weights`] finds and checks the tensors, [`Decoder`] computes.
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
mod families;
mod gemm;
mod head;
mod layers;
mod ops;
mod parameters;
mod rotary;
mod simd;
#[cfg(test)]
mod tests;
pub mod weights;

use std::borrow::Cow;

use candle_core::Tensor;
use safetensors::Dtype;

pub use architecture::{
    Activation, Architecture, Block, Latent, LongRotary, NormPlacement, Projections, QkNorm, Rotary,
};
pub use cost::SCORING_ACTIVATION_BYTES;
pub use decoder::Decoder;
pub use device::{Compute, ComputeDevice, ComputeDtype, DeviceChoice};
pub use error::Error;
pub use families::SUPPORTED_MODEL_TYPES;
pub use head::Weigh;
pub use ops::RowLayout;
pub(crate) use ops::adamw::{Moments, Step as AdamWStep};
pub use parameters::{Gradients, Parameter};
pub use weights::{Builtin, Checkpoint, ModelSource};

use crate::types::TokenId;

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
        for row in rows {
            let (mine, after) = rest.split_at(row.len().saturating_sub(1));
            rest = after;
            self.check_finite(mine)?;
            out.push(mine.to_vec());
        }
        Ok(out)
    }

    /// Adds to `gradients` those of `sum over targets of weight * -log p`, not divided by anything,
    /// for all rows of a micro-batch.
    ///
    /// `weigh` is called once a row, in order, with the row's number, the learner's log-probs (one a
    /// target), and a slice to fill with one weight a target. The weights are constants to the
    /// gradient.
    ///
    /// # Errors
    ///
    /// As [`Decoder::target_log_probs`], and what `weigh` returns.
    pub fn accumulate_gradients(
        &self,
        rows: &[&[TokenId]],
        gradients: &mut Gradients,
        weigh: &mut Weigh<'_>,
    ) -> Result<(), Error> {
        let batch = self.batch(rows)?;
        let mut tape = self.tape()?;
        let hidden = self.forward(&batch, Some(&mut tape))?;
        let (id, head) = self.head();
        let head_sum = gradients.sum(id, head.weight)?;
        let d_hidden = head::gradients(
            &hidden,
            head,
            &head_sum,
            &batch.ids,
            &batch.layout,
            &mut |row, log_probs, weights| {
                self.check_finite(log_probs)?;
                weigh(row, log_probs, weights)
            },
        )?;
        drop(hidden);
        self.backward(&batch, tape, &d_hidden, gradients)
    }

    fn check_finite(&self, log_probs: &[f32]) -> Result<(), Error> {
        match log_probs.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Error::NotFiniteLogProb {
                model: self.name().to_owned(),
                position: i + 1,
                value: log_probs[i],
            }),
        }
    }

    /// Checks that every weight is a number in the dtype that it is written in.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] for the first that is not.
    pub fn check_exportable(&self) -> Result<(), Error> {
        for (name, tensor, dtype) in self.stored() {
            let values: &[f32] = &ops::on_host(tensor)?;
            let limit = weights::largest(dtype);
            let bad = |value: &f32| !(value.is_finite() && value.abs() <= limit);
            if let Some(element) = values.iter().position(bad) {
                return Err(Error::NotFinite {
                    model: self.name().to_owned(),
                    tensor: name.to_owned(),
                    element,
                    value: values[element],
                });
            }
        }
        Ok(())
    }

    /// The model as a safetensors file: names, shapes and dtypes as in the checkpoint that it was
    /// loaded from. Tensors are converted one at a time, while they are written.
    ///
    /// # Errors
    ///
    /// When the file at `path` can't be written.
    pub fn write_safetensors(
        &self,
        path: &std::path::Path,
    ) -> Result<(), safetensors::SafeTensorError> {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let tensors = self
            .stored()
            .map(|(name, tensor, dtype)| (name, Export { tensor, dtype }));
        safetensors::serialize_to_file(tensors, Some(metadata), path)
    }
}

/// A parameter on its way into a file.
struct Export<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
}

impl safetensors::View for Export<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match ops::on_host(self.tensor) {
            Ok(values) => Cow::Owned(weights::narrow(&values, self.dtype)),
            // Seen before by `check_exportable`, which reads every parameter in the same way.
            Err(error) => panic!("a parameter can't be copied from its device: {error}"),
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.elem_count() * weights::width(self.dtype).unwrap_or(4)
    }
}
