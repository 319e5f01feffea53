//! Attention, forward and backward, in tiles of 64 or 128 tokens of a row.
//!
//! For bf16 a kernel is compiled for each of a few sizes of heads, on tensor cores; f32 has one of plain loops, for
//! comparisons.

use candle_core::{DType, Tensor};

use super::batch_rows::{AttentionTiles, TILE, Tiles};
use super::context::Context;
use super::driver::LaunchShape;
use super::launch::{Launch, blocks, blocks_2d};
use crate::model::Error;
use crate::model::kernels::shapes::{Attended, AttentionShape, Qkv};
use crate::model::row_layout::RowLayout;

/// Tiles of the f32 kernels are a quarter as large.
const F32_TILES: usize = 4;

/// What a kernel of attention computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    BackwardKv,
    BackwardQ,
}

/// The sizes of heads that the bf16 kernels are compiled for: of queries and keys, and of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Padded {
    keys: usize,
    values: usize,
}

impl Padded {
    fn of(shape: AttentionShape) -> Result<Self, Error> {
        let (keys, values) = (shape.head_dim, shape.v_head_dim);
        let largest = keys.max(values);
        if largest > 128 && keys <= 192 && values <= 128 {
            return Ok(Self {
                keys: 192,
                values: 128,
            });
        }
        let sizes = [32, 64, 96, 128, 192, 256];
        let size = sizes.into_iter().find(|size| *size >= largest);
        let size = size.ok_or(Error::Internal("heads of more than 256 features"))?;
        Ok(Self {
            keys: size,
            values: size,
        })
    }

    fn suffix(self) -> String {
        match self.keys == self.values {
            true => self.keys.to_string(),
            false => format!("{}_{}", self.keys, self.values),
        }
    }

    /// Tokens of a tile.
    fn tile(self, pass: Pass) -> usize {
        match pass {
            Pass::Forward if self.keys <= 128 => 2 * TILE,
            _ => TILE,
        }
    }

    /// Bytes of shared memory: see the table in sources/README.md.
    fn shared_bytes(self, pass: Pass) -> usize {
        let rows = |n: usize, d: usize| n * (d + 8) * 2;
        let own = rows(self.tile(pass), self.keys);
        let both = match pass {
            Pass::Forward => 0,
            Pass::BackwardKv | Pass::BackwardQ => rows(TILE, self.values),
        };
        let n = match (pass, self.keys) {
            (_, ..=64) | (Pass::Forward, 96) => 64,
            (Pass::Forward, 128) => 48,
            _ => 32,
        };
        let sums = match pass {
            Pass::BackwardKv => 8 * n,
            _ => 0,
        };
        own + both + 2 * (rows(n, self.keys) + rows(n, self.values) + sums)
    }

    fn threads(self, pass: Pass) -> u32 {
        match pass == Pass::BackwardKv && self.keys >= 192 {
            true => 256,
            false => 128,
        }
    }
}

/// Bytes of shared memory of the f32 kernels: see sources/README.md.
fn f32_shared_bytes(shape: AttentionShape, pass: Pass) -> usize {
    let (d, v) = (shape.head_dim + 1, shape.v_head_dim + 1);
    size_of::<f32>()
        * match pass {
            Pass::Forward => 16 * d + 16 * d + 16 * v + 16 * 17 + 48,
            Pass::BackwardKv | Pass::BackwardQ => 32 * d + 32 * v + 2 * 16 * 17 + 32,
        }
}

