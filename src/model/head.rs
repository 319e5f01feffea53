//! The output head: log-probs of the targets, and the gradient of a weighted sum of their negatives.
//!
//! `T` tokens, `N` targets, `V` vocabulary, `H` hidden size. `N x V` logits are never held whole:
//! scoring sees a tile of [`TOKEN_TILE`] targets x [`VOCAB_TILE`] entries, training one of
//! [`logits_rows`] targets.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{self, Mat, MatMut, Threads, Write};
use super::ops::{RowLayout, UNIT_TOKENS, is_ours, tensor, update, view, widened, zeros};
use super::simd::{exp, max, soft_cap, soft_cap_slope, sum_exp_shifted, vectorized};
use super::{Error, composed_head};

/// Targets of a tile when only log-probs are wanted.
const TOKEN_TILE: usize = 256;

/// Vocabulary entries that one step of the running log-sum-exp takes in.
const VOCAB_TILE: usize = 4096;

/// Memory for the logits of a tile when gradients are wanted, at least.
const LOGITS_BYTES: usize = 128 << 20;

/// Targets whose logits are held at a time when gradients are wanted: as many as make logits of the size of
/// the head `[vocab, width]`, or of [`LOGITS_BYTES`] if that is more.
///
/// Each tile reads and writes the sum of the head's gradients once, so with few targets a tile that is what
/// takes the time.
pub(super) fn logits_rows(vocab: usize, width: usize) -> usize {
    (LOGITS_BYTES / (vocab * size_of::<f32>()).max(1))
        .max(width)
        .min(UNIT_TOKENS)
}

/// A log-sum-exp over blocks of logits: exact in its maximum, its sum in f64.
#[derive(Clone, Copy)]
pub(super) struct LogSumExp {
    max: f32,
    sum: f64,
}

impl LogSumExp {
    pub(super) const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    #[inline(always)]
    fn push(&mut self, logits: &[f32]) {
        self.raise(max(logits));
        self.sum += f64::from(sum_exp_shifted(logits, self.max));
    }

    /// Counts the sum from the largest logit so far.
    #[inline(always)]
    fn raise(&mut self, block_max: f32) {
        if block_max > self.max {
            self.sum *= f64::from(self.max - block_max).exp();
            self.max = block_max;
        }
    }

    /// Takes in a block whose largest logit is `block_max`, and whose sum of `e^(logit - block_max)`
    /// is `sum`.
    pub(super) fn merge(&mut self, block_max: f32, sum: f32) {
        self.raise(block_max);
        self.sum += f64::from(sum) * f64::from(block_max - self.max).exp();
    }

    pub(super) fn value(self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    pub(super) fn log_prob(self, logit: f32) -> f32 {
        (f64::from(logit) - self.value()) as f32
    }
}

/// Positions whose hidden state predicts a target, and the targets' ids.
pub(super) fn targets(ids: &[u32], layout: &RowLayout) -> (Vec<usize>, Vec<u32>) {
    let mut positions = Vec::with_capacity(ids.len());
    let mut next = Vec::with_capacity(ids.len());
    for row in layout.rows() {
        for t in row.start..row.end.saturating_sub(1) {
            positions.push(t);
            next.push(ids[t + 1]);
        }
    }
    (positions, next)
}

/// Copies the hidden states at `positions` side by side.
fn gather(hidden: &[f32], positions: &[usize], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(positions.len() * width);
    for &t in positions {
        rows.extend_from_slice(&hidden[t * width..(t + 1) * width]);
    }
    rows
}

/// The output head: `[V, H]`, and the range that its logits are squeezed into, if they are.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// The matrix.
    pub weight: &'a Tensor,
    /// Logits become `cap * tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
}

/// Squeezes logits into the range of the cap.
#[inline(always)]
fn squeeze(logits: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        for logit in logits {
            *logit = soft_cap(*logit, cap);
        }
    }
}

