//! Keys and values of multi-head latent attention: put together from what every head has for itself and
//! the rotated features that all heads share.
//!
//! `kv` is `[tokens, heads * (plain + value)]`, for each head its unrotated key features and its
//! value; `shared` is `[tokens, rotated]`. Keys are `[tokens, heads * (plain + rotated)]`, values
//! `[tokens, heads * value]`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{composed, is_ours, rows_per_task, tensor, view};
use crate::model::Error;

/// Features of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parts {
    /// Key features that are not rotated.
    pub plain: usize,
    /// Key features that are.
    pub rotated: usize,
    /// Value features.
    pub value: usize,
}

impl Parts {
    fn key(self) -> usize {
        self.plain + self.rotated
    }

    fn pair(self) -> usize {
        self.plain + self.value
    }
}

/// Keys and values.
pub(crate) fn forward(
    kv: &Tensor,
    shared: &Tensor,
    parts: Parts,
) -> Result<(Tensor, Tensor), Error> {
    if !is_ours(kv) {
        return composed::latent(kv, shared, parts);
    }
    let (tokens, width) = kv.dims2()?;
    let heads = width / parts.pair();
    let (kv, shared): (&[f32], &[f32]) = (&view(kv)?, &view(shared)?);
    let mut keys = vec![0.0; tokens * heads * parts.key()];
    let mut values = vec![0.0; tokens * heads * parts.value];
    let task = rows_per_task(width);
    keys.par_chunks_mut(task * heads * parts.key())
        .zip(values.par_chunks_mut(task * heads * parts.value))
        .zip(kv.par_chunks(task * width))
        .zip(shared.par_chunks(task * parts.rotated))
        .for_each(|(((keys, values), kv), shared)| {
            let keys = keys.chunks_exact_mut(parts.key());
            let values = values.chunks_exact_mut(parts.value);
            let pairs = kv.chunks_exact(parts.pair()).zip(keys.zip(values));
            for (i, (pair, (key, value))) in pairs.enumerate() {
                let at = i / heads * parts.rotated;
                key[..parts.plain].copy_from_slice(&pair[..parts.plain]);
                key[parts.plain..].copy_from_slice(&shared[at..at + parts.rotated]);
                value.copy_from_slice(&pair[parts.plain..]);
            }
        });
    Ok((
        tensor(keys, (tokens, heads * parts.key()))?,
        tensor(values, (tokens, heads * parts.value))?,
    ))
}

/// Gradients with respect to `kv` and `shared`.
pub(crate) fn backward(
    d_keys: &Tensor,
    d_values: &Tensor,
    parts: Parts,
) -> Result<(Tensor, Tensor), Error> {
    if !is_ours(d_keys) {
        return composed::latent_backward(d_keys, d_values, parts);
    }
    let (tokens, width) = d_keys.dims2()?;
    let heads = width / parts.key();
    let (d_keys, d_values): (&[f32], &[f32]) = (&view(d_keys)?, &view(d_values)?);
    let mut d_kv = vec![0.0; tokens * heads * parts.pair()];
    let mut d_shared = vec![0.0; tokens * parts.rotated];
    let task = rows_per_task(width);
    d_kv.par_chunks_mut(task * heads * parts.pair())
        .zip(d_shared.par_chunks_mut(task * parts.rotated))
        .zip(d_keys.par_chunks(task * width))
        .zip(d_values.par_chunks(task * heads * parts.value))
        .for_each(|(((d_kv, d_shared), d_keys), d_values)| {
            let d_keys = d_keys.chunks_exact(parts.key());
            let d_values = d_values.chunks_exact(parts.value);
            let pairs = d_kv
                .chunks_exact_mut(parts.pair())
                .zip(d_keys.zip(d_values));
            for (i, (pair, (key, value))) in pairs.enumerate() {
                let at = i / heads * parts.rotated;
                pair[..parts.plain].copy_from_slice(&key[..parts.plain]);
                pair[parts.plain..].copy_from_slice(value);
                let sum = &mut d_shared[at..at + parts.rotated];
                for (sum, d) in sum.iter_mut().zip(&key[parts.plain..]) {
                    *sum += d;
                }
            }
        });
    Ok((
        tensor(d_kv, (tokens, heads * parts.pair()))?,
        tensor(d_shared, (tokens, parts.rotated))?,
    ))
}
