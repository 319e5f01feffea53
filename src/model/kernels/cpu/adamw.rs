//! The step of AdamW.

use rayon::prelude::*;

use super::simd::vectorized;
use crate::model::Error;
use crate::model::kernels::shapes::{AdamWState, AdamWStep};
use crate::model::kernels::tensor::{CHUNK, assign_rounded, update4};

/// See [`Kernels::adamw`](crate::model::kernels::Kernels::adamw).
pub(super) fn step(state: AdamWState<'_>, step: AdamWStep) -> Result<(), Error> {
    update4(
        [
            state.parameter,
            state.gradient,
            state.first_moment,
            state.second_moment,
        ],
        |[parameter, gradient, first, second]| {
            parameter
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks_mut(CHUNK))
                .zip(first.par_chunks_mut(CHUNK))
                .zip(second.par_chunks_mut(CHUNK))
                .for_each(|(((p, g), m), v)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let moments = m.iter_mut().zip(v.iter_mut());
                            for ((p, sum), (m, v)) in p.iter_mut().zip(g.iter_mut()).zip(moments) {
                                let g = *sum * step.gradient_scale;
                                *sum = 0.0;
                                *m += (g - *m) * (1.0 - step.beta1);
                                *v = *v * step.beta2 + g * g * (1.0 - step.beta2);
                                let root = v.sqrt() / step.root_correction + step.eps;
                                *p = *p * step.keep - step.step_size * *m / root;
                            }
                        },
                    );
                });
        },
    )?;
    match state.rounded {
        Some(rounded) => assign_rounded(rounded, state.parameter),
        None => Ok(()),
    }
}
