//! Every operation put together from the tensor library's own, for devices that have no kernel of
//! ours.
//!
//! Slower and with more temporaries than the kernels on the CPU, whose results the tests compare
//! these with. Tensors are f32 or bf16; norms, softmax and everything from the logits on are f32.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::attention::Shape;
use super::latent::Parts;
use super::norm::Rms;
use super::rope::Turned;
use super::{RowLayout, assign};
use crate::model::Error;
use crate::model::architecture::Activation;

/// Queries whose scores are held at a time.
const QUERY_TILE: usize = 512;

/// A tensor of `values` on `device`.
pub(crate) fn upload(values: &[f32], shape: &[usize], device: &Device) -> Result<Tensor, Error> {
    Ok(Tensor::from_slice(values, shape, device)?)
}

/// Indices on `device`.
pub(crate) fn indices(values: &[u32], device: &Device) -> Result<Tensor, Error> {
    Ok(Tensor::from_slice(values, values.len(), device)?)
}

fn f32_of(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.to_dtype(DType::F32)?)
}

/// See [`super::add_assign`].
pub(super) fn add_assign(sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
    assign(sum, &sum.add(&addend.to_dtype(sum.dtype())?)?)
}

fn inverse_rms(x: &Tensor, eps: f32) -> Result<Tensor, Error> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok((mean + f64::from(eps))?.sqrt()?.recip()?)
}

/// See [`super::norm::forward`].
pub(super) fn norm(x: &Tensor, w: &Tensor, rms: Rms) -> Result<Tensor, Error> {
    let groups = f32_of(x)?.reshape(((), w.elem_count()))?;
    let w = (w + f64::from(rms.offset))?;
    let y = groups
        .broadcast_mul(&inverse_rms(&groups, rms.eps)?)?
        .broadcast_mul(&w)?;
    Ok(y.reshape(x.shape())?.to_dtype(x.dtype())?)
}

/// See [`super::norm::backward`].
pub(super) fn norm_backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rms: Rms,
    w_sum: &Tensor,
    onto: Option<Tensor>,
) -> Result<Tensor, Error> {
    let width = w.elem_count();
    let groups = f32_of(x)?.reshape(((), width))?;
    let dy = f32_of(dy)?.reshape(((), width))?;
    let r = inverse_rms(&groups, rms.eps)?;
    let normed = groups.broadcast_mul(&r)?;
    add_assign(w_sum, &dy.mul(&normed)?.sum(0)?)?;
    let g = dy.broadcast_mul(&(w + f64::from(rms.offset))?)?;
    let pull = g.mul(&normed)?.mean_keepdim(D::Minus1)?;
    let dx = g
        .sub(&normed.broadcast_mul(&pull)?)?
        .broadcast_mul(&r)?
        .reshape(x.shape())?
        .to_dtype(x.dtype())?;
    match onto {
        Some(sum) => {
            add_assign(&sum, &dx)?;
            Ok(sum)
        }
        None => Ok(dx),
    }
}

/// See [`super::linear::forward`].
pub(super) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
    let y = x.matmul(&w.t()?)?;
    Ok(match b {
        Some(b) => y.broadcast_add(&b.to_dtype(y.dtype())?)?,
        None => y,
    })
}

/// See [`super::linear::backward_input`].
pub(super) fn linear_backward_input(
    dy: &Tensor,
    w: &Tensor,
    onto: Option<Tensor>,
) -> Result<Tensor, Error> {
    let dx = dy.matmul(w)?;
    match onto {
        Some(sum) => {
            add_assign(&sum, &dx)?;
            Ok(sum)
        }
        None => Ok(dx),
    }
}

/// See [`super::linear::accumulate_weight`].
pub(super) fn accumulate_weight(sum: &Tensor, dy: &Tensor, x: &Tensor) -> Result<(), Error> {
    add_assign(sum, &dy.t()?.matmul(x)?)
}

/// See [`super::linear::accumulate_bias`].
pub(super) fn accumulate_bias(sum: &Tensor, dy: &Tensor) -> Result<(), Error> {
    add_assign(sum, &f32_of(dy)?.sum(0)?)
}

