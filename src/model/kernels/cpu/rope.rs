//! Rotary position embedding (Su et al., arXiv 2104.09864).
//!
//! In the half-split layout of most Hugging Face models feature `i` of the rotated ones is rotated
//! together with feature `i + half`; in the interleaved layout neighbours are.

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffers::rows_per_task;
use super::simd::vectorized;
use crate::model::Error;
use crate::model::kernels::shapes::{Rope, RopeDirection};
use crate::model::kernels::tensor::{update, view};

/// See [`Kernels::rope`](crate::model::kernels::Kernels::rope); rotates in place.
pub(super) fn rope(x: &Tensor, rope: Rope<'_>, direction: RopeDirection) -> Result<(), Error> {
    let (_, features) = x.dims2()?;
    let (_, half) = rope.table.cos.dims2()?;
    let (cos, sin): (&[f32], &[f32]) = (&view(&rope.table.cos)?, &view(&rope.table.sin)?);
    let (layout, sign) = (rope.layout, direction.sign());
    let end = layout.first + 2 * half;
    let tokens = rows_per_task(features);
    update(x, |x| {
        x.par_chunks_mut(features * tokens)
            .zip(cos.par_chunks(half * tokens))
            .zip(sin.par_chunks(half * tokens))
            .for_each(|((x, cos), sin)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((token, cos), sin) in x
                            .chunks_exact_mut(features)
                            .zip(cos.chunks_exact(half))
                            .zip(sin.chunks_exact(half))
                        {
                            for head in token.chunks_exact_mut(layout.head_dim) {
                                let rotated = &mut head[layout.first..end];
                                if layout.interleaved {
                                    for (i, pair) in rotated.chunks_exact_mut(2).enumerate() {
                                        let (a, b, s) = (pair[0], pair[1], sin[i] * sign);
                                        pair[0] = a * cos[i] - b * s;
                                        pair[1] = b * cos[i] + a * s;
                                    }
                                } else {
                                    let (first, second) = rotated.split_at_mut(half);
                                    for i in 0..half {
                                        let (a, b, s) = (first[i], second[i], sin[i] * sign);
                                        first[i] = a * cos[i] - b * s;
                                        second[i] = b * cos[i] + a * s;
                                    }
                                }
                            }
                        }
                    },
                );
            });
    })
}
