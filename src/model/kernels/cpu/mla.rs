//! Keys and values of multi-head latent attention: put together from what every head has for itself and
//! the rotated features that all heads share.

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffers::rows_per_task;
use crate::model::Error;
use crate::model::kernels::shapes::MlaDims;
use crate::model::kernels::tensor::{tensor, view};

/// See [`Kernels::mla`](crate::model::kernels::Kernels::mla).
pub(super) fn forward(
    kv: &Tensor,
    k_rope: &Tensor,
    dims: MlaDims,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = kv.dims2()?;
    let heads = width / dims.kv_width();
    let (kv, k_rope): (&[f32], &[f32]) = (&view(kv)?, &view(k_rope)?);
    let mut keys = vec![0.0; tokens * heads * dims.key()];
    let mut values = vec![0.0; tokens * heads * dims.value];
    let task = rows_per_task(width);
    keys.par_chunks_mut(task * heads * dims.key())
        .zip(values.par_chunks_mut(task * heads * dims.value))
        .zip(kv.par_chunks(task * width))
        .zip(k_rope.par_chunks(task * dims.rope))
        .for_each(|(((keys, values), kv), k_rope)| {
            let keys = keys.chunks_exact_mut(dims.key());
            let values = values.chunks_exact_mut(dims.value);
            let pairs = kv.chunks_exact(dims.kv_width()).zip(keys.zip(values));
            for (i, (pair, (key, value))) in pairs.enumerate() {
                let at = i / heads * dims.rope;
                key[..dims.nope].copy_from_slice(&pair[..dims.nope]);
                key[dims.nope..].copy_from_slice(&k_rope[at..at + dims.rope]);
                value.copy_from_slice(&pair[dims.nope..]);
            }
        });
    Ok((
        tensor(keys, (tokens, heads * dims.key()))?,
        tensor(values, (tokens, heads * dims.value))?,
    ))
}

/// See [`Kernels::mla_backward`](crate::model::kernels::Kernels::mla_backward).
pub(super) fn backward(
    d_keys: &Tensor,
    d_values: &Tensor,
    dims: MlaDims,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = d_keys.dims2()?;
    let heads = width / dims.key();
    let (d_keys, d_values): (&[f32], &[f32]) = (&view(d_keys)?, &view(d_values)?);
    let mut d_kv = vec![0.0; tokens * heads * dims.kv_width()];
    let mut d_k_rope = vec![0.0; tokens * dims.rope];
    let task = rows_per_task(width);
    d_kv.par_chunks_mut(task * heads * dims.kv_width())
        .zip(d_k_rope.par_chunks_mut(task * dims.rope))
        .zip(d_keys.par_chunks(task * width))
        .zip(d_values.par_chunks(task * heads * dims.value))
        .for_each(|(((d_kv, d_k_rope), d_keys), d_values)| {
            let d_keys = d_keys.chunks_exact(dims.key());
            let d_values = d_values.chunks_exact(dims.value);
            let pairs = d_kv
                .chunks_exact_mut(dims.kv_width())
                .zip(d_keys.zip(d_values));
            for (i, (pair, (key, value))) in pairs.enumerate() {
                let at = i / heads * dims.rope;
                pair[..dims.nope].copy_from_slice(&key[..dims.nope]);
                pair[dims.nope..].copy_from_slice(value);
                let sum = &mut d_k_rope[at..at + dims.rope];
                for (sum, d) in sum.iter_mut().zip(&key[dims.nope..]) {
                    *sum += d;
                }
            }
        });
    Ok((
        tensor(d_kv, (tokens, heads * dims.kv_width()))?,
        tensor(d_k_rope, (tokens, dims.rope))?,
    ))
}
