//! Root-mean-square normalization (Zhang & Sennrich, arXiv 1910.07467): `y = x / rms(x) * w`, where
//! Gemma's models count the weight from 1.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{RowLayout, composed, is_ours, rows_per_task, tensor, update, view, zeros};
use crate::model::Error;
use crate::model::simd::{dot, vectorized};

/// The constants of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rms {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

/// `1 / sqrt(mean(x²) + eps)`
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + eps).sqrt().recip()
}

/// Normalizes groups of `w.len()` neighbouring features of `x`; the shape of `x` is kept.
///
/// With `w` as wide as a token this is the norm of a block; with `w` of one head's width, the
/// per-head norm of queries and keys.
pub(crate) fn forward(x: &Tensor, w: &Tensor, rms: Rms) -> Result<Tensor, Error> {
    if !is_ours(x) {
        return composed::norm(x, w, rms);
    }
    let (values, w): (&[f32], &[f32]) = (&view(x)?, &view(w)?);
    let width = w.len();
    let mut y = zeros(values.len());
    let block = width * rows_per_task(width);
    y.par_chunks_mut(block)
        .zip(values.par_chunks(block))
        .for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let scale = inverse_rms(x, rms.eps);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(w.iter()) {
                            *y = x * scale * (rms.offset + w);
                        }
                    }
                },
            );
        });
    tensor(y, x.dims())
}

/// Gradient with respect to `x`, added to `onto` when one is given; the gradient with respect to
/// `w` is added to `w_sum`, unit by unit of the layout.
///
/// With `r = 1 / rms(x)`, `n` features and `g = dy * (offset + w)`: `dx = r g - x r³ (g · x) / n`.
pub(crate) fn backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rms: Rms,
    layout: &RowLayout,
    w_sum: &Tensor,
    onto: Option<Tensor>,
) -> Result<Tensor, Error> {
    if !is_ours(x) {
        return composed::norm_backward(dy, x, w, rms, w_sum, onto);
    }
    let dx = match onto {
        Some(dx) => dx,
        None => tensor(zeros(x.elem_count()), x.dims())?,
    };
    let (_, features) = x.dims2()?;
    let (dy, x, w): (&[f32], &[f32], &[f32]) = (&view(dy)?, &view(x)?, &view(w)?);
    let width = w.len();
    let block = width * rows_per_task(width);
    // One partial sum of dw a task, added in the order of the tasks; none reaches over a unit's end.
    let mut partial_sums = Vec::new();
    update(&dx, |dx| {
        let mut tasks = Vec::new();
        let mut rest = dx;
        for unit in layout.unit_tokens() {
            let elements = unit.start * features..unit.end * features;
            let (mine, after) = rest.split_at_mut(elements.len());
            rest = after;
            let inputs = dy[elements.clone()]
                .chunks(block)
                .zip(x[elements].chunks(block));
            tasks.extend(mine.chunks_mut(block).zip(inputs));
        }
        tasks
            .into_par_iter()
            .map(|(dx, (dy, x))| {
                let mut dw = vec![0.0; width];
                vectorized(
                    #[inline(always)]
                    || {
                        for ((dx, dy), x) in dx
                            .chunks_exact_mut(width)
                            .zip(dy.chunks_exact(width))
                            .zip(x.chunks_exact(width))
                        {
                            let r = inverse_rms(x, rms.eps);
                            let mut lanes = [0.0_f32; 16];
                            for (i, ((dy, x), w)) in dy.iter().zip(x).zip(w.iter()).enumerate() {
                                lanes[i % 16] += dy * (rms.offset + w) * x;
                            }
                            let pull = lanes.iter().sum::<f32>() * r * r * r / width as f32;
                            for i in 0..width {
                                dw[i] += dy[i] * x[i] * r;
                                dx[i] += r * dy[i] * (rms.offset + w[i]) - x[i] * pull;
                            }
                        }
                    },
                );
                dw
            })
            .collect_into_vec(&mut partial_sums);
    })?;
    update(w_sum, |sum| {
        for dw in &partial_sums {
            for (sum, dw) in sum.iter_mut().zip(dw) {
                *sum += dw;
            }
        }
    })?;
    Ok(dx)
}
