//! The output head composed of the tensor library's operations, for any device: the trait's defaults.
//!
//! `n` targets of a tile, `V` vocabulary, `H` hidden size. Logits are computed in f32 whatever the
//! dtype of the model is: rounded to bf16, those of a confident model are off by tenths of a nat.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::distribution::{Exponentials, HeadOutputs, TargetDistribution};
use super::portable::{add_assign, soft_cap, soft_cap_slope};
use super::shapes::{LmHead, LmLoss};
use super::soft_targets::SoftLoss;
use super::targets::{LogSumExp, targets, token_weights, z_slope};
use super::tensor::{indices, to_host, upload, zeros_f32};
use crate::model::Error;
use crate::model::row_layout::RowLayout;
use crate::types::DistributionPlan;

/// Targets of a tile.
const TOKEN_TILE: usize = 1024;

/// Vocabulary entries of a tile when only log-probs are wanted.
const VOCAB_TILE: usize = 32_768;

/// Memory for the logits of a tile when gradients are wanted; some multiple of it is in use.
const LOGITS_BYTES: usize = 256 << 20;

/// Log-sum-exp of the logits and log-prob of the target, one per target.
type Scored = (Vec<f64>, Vec<f32>);

fn score(
    hidden: &Tensor,
    head: LmHead<'_>,
    positions: &[usize],
    next: &[u32],
) -> Result<Scored, Error> {
    let vocab = head.weight.dim(0)?;
    let device = hidden.device();
    let (mut sums, mut log_probs) = (Vec::new(), Vec::new());
    for (positions, next) in positions.chunks(TOKEN_TILE).zip(next.chunks(TOKEN_TILE)) {
        let rows = gather(hidden, positions)?;
        let weights = head.weight.index_select(&indices(next, device)?, 0)?;
        let logits = rows.mul(&weights.to_dtype(DType::F32)?)?.sum(D::Minus1)?;
        let at_target = to_host(&soft_cap(&logits, head.soft_cap)?)?;
        let mut state = vec![LogSumExp::EMPTY; next.len()];
        for start in (0..vocab).step_by(VOCAB_TILE) {
            let entries = VOCAB_TILE.min(vocab - start);
            let weights = head
                .weight
                .narrow(0, start, entries)?
                .to_dtype(DType::F32)?;
            let logits = soft_cap(&rows.matmul(&weights.t()?)?, head.soft_cap)?;
            let largest = logits.max_keepdim(D::Minus1)?;
            let sum = logits.broadcast_sub(&largest)?.exp()?.sum(D::Minus1)?;
            let blocks = to_host(&largest)?.into_iter().zip(to_host(&sum)?);
            for (state, (largest, sum)) in state.iter_mut().zip(blocks) {
                state.merge(largest, sum);
            }
        }
        for (state, logit) in state.iter().zip(at_target) {
            sums.push(state.value());
            log_probs.push(state.log_prob(logit));
        }
    }
    Ok((sums, log_probs))
}

/// Hidden states at `positions`, `[n, H]`, f32.
fn gather(hidden: &Tensor, positions: &[usize]) -> Result<Tensor, Error> {
    let rows = hidden.index_select(&position_indices(positions, hidden)?, 0)?;
    Ok(rows.to_dtype(DType::F32)?)
}

fn position_indices(positions: &[usize], like: &Tensor) -> Result<Tensor, Error> {
    let positions: Vec<u32> = positions
        .iter()
        .map(|&position| {
            u32::try_from(position).map_err(|_| Error::TooLarge {
                rows: position,
                cols: 1,
            })
        })
        .collect::<Result<_, _>>()?;
    indices(&positions, like.device())
}

pub(super) fn log_probs(
    hidden: &Tensor,
    head: LmHead<'_>,
    ids: &[u32],
    layout: &RowLayout,
) -> Result<Vec<f32>, Error> {
    let (positions, next) = targets(ids, layout);
    Ok(score(hidden, head, &positions, &next)?.1)
}

/// The logits of a tile are copied to memory, and summed there in f64.
pub(super) fn distributions(
    hidden: &Tensor,
    head: LmHead<'_>,
    ids: &[u32],
    layout: &RowLayout,
    plan: &DistributionPlan,
) -> Result<HeadOutputs, Error> {
    let (positions, next) = targets(ids, layout);
    let log_probs = score(hidden, head, &positions, &next)?.1;
    let vocab = head.weight.dim(0)?;
    let mut outputs = HeadOutputs::default();
    let chunks = positions
        .chunks(TOKEN_TILE)
        .zip(log_probs.chunks(TOKEN_TILE));
    for (positions, log_probs) in chunks {
        let rows = gather(hidden, positions)?;
        let mut state = vec![TargetDistribution::new(plan); positions.len()];
        for start in (0..vocab).step_by(VOCAB_TILE) {
            let entries = VOCAB_TILE.min(vocab - start);
            let weights = head
                .weight
                .narrow(0, start, entries)?
                .to_dtype(DType::F32)?;
            let logits = soft_cap(&rows.matmul(&weights.t()?)?, head.soft_cap)?;
            let mut logits = to_host(&logits)?;
            for (of, logits) in state.iter_mut().zip(logits.chunks_mut(entries)) {
                add_all(&mut of.all, logits, plan.temperature);
                if plan.top_k.is_some() {
                    of.take_top(logits, start, |logits, least| {
                        logits.iter().position(|logit| *logit > least)
                    });
                    add_all(&mut of.tail, logits, plan.temperature);
                }
            }
        }
        for (of, log_prob) in state.iter().zip(log_probs) {
            outputs.push(*log_prob, of, plan);
        }
    }
    Ok(outputs)
}