/// `log p(x_{t+1} | x_{<=t})` of every target of every row, in order: `[N]`, in nats.
pub(crate) fn log_probs(
    hidden: &Tensor,
    head: Head<'_>,
    ids: &[u32],
    layout: &RowLayout,
) -> Result<Vec<f32>, Error> {
    if !is_ours(hidden) {
        return composed_head::log_probs(hidden, head, ids, layout);
    }
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
            gemm::project_into(block, &rows, &widened(&weights)?, next.len(), entries);
            state
                .par_iter_mut()
                .zip(block.par_chunks_mut(entries))
                .zip(next.par_iter())
                .for_each(|(((sum, logit), block), &id)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            squeeze(block, cap);
                            sum.push(block);
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

/// What the learner says about the targets of a row.
#[derive(Debug, Clone, Copy)]
pub struct RowOutputs<'a> {
    /// Number of the row in the batch.
    pub row: usize,
    /// `log p(x_t | x_<t)`, nats, one a target.
    pub log_probs: &'a [f32],
    /// Log-sum-exp of the logits, one a target.
    pub log_normalizers: &'a [f64],
}

/// What a row's targets count for, given what the learner says.
///
/// Called once a row, in order; has to fill one weight a target. The weights are constants to the
/// gradient.
pub type Weigh<'a> = dyn FnMut(RowOutputs<'_>, &mut [f32]) -> Result<(), Error> + 'a;

/// What a z-loss adds to the factor of a target's probabilities in the gradient of its logits: the slope
/// of `z_loss * s²`, with `s` the log-sum-exp, whose own gradient is the probabilities.
#[inline]
pub(super) fn z_slope(z_loss: f32, log_normalizer: f64) -> f32 {
    (2.0 * f64::from(z_loss) * log_normalizer) as f32
}

/// Calls `weigh` for every row of a layout, of which the first has the number `first`, with its part
/// of the log-probs, log-sum-exps and weights of all.
pub(super) fn weigh_rows(
    layout: &RowLayout,
    first: usize,
    (log_probs, log_normalizers): (&[f32], &[f64]),
    weights: &mut [f32],
    weigh: &mut Weigh<'_>,
) -> Result<(), Error> {
    let mut at = 0;
    for (i, row) in layout.rows().enumerate() {
        let end = at + row.len().saturating_sub(1);
        let outputs = RowOutputs {
            row: first + i,
            log_probs: &log_probs[at..end],
            log_normalizers: &log_normalizers[at..end],
        };
        weigh(outputs, &mut weights[at..end])?;
        at = end;
    }
    Ok(())
}

