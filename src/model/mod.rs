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
#[cfg(test)]
mod gradient_tests;
mod head;
mod layers;
mod memory;
mod ops;
mod parameters;
mod rotary;
mod safetensors_file;
mod simd;
#[cfg(test)]
mod tests;
pub mod weights;

use std::collections::BTreeMap;
use std::path::Path;

pub use architecture::{
    Activation, Architecture, Block, Latent, LongRotary, NormPlacement, Projections, QkNorm, Rotary,
};
pub use cost::{AnnealingMemory, AnnealingShape, SCORING_ACTIVATION_BYTES};
pub use decoder::Decoder;
pub use device::{Compute, ComputeDevice, ComputeDtype, DeviceChoice};
pub use error::Error;
pub use families::SUPPORTED_MODEL_TYPES;
pub use head::{RowOutputs, Weigh};
pub(crate) use ops::adamw::{Moments, Step as AdamWStep};
pub use ops::{RowLayout, UNIT_TOKENS};
pub use parameters::{Gradients, Parameter};
pub(crate) use safetensors_file::{Entry, Values, write as write_tensors};
pub(crate) use weights::widened;
pub use weights::{Builtin, Checkpoint, ModelSource};

use crate::fs;
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

    /// Writes the weights of a Hugging Face directory: names, shapes and dtypes as in the checkpoint that the
    /// model was loaded from, in model.safetensors or, where that would exceed `max_shard_bytes`, in shards
    /// with an index. Tensors are converted while they are written.
    ///
    /// # Errors
    ///
    /// When a file can't be written.
    pub fn write_weights(&self, dir: &Path, max_shard_bytes: u64) -> Result<(), Error> {
        let mut shards: Vec<Vec<Entry<'_>>> = vec![Vec::new()];
        let (mut held, mut total) = (0, 0);
        for (name, tensor, dtype) in self.stored() {
            let entry = Entry {
                name: name.to_owned(),
                dtype,
                shape: tensor.dims().to_vec(),
                values: Values::Of(tensor),
            };
            let size_bytes = entry.size_bytes() as u64;
            if held > 0 && held + size_bytes > max_shard_bytes {
                shards.push(Vec::new());
                held = 0;
            }
            held += size_bytes;
            total += size_bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(entry);
            }
        }
        let mut weight_map = BTreeMap::new();
        let name_of = |number: usize| match shards.len() {
            1 => weights::SINGLE_FILE.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        for (number, entries) in shards.iter().enumerate() {
            let name = name_of(number);
            write_tensors(&dir.join(&name), ("format", "pt".to_owned()), entries)?;
            let names = entries
                .iter()
                .map(|entry| (entry.name.clone(), name.clone()));
            weight_map.extend(names);
        }
        if shards.len() > 1 {
            let index = serde_json::json!({
                "metadata": {"total_size": total},
                "weight_map": weight_map,
            });
            let mut text = format!("{index:#}").into_bytes();
            text.push(b'\n');
            fs::write_atomic(&dir.join(weights::INDEX_FILE), &text)?;
        }
        Ok(())
    }
}
