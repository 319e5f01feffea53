//! Causal attention with grouped heads over rows of different lengths, side by side.
//!
//! Scores are computed for [`QUERY_TILE`] queries against the keys before them, so memory grows
//! with the row's length, not with its square. The tiles of a row begin at the row's start, and
//! nothing crosses rows: a row's results depend on that row alone.

use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

use super::buffers::zeros;
use super::gemm::{Mat, MatMut, Write, matmul};
use super::simd::{dot, exp_shifted, max, soft_cap, soft_cap_slope, vectorized};
use super::threads::Threads;
use crate::model::Error;
use crate::model::kernels::shapes::{AttentionShape, Qkv};
use crate::model::kernels::tensor::{tensor, view};
use crate::model::row_layout::RowLayout;

/// Queries whose scores are held at a time.
const QUERY_TILE: usize = 64;

/// Query tiles of a row of `len` tokens, as positions in the row.
fn tiles(len: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..len)
        .step_by(QUERY_TILE)
        .map(move |start| start..(start + QUERY_TILE).min(len))
}

/// Attention probabilities of one query tile, `scores` `[tile, seen]`: zero where a query does not see
/// a key. With a soft cap, the slope of the cap at each score goes to `slopes`, if they are wanted.
fn probabilities(
    scores: &mut [f32],
    mut slopes: Option<&mut [f32]>,
    tile: &Range<usize>,
    q: Mat<'_>,
    k: Mat<'_>,
    shape: AttentionShape,
) {
    let keys = shape.seen(tile);
    matmul(
        MatMut::new(scores, tile.len(), keys.len()),
        Write::Replace,
        q,
        k.t(),
        Threads::One,
    );
    vectorized(
        #[inline(always)]
        || {
            for (query, row) in tile.clone().zip(scores.chunks_exact_mut(keys.len())) {
                let (row, future) = row.split_at_mut(query + 1 - keys.start);
                let (past, seen) = row.split_at_mut(shape.first_seen(query) - keys.start);
                for score in &mut *seen {
                    *score *= shape.scale;
                }
                if let Some(cap) = shape.soft_cap {
                    for score in &mut *seen {
                        *score = soft_cap(*score, cap);
                    }
                    if let Some(slopes) = slopes.as_deref_mut() {
                        let start = (query - tile.start) * keys.len() + past.len();
                        let slopes = &mut slopes[start..start + seen.len()];
                        for (slope, score) in slopes.iter_mut().zip(&*seen) {
                            *slope = soft_cap_slope(*score, cap);
                        }
                    }
                }
                let largest = max(seen);
                let sum = exp_shifted(seen, largest);
                let inverse = sum.recip();
                for score in seen {
                    *score *= inverse;
                }
                past.fill(0.0);
                future.fill(0.0);
            }
        },
    );
}

/// The part of a `[tokens, width]` buffer that belongs to `head` in the tokens of `range`.
fn head<'a>(
    values: &'a [f32],
    range: Range<usize>,
    width: usize,
    head: usize,
    dim: usize,
) -> Mat<'a> {
    Mat::strided(
        &values[range.start * width + head * dim..range.end * width],
        range.len(),
        dim,
        width,
    )
}

