//! Rows of the embedding.

use candle_core::Tensor;

use crate::model::Error;
use crate::model::kernels::portable;
use crate::model::kernels::tensor::{update, view};

/// See [`Kernels::embedding`](crate::model::kernels::Kernels::embedding).
///
/// A table in bf16 is widened row by row: on the CPU activations are f32.
pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
    portable::scaled_rows(table, ids, candle_core::DType::F32, scale)
}

/// See [`Kernels::embedding_backward`](crate::model::kernels::Kernels::embedding_backward).
pub(super) fn backward(
    d_table: &Tensor,
    ids: &[u32],
    dx: &Tensor,
    scale: f32,
) -> Result<(), Error> {
    let (_, width) = d_table.dims2()?;
    let dx: &[f32] = &view(dx)?;
    update(d_table, |sum| {
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let at = id as usize * width;
            for (sum, dx) in sum[at..at + width].iter_mut().zip(dx) {
                *sum += dx * scale;
            }
        }
    })
}