/// Gradients of `sum over targets of weight * -log p + z_loss * (log-sum-exp)²`, not divided by anything:
/// added to `head_sum` `[V, H]` for the head, unit by unit of the layout, and returned `[T, H]` for the hidden
/// states.
///
/// The logits of a tile are computed once and turned into their gradient in place, when the rows of
/// the tile fit; a longer row has them computed a second time, since its weights may depend on its mean over
/// all targets.
pub(crate) fn gradients(
    hidden: &Tensor,
    head: Head<'_>,
    head_sum: &Tensor,
    ids: &[u32],
    layout: &RowLayout,
    z_loss: f32,
    weigh: &mut Weigh<'_>,
) -> Result<Tensor, Error> {
    if !is_ours(hidden) {
        return composed_head::gradients(hidden, head, head_sum, ids, layout, z_loss, weigh);
    }
    let (vocab, width) = head.weight.dims2()?;
    let cap = head.soft_cap;
    let tile_rows = logits_rows(vocab, width);
    let (hidden_values, head): (&[f32], &[f32]) = (&view(hidden)?, &widened(head.weight)?);
    let mut d_hidden = zeros(hidden_values.len());
    let mut logits = Vec::new();
    let rows: Vec<_> = layout.rows().collect();
    let mut failed = None;
    update(head_sum, |head_sum| {
        let mut tile = Tile {
            vocab,
            width,
            hidden: hidden_values,
            head,
            cap,
            z_loss,
            logits: &mut logits,
            d_hidden: &mut d_hidden,
            d_head: head_sum,
        };
        // Groups of whole rows that fit a tile, at least one; none reaches over a unit's end.
        for unit in layout.units() {
            let mut first = unit.start;
            while first < unit.end {
                let mut last = first + 1;
                let mut held = rows[first].len();
                while last < unit.end && held + rows[last].len() <= tile_rows {
                    held += rows[last].len();
                    last += 1;
                }
                let layout = RowLayout::new(rows[first..last].iter().map(|row| row.len()));
                let start = rows[first].start;
                let (mut positions, next) = targets(&ids[start..rows[last - 1].end], &layout);
                for position in &mut positions {
                    *position += start;
                }
                let result = tile.rows(&positions, &next, tile_rows, &mut |outputs, weights| {
                    weigh_rows(&layout, first, outputs, weights, weigh)
                });
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

/// [`Weigh`] for all rows of a tile at once: their log-probs and log-sum-exps side by side.
type WeighAll<'a> = dyn FnMut((&[f32], &[f64]), &mut [f32]) -> Result<(), Error> + 'a;

struct Tile<'a> {
    vocab: usize,
    width: usize,
    hidden: &'a [f32],
    head: &'a [f32],
    cap: Option<f32>,
    z_loss: f32,
    logits: &'a mut Vec<f32>,
    d_hidden: &'a mut [f32],
    d_head: &'a mut [f32],
}

impl Tile<'_> {
    /// Handles all targets of some whole rows; `weigh` turns their log-probs into weights.
    fn rows(
        &mut self,
        positions: &[usize],
        next: &[u32],
        tile_rows: usize,
        weigh: &mut WeighAll<'_>,
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
                                sum.push(block);
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
        weigh((&log_probs, &sums), &mut weights)?;
        let one_tile = next.len() <= tile_rows;
        for (i, (positions, next)) in chunks().enumerate() {
            if !one_tile {
                self.compute_logits(positions);
            }
            let at = i * tile_rows;
            self.backward(positions, next, &sums[at..], &weights[at..], one_tile);
        }
        Ok(())
    }

    fn compute_logits(&mut self, positions: &[usize]) {
        let rows = gather(self.hidden, positions, self.width);
        self.logits.resize(positions.len() * self.vocab, 0.0);
        gemm::project_into(self.logits, &rows, self.head, positions.len(), self.vocab);
    }

    /// Turns the logits into their gradient, `(weight + z_slope) * p - weight at the target`, and multiplies it
    /// out.
    /// `squeezed`: whether the logits went through the soft cap already.
    fn backward(
        &mut self,
        positions: &[usize],
        next: &[u32],
        sums: &[f64],
        weights: &[f32],
        squeezed: bool,
    ) {
        let (vocab, width, n, cap) = (self.vocab, self.width, positions.len(), self.cap);
        let z_loss = self.z_loss;
        self.logits
            .par_chunks_mut(vocab)
            .zip(next.par_iter())
            .zip(sums.par_iter().zip(weights))
            .for_each(|((logits, &id), (&sum, &weight))| {
                vectorized(
                    #[inline(always)]
                    || {
                        // The fraction that f32 cannot hold of the sum goes into the factor.
                        let shift = sum as f32;
                        let rest = (f64::from(shift) - sum).exp() as f32;
                        let pull = rest * (weight + z_slope(z_loss, sum));
                        let Some(cap) = cap else {
                            for logit in logits.iter_mut() {
                                *logit = exp(*logit - shift) * pull;
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
                            *logit = exp(*logit - shift) * pull * slope;
                        }
                        logits[id as usize] -= at_target;
                    },
                );
            });
        let rows = gather(self.hidden, positions, width);
        gemm::matmul(
            MatMut::new(self.d_head, vocab, width),
            Write::Accumulate,
            Mat::new(self.logits, n, vocab).t(),
            Mat::new(&rows, n, width),
            Threads::Pool,
        );
        let mut d_rows = rows;
        gemm::rows_times(
            &mut d_rows,
            Write::Replace,
            Mat::new(self.logits, n, vocab),
            Mat::new(self.head, vocab, width),
        );
        for (&t, d_row) in positions.iter().zip(d_rows.chunks_exact(width)) {
            self.d_hidden[t * width..(t + 1) * width].copy_from_slice(d_row);
        }
    }
}