/// See [`Kernels::attention`](crate::model::kernels::Kernels::attention).
pub(super) fn forward(
    qkv: Qkv<'_>,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<Tensor, Error> {
    let (q, k, v): (&[f32], &[f32], &[f32]) = (&view(qkv.q)?, &view(qkv.k)?, &view(qkv.v)?);
    let (width, k_width, dim) = (shape.query_width(), shape.key_width(), shape.head_dim);
    let (v_width, out_width, v_dim) = (shape.value_width(), shape.out_width(), shape.v_head_dim);
    let tokens = layout.num_tokens();
    let mut out = zeros(tokens * out_width);
    // One task a query tile, each with its own slice of the output.
    let mut tasks = Vec::new();
    let mut rest = out.as_mut_slice();
    for row in layout.rows() {
        for tile in tiles(row.len()) {
            let (slice, after) = rest.split_at_mut(tile.len() * out_width);
            rest = after;
            tasks.push((row.start, tile, slice));
        }
    }
    tasks.into_par_iter().for_each(|(start, tile, out)| {
        let seen = shape.seen(&tile);
        let mut scores = vec![0.0; tile.len() * seen.len()];
        let queries = start + tile.start..start + tile.end;
        let keys = start + seen.start..start + seen.end;
        for h in 0..shape.num_heads {
            let kv = h / shape.group();
            probabilities(
                &mut scores,
                None,
                &tile,
                head(q, queries.clone(), width, h, dim),
                head(k, keys.clone(), k_width, kv, dim),
                shape,
            );
            matmul(
                MatMut::strided(&mut out[h * v_dim..], tile.len(), v_dim, out_width),
                Write::Replace,
                Mat::new(&scores, tile.len(), seen.len()),
                head(v, keys.clone(), v_width, kv, v_dim),
                Threads::One,
            );
        }
    });
    tensor(out, (tokens, out_width))
}

