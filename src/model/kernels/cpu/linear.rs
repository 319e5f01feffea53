//! Linear projections.

use candle_core::Tensor;
use rayon::prelude::*;

use super::bf16::{self, Activations};
use super::bf16_gradients;
use super::buffers::rows_per_task;
use super::gemm::{self, Mat, Write};
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
    precision: Activations,
) -> Result<Tensor, Error> {
    let (tokens, out) = dy.dims2()?;
    let (_, inner) = w.dims2()?;
    let dy: &[f32] = &view(dy)?;
    if let Some(dx) = accumulate_into {
        let mut outcome = Ok(());
        update(&dx, |dx| {
            outcome = bf16_gradients::rows_times(dx, Write::Accumulate, dy, w, precision);
        })?;
        return outcome.map(|()| dx);
    }
    if precision == Activations::F32 {
        let w: &[f32] = &widened(w)?;
        let dx = gemm::new_rows(Mat::new(dy, tokens, out), Mat::new(w, out, inner));
        return tensor(dx, (tokens, inner));
    }
    let mut dx = vec![0.0; tokens * inner];
    bf16_gradients::rows_times(&mut dx, Write::Replace, dy, w, precision)?;
    tensor(dx, (tokens, inner))
}

/// See [`Kernels::linear_backward_weight`](crate::model::kernels::Kernels::linear_backward_weight).
pub(super) fn backward_weight(
    d_w: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    layout: &RowLayout,
    precision: Activations,
) -> Result<(), Error> {
    let (_, out) = dy.dims2()?;
    let (_, inner) = x.dims2()?;
    let (dy, x): (&[f32], &[f32]) = (&view(dy)?, &view(x)?);
    update(d_w, |d_w| {
        for chunk in layout.grad_chunk_tokens() {
            let tokens = chunk.len();
            bf16_gradients::add_products(
                d_w,
                &dy[chunk.start * out..chunk.end * out],
                &x[chunk.start * inner..chunk.end * inner],
                (tokens, out, inner),
                precision,
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
