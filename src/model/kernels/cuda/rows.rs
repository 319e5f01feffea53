//! Kernels that move rows of features or sum over them: the embedding, biases, the keys and values of latent
//! attention.

use candle_core::Tensor;

use super::context::Context;
use super::driver::LaunchShape;
use super::elementwise::elementwise;
use super::launch::{blocks, blocks_2d};
use crate::model::Error;
use crate::model::kernels::shapes::MlaDims;

/// Threads of a block that sums over rows, a column each.
pub(super) const COLUMN_THREADS: u32 = 256;

const ROW_THREADS: u32 = 128;

/// Tokens whose biases' gradients are one partial sum.
const BIAS_TOKENS_PER_PART: usize = 256;

/// Returns a grid with a block for each [`COLUMN_THREADS`] columns.
fn columns(width: usize) -> usize {
    width.div_ceil(COLUMN_THREADS as usize)
}

/// Adds partial sums `[parts, width]` to `sum` `[width]`, in order.
pub(super) fn add_partials(
    cx: &Context,
    partials: &Tensor,
    sum: &Tensor,
    parts: usize,
) -> Result<(), Error> {
    let width = sum.elem_count();
    cx.only_kernel("sum_partials")
        .f32s(partials)
        .f32s(sum)
        .int(parts)
        .int(width)
        .run(blocks(columns(width), COLUMN_THREADS)?)
}

/// See [`Kernels::embedding`](crate::model::kernels::Kernels::embedding).
pub(super) fn embedding(
    cx: &Context,
    table: &Tensor,
    ids: &[u32],
    scale: f32,
) -> Result<Tensor, Error> {
    let width = table.dim(1)?;
    let y = cx.tokens(ids.len(), width, table.dtype())?;
    let ids = cx.driver().upload(ids)?;
    cx.kernel("embedding", table.dtype())
        .tokens(table)
        .words(&ids)
        .tokens(&y)
        .int(ids.elem_count())
        .int(width)
        .float(scale)
        .run(blocks(ids.elem_count(), ROW_THREADS)?)?;
    Ok(y)
}

/// See [`Kernels::embedding_backward`](crate::model::kernels::Kernels::embedding_backward): a block for each
/// distinct id adds its tokens' gradients in order.
pub(super) fn embedding_backward(
    cx: &Context,
    d_table: &Tensor,
    ids: &[u32],
    dx: &Tensor,
    scale: f32,
) -> Result<(), Error> {
    let width = d_table.dim(1)?;
    let mut by_id: Vec<(u32, u32)> = ids.iter().copied().zip(0..).collect();
    by_id.sort_unstable();
    let (mut distinct, mut starts) = (Vec::new(), Vec::new());
    for ((id, _), at) in by_id.iter().zip(0..) {
        if distinct.last() != Some(id) {
            distinct.push(*id);
            starts.push(at);
        }
    }
    starts.extend(u32::try_from(ids.len()));
    let tokens: Vec<u32> = by_id.into_iter().map(|(_, token)| token).collect();
    let grid = blocks_2d(distinct.len(), columns(width), COLUMN_THREADS)?;
    let [distinct, starts, tokens] =
        [distinct, starts, tokens].map(|words| cx.driver().upload(&words));
    let (distinct, starts, tokens) = (distinct?, starts?, tokens?);
    cx.kernel("embedding_backward", dx.dtype())
        .f32s(d_table)
        .tokens(dx)
        .words(&distinct)
        .words(&starts)
        .words(&tokens)
        .int(width)
        .float(scale)
        .run(grid)
}

/// Adds a bias to every row of `y` `[T, out]`, in place.
pub(super) fn add_bias(cx: &Context, y: &Tensor, bias: &Tensor) -> Result<(), Error> {
    let (tokens, width) = y.dims2()?;
    cx.kernel("add_bias", y.dtype())
        .tokens(y)
        .f32s(bias)
        .int(tokens)
        .int(width)
        .run(elementwise(tokens * width)?)
}

/// See [`Kernels::linear_backward_bias`](crate::model::kernels::Kernels::linear_backward_bias).
pub(super) fn bias_backward(cx: &Context, d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
    let (tokens, width) = dy.dims2()?;
    let parts = tokens.div_ceil(BIAS_TOKENS_PER_PART);
    let partials = cx.empty(&[parts, width])?;
    cx.kernel("bias_backward", dy.dtype())
        .tokens(dy)
        .f32s(&partials)
        .int(tokens)
        .int(width)
        .int(BIAS_TOKENS_PER_PART)
        .run(blocks_2d(columns(width), parts, COLUMN_THREADS)?)?;
    add_partials(cx, &partials, d_b, parts)
}

fn by_token(tokens: usize) -> Result<LaunchShape, Error> {
    blocks(tokens, ROW_THREADS)
}

/// See [`Kernels::mla`](crate::model::kernels::Kernels::mla).
pub(super) fn mla(
    cx: &Context,
    kv: &Tensor,
    k_rope: &Tensor,
    dims: MlaDims,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = kv.dims2()?;
    let heads = width / dims.kv_width();
    let keys = cx.tokens(tokens, heads * dims.key(), kv.dtype())?;
    let values = cx.tokens(tokens, heads * dims.value, kv.dtype())?;
    cx.kernel("mla", kv.dtype())
        .tokens(kv)
        .tokens(k_rope)
        .tokens(&keys)
        .tokens(&values)
        .int(tokens)
        .int(heads)
        .int(dims.nope)
        .int(dims.rope)
        .int(dims.value)
        .run(by_token(tokens)?)?;
    Ok((keys, values))
}

/// See [`Kernels::mla_backward`](crate::model::kernels::Kernels::mla_backward).
pub(super) fn mla_backward(
    cx: &Context,
    d_keys: &Tensor,
    d_values: &Tensor,
    dims: MlaDims,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = d_keys.dims2()?;
    let heads = width / dims.key();
    let d_kv = cx.tokens(tokens, heads * dims.kv_width(), d_keys.dtype())?;
    let d_k_rope = cx.tokens(tokens, dims.rope, d_keys.dtype())?;
    cx.kernel("mla_backward", d_keys.dtype())
        .tokens(d_keys)
        .tokens(d_values)
        .tokens(&d_kv)
        .tokens(&d_k_rope)
        .int(tokens)
        .int(heads)
        .int(dims.nope)
        .int(dims.rope)
        .int(dims.value)
        .run(by_token(tokens)?)?;
    Ok((d_kv, d_k_rope))
}
