//! Linear projections.

use candle_core::Tensor;
use rayon::prelude::*;

use super::bf16::{self, Activations};
use super::buffers::rows_per_task;
use super::gemm::{self, Mat, MatMut, Write};
use super::threads::Threads;
use crate::model::Error;
use crate::model::kernels::tensor::{tensor, update, view, widened};
use crate::model::row_layout::RowLayout;

/// See [`Kernels::linear`](crate::model::kernels::Kernels::linear).
pub(super) fn forward(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    activations: Activations,
) -> Result<Tensor, Error> {
    let (tokens, _) = x.dims2()?;
    let (out, _) = w.dims2()?;
    gemm::elements(tokens, out)?;
    let mut y = bf16::project(&view(x)?, w, tokens, out, activations)?;
    if let Some(b) = b {
        let b: &[f32] = &view(b)?;
        y.par_chunks_mut(out * rows_per_task(out)).for_each(|rows| {
            for row in rows.chunks_exact_mut(out) {
                for (y, b) in row.iter_mut().zip(b.iter()) {
                    *y += b;
                }
            }
        });
    }
    tensor(y, (tokens, out))
}

/// See [`Kernels::linear_backward_input`](crate::model::kernels::Kernels::linear_backward_input).
pub(super) fn backward_input(
    dy: &Tensor,
    w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    let (tokens, out) = dy.dims2()?;
    let (_, inner) = w.dims2()?;
    let (dy, w): (&[f32], &[f32]) = (&view(dy)?, &widened(w)?);
    let (a, b) = (Mat::new(dy, tokens, out), Mat::new(w, out, inner));
    match accumulate_into {
        Some(dx) => {
            update(&dx, |dx| gemm::rows_times(dx, Write::Accumulate, a, b))?;
            Ok(dx)
        }
        None => tensor(gemm::new_rows(a, b), (tokens, inner)),
    }
}

/// See [`Kernels::linear_backward_weight`](crate::model::kernels::Kernels::linear_backward_weight).
pub(super) fn backward_weight(
    d_w: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    layout: &RowLayout,
) -> Result<(), Error> {
    let (_, out) = dy.dims2()?;
    let (_, inner) = x.dims2()?;
    let (dy, x): (&[f32], &[f32]) = (&view(dy)?, &view(x)?);
    update(d_w, |d_w| {
        for chunk in layout.grad_chunk_tokens() {
            let tokens = chunk.len();
            gemm::matmul(
                MatMut::new(d_w, out, inner),
                Write::Accumulate,
                Mat::new(&dy[chunk.start * out..chunk.end * out], tokens, out).t(),
                Mat::new(&x[chunk.start * inner..chunk.end * inner], tokens, inner),
                Threads::Pool,
            );
        }
    })
}

/// See [`Kernels::linear_backward_bias`](crate::model::kernels::Kernels::linear_backward_bias).
pub(super) fn backward_bias(d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
    let (_, out) = dy.dims2()?;
    let dy: &[f32] = &view(dy)?;
    update(d_b, |sum| {
        for row in dy.chunks_exact(out) {
            for (sum, dy) in sum.iter_mut().zip(row) {
                *sum += dy;
            }
        }
    })
}
