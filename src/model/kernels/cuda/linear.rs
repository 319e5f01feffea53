//! Linear projections: products, and the little that is around them.

use candle_core::Tensor;

use super::context::{Context, Factor, Write};
use super::rows::add_bias;
use crate::model::Error;

/// See [`Kernels::linear`](crate::model::kernels::Kernels::linear).
pub(super) fn forward(
    cx: &Context,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let y = cx.tokens(x.dim(0)?, w.dim(0)?, x.dtype())?;
    cx.multiply_tokens(&y, Write::Replace, x, Factor::transposed(w))?;
    if let Some(b) = b {
        add_bias(cx, &y, b)?;
    }
    Ok(y)
}

/// See [`Kernels::linear_backward_input`](crate::model::kernels::Kernels::linear_backward_input).
pub(super) fn backward_input(
    cx: &Context,
    dy: &Tensor,
    w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    let (dx, write) = match accumulate_into {
        Some(dx) => (dx, Write::Accumulate),
        None => (
            cx.tokens(dy.dim(0)?, w.dim(1)?, dy.dtype())?,
            Write::Replace,
        ),
    };
    cx.multiply_tokens(&dx, write, dy, Factor::plain(w))?;
    Ok(dx)
}

/// See [`Kernels::linear_backward_weight`](crate::model::kernels::Kernels::linear_backward_weight).
pub(super) fn backward_weight(
    cx: &Context,
    d_w: &Tensor,
    dy: &Tensor,
    x: &Tensor,
) -> Result<(), Error> {
    cx.multiply(
        d_w,
        Write::Accumulate,
        Factor::transposed(dy),
        Factor::plain(x),
    )
}
