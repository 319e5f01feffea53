//! Sums over whole tensors.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::vectorized;
use crate::model::Error;
use crate::model::kernels::tensor::{CHUNK, update, view};

/// See [`Kernels::add_assign`](crate::model::kernels::Kernels::add_assign).
pub(super) fn add_assign(sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
    let addend: &[f32] = &view(addend)?;
    update(sum, |sum| {
        sum.par_chunks_mut(CHUNK)
            .zip(addend.par_chunks(CHUNK))
            .for_each(|(sum, addend)| {
                for (sum, addend) in sum.iter_mut().zip(addend) {
                    *sum += addend;
                }
            });
    })
}

/// See [`Kernels::zero`](crate::model::kernels::Kernels::zero).
pub(super) fn zero(x: &Tensor) -> Result<(), Error> {
    update(x, |x| {
        x.par_chunks_mut(CHUNK).for_each(|x| x.fill(0.0));
    })
}

/// See [`Kernels::sum_of_squares`](crate::model::kernels::Kernels::sum_of_squares).
///
/// Chunks of a fixed size are added in order.
pub(super) fn sum_of_squares(x: &Tensor) -> Result<f64, Error> {
    let values: &[f32] = &view(x)?;
    let chunks: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut lanes = [0.0_f64; 8];
            vectorized(
                #[inline(always)]
                || {
                    let (whole, rest) = chunk.as_chunks::<8>();
                    for values in whole {
                        for (lane, value) in lanes.iter_mut().zip(values) {
                            *lane += f64::from(*value) * f64::from(*value);
                        }
                    }
                    for (lane, value) in lanes.iter_mut().zip(rest) {
                        *lane += f64::from(*value) * f64::from(*value);
                    }
                },
            );
            lanes.iter().sum()
        })
        .collect();
    Ok(chunks.iter().sum())
}
