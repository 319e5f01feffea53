//! Norms and RoPE, alone and fused.

use candle_core::{DType, Tensor};

use super::context::Context;
use super::driver::LaunchShape;
use super::launch::{Launch, blocks};
use super::rows::add_partials;
use crate::model::Error;
use crate::model::kernels::shapes::{RmsNorm, Rope, RopeDirection};

const THREADS: u32 = 256;

/// Up to this width a warp normalizes a group, above it a block.
const WARP_WIDTH: usize = 512;

/// Warps of a block.
const WARPS: usize = 8;

/// The most partial sums of a weight's gradient.
const MAX_PARTS: usize = 512;

/// Groups of features that are normalized, and the grids over them.
#[derive(Clone, Copy)]
struct Groups {
    rows: usize,
    width: usize,
}

impl Groups {
    fn of(x: &Tensor, norm: RmsNorm<'_>) -> Result<Self, Error> {
        let width = norm.weight.elem_count();
        match x.elem_count().checked_rem(width) {
            Some(0) => Ok(Self {
                rows: x.elem_count() / width,
                width,
            }),
            _ => Err(Error::Internal(
                "a norm of a width that does not divide its input",
            )),
        }
    }

    fn forward(self) -> Result<LaunchShape, Error> {
        match self.width <= WARP_WIDTH {
            true => blocks(self.rows.div_ceil(WARPS), THREADS),
            false => blocks(self.rows, THREADS),
        }
    }

    fn rows_per_part(self) -> usize {
        self.rows.div_ceil(MAX_PARTS).max(WARPS)
    }

    fn parts(self) -> usize {
        self.rows.div_ceil(self.rows_per_part())
    }

    fn backward(self) -> Result<LaunchShape, Error> {
        let warps = match self.width <= WARP_WIDTH {
            true => WARPS,
            false => 1,
        };
        Ok(LaunchShape {
            shared_bytes: (size_of::<f32>() * self.width * warps) as u32,
            ..blocks(self.parts(), THREADS)?
        })
    }
}

/// Adds the table of a rotation: cosines, sines, and which row a token has.
fn with_table<'a>(launch: Launch<'a>, rope: Rope<'a>) -> Launch<'a> {
    let launch = launch.f32s(&rope.table.cos).f32s(&rope.table.sin);
    match &rope.table.token_rows {
        Some(rows) => launch.words(rows),
        None => launch.null(),
    }
}

/// Adds the features of a head that are rotated.
fn with_features<'a>(launch: Launch<'a>, rope: Rope<'a>) -> Result<Launch<'a>, Error> {
    Ok(launch
        .int(rope.layout.head_dim)
        .int(rope.layout.first)
        .int(rope.table.cos.dim(1)?)
        .int(usize::from(rope.layout.interleaved)))
}

/// See [`Kernels::rms_norm`](crate::model::kernels::Kernels::rms_norm).
pub(super) fn rms_norm(cx: &Context, x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
    let groups = Groups::of(x, norm)?;
    let y = cx.like(x)?;
    cx.kernel("rms_norm", x.dtype())
        .tokens(x)
        .f32s(norm.weight)
        .tokens(&y)
        .int(groups.rows)
        .int(groups.width)
        .float(norm.eps)
        .float(norm.offset)
        .run(groups.forward()?)?;
    Ok(y)
}

/// See [`Kernels::add_rms_norm`](crate::model::kernels::Kernels::add_rms_norm).
pub(super) fn add_rms_norm(
    cx: &Context,
    x: &Tensor,
    addend: &Tensor,
    norm: RmsNorm<'_>,
) -> Result<Tensor, Error> {
    let groups = Groups::of(x, norm)?;
    let y = cx.like(x)?;
    cx.kernel("add_rms_norm", x.dtype())
        .tokens(x)
        .tokens(addend)
        .f32s(norm.weight)
        .tokens(&y)
        .int(groups.rows)
        .int(groups.width)
        .float(norm.eps)
        .float(norm.offset)
        .run(groups.forward()?)?;
    Ok(y)
}

