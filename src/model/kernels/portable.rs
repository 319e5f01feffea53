//! Every operation composed of the tensor library's own, for any device: the trait's defaults.
//!
//! Slower and with more temporaries than kernels made for a device. Tensors are f32 or bf16; norms, softmax
//! and everything from the logits on are f32.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::shapes::{
    AdamWState, AdamWStep, AttentionShape, MlaDims, Qkv, RmsNorm, Rope, RopeDirection,
};
use super::tensor::{assign, indices};
use crate::model::Error;
use crate::model::architecture::Activation;
use crate::model::row_layout::RowLayout;

/// Queries whose scores are held at a time.
const QUERY_TILE: usize = 512;

fn f32_of(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.to_dtype(DType::F32)?)
}

pub(super) fn add_assign(sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
    assign(sum, &sum.add(&addend.to_dtype(sum.dtype())?)?)
}

pub(super) fn sum_of_squares(x: &Tensor) -> Result<f64, Error> {
    Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?))
}

pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
    scaled_rows(table, ids, table.dtype(), scale)
}

/// Looks up rows, converts them to a dtype, and multiplies them by `scale`.
pub(super) fn scaled_rows(
    table: &Tensor,
    ids: &[u32],
    dtype: DType,
    scale: f32,
) -> Result<Tensor, Error> {
    let rows = table.index_select(&indices(ids, table.device())?, 0)?;
    let rows = rows.to_dtype(dtype)?;
    match scale {
        1.0 => Ok(rows),
        _ => Ok((rows * f64::from(scale))?),
    }
}

pub(super) fn embedding_backward(
    d_table: &Tensor,
    ids: &[u32],
    dx: &Tensor,
    scale: f32,
) -> Result<(), Error> {
    let ids = indices(ids, d_table.device())?;
    let dx = (dx.to_dtype(d_table.dtype())? * f64::from(scale))?;
    assign(d_table, &d_table.index_add(&ids, &dx, 0)?)
}

/// Adds to `accumulate_into`, if there is such a tensor, in place.
fn accumulated(dx: Tensor, accumulate_into: Option<Tensor>) -> Result<Tensor, Error> {
    match accumulate_into {
        Some(sum) => {
            add_assign(&sum, &dx)?;
            Ok(sum)
        }
        None => Ok(dx),
    }
}

fn inverse_rms(x: &Tensor, eps: f32) -> Result<Tensor, Error> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok((mean + f64::from(eps))?.sqrt()?.recip()?)
}

pub(super) fn rms_norm(x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
    let groups = f32_of(x)?.reshape(((), norm.weight.elem_count()))?;
    let w = (norm.weight + f64::from(norm.offset))?;
    let y = groups
        .broadcast_mul(&inverse_rms(&groups, norm.eps)?)?
        .broadcast_mul(&w)?;
    Ok(y.reshape(x.shape())?.to_dtype(x.dtype())?)
}

pub(super) fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    norm: RmsNorm<'_>,
    d_w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    let width = norm.weight.elem_count();
    let groups = f32_of(x)?.reshape(((), width))?;
    let dy = f32_of(dy)?.reshape(((), width))?;
    let r = inverse_rms(&groups, norm.eps)?;
    let normed = groups.broadcast_mul(&r)?;
    add_assign(d_w, &dy.mul(&normed)?.sum(0)?)?;
    let g = dy.broadcast_mul(&(norm.weight + f64::from(norm.offset))?)?;
    let dot = g.mul(&normed)?.mean_keepdim(D::Minus1)?;
    let dx = g
        .sub(&normed.broadcast_mul(&dot)?)?
        .broadcast_mul(&r)?
        .reshape(x.shape())?
        .to_dtype(x.dtype())?;
    accumulated(dx, accumulate_into)
}

pub(super) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
    let y = x.matmul(&w.t()?)?;
    Ok(match b {
        Some(b) => y.broadcast_add(&b.to_dtype(y.dtype())?)?,
        None => y,
    })
}

pub(super) fn linear_backward_input(
    dy: &Tensor,
    w: &Tensor,
    accumulate_into: Option<Tensor>,
) -> Result<Tensor, Error> {
    accumulated(dy.matmul(w)?, accumulate_into)
}

pub(super) fn linear_backward_weight(d_w: &Tensor, dy: &Tensor, x: &Tensor) -> Result<(), Error> {
    add_assign(d_w, &dy.t()?.matmul(x)?)
}

pub(super) fn linear_backward_bias(d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
    add_assign(d_b, &f32_of(dy)?.sum(0)?)
}

