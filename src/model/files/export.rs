//! Writes the weights of a Hugging Face directory.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::Dtype;

use super::names::{INDEX_FILE, SINGLE_FILE};
use super::weights::ModelWeights;
use super::write::{Content, Entry, write};
use crate::fs;
use crate::model::Error;
use crate::model::kernels::tensor::on_host;

/// A tensor that a file is to hold: its name, its values, and its dtype there.
pub(crate) type StoredTensor<'a> = (&'a str, &'a Tensor, Dtype);

/// Checks that every weight of a model is a number in the dtype that it is written in.
///
/// # Errors
///
/// [`Error::NotFinite`] for the first that is not.
pub(crate) fn check_exportable<'a>(
    model: &str,
    tensors: impl IntoIterator<Item = StoredTensor<'a>>,
) -> Result<(), Error> {
    for (name, tensor, dtype) in tensors {
        let values: &[f32] = &on_host(tensor)?;
        let limit = largest(dtype);
        let bad = |value: &f32| !(value.is_finite() && value.abs() <= limit);
        if let Some(element) = values.iter().position(bad) {
            return Err(Error::NotFinite {
                model: model.to_owned(),
                tensor: name.to_owned(),
                element,
                value: values[element],
            });
        }
    }
    Ok(())
}

/// Writes tensors to model.safetensors or, where that would exceed `max_shard_bytes`, to shards with an
/// index. They are converted while they are written. They get the names that they have in the files of the model
/// that they come from, and what is no part of the decoder there is copied after them.
///
/// # Errors
///
/// When a file can't be written.
pub(crate) fn write_weights<'a>(
    dir: &Path,
    origin: &'a ModelWeights,
    tensors: impl IntoIterator<Item = StoredTensor<'a>>,
    max_shard_bytes: u64,
) -> Result<(), Error> {
    let mut shards: Vec<Vec<Entry<'_>>> = vec![Vec::new()];
    let (mut held, mut total) = (0, 0);
    let trained = tensors.into_iter().map(|(name, tensor, dtype)| Entry {
        name: origin.stored_name(name),
        dtype,
        content: Content::Tensor(tensor),
    });
    let others = origin.others().map(|other| Entry {
        name: other.name.to_owned(),
        dtype: other.dtype,
        content: Content::Stored {
            shape: other.shape,
            bytes: other.bytes,
        },
    });
    for entry in trained.chain(others) {
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
        1 => SINGLE_FILE.to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    for (number, entries) in shards.iter().enumerate() {
        let name = name_of(number);
        write(&dir.join(&name), ("format", "pt".to_owned()), entries)?;
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
        fs::write_atomic(&dir.join(INDEX_FILE), &text)?;
    }
    Ok(())
}

/// Returns the largest value of a dtype that weights may have.
fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::MAX.to_f32(),
        Dtype::BF16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}
