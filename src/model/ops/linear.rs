//! Linear projection: `y = x wᵀ + b`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{RowLayout, composed, dims, is_ours, rows_per_task, tensor, update, view, widened};
use crate::model::Error;
use crate::model::gemm::{self, Mat, MatMut, Threads, Write};

/// `x` `[tokens, in]`, `w` `[out, in]`, `b` `[out]` -> `[tokens, out]`.
pub(crate) fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
    if !is_ours(x) {
        return composed::linear(x, w, b);
    }
    let (tokens, _) = dims(x)?;
    let (out, _) = dims(w)?;
    gemm::elements(tokens, out)?;
    let mut y = gemm::project(&view(x)?, &widened(w)?, tokens, out);
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

/// Gradient with respect to `x`: `dy w`, `[tokens, in]`; added to `onto` when one is given.
pub(crate) fn backward_input(
    dy: &Tensor,
    w: &Tensor,
    onto: Option<Tensor>,
) -> Result<Tensor, Error> {
    if !is_ours(dy) {
        return composed::linear_backward_input(dy, w, onto);
    }
    let (tokens, out) = dims(dy)?;
    let (_, inner) = dims(w)?;
    let (dy, w): (&[f32], &[f32]) = (&view(dy)?, &widened(w)?);
    let (a, b) = (Mat::new(dy, tokens, out), Mat::new(w, out, inner));
    match onto {
        Some(dx) => {
            update(&dx, |dx| gemm::rows_times(dx, Write::Accumulate, a, b))?;
            Ok(dx)
        }
        None => tensor(gemm::new_rows(a, b), (tokens, inner)),
    }
}

/// Gradient with respect to `w`: `dyᵀ x`, `[out, in]`, added to `sum` in place, unit by unit of the
/// layout.
pub(crate) fn accumulate_weight(
    sum: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    layout: &RowLayout,
) -> Result<(), Error> {
    if !is_ours(sum) {
        return composed::accumulate_weight(sum, dy, x);
    }
    let (_, out) = dims(dy)?;
    let (_, inner) = dims(x)?;
    let (dy, x): (&[f32], &[f32]) = (&view(dy)?, &view(x)?);
    update(sum, |sum| {
        for unit in layout.unit_tokens() {
            let tokens = unit.len();
            gemm::matmul(
                MatMut::new(sum, out, inner),
                Write::Accumulate,
                Mat::new(&dy[unit.start * out..unit.end * out], tokens, out).t(),
                Mat::new(&x[unit.start * inner..unit.end * inner], tokens, inner),
                Threads::Pool,
            );
        }
    })
}

/// Gradient with respect to `b`: the sum of `dy` over the tokens, `[out]`, added to `sum` in place.
pub(crate) fn accumulate_bias(sum: &Tensor, dy: &Tensor) -> Result<(), Error> {
    if !is_ours(sum) {
        return composed::accumulate_bias(sum, dy);
    }
    let (_, out) = dims(dy)?;
    let dy: &[f32] = &view(dy)?;
    update(sum, |sum| {
        for row in dy.chunks_exact(out) {
            for (sum, dy) in sum.iter_mut().zip(row) {
                *sum += dy;
            }
        }
    })
}