pub(super) fn rope(x: &Tensor, rope: Rope<'_>, direction: RopeDirection) -> Result<Tensor, Error> {
    let (cos, sin, layout) = (&rope.table.cos, &rope.table.sin, rope.layout);
    let (tokens, features) = x.dims2()?;
    let (dim, half) = (layout.head_dim, cos.dim(1)?);
    let heads = x.reshape((tokens, features / dim, dim))?;
    let rotated = heads.narrow(2, layout.first, 2 * half)?;
    let (a, b) = if layout.interleaved {
        let pairs = rotated
            .contiguous()?
            .reshape((tokens, features / dim, half, 2))?;
        let side = |i| -> Result<Tensor, Error> { Ok(pairs.narrow(3, i, 1)?.squeeze(3)?) };
        (side(0)?, side(1)?)
    } else {
        (rotated.narrow(2, 0, half)?, rotated.narrow(2, half, half)?)
    };
    let cos = cos.unsqueeze(1)?.to_dtype(x.dtype())?;
    let sin = (sin * f64::from(direction.sign()))?
        .unsqueeze(1)?
        .to_dtype(x.dtype())?;
    let first = a.broadcast_mul(&cos)?.sub(&b.broadcast_mul(&sin)?)?;
    let second = b.broadcast_mul(&cos)?.add(&a.broadcast_mul(&sin)?)?;
    let rotated = if layout.interleaved {
        Tensor::stack(&[first, second], 3)?.reshape((tokens, features / dim, 2 * half))?
    } else {
        Tensor::cat(&[first, second], 2)?
    };
    let mut parts = Vec::with_capacity(3);
    if layout.first > 0 {
        parts.push(heads.narrow(2, 0, layout.first)?);
    }
    parts.push(rotated);
    let end = layout.first + 2 * half;
    if end < dim {
        parts.push(heads.narrow(2, end, dim - end)?);
    }
    Ok(Tensor::cat(&parts, 2)?.reshape((tokens, features))?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor, Error> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

const GELU_ROOT: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

/// What both activations multiply their input by: a sigmoid, of the input or of a polynomial in it.
fn gate_factor(x: &Tensor, activation: Activation) -> Result<Tensor, Error> {
    match activation {
        Activation::Silu => sigmoid(x),
        Activation::GeluTanh => {
            let cubic = (x.sqr()? * (2.0 * GELU_ROOT * GELU_CUBIC))?;
            sigmoid(&x.mul(&(cubic + 2.0 * GELU_ROOT)?)?)
        }
    }
}

pub(super) fn glu(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
    let gate = f32_of(gate)?;
    let value = gate.mul(&gate_factor(&gate, activation)?)?;
    Ok(value.to_dtype(up.dtype())?.mul(up)?)
}

pub(super) fn glu_backward(
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor), Error> {
    let dtype = gate.dtype();
    let (dy, gate, up) = (&f32_of(dy)?, &f32_of(gate)?, &f32_of(up)?);
    let s = gate_factor(gate, activation)?;
    let value = gate.mul(&s)?;
    let mut slope_term = value.mul(&(1.0 - &s)?)?;
    if activation == Activation::GeluTanh {
        let du = (gate.sqr()? * (6.0 * GELU_ROOT * GELU_CUBIC))?;
        slope_term = slope_term.mul(&(du + 2.0 * GELU_ROOT)?)?;
    }
    let slope = s.add(&slope_term)?;
    let d_gate = dy.mul(up)?.mul(&slope)?;
    Ok((d_gate.to_dtype(dtype)?, dy.mul(&value)?.to_dtype(dtype)?))
}

pub(super) fn mla(kv: &Tensor, k_rope: &Tensor, dims: MlaDims) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = kv.dims2()?;
    let heads = width / dims.kv_width();
    let pairs = kv.reshape((tokens, heads, dims.kv_width()))?;
    let k_rope = k_rope
        .unsqueeze(1)?
        .broadcast_as((tokens, heads, dims.rope))?;
    let keys = Tensor::cat(&[pairs.narrow(2, 0, dims.nope)?, k_rope], 2)?;
    let values = pairs.narrow(2, dims.nope, dims.value)?.contiguous()?;
    Ok((
        keys.reshape((tokens, heads * dims.key()))?,
        values.reshape((tokens, heads * dims.value))?,
    ))
}

pub(super) fn mla_backward(
    d_keys: &Tensor,
    d_values: &Tensor,
    dims: MlaDims,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = d_keys.dims2()?;
    let heads = width / dims.key();
    let keys = d_keys.reshape((tokens, heads, dims.key()))?;
    let values = d_values.reshape((tokens, heads, dims.value))?;
    let d_kv = Tensor::cat(&[keys.narrow(2, 0, dims.nope)?, values], 2)?;
    let d_k_rope = keys.narrow(2, dims.nope, dims.rope)?.sum(1)?;
    Ok((d_kv.reshape((tokens, ()))?, d_k_rope))
}

/// `cap * tanh(x / cap)`
pub(super) fn soft_cap(x: &Tensor, cap: Option<f32>) -> Result<Tensor, Error> {
    Ok(match cap {
        Some(cap) => ((x / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => x.clone(),
    })
}

/// The slope of [`soft_cap`] where it gave `y`.
pub(super) fn soft_cap_slope(y: &Tensor, cap: f32) -> Result<Tensor, Error> {
    Ok((1.0 - (y / f64::from(cap))?.sqr()?)?)
}

/// The part of a `[tokens, heads * dim]` tensor in a range of tokens, as `[kv_heads, tokens, dim]` or,
/// for queries, `[kv_heads, group * tokens, dim]`.
fn by_head(x: &Tensor, range: Range<usize>, kv_heads: usize, dim: usize) -> Result<Tensor, Error> {
    let len = range.len();
    let part = x.narrow(0, range.start, len)?;
    let group = x.dim(1)? / (kv_heads * dim);
    Ok(part
        .reshape((len, kv_heads, group, dim))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * len, dim))?)
}

/// [`by_head`] undone: `[kv_heads, group * tokens, dim]` to `[tokens, heads * dim]`.
fn by_token(x: &Tensor, len: usize) -> Result<Tensor, Error> {
    let (kv_heads, rows, dim) = x.dims3()?;
    let group = rows / len;
    Ok(x.reshape((kv_heads, group, len, dim))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((len, kv_heads * group * dim))?)
}

fn tiles(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(QUERY_TILE)
        .map(move |start| start..(start + QUERY_TILE).min(len))
}

/// 0 where a query sees a key, minus infinity elsewhere: `[group * tile, seen]`. Made on the device from
/// positions, of which f32 holds the first 2^24 exactly.
fn mask(tile: &Range<usize>, shape: AttentionShape, device: &Device) -> Result<Tensor, Error> {
    let seen = shape.seen(tile);
    let positions = |range: &Range<usize>| -> Result<Tensor, Error> {
        Ok(Tensor::arange(
            range.start as f32,
            range.end as f32,
            device,
        )?)
    };
    let queries = positions(tile)?.unsqueeze(1)?;
    let keys = positions(&seen)?.unsqueeze(0)?;
    let mut visible = keys.broadcast_le(&queries)?;
    if let Some(window) = shape.window {
        let is_near = keys.broadcast_gt(&(queries - window as f64)?)?;
        visible = visible.mul(&is_near)?;
    }
    let zeros = Tensor::zeros((tile.len(), seen.len()), DType::F32, device)?;
    let hidden = Tensor::full(f32::NEG_INFINITY, (tile.len(), seen.len()), device)?;
    let one = visible.where_cond(&zeros, &hidden)?;
    Ok(one.repeat((shape.num_heads / shape.num_kv_heads, 1))?)
}

/// Probabilities of one tile, `[kv_heads, group * tile, seen]`, f32; and the slopes of the soft cap.
fn probabilities(
    q: &Tensor,
    k: &Tensor,
    mask: &Tensor,
    shape: AttentionShape,
) -> Result<(Tensor, Option<Tensor>), Error> {
    let scores = (f32_of(&q.matmul(&k.t()?)?)? * f64::from(shape.scale))?;
    let scores = soft_cap(&scores, shape.soft_cap)?;
    let slopes = shape
        .soft_cap
        .map(|cap| soft_cap_slope(&scores, cap))
        .transpose()?;
    let scores = scores.broadcast_add(mask)?;
    let largest = scores.max_keepdim(D::Minus1)?;
    let e = scores.broadcast_sub(&largest)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    Ok((p, slopes))
}

pub(super) fn attention(
    Qkv { q, k, v }: Qkv<'_>,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<Tensor, Error> {
    let mut outs = Vec::new();
    for row in layout.rows() {
        for tile in tiles(row.len()) {
            let seen = shape.seen(&tile);
            let queries = row.start + tile.start..row.start + tile.end;
            let keys = row.start + seen.start..row.start + seen.end;
            let q = by_head(q, queries, shape.num_kv_heads, shape.head_dim)?;
            let k = by_head(k, keys.clone(), shape.num_kv_heads, shape.head_dim)?;
            let v = by_head(v, keys, shape.num_kv_heads, shape.v_head_dim)?;
            let (p, _) = probabilities(&q, &k, &mask(&tile, shape, q.device())?, shape)?;
            outs.push(by_token(&p.to_dtype(v.dtype())?.matmul(&v)?, tile.len())?);
        }
    }
    Ok(Tensor::cat(&outs, 0)?)
}

pub(super) fn attention_backward(
    d_out: &Tensor,
    Qkv { q, k, v }: Qkv<'_>,
    out: &Tensor,
    layout: &RowLayout,
    shape: AttentionShape,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    let (kv_heads, dim, v_dim) = (shape.num_kv_heads, shape.head_dim, shape.v_head_dim);
    for row in layout.rows() {
        let (mut dk_row, mut dv_row): (Option<Tensor>, Option<Tensor>) = (None, None);
        for tile in tiles(row.len()) {
            let seen = shape.seen(&tile);
            let queries = row.start + tile.start..row.start + tile.end;
            let keys = row.start + seen.start..row.start + seen.end;
            let q = f32_of(&by_head(q, queries.clone(), kv_heads, dim)?)?;
            let k = f32_of(&by_head(k, keys.clone(), kv_heads, dim)?)?;
            let v = f32_of(&by_head(v, keys, kv_heads, v_dim)?)?;
            let d = f32_of(&by_head(d_out, queries.clone(), kv_heads, v_dim)?)?;
            let o = f32_of(&by_head(out, queries, kv_heads, v_dim)?)?;
            let (p, slopes) = probabilities(&q, &k, &mask(&tile, shape, q.device())?, shape)?;
            let dot = d.mul(&o)?.sum_keepdim(D::Minus1)?;
            let ds = d.matmul(&v.t()?)?.broadcast_sub(&dot)?.mul(&p)?;
            let mut ds = (ds * f64::from(shape.scale))?;
            if let Some(slopes) = slopes {
                ds = ds.mul(&slopes)?;
            }
            dqs.push(by_token(&ds.matmul(&k)?, tile.len())?);
            let whole = |part: Tensor, sum: Option<Tensor>| -> Result<Tensor, Error> {
                let part = part.pad_with_zeros(1, seen.start, row.len() - seen.end)?;
                Ok(match sum {
                    Some(sum) => sum.add(&part)?,
                    None => part,
                })
            };
            let dk = ds.transpose(1, 2)?.contiguous()?.matmul(&q)?;
            let dv = p.transpose(1, 2)?.contiguous()?.matmul(&d)?;
            dk_row = Some(whole(dk, dk_row)?);
            dv_row = Some(whole(dv, dv_row)?);
        }
        for (row_sum, all) in [(dk_row, &mut dks), (dv_row, &mut dvs)] {
            if let Some(sum) = row_sum {
                all.push(by_token(&sum, row.len())?);
            }
        }
    }
    let join = |parts: &[Tensor]| -> Result<Tensor, Error> {
        Ok(Tensor::cat(parts, 0)?.to_dtype(q.dtype())?)
    };
    Ok((join(&dqs)?, join(&dks)?, join(&dvs)?))
}

pub(super) fn adamw(state: AdamWState<'_>, c: AdamWStep) -> Result<(), Error> {
    let scaled = |x: &Tensor, factor: f32| x * f64::from(factor);
    let AdamWState {
        parameter,
        rounded,
        gradient,
        first_moment,
        second_moment,
    } = state;
    let g = scaled(gradient, c.gradient_scale)?;
    let first = (scaled(first_moment, c.beta1)? + scaled(&g, 1.0 - c.beta1)?)?;
    let second = (scaled(second_moment, c.beta2)? + scaled(&g.sqr()?, 1.0 - c.beta2)?)?;
    let root = (scaled(&second.sqrt()?, c.root_correction.recip())? + f64::from(c.eps))?;
    let change = scaled(&first, c.step_size)?.div(&root)?;
    assign(parameter, &scaled(parameter, c.keep)?.sub(&change)?)?;
    assign(first_moment, &first)?;
    assign(second_moment, &second)?;
    if let Some(rounded) = rounded {
        assign(rounded, parameter)?;
    }
    Ok(gradient.zero_set()?)
}
