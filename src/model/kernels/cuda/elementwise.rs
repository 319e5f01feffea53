//! Kernels that handle each element by itself, and sums over whole tensors.

use candle_core::{DType, Tensor};

use super::context::Context;
use super::driver::LaunchShape;
use super::launch::blocks;
use crate::model::Error;
use crate::model::architecture::Activation;
use crate::model::kernels::shapes::{AdamWState, AdamWStep};

const THREADS: u32 = 256;

/// Elements per block; kernels loop over what is left, so any number of blocks is right.
const BLOCK_ELEMENTS: usize = 2048;

/// More blocks than these would only wait for the others.
const MAX_BLOCKS: usize = 1 << 16;

/// Elements whose squares are one partial sum, see the kernel.
const SQUARES_PER_PART: usize = 65_536;

/// Returns the grid of an elementwise kernel, empty for no elements.
pub(super) fn elementwise(n: usize) -> Result<LaunchShape, Error> {
    blocks(n.div_ceil(BLOCK_ELEMENTS).min(MAX_BLOCKS), THREADS)
}

fn code(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

fn same_size(a: &Tensor, b: &Tensor) -> Result<usize, Error> {
    match a.elem_count() == b.elem_count() {
        true => Ok(a.elem_count()),
        false => Err(Error::Internal("tensors of different sizes")),
    }
}

/// See [`Kernels::add_assign`](crate::model::kernels::Kernels::add_assign).
pub(super) fn add_assign(cx: &Context, sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
    let n = same_size(sum, addend)?;
    let launch = match (sum.dtype(), addend.dtype()) {
        (DType::F32, DType::BF16) => cx
            .only_kernel("add_assign_f32_from_bf16")
            .f32s(sum)
            .bf16s(addend),
        (dtype, _) => cx.kernel("add_assign", dtype).tokens(sum).tokens(addend),
    };
    launch.long(n).run(elementwise(n)?)
}

/// See [`Kernels::zero`](crate::model::kernels::Kernels::zero).
pub(super) fn zero(cx: &Context, x: &Tensor) -> Result<(), Error> {
    let n = x.elem_count();
    let launch = cx.kernel("zero", x.dtype()).tokens(x).long(n);
    launch.run(elementwise(n)?)
}

/// Rounds a token tensor to a dtype, where it has another.
pub(super) fn converted(cx: &Context, x: Tensor, dtype: DType) -> Result<Tensor, Error> {
    let name = match (x.dtype(), dtype) {
        (from, to) if from == to => return Ok(x),
        (DType::F32, DType::BF16) => "convert_f32_to_bf16",
        (DType::BF16, DType::F32) => "convert_bf16_to_f32",
        _ => return Err(Error::Internal("a conversion that no kernel does")),
    };
    let (tokens, width) = x.dims2()?;
    let y = cx.tokens(tokens, width, dtype)?;
    let n = x.elem_count();
    let launch = match dtype {
        DType::BF16 => cx.only_kernel(name).f32s(&x).bf16s(&y),
        _ => cx.only_kernel(name).bf16s(&x).f32s(&y),
    };
    launch.long(n).run(elementwise(n)?)?;
    Ok(y)
}

/// See [`Kernels::glu`](crate::model::kernels::Kernels::glu).
pub(super) fn glu(
    cx: &Context,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<Tensor, Error> {
    let n = same_size(gate, up)?;
    let y = cx.like(gate)?;
    cx.kernel("glu", gate.dtype())
        .tokens(gate)
        .tokens(up)
        .tokens(&y)
        .long(n)
        .int(code(activation))
        .run(elementwise(n)?)?;
    Ok(y)
}

/// See [`Kernels::glu_backward`](crate::model::kernels::Kernels::glu_backward).
pub(super) fn glu_backward(
    cx: &Context,
    dy: &Tensor,
    gate: Tensor,
    up: Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor), Error> {
    let n = same_size(&gate, &up)?;
    same_size(dy, &gate)?;
    cx.kernel("glu_backward", gate.dtype())
        .tokens(dy)
        .tokens(&gate)
        .tokens(&up)
        .long(n)
        .int(code(activation))
        .run(elementwise(n)?)?;
    Ok((gate, up))
}

/// See [`Kernels::adamw`](crate::model::kernels::Kernels::adamw).
pub(super) fn adamw(cx: &Context, state: AdamWState<'_>, step: AdamWStep) -> Result<(), Error> {
    let n = same_size(state.parameter, state.gradient)?;
    same_size(state.first_moment, state.second_moment)?;
    same_size(state.parameter, state.first_moment)?;
    let launch = cx.only_kernel("adamw").f32s(state.parameter);
    let launch = match state.rounded {
        Some(rounded) => {
            same_size(state.parameter, rounded)?;
            launch.bf16s(rounded)
        }
        None => launch.null(),
    };
    launch
        .f32s(state.gradient)
        .f32s(state.first_moment)
        .f32s(state.second_moment)
        .long(n)
        .float(step.gradient_scale)
        .float(step.keep)
        .float(step.step_size)
        .float(step.root_correction)
        .float(step.beta1)
        .float(step.beta2)
        .float(step.eps)
        .run(elementwise(n)?)
}

/// See [`Kernels::sum_of_squares`](crate::model::kernels::Kernels::sum_of_squares): partial sums of all tensors side
/// by side, one sum of them, one copy to the host.
pub(super) fn sum_of_squares(cx: &Context, tensors: &[&Tensor]) -> Result<f64, Error> {
    let parts = |x: &Tensor| x.elem_count().div_ceil(SQUARES_PER_PART);
    let total: usize = tensors.iter().map(|x| parts(x)).sum();
    if total == 0 {
        return Ok(0.0);
    }
    let partials = cx.driver().empty(&[total], DType::F64)?;
    let mut at = 0;
    for x in tensors {
        let part = partials.narrow(0, at, parts(x))?;
        cx.only_kernel("sum_of_squares")
            .f32s(x)
            .f64s(&part)
            .long(x.elem_count())
            .run(blocks(parts(x), THREADS)?)?;
        at += parts(x);
    }
    let sum = cx.driver().empty(&[1], DType::F64)?;
    cx.only_kernel("sum_doubles")
        .f64s(&partials)
        .f64s(&sum)
        .int(total)
        .run(blocks(1, THREADS)?)?;
    cx.driver()
        .download_f64(&sum)?
        .first()
        .copied()
        .ok_or(Error::Internal("a sum of no elements"))
}