/// Gradients of one key head of one row, contiguous: `dq` is `[group, len, head_dim]`, `dk`
/// `[len, head_dim]`, `dv` `[len, v_head_dim]`.
struct HeadGradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// See [`Kernels::attention_backward`](crate::model::kernels::Kernels::attention_backward).
///
/// With probabilities `P` and `dP = dOut Vᵀ`: `dS = P * (dP - rowsum(dOut * Out))`,
/// `dq = scale dS K`, `dk = scale dSᵀ Q`, `dv = Pᵀ dOut`; a soft cap's slope multiplies `dS`. `P` is
/// computed again, tile by tile.
pub(super) fn backward(
    d_out: &Tensor,
    qkv: Qkv<'_>,
    out: &Tensor,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let (width, k_width, dim) = (shape.query_width(), shape.key_width(), shape.head_dim);
    let (v_width, out_width, v_dim) = (shape.value_width(), shape.out_width(), shape.v_head_dim);
    let (d_out, out): (&[f32], &[f32]) = (&view(d_out)?, &view(out)?);
    let (q, k, v): (&[f32], &[f32], &[f32]) = (&view(qkv.q)?, &view(qkv.k)?, &view(qkv.v)?);
    let rows: Vec<Range<usize>> = layout.rows().collect();
    let tasks: Vec<(usize, usize)> = (0..rows.len())
        .flat_map(|row| (0..shape.num_kv_heads).map(move |kv| (row, kv)))
        .collect();
    let heads: Vec<HeadGradients> = tasks
        .par_iter()
        .map(|&(row, kv)| {
            let row = rows[row].clone();
            let len = row.len();
            let mut grads = HeadGradients {
                dq: vec![0.0; shape.group() * len * dim],
                dk: vec![0.0; len * dim],
                dv: vec![0.0; len * v_dim],
            };
            let mut p_buffer = vec![0.0; QUERY_TILE.min(len) * len];
            let mut ds_buffer = p_buffer.clone();
            let mut slope_buffer = match shape.soft_cap {
                Some(_) => p_buffer.clone(),
                None => Vec::new(),
            };
            for (g, dq) in grads.dq.chunks_exact_mut(len * dim).enumerate() {
                let h = kv * shape.group() + g;
                for tile in tiles(len) {
                    let queries = row.start + tile.start..row.start + tile.end;
                    let seen = shape.seen(&tile);
                    let keys = row.start + seen.start..row.start + seen.end;
                    let (m, n) = (tile.len(), seen.len());
                    // The seen keys' part of a head's [len, dim].
                    let k_part = seen.start * dim..seen.end * dim;
                    let v_part = seen.start * v_dim..seen.end * v_dim;
                    let p = &mut p_buffer[..m * n];
                    let ds = &mut ds_buffer[..m * n];
                    let q_tile = head(q, queries.clone(), width, h, dim);
                    let k_seen = head(k, keys.clone(), k_width, kv, dim);
                    let v_seen = head(v, keys, v_width, kv, v_dim);
                    let d_tile = head(d_out, queries.clone(), out_width, h, v_dim);
                    let slopes = slope_buffer.get_mut(..m * n);
                    probabilities(p, slopes, &tile, q_tile, k_seen, shape);
                    matmul(
                        MatMut::new(&mut grads.dv[v_part], n, v_dim),
                        Write::Accumulate,
                        Mat::new(p, m, n).t(),
                        d_tile,
                        Threads::One,
                    );
                    matmul(
                        MatMut::new(ds, m, n),
                        Write::Replace,
                        d_tile,
                        v_seen.t(),
                        Threads::One,
                    );
                    vectorized(
                        #[inline(always)]
                        || {
                            let rows = ds.chunks_exact_mut(n).zip(p.chunks_exact(n));
                            for (token, (ds, p)) in queries.clone().zip(rows) {
                                let at = token * out_width + h * v_dim;
                                let dot = dot(&d_out[at..at + v_dim], &out[at..at + v_dim]);
                                for (ds, p) in ds.iter_mut().zip(p) {
                                    *ds = p * (*ds - dot) * shape.scale;
                                }
                            }
                            // Where a query does not see a key, ds is 0, whatever the slope is.
                            if let Some(slopes) = slope_buffer.get(..m * n) {
                                for (ds, slope) in ds.iter_mut().zip(slopes) {
                                    *ds *= slope;
                                }
                            }
                        },
                    );
                    matmul(
                        MatMut::new(&mut dq[tile.start * dim..tile.end * dim], m, dim),
                        Write::Replace,
                        Mat::new(ds, m, n),
                        k_seen,
                        Threads::One,
                    );
                    matmul(
                        MatMut::new(&mut grads.dk[k_part], n, dim),
                        Write::Accumulate,
                        Mat::new(ds, m, n).t(),
                        q_tile,
                        Threads::One,
                    );
                }
            }
            grads
        })
        .collect();

    // The heads of a row follow each other in `heads`.
    let of_row = |row: usize| &heads[row * shape.num_kv_heads..][..shape.num_kv_heads];
    let group = shape.group();
    let dq = gathered(&rows, width, dim, |row, head| {
        let len = rows[row].len();
        &of_row(row)[head / group].dq[head % group * len * dim..][..len * dim]
    });
    let dk = gathered(&rows, k_width, dim, |row, head| &of_row(row)[head].dk);
    let dv = gathered(&rows, v_width, v_dim, |row, head| &of_row(row)[head].dv);
    Ok((
        tensor(dq, qkv.q.dims())?,
        tensor(dk, qkv.k.dims())?,
        tensor(dv, qkv.v.dims())?,
    ))
}

/// Puts heads side by side: `[tokens, width]` of every row's and head's `[len, dim]`.
fn gathered<'a>(
    rows: &[Range<usize>],
    width: usize,
    dim: usize,
    head_of: impl Fn(usize, usize) -> &'a [f32] + Sync,
) -> Vec<f32> {
    let mut all = zeros(rows.last().map_or(0, |row| row.end) * width);
    let mut tasks = Vec::new();
    let mut rest = all.as_mut_slice();
    for (row, range) in rows.iter().enumerate() {
        let (mine, after) = rest.split_at_mut(range.len() * width);
        rest = after;
        let parts = mine.chunks_mut(QUERY_TILE * width).enumerate();
        tasks.extend(parts.map(|(tile, part)| (row, tile * QUERY_TILE, part)));
    }
    tasks.into_par_iter().for_each(|(row, first, part)| {
        for head in 0..width / dim {
            let values = head_of(row, head)[first * dim..].chunks_exact(dim);
            for (token, values) in part.chunks_exact_mut(width).zip(values) {
                token[head * dim..(head + 1) * dim].copy_from_slice(values);
            }
        }
    });
    all
}