/// Turns `[tokens, heads * head_dim]` by angles whose cosines and sines are `[tokens, half]`.
pub(super) fn turn(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    turned: Turned,
    direction: f32,
) -> Result<Tensor, Error> {
    let (tokens, features) = x.dims2()?;
    let (dim, half) = (turned.head_dim, cos.dim(1)?);
    let heads = x.reshape((tokens, features / dim, dim))?;
    let rotated = heads.narrow(2, turned.first, 2 * half)?;
    let (a, b) = if turned.interleaved {
        let pairs = rotated
            .contiguous()?
            .reshape((tokens, features / dim, half, 2))?;
        let side = |i| -> Result<Tensor, Error> { Ok(pairs.narrow(3, i, 1)?.squeeze(3)?) };
        (side(0)?, side(1)?)
    } else {
        (rotated.narrow(2, 0, half)?, rotated.narrow(2, half, half)?)
    };
    let cos = cos.unsqueeze(1)?.to_dtype(x.dtype())?;
    let sin = (sin * f64::from(direction))?
        .unsqueeze(1)?
        .to_dtype(x.dtype())?;
    let first = a.broadcast_mul(&cos)?.sub(&b.broadcast_mul(&sin)?)?;
    let second = b.broadcast_mul(&cos)?.add(&a.broadcast_mul(&sin)?)?;
    let rotated = if turned.interleaved {
        Tensor::stack(&[first, second], 3)?.reshape((tokens, features / dim, 2 * half))?
    } else {
        Tensor::cat(&[first, second], 2)?
    };
    let mut parts = Vec::with_capacity(3);
    if turned.first > 0 {
        parts.push(heads.narrow(2, 0, turned.first)?);
    }
    parts.push(rotated);
    let end = turned.first + 2 * half;
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

/// See [`super::mlp::forward`].
pub(super) fn mlp(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
    let gate = f32_of(gate)?;
    let value = gate.mul(&gate_factor(&gate, activation)?)?;
    Ok(value.to_dtype(up.dtype())?.mul(up)?)
}

/// See [`super::mlp::backward`].
pub(super) fn mlp_backward(
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor), Error> {
    let dtype = gate.dtype();
    let (dy, gate, up) = (&f32_of(dy)?, &f32_of(gate)?, &f32_of(up)?);
    let s = gate_factor(gate, activation)?;
    let value = gate.mul(&s)?;
    let mut bend = value.mul(&(1.0 - &s)?)?;
    if activation == Activation::GeluTanh {
        let du = (gate.sqr()? * (6.0 * GELU_ROOT * GELU_CUBIC))?;
        bend = bend.mul(&(du + 2.0 * GELU_ROOT)?)?;
    }
    let slope = s.add(&bend)?;
    let d_gate = dy.mul(up)?.mul(&slope)?;
    Ok((d_gate.to_dtype(dtype)?, dy.mul(&value)?.to_dtype(dtype)?))
}

/// See [`super::latent::forward`].
pub(super) fn latent(
    kv: &Tensor,
    shared: &Tensor,
    parts: Parts,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = kv.dims2()?;
    let heads = width / (parts.plain + parts.value);
    let pairs = kv.reshape((tokens, heads, parts.plain + parts.value))?;
    let shared = shared
        .unsqueeze(1)?
        .broadcast_as((tokens, heads, parts.rotated))?;
    let keys = Tensor::cat(&[pairs.narrow(2, 0, parts.plain)?, shared], 2)?;
    let values = pairs.narrow(2, parts.plain, parts.value)?.contiguous()?;
    Ok((
        keys.reshape((tokens, heads * (parts.plain + parts.rotated)))?,
        values.reshape((tokens, heads * parts.value))?,
    ))
}

/// See [`super::latent::backward`].
pub(super) fn latent_backward(
    d_keys: &Tensor,
    d_values: &Tensor,
    parts: Parts,
) -> Result<(Tensor, Tensor), Error> {
    let (tokens, width) = d_keys.dims2()?;
    let heads = width / (parts.plain + parts.rotated);
    let keys = d_keys.reshape((tokens, heads, parts.plain + parts.rotated))?;
    let values = d_values.reshape((tokens, heads, parts.value))?;
    let d_kv = Tensor::cat(&[keys.narrow(2, 0, parts.plain)?, values], 2)?;
    let d_shared = keys.narrow(2, parts.plain, parts.rotated)?.sum(1)?;
    Ok((d_kv.reshape((tokens, ()))?, d_shared))
}

/// `cap * tanh(x / cap)`
pub(crate) fn soft_cap(x: &Tensor, cap: Option<f32>) -> Result<Tensor, Error> {
    Ok(match cap {
        Some(cap) => ((x / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => x.clone(),
    })
}

/// The slope of [`soft_cap`] where it gave `y`.
pub(crate) fn soft_cap_slope(y: &Tensor, cap: f32) -> Result<Tensor, Error> {
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
fn mask(tile: &Range<usize>, shape: Shape, device: &Device) -> Result<Tensor, Error> {
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
    Ok(one.repeat((shape.heads / shape.kv_heads, 1))?)
}

/// Probabilities of one tile, `[kv_heads, group * tile, seen]`, f32; and the slopes of the soft cap.
fn probabilities(
    q: &Tensor,
    k: &Tensor,
    mask: &Tensor,
    shape: Shape,
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

/// See [`super::attention::forward`].
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &RowLayout,
    shape: Shape,
) -> Result<Tensor, Error> {
    let mut outs = Vec::new();
    for row in layout.rows() {
        for tile in tiles(row.len()) {
            let seen = shape.seen(&tile);
            let queries = row.start + tile.start..row.start + tile.end;
            let keys = row.start + seen.start..row.start + seen.end;
            let q = by_head(q, queries, shape.kv_heads, shape.head_dim)?;
            let k = by_head(k, keys.clone(), shape.kv_heads, shape.head_dim)?;
            let v = by_head(v, keys, shape.kv_heads, shape.value_dim)?;
            let (p, _) = probabilities(&q, &k, &mask(&tile, shape, q.device())?, shape)?;
            outs.push(by_token(&p.to_dtype(v.dtype())?.matmul(&v)?, tile.len())?);
        }
    }
    Ok(Tensor::cat(&outs, 0)?)
}

/// See [`super::attention::backward`].
pub(super) fn attention_backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    layout: &RowLayout,
    shape: Shape,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    let (kv_heads, dim, v_dim) = (shape.kv_heads, shape.head_dim, shape.value_dim);
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
            let pull = d.mul(&o)?.sum_keepdim(D::Minus1)?;
            let ds = d.matmul(&v.t()?)?.broadcast_sub(&pull)?.mul(&p)?;
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
