//! Root-mean-square norms (Zhang & Sennrich, arXiv 1910.07467).

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffers::{rows_per_task, zeros};
use super::simd::{dot, vectorized};
use crate::model::Error;
use crate::model::kernels::shapes::RmsNorm;
use crate::model::kernels::tensor::{tensor, update, view};
use crate::model::row_layout::RowLayout;

/// `1 / sqrt(mean(x²) + eps)`
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + eps).sqrt().recip()
}

/// See [`Kernels::rms_norm`](crate::model::kernels::Kernels::rms_norm).
pub(super) fn forward(x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
    let (values, w): (&[f32], &[f32]) = (&view(x)?, &view(norm.weight)?);
    let (eps, offset) = (norm.eps, norm.offset);
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
                        let scale = inverse_rms(x, eps);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(w.iter()) {
                            *y = x * scale * (offset + w);
                        }
                    }
                },
            );
        });
    tensor(y, x.dims())
}

/// See [`Kernels::rms_norm_backward`](crate::model::kernels::Kernels::rms_norm_backward).
///
/// With `r = 1 / rms(x)`, `n` features and `g = dy * (offset + w)`: `dx = r g - x r³ (g · x) / n`.
pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    norm: RmsNorm<'_>,
    layout: &RowLayout,
    d_w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    let dx = match accumulate_into {
        Some(dx) => dx,
        None => tensor(zeros(x.elem_count()), x.dims())?,
    };
    let (_, features) = x.dims2()?;
    let (dy, x, w): (&[f32], &[f32], &[f32]) = (&view(dy)?, &view(x)?, &view(norm.weight)?);
    let (eps, offset) = (norm.eps, norm.offset);
    let width = w.len();
    let block = width * rows_per_task(width);
    // One partial sum of dw per task, added in the order of the tasks; none reaches over a chunk's end.
    let mut partial_sums = Vec::new();
    update(&dx, |dx| {
        let mut tasks = Vec::new();
        let mut rest = dx;
        for chunk in layout.grad_chunk_tokens() {
            let elements = chunk.start * features..chunk.end * features;
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
                            let r = inverse_rms(x, eps);
                            let mut lanes = [0.0_f32; 16];
                            for (i, ((dy, x), w)) in dy.iter().zip(x).zip(w.iter()).enumerate() {
                                lanes[i % 16] += dy * (offset + w) * x;
                            }
                            // (g · x) r³ / n
                            let dot = lanes.iter().sum::<f32>() * r * r * r / width as f32;
                            for i in 0..width {
                                dw[i] += dy[i] * x[i] * r;
                                dx[i] += r * dy[i] * (offset + w[i]) - x[i] * dot;
                            }
                        }
                    },
                );
                dw
            })
            .collect_into_vec(&mut partial_sums);
    })?;
    update(d_w, |sum| {
        for dw in &partial_sums {
            for (sum, dw) in sum.iter_mut().zip(dw) {
                *sum += dw;
            }
        }
    })?;
    Ok(dx)
}
