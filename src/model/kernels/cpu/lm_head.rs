//! The output head: log-probs of the targets, and the gradient of a weighted sum of their negatives.
//!
//! `T` tokens, `N` targets, `V` vocabulary, `H` hidden size. `N x V` logits are never held whole:
//! scoring sees a tile of [`TOKEN_TILE`] targets x [`VOCAB_TILE`] entries, training one of
//! [`logits_rows`] targets.

use candle_core::Tensor;
use rayon::prelude::*;

use super::bf16::{self, Activations};
use super::bf16_gradients;
use super::buffers::zeros;
use super::gemm::{self, Write};
use super::lm_head_soft::SoftRow;
use super::simd::{
    VOCAB_TILE, exp, first_above, max, soft_cap_slope, squeeze, sum_exp_shifted, sums_exp_scaled,
    sums_exp_shifted, vectorized,
};
use crate::model::Error;
use crate::model::kernels::distribution::{HeadOutputs, TargetDistribution};
use crate::model::kernels::shapes::{LmHead, LmLoss};
use crate::model::kernels::soft_targets::SoftLoss;
use crate::model::kernels::targets::{LogSumExp, targets, token_weights, z_slope};
use crate::model::kernels::tensor::{tensor, update, view, widened};
use crate::model::row_layout::{GRAD_CHUNK_TOKENS, RowLayout};
use crate::types::DistributionPlan;

/// Targets of a tile when only log-probs are wanted.
const TOKEN_TILE: usize = 1024;

/// Memory for the logits of a tile when gradients are wanted, at least.
const LOGITS_BYTES: usize = 128 << 20;

/// Targets whose logits are held at a time when gradients are wanted: as many as make logits of the size of
/// the head `[vocab, width]`, or of [`LOGITS_BYTES`] if that is more.
///
/// Each tile reads and writes the sum of the head's gradients once, so with few targets a tile that is what
/// takes the time.
pub(crate) fn logits_rows(vocab: usize, width: usize) -> usize {
    (LOGITS_BYTES / (vocab * size_of::<f32>()).max(1))
        .max(width)
        .min(GRAD_CHUNK_TOKENS)
}

/// Copies the hidden states at `positions` side by side.
fn gather(hidden: &[f32], positions: &[usize], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(positions.len() * width);
    for &t in positions {
        rows.extend_from_slice(&hidden[t * width..(t + 1) * width]);
    }
    rows
}

/// See [`Kernels::lm_head_log_probs`](crate::model::kernels::Kernels::lm_head_log_probs).
pub(super) fn log_probs(
    hidden: &Tensor,
    head: LmHead<'_>,
    ids: &[u32],
    layout: &RowLayout,
    activations: Activations,
) -> Result<Vec<f32>, Error> {
    let (vocab, width) = head.weight.dims2()?;
    let cap = head.soft_cap;
    let hidden: &[f32] = &view(hidden)?;
    let (positions, next) = targets(ids, layout);
    let mut out = Vec::with_capacity(next.len());
    let mut logits = vec![0.0; TOKEN_TILE * VOCAB_TILE.min(vocab)];
    for (positions, next) in positions.chunks(TOKEN_TILE).zip(next.chunks(TOKEN_TILE)) {
        let rows = gather(hidden, positions, width);
        let mut state = vec![(LogSumExp::EMPTY, 0.0_f32); next.len()];
        for start in (0..vocab).step_by(VOCAB_TILE) {
            let entries = VOCAB_TILE.min(vocab - start);
            let block = &mut logits[..next.len() * entries];
            let weights = head.weight.narrow(0, start, entries)?;
            bf16::project_into(block, &rows, &weights, next.len(), entries, activations)?;
            state
                .par_iter_mut()
                .zip(block.par_chunks_mut(entries))
                .zip(next.par_iter())
                .for_each(|(((sum, logit), block), &id)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            squeeze(block, cap);
                            let shift = sum.raise(max(block));
                            sum.add(sum_exp_shifted(block, shift));
                        },
                    );
                    if let Some(at) = (id as usize).checked_sub(start)
                        && let Some(&value) = block.get(at)
                    {
                        *logit = value;
                    }
                });
        }
        out.extend(state.iter().map(|(sum, logit)| sum.log_prob(*logit)));
    }
    Ok(out)
}