/// Begins a kernel's parameters, and returns the shape to launch it in, and the tiles that it is to be given.
fn kernel<'a>(
    cx: &'a Context,
    pass: Pass,
    dtype: DType,
    shape: AttentionShape,
    tiles: &'a AttentionTiles,
) -> Result<(Launch<'a>, LaunchShape, &'a Tensor), Error> {
    let name = match pass {
        Pass::Forward => "attention_forward",
        Pass::BackwardKv => "attention_backward_kv",
        Pass::BackwardQ => "attention_backward_q",
    };
    let heads = match pass {
        Pass::BackwardKv => shape.num_kv_heads,
        Pass::Forward | Pass::BackwardQ => shape.num_heads,
    };
    let of_size = |tile: usize| -> &'a Tiles {
        match pass {
            Pass::BackwardKv => &tiles.keys,
            _ if tile > TILE => &tiles.wide_queries,
            _ => &tiles.queries,
        }
    };
    let (launch, tiles, blocks, threads, shared) = match dtype {
        DType::BF16 => {
            let padded = Padded::of(shape)?;
            let launch = cx.kernel_of_size(name, dtype, &padded.suffix());
            let tiles = of_size(padded.tile(pass));
            let (threads, shared) = (padded.threads(pass), padded.shared_bytes(pass));
            (launch, tiles, tiles.count, threads, shared)
        }
        _ => {
            let tiles = of_size(TILE);
            let shared = f32_shared_bytes(shape, pass);
            let launch = cx.kernel(name, dtype);
            (launch, tiles, F32_TILES * tiles.count, 128, shared)
        }
    };
    let grid = LaunchShape {
        shared_bytes: shared as u32,
        ..blocks_2d(blocks, heads, threads)?
    };
    Ok((launch, grid, &tiles.words))
}

/// Adds what all three kernels end with.
fn with_shape(launch: Launch<'_>, tokens: usize, shape: AttentionShape) -> Launch<'_> {
    launch
        .int(tokens)
        .int(shape.num_heads)
        .int(shape.num_kv_heads)
        .int(shape.head_dim)
        .int(shape.v_head_dim)
        .float(shape.scale)
        .float(shape.soft_cap.unwrap_or(0.0))
        .int(shape.window.unwrap_or(0).min(i32::MAX as usize))
}

/// See [`Kernels::attention`](crate::model::kernels::Kernels::attention).
pub(super) fn forward(
    cx: &Context,
    Qkv { q, k, v }: Qkv<'_>,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<Attended, Error> {
    let tokens = q.dim(0)?;
    let tiles = cx.tiles(layout)?;
    let out = cx.tokens(tokens, shape.out_width(), q.dtype())?;
    let log_sums = cx.empty(&[shape.num_heads, tokens])?;
    let (launch, grid, tiles) = kernel(cx, Pass::Forward, q.dtype(), shape, &tiles)?;
    let launch = launch
        .tokens(q)
        .tokens(k)
        .tokens(v)
        .tokens(&out)
        .f32s(&log_sums)
        .words(tiles);
    with_shape(launch, tokens, shape).run(grid)?;
    Ok(Attended {
        out,
        log_sums: Some(log_sums),
    })
}

/// See [`Kernels::attention_backward`](crate::model::kernels::Kernels::attention_backward).
pub(super) fn backward(
    cx: &Context,
    d_out: &Tensor,
    Qkv { q, k, v }: Qkv<'_>,
    attended: &Attended,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let Some(log_sums) = &attended.log_sums else {
        return Err(Error::Internal("an attention without its log-sums"));
    };
    let (tokens, dtype) = (q.dim(0)?, q.dtype());
    let tiles = cx.tiles(layout)?;
    let delta = cx.empty(&[shape.num_heads, tokens])?;
    cx.kernel("attention_delta", dtype)
        .tokens(d_out)
        .tokens(&attended.out)
        .f32s(&delta)
        .int(tokens)
        .int(shape.num_heads)
        .int(shape.v_head_dim)
        .run(blocks((tokens * shape.num_heads).div_ceil(8), 256)?)?;

    let (dk, dv) = (cx.like(k)?, cx.like(v)?);
    let (launch, grid, keys) = kernel(cx, Pass::BackwardKv, dtype, shape, &tiles)?;
    let launch = launch
        .tokens(q)
        .tokens(k)
        .tokens(v)
        .tokens(d_out)
        .f32s(log_sums)
        .f32s(&delta)
        .tokens(&dk)
        .tokens(&dv)
        .words(keys);
    with_shape(launch, tokens, shape).run(grid)?;

    let dq = cx.like(q)?;
    let (launch, grid, queries) = kernel(cx, Pass::BackwardQ, dtype, shape, &tiles)?;
    let launch = launch
        .tokens(q)
        .tokens(k)
        .tokens(v)
        .tokens(d_out)
        .f32s(log_sums)
        .f32s(&delta)
        .tokens(&dq)
        .words(queries);
    with_shape(launch, tokens, shape).run(grid)?;
    Ok((dq, dk, dv))
}