fn add_all(sums: &mut Exponentials, logits: &[f32], temperature: f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return;
    }
    let max = f64::from(sums.raise(max));
    let (mut sum, mut weighted) = (0.0, 0.0);
    for logit in logits.iter().filter(|logit| logit.is_finite()) {
        let d = (f64::from(*logit) - max) / temperature;
        let e = d.exp();
        sum += e;
        weighted += d * e;
    }
    sums.add(sum, weighted);
}

/// Logits are computed twice: for the log-probs that decide the weights, and for the gradient.
pub(super) fn gradients(
    hidden: &Tensor,
    head: LmHead<'_>,
    d_head: &Tensor,
    ids: &[u32],
    layout: &RowLayout,
    mut loss: LmLoss<'_, '_>,
) -> Result<Tensor, Error> {
    let (positions, next) = targets(ids, layout);
    let (sums, log_probs) = score(hidden, head, &positions, &next)?;
    let mut weights = vec![0.0; next.len()];
    token_weights(
        layout,
        0,
        (&log_probs, &sums),
        &mut weights,
        loss.token_weights,
    )?;
    let (vocab, device) = (head.weight.dim(0)?, hidden.device());
    let tile = (LOGITS_BYTES / (vocab * size_of::<f32>())).max(1);
    let head_weight = head.weight.to_dtype(DType::F32)?;
    let mut d_hidden = zeros_f32(hidden)?;
    for start in (0..next.len()).step_by(tile) {
        let part = start..(start + tile).min(next.len());
        let n = part.len();
        let rows = gather(hidden, &positions[part.clone()])?;
        let logits = soft_cap(&rows.matmul(&head_weight.t()?)?, head.soft_cap)?;
        let column = |values: &[f32]| upload(values, &[n, 1], device);
        let shifts: Vec<f32> = sums[part.clone()].iter().map(|&sum| sum as f32).collect();
        let slope_terms: Vec<f32> = sums[part.clone()]
            .iter()
            .zip(&weights[part.clone()])
            .map(|(sum, weight)| weight + z_slope(loss.z_loss, *sum, *weight))
            .collect();
        let weights = column(&weights[part.clone()])?;
        let p = logits.broadcast_sub(&column(&shifts)?)?.exp()?;
        let target = indices(&next[part.clone()], device)?.reshape((n, 1))?;
        let mut d =
            p.broadcast_mul(&column(&slope_terms)?)?
                .scatter_add(&target, &weights.neg()?, 1)?;
        if let Some(soft) = &mut loss.soft
            && let Some(added) = soft_gradient(soft, &part, &logits)?
        {
            d = d.add(&upload(&added, &[n, vocab], device)?)?;
        }
        if let Some(cap) = head.soft_cap {
            d = d.mul(&soft_cap_slope(&logits, cap)?)?;
        }
        add_assign(d_head, &d.t()?.matmul(&rows)?)?;
        let at = position_indices(&positions[part], hidden)?;
        d_hidden = d_hidden.index_add(&at, &d.matmul(&head_weight)?, 0)?;
    }
    Ok(d_hidden.to_dtype(hidden.dtype())?)
}

/// Returns the gradient of the divergences with respect to the logits of the targets `part`, `[n, V]`, in f64 by
/// their definition; `None` where none of them has one.
fn soft_gradient(
    soft: &mut SoftLoss<'_>,
    part: &Range<usize>,
    logits: &Tensor,
) -> Result<Option<Vec<f32>>, Error> {
    let targets = soft.targets;
    let first = targets
        .targets
        .partition_point(|target| *target < part.start);
    let end = targets.targets.partition_point(|target| *target < part.end);
    if first == end {
        return Ok(None);
    }
    let vocab = logits.dim(1)?;
    let logits = to_host(logits)?;
    let mut gradient = vec![0.0; logits.len()];
    for i in first..end {
        let row = targets.targets[i] - part.start;
        let range = row * vocab..(row + 1) * vocab;
        let scaled: Vec<f64> = logits[range.clone()]
            .iter()
            .map(|logit| f64::from(*logit) / targets.temperature)
            .collect();
        let log_sum = |values: &mut dyn Iterator<Item = f64>| {
            let values: Vec<f64> = values.collect();
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
        };
        let all = log_sum(&mut scaled.iter().copied());
        let ids = targets.ids_of(i);
        let mut others = scaled.iter().enumerate();
        let tail = log_sum(
            &mut others
                .by_ref()
                .filter_map(|(id, logit)| (!ids.contains(&(id as u32))).then_some(*logit)),
        ) - all;
        let learner: Vec<f64> = ids.iter().map(|&id| scaled[id as usize] - all).collect();
        let terms = targets.terms(i, &learner, tail);
        soft.divergences[i] = terms.divergence;
        for (d, logit) in gradient[range.clone()].iter_mut().zip(&scaled) {
            *d = ((logit - all).exp() * terms.at_all) as f32;
        }
        for (&id, added) in ids.iter().zip(&terms.at_ids) {
            gradient[range.start + id as usize] += *added as f32;
        }
    }
    Ok(Some(gradient))
}