/// What is known of a target's logits, block after block.
#[derive(Clone)]
struct Seen {
    sum: LogSumExp,
    logit: f32,
    distribution: TargetDistribution,
}

impl Seen {
    /// Takes in a block of logits, that of id `start` first, and overwrites some of them.
    #[inline(always)]
    fn take(&mut self, block: &mut [f32], start: usize, plan: &DistributionPlan) {
        let largest = max(block);
        let shift = self.sum.raise(largest);
        self.distribution.all.raise(largest);
        let factor = plan.temperature.recip() as f32;
        let (sum, weighted) = if plan.temperature == 1.0 {
            let both = sums_exp_shifted(block, shift);
            self.sum.add(both.0);
            both
        } else {
            self.sum.add(sum_exp_shifted(block, shift));
            sums_exp_scaled(block, shift, factor)
        };
        let all = &mut self.distribution.all;
        all.add(f64::from(sum), f64::from(weighted));
        if plan.top_k.is_some() {
            self.distribution.take_top(block, start, first_above);
            let largest = max(block);
            // All of a short last block may be among the most likely.
            if largest > f32::NEG_INFINITY {
                let shift = self.distribution.tail.raise(largest);
                let (sum, _) = sums_exp_scaled(block, shift, factor);
                self.distribution.tail.add(f64::from(sum), 0.0);
            }
        }
    }
}

/// See [`Kernels::lm_head_distributions`](crate::model::kernels::Kernels::lm_head_distributions).
pub(super) fn distributions(
    hidden: &Tensor,
    head: LmHead<'_>,
    ids: &[u32],
    layout: &RowLayout,
    plan: &DistributionPlan,
    activations: Activations,
) -> Result<HeadOutputs, Error> {
    let (vocab, width) = head.weight.dims2()?;
    let cap = head.soft_cap;
    let hidden: &[f32] = &view(hidden)?;
    let (positions, next) = targets(ids, layout);
    let mut outputs = HeadOutputs::default();
    let mut logits = vec![0.0; TOKEN_TILE * VOCAB_TILE.min(vocab)];
    let nothing = Seen {
        sum: LogSumExp::EMPTY,
        logit: 0.0,
        distribution: TargetDistribution::new(plan),
    };
    for (positions, next) in positions.chunks(TOKEN_TILE).zip(next.chunks(TOKEN_TILE)) {
        let rows = gather(hidden, positions, width);
        let mut state = vec![nothing.clone(); next.len()];
        for start in (0..vocab).step_by(VOCAB_TILE) {
            let entries = VOCAB_TILE.min(vocab - start);
            let block = &mut logits[..next.len() * entries];
            let weights = head.weight.narrow(0, start, entries)?;
            bf16::project_into(block, &rows, &weights, next.len(), entries, activations)?;
            state
                .par_iter_mut()
                .zip(block.par_chunks_mut(entries))
                .zip(next.par_iter())
                .for_each(|((seen, block), &id)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            squeeze(block, cap);
                            if let Some(at) = (id as usize).checked_sub(start)
                                && let Some(&value) = block.get(at)
                            {
                                seen.logit = value;
                            }
                            seen.take(block, start, plan);
                        },
                    );
                });
        }
        for seen in &state {
            outputs.push(seen.sum.log_prob(seen.logit), &seen.distribution, plan);
        }
    }
    Ok(outputs)
}

