//! The decoder: description, weights, forward and backward.
//!
//! A model goes from files to numbers in three steps: config.json is read into an
//! [`Architecture`], [`weights`] finds and checks the tensors, [`Decoder`] computes.
//!
//! On the CPU a row's log-probs depend on that row alone, bit for bit: not on the other rows of its
//! batch, its place among them, or the number of threads.

mod architecture;
mod batch;
mod block;
mod block_params;
mod config;
mod cost;
mod decoder;
#[cfg(test)]
mod decoder_tests;
mod device;
mod error;
mod families;
mod gradients;
mod kernels;
mod layers;
mod parameters;
mod pass;
mod qkv;
mod rotary;
mod row_layout;
mod safetensors_file;
pub mod weights;

use std::collections::BTreeMap;
use std::path::Path;

pub use architecture::{
    Activation, Architecture, Block, Latent, LongRotary, NormPlacement, Projections, QkNorm, Rotary,
};
pub use cost::{AnnealingMemory, AnnealingShape};
pub use decoder::{Backward, Decoder};
pub use device::{Compute, ComputeDevice, ComputeDtype, DeviceChoice};
pub use error::Error;
pub use families::SUPPORTED_MODEL_TYPES;
pub use gradients::Gradients;
pub use kernels::cpu::SCORING_ACTIVATION_BYTES;
pub(crate) use kernels::tensor::{set_values, zeros_f32};
pub(crate) use kernels::{AdamWState, AdamWStep};
pub use kernels::{RowOutputs, WeightFn};
pub use parameters::{Parameter, Parameters};
pub use row_layout::{GRAD_CHUNK_TOKENS, RowLayout};
pub(crate) use safetensors_file::{Entry, Values, write as write_tensors};
pub(crate) use weights::widened;
pub use weights::{Builtin, Checkpoint, ModelSource};

use crate::fs;

impl Decoder {
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
