//! The output head: logits of a tile of tokens and of the vocabulary at a time, f32, in one buffer that stays in
//! the GPU's cache.
//!
//! `T` tokens, `V` vocabulary, `H` hidden size. Every token has a line, the last of a row too, which predicts
//! nothing: its log-prob is dropped, its weight is 0. So nothing has to be gathered.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::context::{Context, Factor, Write};
use super::driver::ROW_TILE;
use super::elementwise::converted;
use super::launch::blocks;
use crate::model::Error;
use crate::model::kernels::shapes::{LmHead, LmLoss};
use crate::model::kernels::targets::{token_weights, z_slope};
use crate::model::row_layout::RowLayout;

const THREADS: u32 = 256;

/// Ranges of `size`, and what is left.
fn ranges(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(size)
        .map(move |start| start..(start + size).min(len))
}

/// The ids that tokens predict.
fn next_ids(ids: &[u32], layout: &RowLayout) -> Vec<u32> {
    let mut next = Vec::with_capacity(ids.len());
    for row in layout.rows() {
        next.extend(ids.get(row.start + 1..row.end).unwrap_or_default());
        next.extend((!row.is_empty()).then_some(0));
    }
    next
}

/// Drops what is there for the last token of each row.
fn of_targets<T: Copy>(values: &[T], layout: &RowLayout) -> Vec<T> {
    let rows = layout.rows();
    rows.flat_map(|row| &values[row.start..row.end.saturating_sub(1).max(row.start)])
        .copied()
        .collect()
}

/// The head, a batch's final hidden states, and room for a tile of logits.
struct Head<'a> {
    cx: &'a Context,
    /// `[T, H]`
    hidden: &'a Tensor,
    /// `[V, H]`
    weight: &'a Tensor,
    vocab: usize,
    cap: f32,
    /// The id of the token after each, `[T]`; 0 after a row's last.
    next: Tensor,
    /// Room for a tile.
    logits: Tensor,
}

impl<'a> Head<'a> {
    fn new(
        cx: &'a Context,
        hidden: &'a Tensor,
        head: LmHead<'a>,
        ids: &[u32],
        layout: &RowLayout,
    ) -> Result<Self, Error> {
        let vocab = head.weight.dim(0)?;
        let rows = ids.len().min(cx.logits.tokens).next_multiple_of(ROW_TILE);
        Ok(Self {
            cx,
            hidden,
            weight: head.weight,
            vocab,
            cap: head.soft_cap.unwrap_or(0.0),
            next: cx.driver().upload(&next_ids(ids, layout))?,
            logits: cx.empty(&[rows * vocab.min(cx.logits.entries)])?,
        })
    }

    fn tokens(&self) -> usize {
        self.next.elem_count()
    }

    /// Computes the logits of some tokens and some entries, `[tokens, entries]`, in the room for them.
    fn logits(&self, tokens: &Range<usize>, entries: &Range<usize>) -> Result<Tensor, Error> {
        let hidden = self.hidden.narrow(0, tokens.start, tokens.len())?;
        let weight = self.weight.narrow(0, entries.start, entries.len())?;
        let logits = self
            .logits
            .narrow(0, 0, tokens.len() * entries.len())?
            .reshape((tokens.len(), entries.len()))?;
        let weight = Factor::transposed(&weight);
        self.cx
            .multiply_tokens(&logits, Write::Replace, &hidden, weight)?;
        Ok(logits)
    }

    /// Returns the log-prob of what every token predicts, `[T]`, f32, and the log-sum-exp of its logits, `[T]`, f64.
    fn score(&self) -> Result<(Tensor, Tensor), Error> {
        let (cx, count) = (self.cx, self.tokens());
        let (largest, at_target) = (cx.empty(&[count])?, cx.empty(&[count])?);
        let sum = cx.driver().empty(&[count], DType::F64)?;
        for tokens in ranges(count, self.cx.logits.tokens) {
            let part = |x: &Tensor| x.narrow(0, tokens.start, tokens.len());
            let (next, largest, sum) = (part(&self.next)?, part(&largest)?, part(&sum)?);
            let at_target = part(&at_target)?;
            for entries in ranges(self.vocab, self.cx.logits.entries) {
                let logits = self.logits(&tokens, &entries)?;
                cx.only_kernel("log_sum_exp_tile")
                    .f32s(&logits)
                    .words(&next)
                    .f32s(&largest)
                    .f64s(&sum)
                    .f32s(&at_target)
                    .int(tokens.len())
                    .int(entries.len())
                    .int(entries.len())
                    .int(entries.start)
                    .float(self.cap)
                    .int(usize::from(entries.start == 0))
                    .run(blocks(tokens.len(), THREADS)?)?;
            }
        }
        let log_probs = cx.empty(&[count])?;
        let log_normalizers = cx.driver().empty(&[count], DType::F64)?;
        cx.only_kernel("log_sum_exp_finish")
            .f32s(&largest)
            .f64s(&sum)
            .f32s(&at_target)
            .f32s(&log_probs)
            .f64s(&log_normalizers)
            .int(count)
            .run(blocks(count.div_ceil(THREADS as usize), THREADS)?)?;
        Ok((log_probs, log_normalizers))
    }