/// See [`Kernels::lm_head_backward`](crate::model::kernels::Kernels::lm_head_backward).
///
/// The logits of a tile are computed once and turned into their gradient in place, when the rows of
/// the tile fit; a longer row has them computed a second time, since its weights may depend on its mean over
/// all targets.
pub(super) fn backward(
    hidden: &Tensor,
    head: LmHead<'_>,
    d_head: &Tensor,
    ids: &[u32],
    layout: &RowLayout,
    mut loss: LmLoss<'_, '_>,
    gradients: Activations,
) -> Result<Tensor, Error> {
    let (vocab, width) = head.weight.dims2()?;
    let cap = head.soft_cap;
    let tile_rows = logits_rows(vocab, width);
    let hidden_values: &[f32] = &view(hidden)?;
    // Widened once for all tiles.
    let wide_head: &[f32] = &widened(head.weight)?;
    let mut d_hidden = zeros(hidden_values.len());
    let mut logits = Vec::new();
    let rows: Vec<_> = layout.rows().collect();
    let mut failed = None;
    // Number of the first target of a group among those of all rows.
    let mut first_target = 0;
    update(d_head, |d_head| {
        let mut tile = Tile {
            vocab,
            width,
            hidden: hidden_values,
            head: head.weight,
            wide_head,
            gradients,
            cap,
            z_loss: loss.z_loss,
            logits: &mut logits,
            d_hidden: &mut d_hidden,
            d_head,
        };
        // Groups of whole rows that fit a tile, at least one; none reaches over a chunk's end.
        for chunk in layout.grad_chunks() {
            let mut first = chunk.start;
            while first < chunk.end {
                let mut last = first + 1;
                let mut held = rows[first].len();
                while last < chunk.end && held + rows[last].len() <= tile_rows {
                    held += rows[last].len();
                    last += 1;
                }
                let layout = RowLayout::new(rows[first..last].iter().map(|row| row.len()));
                let start = rows[first].start;
                let (mut positions, next) = targets(&ids[start..rows[last - 1].end], &layout);
                for position in &mut positions {
                    *position += start;
                }
                let soft = loss.soft.as_mut().map(|soft| (soft, first_target));
                let result = tile.rows(
                    &positions,
                    &next,
                    tile_rows,
                    soft,
                    &mut |outputs, weights| {
                        token_weights(&layout, first, outputs, weights, loss.token_weights)
                    },
                );
                first_target += next.len();
                if let Err(error) = result {
                    failed = Some(error);
                    return;
                }
                first = last;
            }
        }
    })?;
    match failed {
        Some(error) => Err(error),
        None => tensor(d_hidden, hidden.dims()),
    }
}

/// A [`WeightFn`](crate::model::WeightFn) for all rows of a tile at once: their log-probs and log-sum-exps
/// side by side.
type TileWeightFn<'a> = dyn FnMut((&[f32], &[f64]), &mut [f32]) -> Result<(), Error> + 'a;

struct Tile<'a> {
    vocab: usize,
    width: usize,
    hidden: &'a [f32],
    head: &'a Tensor,
    wide_head: &'a [f32],
    gradients: Activations,
    cap: Option<f32>,
    z_loss: Option<f32>,
    logits: &'a mut Vec<f32>,
    d_hidden: &'a mut [f32],
    d_head: &'a mut [f32],
}

