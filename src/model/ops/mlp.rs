//! The gate of a gated feed-forward block: `silu(gate) * up`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{CHUNK, tensor, view};
use crate::model::Error;
use crate::model::simd::{exp, vectorized};

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    (1.0 + exp(-x)).recip()
}

/// `gate * sigmoid(gate) * up`, elementwise.
pub(crate) fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor, Error> {
    let (g, u): (&[f32], &[f32]) = (&view(gate)?, &view(up)?);
    let mut y = vec![0.0; g.len()];
    y.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(u.par_chunks(CHUNK))
        .for_each(|((y, g), u)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                        *y = g * sigmoid(*g) * u;
                    }
                },
            );
        });
    tensor(y, gate.dims())
}

/// Gradients with respect to `gate` and `up`.
///
/// `d silu(g) / dg = s (1 + g (1 - s))` with `s = sigmoid(g)`.
pub(crate) fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor), Error> {
    let (dy, g, u): (&[f32], &[f32], &[f32]) = (&view(dy)?, &view(gate)?, &view(up)?);
    let mut d_gate = vec![0.0; g.len()];
    let mut d_up = vec![0.0; g.len()];
    d_gate
        .par_chunks_mut(CHUNK)
        .zip(d_up.par_chunks_mut(CHUNK))
        .zip(dy.par_chunks(CHUNK))
        .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)))
        .for_each(|(((d_gate, d_up), dy), (g, u))| {
            vectorized(
                #[inline(always)]
                || {
                    let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
                    let inputs = dy.iter().zip(g.iter().zip(u));
                    for ((d_gate, d_up), (dy, (g, u))) in outputs.zip(inputs) {
                        let s = sigmoid(*g);
                        *d_up = dy * g * s;
                        *d_gate = dy * u * s * (1.0 + g * (1.0 - s));
                    }
                },
            );
        });
    Ok((tensor(d_gate, gate.dims())?, tensor(d_up, up.dims())?))
}