    /// Adds the gradients of a chunk of tokens to `d_head` `[V, H]`, and returns that of their hidden states,
    /// `[tokens, H]`, f32.
    fn backward(
        &self,
        tokens: &Range<usize>,
        given: &Given,
        d_head: &Tensor,
    ) -> Result<Tensor, Error> {
        let (cx, dtype) = (self.cx, self.hidden.dtype());
        let hidden = self.hidden.narrow(0, tokens.start, tokens.len())?;
        let d_hidden = cx.tokens(tokens.len(), hidden.dim(1)?, DType::F32)?;
        let room = cx.tokens(tokens.len(), self.vocab.min(self.cx.logits.entries), dtype)?;
        for entries in ranges(self.vocab, self.cx.logits.entries) {
            // As many rows, closer together where the last entries are fewer.
            let d_logits = room
                .flatten_all()?
                .narrow(0, 0, tokens.len() * entries.len())?
                .reshape((tokens.len(), entries.len()))?;
            for tile in ranges(tokens.len(), self.cx.logits.tokens) {
                let at = tokens.start + tile.start..tokens.start + tile.end;
                let logits = self.logits(&at, &entries)?;
                let part = |x: &Tensor| x.narrow(0, at.start, at.len());
                cx.kernel("softmax_gradient", dtype)
                    .f32s(&logits)
                    .words(&part(&self.next)?)
                    .f64s(&part(&given.log_normalizers)?)
                    .words(&part(&given.weights)?)
                    .words(&part(&given.slope_terms)?)
                    .tokens(&d_logits.narrow(0, tile.start, tile.len())?)
                    .int(tile.len())
                    .int(entries.len())
                    .int(entries.len())
                    .int(entries.len())
                    .int(entries.start)
                    .float(self.cap)
                    .run(blocks(tile.len(), THREADS)?)?;
            }
            let weight = self.weight.narrow(0, entries.start, entries.len())?;
            let write = match entries.start {
                0 => Write::Replace,
                _ => Write::Accumulate,
            };
            cx.multiply_tokens(&d_hidden, write, &d_logits, Factor::plain(&weight))?;
            let d_weight = d_head.narrow(0, entries.start, entries.len())?;
            let (left, right) = (Factor::transposed(&d_logits), Factor::plain(&hidden));
            cx.multiply(&d_weight, Write::Accumulate, left, right)?;
        }
        Ok(d_hidden)
    }
}

/// What the gradient of the logits depends on besides them, for each token, in the device's memory.
struct Given {
    /// `[T]`, f64.
    log_normalizers: Tensor,
    /// `[T]`, the bits of f32.
    weights: Tensor,
    /// The weights and the slopes of the z-loss, `[T]`, the bits of f32.
    slope_terms: Tensor,
}

/// See [`Kernels::lm_head_log_probs`](crate::model::kernels::Kernels::lm_head_log_probs).
pub(super) fn log_probs(
    cx: &Context,
    hidden: &Tensor,
    head: LmHead<'_>,
    ids: &[u32],
    layout: &RowLayout,
) -> Result<Vec<f32>, Error> {
    let (log_probs, _) = Head::new(cx, hidden, head, ids, layout)?.score()?;
    Ok(of_targets(&cx.driver().download(&log_probs)?, layout))
}

/// See [`Kernels::lm_head_backward`](crate::model::kernels::Kernels::lm_head_backward). Logits are computed twice:
/// for the log-probs that decide the weights, and for the gradient.
pub(super) fn backward(
    cx: &Context,
    hidden: &Tensor,
    head: LmHead<'_>,
    d_head: &Tensor,
    ids: &[u32],
    layout: &RowLayout,
    loss: LmLoss<'_, '_>,
) -> Result<Tensor, Error> {
    if loss.soft.is_some() {
        return Err(Error::Internal(
            "this backend has no gradient of divergences from distributions",
        ));
    }
    let head = Head::new(cx, hidden, head, ids, layout)?;
    let (log_probs, log_normalizers) = head.score()?;
    let host_log_probs = of_targets(&cx.driver().download(&log_probs)?, layout);
    let host_normalizers = of_targets(&cx.driver().download_f64(&log_normalizers)?, layout);
    let mut weights = vec![0.0; host_log_probs.len()];
    let outputs = (&*host_log_probs, &*host_normalizers);
    token_weights(layout, 0, outputs, &mut weights, loss.token_weights)?;

    let mut targets = weights.iter().zip(&host_normalizers);
    let (mut all_weights, mut slope_terms) = (Vec::new(), Vec::new());
    for row in layout.rows() {
        for (weight, normalizer) in targets.by_ref().take(row.len().saturating_sub(1)) {
            all_weights.push(*weight);
            slope_terms.push(weight + z_slope(loss.z_loss, *normalizer, *weight));
        }
        if !row.is_empty() {
            all_weights.push(0.0);
            slope_terms.push(0.0);
        }
    }
    let given = Given {
        log_normalizers,
        weights: cx.upload_f32(&all_weights)?,
        slope_terms: cx.upload_f32(&slope_terms)?,
    };
    let d_hidden = cx.like(hidden)?;
    for tokens in ranges(ids.len(), cx.logits.gradient_tokens) {
        let part = head.backward(&tokens, &given, d_head)?;
        let part = converted(cx, part, hidden.dtype())?;
        if tokens.len() == ids.len() {
            return Ok(part);
        }
        d_hidden.slice_set(&part, 0, tokens.start)?;
    }
    Ok(d_hidden)
}