/// See [`Kernels::rms_norm_backward`](crate::model::kernels::Kernels::rms_norm_backward).
pub(super) fn rms_norm_backward(
    cx: &Context,
    dy: &Tensor,
    x: &Tensor,
    norm: RmsNorm<'_>,
    d_w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    let groups = Groups::of(x, norm)?;
    let partials = cx.empty(&[groups.parts(), groups.width])?;
    let accumulate = usize::from(accumulate_into.is_some());
    let dx = match accumulate_into {
        Some(dx) => dx,
        None => cx.like(x)?,
    };
    cx.kernel("rms_norm_backward", x.dtype())
        .tokens(dy)
        .tokens(x)
        .f32s(norm.weight)
        .tokens(&dx)
        .f32s(&partials)
        .int(groups.rows)
        .int(groups.width)
        .float(norm.eps)
        .float(norm.offset)
        .int(accumulate)
        .int(groups.rows_per_part())
        .run(groups.backward()?)?;
    add_partials(cx, &partials, d_w, groups.parts())?;
    Ok(dx)
}

/// See [`Kernels::rope`](crate::model::kernels::Kernels::rope); rotates in place.
pub(super) fn rope(
    cx: &Context,
    x: Tensor,
    rope: Rope<'_>,
    direction: RopeDirection,
) -> Result<Tensor, Error> {
    let (tokens, features) = x.dims2()?;
    let heads = features / rope.layout.head_dim;
    let launch = cx.kernel("rope", x.dtype()).tokens(&x).tokens(&x);
    let launch = with_table(launch, rope).int(tokens).int(heads);
    with_features(launch, rope)?
        .float(direction.sign())
        .run(blocks((tokens * heads).div_ceil(WARPS), THREADS)?)?;
    Ok(x)
}

/// See [`Kernels::norm_rope`](crate::model::kernels::Kernels::norm_rope).
pub(super) fn norm_rope(
    cx: &Context,
    x: &Tensor,
    norm: RmsNorm<'_>,
    rope: Rope<'_>,
) -> Result<Tensor, Error> {
    let groups = Groups::of(x, norm)?;
    let y = cx.like(x)?;
    let launch = cx.kernel("norm_rope", x.dtype());
    let launch = launch.tokens(x).f32s(norm.weight).tokens(&y);
    let launch = with_table(launch, rope)
        .int(groups.rows)
        .int(groups.width)
        .int(x.dim(1)? / groups.width);
    with_features(launch, rope)?
        .float(norm.eps)
        .float(norm.offset)
        .run(groups.forward()?)?;
    Ok(y)
}

/// See [`Kernels::norm_rope_backward`](crate::model::kernels::Kernels::norm_rope_backward); the gradient takes the
/// place of `dy`.
pub(super) fn norm_rope_backward(
    cx: &Context,
    dy: Tensor,
    x: &Tensor,
    norm: RmsNorm<'_>,
    rope: Rope<'_>,
    d_w: &Tensor,
) -> Result<Tensor, Error> {
    let groups = Groups::of(x, norm)?;
    let partials = cx
        .driver()
        .empty(&[groups.parts(), groups.width], DType::F32)?;
    let launch = cx
        .kernel("norm_rope_backward", x.dtype())
        .tokens(&dy)
        .tokens(x)
        .f32s(norm.weight)
        .tokens(&dy)
        .f32s(&partials);
    let launch = with_table(launch, rope)
        .int(groups.rows)
        .int(groups.width)
        .int(x.dim(1)? / groups.width);
    with_features(launch, rope)?
        .float(norm.eps)
        .float(norm.offset)
        .int(groups.rows_per_part())
        .run(groups.backward()?)?;
    add_partials(cx, &partials, d_w, groups.parts())?;
    Ok(dy)
}
