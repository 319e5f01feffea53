//! The gate of a gated feed-forward layer: `activation(gate) * up`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffers::zeros;
use super::simd::{exp, vectorized};
use crate::model::Error;
use crate::model::architecture::Activation;
use crate::model::kernels::tensor::{CHUNK, tensor, update, view};

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    (1.0 + exp(-x)).recip()
}

/// An activation and its slope.
trait Curve {
    fn value(x: f32) -> f32;
    fn value_and_slope(x: f32) -> (f32, f32);
}

/// `x s` with `s = sigmoid(x)`; its slope is `s (1 + x (1 - s))`.
struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

/// `x / 2 (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x³)`, written as `x sigmoid(2 u)`, which
/// is the same.
struct GeluTanh;

impl GeluTanh {
    const ROOT: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(2.0 * Self::ROOT * (x + Self::CUBIC * x * x * x))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let s = sigmoid(2.0 * Self::ROOT * (x + Self::CUBIC * x * x * x));
        let du = 2.0 * Self::ROOT * (1.0 + 3.0 * Self::CUBIC * x * x);
        (x * s, s * (1.0 + x * (1.0 - s) * du))
    }
}

/// See [`Kernels::glu`](crate::model::kernels::Kernels::glu).
pub(super) fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
    match activation {
        Activation::Silu => forward_as::<Silu>(gate, up),
        Activation::GeluTanh => forward_as::<GeluTanh>(gate, up),
    }
}

/// See [`Kernels::glu_backward`](crate::model::kernels::Kernels::glu_backward).
pub(super) fn backward(
    dy: &Tensor,
    gate: Tensor,
    up: Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor), Error> {
    match activation {
        Activation::Silu => backward_as::<Silu>(dy, &gate, &up)?,
        Activation::GeluTanh => backward_as::<GeluTanh>(dy, &gate, &up)?,
    }
    Ok((gate, up))
}

fn forward_as<C: Curve>(gate: &Tensor, up: &Tensor) -> Result<Tensor, Error> {
    let (g, u): (&[f32], &[f32]) = (&view(gate)?, &view(up)?);
    let mut y = zeros(g.len());
    y.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(u.par_chunks(CHUNK))
        .for_each(|((y, g), u)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                        *y = C::value(*g) * u;
                    }
                },
            );
        });
    tensor(y, gate.dims())
}

/// Puts the gradients where `gate` and `up` are.
fn backward_as<C: Curve>(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(), Error> {
    let dy: &[f32] = &view(dy)?;
    let mut outcome = Ok(());
    update(gate, |gate| {
        outcome = update(up, |up| {
            gate.par_chunks_mut(CHUNK)
                .zip(up.par_chunks_mut(CHUNK))
                .zip(dy.par_chunks(CHUNK))
                .for_each(|((gate, up), dy)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            for ((gate, up), dy) in gate.iter_mut().zip(up.iter_mut()).zip(dy) {
                                let (value, slope) = C::value_and_slope(*gate);
                                *gate = dy * *up * slope;
                                *up = dy * value;
                            }
                        },
                    );
                });
        });
    })?;
    outcome
}