impl Tile<'_> {
    /// Handles all targets of some whole rows; `token_weights` turns their log-probs into weights.
    fn rows(
        &mut self,
        positions: &[usize],
        next: &[u32],
        tile_rows: usize,
        mut soft: Option<(&mut SoftLoss<'_>, usize)>,
        token_weights: &mut TileWeightFn<'_>,
    ) -> Result<(), Error> {
        let chunks = || positions.chunks(tile_rows).zip(next.chunks(tile_rows));
        let mut sums = Vec::with_capacity(next.len());
        let mut log_probs = Vec::with_capacity(next.len());
        for (positions, next) in chunks() {
            self.compute_logits(positions);
            let (vocab, cap) = (self.vocab, self.cap);
            let values: Vec<(f64, f32)> = self
                .logits
                .par_chunks_mut(vocab)
                .zip(next.par_iter())
                .map(|(logits, &id)| {
                    let mut sum = LogSumExp::EMPTY;
                    vectorized(
                        #[inline(always)]
                        || {
                            // A loop, since `for_each` would call back from outside.
                            for block in logits.chunks_mut(VOCAB_TILE) {
                                squeeze(block, cap);
                                let shift = sum.raise(max(block));
                                sum.add(sum_exp_shifted(block, shift));
                            }
                        },
                    );
                    (sum.value(), sum.log_prob(logits[id as usize]))
                })
                .collect();
            for (sum, log_prob) in values {
                sums.push(sum);
                log_probs.push(log_prob);
            }
        }
        let mut weights = vec![0.0; next.len()];
        token_weights((&log_probs, &sums), &mut weights)?;
        let one_tile = next.len() <= tile_rows;
        for (i, (positions, next)) in chunks().enumerate() {
            if !one_tile {
                self.compute_logits(positions);
            }
            let at = i * tile_rows;
            let mut own_soft = Vec::new();
            if let Some((soft, first_target)) = &mut soft {
                own_soft = self.soft_rows(soft, *first_target + at, next.len(), one_tile);
            }
            let given = (&sums[at..], &weights[at..], own_soft.as_slice());
            self.backward(positions, next, given, one_tile)?;
        }
        Ok(())
    }

    fn compute_logits(&mut self, positions: &[usize]) {
        let rows = gather(self.hidden, positions, self.width);
        self.logits.resize(positions.len() * self.vocab, 0.0);
        let (tokens, head) = (positions.len(), self.wide_head);
        gemm::project_into(self.logits, &rows, head, tokens, self.vocab);
    }

    /// Computes the divergences of those among `count` targets that have one, from `first_target` on; the logits of all
    /// of them are there, and those of these are squeezed if they were not yet.
    fn soft_rows(
        &mut self,
        soft: &mut SoftLoss<'_>,
        first_target: usize,
        count: usize,
        squeezed: bool,
    ) -> Vec<Option<SoftRow>> {
        let targets = soft.targets;
        let before = |end: usize| targets.targets.partition_point(|target| *target < end);
        let (first, end) = (before(first_target), before(first_target + count));
        if first == end {
            return Vec::new();
        }
        let cap = self.cap.filter(|_| !squeezed);
        let rows: Vec<Option<SoftRow>> = self
            .logits
            .par_chunks_mut(self.vocab)
            .take(count)
            .enumerate()
            .map(|(row, logits)| {
                let i = targets.targets.binary_search(&(first_target + row)).ok()?;
                Some(SoftRow::new(targets, i, logits, cap))
            })
            .collect();
        for (divergence, row) in soft.divergences[first..end]
            .iter_mut()
            .zip(rows.iter().flatten())
        {
            *divergence = row.divergence;
        }
        rows
    }

    /// Turns the logits into their gradient, `(weight + z_slope) * p - weight at the target`, and multiplies it
    /// out.
    /// `squeezed`: whether the logits went through the soft cap already.
    fn backward(
        &mut self,
        positions: &[usize],
        next: &[u32],
        (sums, weights, soft): (&[f64], &[f32], &[Option<SoftRow>]),
        squeezed: bool,
    ) -> Result<(), Error> {
        let (vocab, width, n, cap) = (self.vocab, self.width, positions.len(), self.cap);
        let z_loss = self.z_loss;
        self.logits
            .par_chunks_mut(vocab)
            .zip(next.par_iter())
            .zip(sums.par_iter().zip(weights))
            .enumerate()
            .for_each(|(row, ((logits, &id), (&sum, &weight)))| {
                vectorized(
                    #[inline(always)]
                    || {
                        // The fraction that f32 cannot hold of the sum goes into the factor.
                        let shift = sum as f32;
                        let rest = (f64::from(shift) - sum).exp() as f32;
                        let slope_term = rest * (weight + z_slope(z_loss, sum, weight));
                        if let Some(Some(soft)) = soft.get(row) {
                            soft.gradient(logits, (shift, slope_term), (id, weight), cap);
                            return;
                        }
                        let Some(cap) = cap else {
                            for logit in logits.iter_mut() {
                                *logit = exp(*logit - shift) * slope_term;
                            }
                            logits[id as usize] -= weight;
                            return;
                        };
                        if !squeezed {
                            squeeze(logits, Some(cap));
                        }
                        let at_target = weight * soft_cap_slope(logits[id as usize], cap);
                        for logit in logits.iter_mut() {
                            let slope = soft_cap_slope(*logit, cap);
                            *logit = exp(*logit - shift) * slope_term * slope;
                        }
                        logits[id as usize] -= at_target;
                    },
                );
            });
        let rows = gather(self.hidden, positions, width);
        let precision = self.gradients;
        let sizes = (n, vocab, width);
        bf16_gradients::add_products(self.d_head, self.logits, &rows, sizes, precision);
        let mut d_rows = rows;
        bf16_gradients::rows_times(
            &mut d_rows,
            Write::Replace,
            self.logits,
            self.head,
            precision,
        )?;
        for (&t, d_row) in positions.iter().zip(d_rows.chunks_exact(width)) {
            self.d_hidden[t * width..(t + 1) * width].copy_from_slice(d_row);
        }
        Ok(())
    }
}
