//! One parameter's step of AdamW (Loshchilov & Hutter, arXiv 1711.05101).

use std::borrow::Cow;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{CHUNK, assign, clear, is_ours, tensor, to_host, update};
use crate::model::Error;
use crate::model::simd::vectorized;

/// The moments of one parameter, f32, where the parameter is.
#[derive(Debug, Clone)]
pub(crate) enum Moments {
    /// In memory.
    Host {
        /// Running mean of the gradient.
        first: Vec<f32>,
        /// Running mean of its square.
        second: Vec<f32>,
    },
    /// On another device.
    Device {
        /// Running mean of the gradient.
        first: Tensor,
        /// Running mean of its square.
        second: Tensor,
    },
}

impl Moments {
    /// Zero moments of a parameter.
    pub fn of(parameter: &Tensor) -> Result<Self, Error> {
        Ok(if is_ours(parameter) {
            let zeros = vec![0.0; parameter.elem_count()];
            Self::Host {
                first: zeros.clone(),
                second: zeros,
            }
        } else {
            Self::Device {
                first: parameter.zeros_like()?,
                second: parameter.zeros_like()?,
            }
        })
    }
}

impl Moments {
    /// Both, row-major.
    pub fn values(&self) -> Result<[Cow<'_, [f32]>; 2], Error> {
        Ok(match self {
            Self::Host { first, second } => [first.into(), second.into()],
            Self::Device { first, second } => [to_host(first)?.into(), to_host(second)?.into()],
        })
    }

    /// Sets both; the sizes have to be what they are.
    pub fn set(&mut self, [new_first, new_second]: [Vec<f32>; 2]) -> Result<(), Error> {
        match self {
            Self::Host { first, second } => {
                if (first.len(), second.len()) != (new_first.len(), new_second.len()) {
                    return Err(Error::Internal("moments of another size"));
                }
                (*first, *second) = (new_first, new_second);
            }
            Self::Device { first, second } => {
                for (moment, values) in [(first, new_first), (second, new_second)] {
                    let values = tensor(values, moment.shape())?;
                    *moment = values.to_device(moment.device())?;
                }
            }
        }
        Ok(())
    }
}

/// The constants of a step; all that depends on its number is worked into them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Factor on the gradient: clipping and the division by the step's global count.
    pub gradient_scale: f32,
    /// What decoupled decay leaves of the parameter.
    pub keep: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub root_correction: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

/// Changes a parameter and its moments in place, and sets the gradient to zero.
pub(crate) fn step(
    parameter: &Tensor,
    gradient: &Tensor,
    moments: &mut Moments,
    c: Step,
) -> Result<(), Error> {
    match moments {
        Moments::Host { first, second } => {
            let mut outcome = Ok(());
            update(parameter, |parameter| {
                outcome = update(gradient, |gradient| {
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
                                    for ((p, sum), (m, v)) in
                                        p.iter_mut().zip(g.iter_mut()).zip(moments)
                                    {
                                        let g = *sum * c.gradient_scale;
                                        *sum = 0.0;
                                        *m += (g - *m) * (1.0 - c.beta1);
                                        *v = *v * c.beta2 + g * g * (1.0 - c.beta2);
                                        let root = v.sqrt() / c.root_correction + c.eps;
                                        *p = *p * c.keep - c.step_size * *m / root;
                                    }
                                },
                            );
                        });
                });
            })?;
            outcome
        }
        Moments::Device { first, second } => {
            let scaled = |x: &Tensor, factor: f32| x * f64::from(factor);
            let g = scaled(gradient, c.gradient_scale)?;
            *first = (scaled(first, c.beta1)? + scaled(&g, 1.0 - c.beta1)?)?;
            *second = (scaled(second, c.beta2)? + scaled(&g.sqr()?, 1.0 - c.beta2)?)?;
            let root = (scaled(&second.sqrt()?, c.root_correction.recip())? + f64::from(c.eps))?;
            let change = scaled(first, c.step_size)?.div(&root)?;
            assign(parameter, &scaled(parameter, c.keep)?.sub(&change)?)?;
            clear(gradient)
        }
    }
}
