//! The trait of all that a device computes, and the backend that only has its defaults.
//!
//! Shapes, in all of [`crate::model`]: `T` tokens of a batch (all rows, side by side, without padding), `H`
//! hidden size, `F` width of the feed-forward layer, `V` vocabulary, `N` targets. A `[T, heads * dim]` tensor
//! holds the heads of a token next to each other.
//!
//! Token tensors are contiguous. A backend decides their dtype in [`Kernels::embedding`]; vectors (norm
//! weights, biases), sums of gradients and moments are always f32, matrices f32 or bf16. Attention never
//! leaves a row. A backend may promise more, as `Cpu` does: a token's results then depend on its own row
//! alone, bit for bit, and gradients are added gradient chunk by gradient chunk
//! ([`RowLayout::grad_chunks`]), so that they do not depend on how a step is cut. The portable one does not.

use std::fmt::Debug;

use candle_core::{Device, Tensor};

use super::distribution::HeadOutputs;
use super::portable;
use super::portable_head;
use super::rope_table::RopeTable;
use super::shapes::{
    AdamWState, AdamWStep, Attended, AttentionShape, LmHead, LmLoss, MlaDims, Qkv, RmsNorm, Rope,
    RopeDirection,
};
use crate::model::Error;
use crate::model::architecture::{Activation, RopeConfig};
use crate::model::row_layout::RowLayout;
use crate::types::DistributionPlan;

/// Activations of a batch that is scored, where nothing better is known: room on any GPU that holds a model of
/// 1B parameters, and enough to keep it busy.
const PORTABLE_SCORING_BYTES: usize = 2 << 30;

/// The operations of a decoder and of its optimizer on one device.
///
/// Gradients of parameters are added to sums that the caller owns, in place (`d_w`, `d_b`). Those of
/// inputs are returned; where a method takes `accumulate_into`, they are added to that tensor, which is
/// returned.
pub(crate) trait Kernels: Debug + Send + Sync {
    /// Returns the backend's name, which a set records: its parts have to come from one.
    fn name(&self) -> &str;

    /// Returns the device that tensors have to be on.
    fn device(&self) -> &Device;

    /// Returns the card and the versions of what drives it, for people.
    fn description(&self) -> Option<&str> {
        None
    }

    /// Returns how many bytes of the device's own memory are free; `None` if it has none of its own.
    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// Returns how many bytes of activations a scored batch may take; larger batches are split.
    fn scoring_budget_bytes(&self) -> usize {
        PORTABLE_SCORING_BYTES
    }

    /// Returns how many tokens go through a feed-forward layer at a time where no gradient is wanted: all
    /// that fits, unless memory is to be saved.
    fn mlp_tile_tokens(&self) -> usize {
        usize::MAX
    }

    /// Prepares the process for passes, which need buffers of the same sizes again and again.
    fn prepare_for_passes(&self) {}

    /// Returns whether gradients are to be added in an order that does not depend on how a step is cut into
    /// micro-batches, see [`RowLayout::grad_chunks`]. The parts of a tied embedding's gradient are then kept
    /// apart, on the host, until a step is complete.
    fn adds_gradients_in_order(&self) -> bool {
        false
    }

    /// Returns cosines and sines of the angles of a batch's tokens.
    fn rope_table(&self, layout: &RowLayout, rope: &RopeConfig) -> Result<RopeTable, Error> {
        RopeTable::new(layout, rope, self.device())
    }

    /// Looks up rows of a table `[V, H]` and multiplies them by `scale`: `[T, H]`.
    fn embedding(&self, table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
        portable::embedding(table, ids, scale)
    }

    /// Adds `scale * dx`, `[n, H]`, to the rows of `d_table` `[V, H]` that the `n` ids name, in order.
    fn embedding_backward(
        &self,
        d_table: &Tensor,
        ids: &[u32],
        dx: &Tensor,
        scale: f32,
    ) -> Result<(), Error> {
        portable::embedding_backward(d_table, ids, dx, scale)
    }

    /// Normalizes `x` `[T, groups * W]` in groups of `W` features, with `W` the width of the weight: `H` for a norm
    /// of the residual stream, `head_dim` for a norm of each head. Keeps the shape.
    fn rms_norm(&self, x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
        portable::rms_norm(x, norm)
    }

    /// Returns the gradient of [`Kernels::rms_norm`] with respect to `x`, and adds that of the weight to
    /// `d_w`.
    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: RmsNorm<'_>,
        layout: &RowLayout,
        d_w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        // Summed over all tokens at once.
        let _ = layout;
        portable::rms_norm_backward(dy, x, norm, d_w, accumulate_into)
    }

    /// Adds `y` to `x` in place and returns the norm of the sum, all `[T, H]`. One pass over memory in a backend
    /// that fuses the two.
    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
        self.add_assign(x, y)?;
        self.rms_norm(x, norm)
    }

    /// Projects `x` `[T, in]` with `w` `[out, in]` and `b` `[out]`: `x wᵀ + b`, `[T, out]`.
    fn linear(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
        portable::linear(x, w, b)
    }

    /// Returns the gradient of [`Kernels::linear`] with respect to `x`: `dy w`, `[T, in]`.
    fn linear_backward_input(
        &self,
        dy: &Tensor,
        w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        portable::linear_backward_input(dy, w, accumulate_into)
    }

    /// Adds `dyᵀ x`, `[out, in]`, to `d_w`.
    fn linear_backward_weight(
        &self,
        d_w: &Tensor,
        dy: &Tensor,
        x: &Tensor,
        layout: &RowLayout,
    ) -> Result<(), Error> {
        // Summed over all tokens at once.
        let _ = layout;
        portable::linear_backward_weight(d_w, dy, x)
    }

    /// Adds the sum of `dy` `[T, out]` over the tokens to `d_b` `[out]`.
    fn linear_backward_bias(&self, d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
        portable::linear_backward_bias(d_b, dy)
    }

    /// Rotates features of each head of `x` `[T, heads * head_dim]` by their position. The result may take
    /// the place of `x` in memory.
    fn rope(&self, x: Tensor, rope: Rope<'_>, direction: RopeDirection) -> Result<Tensor, Error> {
        portable::rope(&x, rope, direction)
    }

    /// Normalizes queries or keys, then rotates them. One pass over memory in a backend that fuses the two.
    fn norm_rope(&self, x: &Tensor, norm: RmsNorm<'_>, rope: Rope<'_>) -> Result<Tensor, Error> {
        let normed = self.rms_norm(x, norm)?;
        self.rope(normed, rope, RopeDirection::Forward)
    }

    /// Returns the gradient of [`Kernels::norm_rope`] with respect to `x`, and adds that of the
    /// weight to `d_w`. `dy` may be overwritten.
    fn norm_rope_backward(
        &self,
        dy: Tensor,
        x: &Tensor,
        norm: RmsNorm<'_>,
        rope: Rope<'_>,
        layout: &RowLayout,
        d_w: &Tensor,
    ) -> Result<Tensor, Error> {
        let d_normed = self.rope(dy, rope, RopeDirection::Backward)?;
        self.rms_norm_backward(&d_normed, x, norm, layout, d_w, None)
    }

    /// Returns `activation(gate) * up`, elementwise, `[T, F]`.
    fn glu(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        portable::glu(gate, up, activation)
    }

    /// Returns the gradients of [`Kernels::glu`] with respect to `gate` and `up`, which may take their place
    /// in memory.
    fn glu_backward(
        &self,
        dy: &Tensor,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor), Error> {
        portable::glu_backward(dy, &gate, &up, activation)
    }

    /// Puts the keys and values of multi-head latent attention together.
    ///
    /// `kv` is `[T, heads * (nope + value)]`, for each head its unrotated key features and its value;
    /// `k_rope` `[T, rope]` is shared by all heads. Keys are `[T, heads * (nope + rope)]`, values
    /// `[T, heads * value]`.
    fn mla(&self, kv: &Tensor, k_rope: &Tensor, dims: MlaDims) -> Result<(Tensor, Tensor), Error> {
        portable::mla(kv, k_rope, dims)
    }

    /// Returns the gradients of [`Kernels::mla`] with respect to `kv` and `k_rope`.
    fn mla_backward(
        &self,
        d_keys: &Tensor,
        d_values: &Tensor,
        dims: MlaDims,
    ) -> Result<(Tensor, Tensor), Error> {
        portable::mla_backward(d_keys, d_values, dims)
    }

    /// Computes causal attention within each row of the layout.
    fn attention(
        &self,
        qkv: Qkv<'_>,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<Attended, Error> {
        Ok(Attended {
            out: portable::attention(qkv, layout, shape)?,
            log_sums: None,
        })
    }

    /// Returns the gradients of [`Kernels::attention`] with respect to queries, keys and values, given
    /// what it returned.
    fn attention_backward(
        &self,
        d_out: &Tensor,
        qkv: Qkv<'_>,
        attended: &Attended,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<(Tensor, Tensor, Tensor), Error> {
        portable::attention_backward(d_out, qkv, &attended.out, layout, shape)
    }

    /// Returns `log p(x_{t+1} | x_{<=t})` of every target of every row, in order, nats, `[N]`, of final hidden
    /// states `[T, H]` and the token ids `[T]`.
    ///
    /// `N x V` logits are never held whole.
    fn lm_head_log_probs(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        ids: &[u32],
        layout: &RowLayout,
    ) -> Result<Vec<f32>, Error> {
        portable_head::log_probs(hidden, head, ids, layout)
    }

    /// Returns what [`Kernels::lm_head_log_probs`] does, bit for bit, and what `plan` asks for of the distributions, in
    /// the same pass over the logits.
    fn lm_head_distributions(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        ids: &[u32],
        layout: &RowLayout,
        plan: &DistributionPlan,
    ) -> Result<HeadOutputs, Error> {
        portable_head::distributions(hidden, head, ids, layout, plan)
    }

    /// Returns the gradient of the loss over all targets, not divided by anything, with respect to `hidden`
    /// `[T, H]`, and adds that of the head to `d_head` `[V, H]`.
    ///
    /// Calls `loss.token_weights` once per row, in order, with the log-probs and log-sum-exps that it computes
    /// of the row's targets on the way.
    fn lm_head_backward(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        d_head: &Tensor,
        ids: &[u32],
        layout: &RowLayout,
        loss: LmLoss<'_, '_>,
    ) -> Result<Tensor, Error> {
        portable_head::gradients(hidden, head, d_head, ids, layout, loss)
    }

    /// Takes a step of AdamW in place, and sets the gradient to zero.
    fn adamw(&self, state: AdamWState<'_>, step: AdamWStep) -> Result<(), Error> {
        portable::adamw(state, step)
    }

    /// Adds `addend` to `sum` in place; every clone of `sum` sees it.
    fn add_assign(&self, sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
        portable::add_assign(sum, addend)
    }

    /// Sets every element to zero; every clone of the tensor sees it.
    fn zero(&self, x: &Tensor) -> Result<(), Error> {
        Ok(x.zero_set()?)
    }

    /// Returns the sum of the squares of all elements of all tensors, which are f32.
    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Result<f64, Error> {
        let mut sum = 0.0;
        for x in tensors {
            sum += portable::sum_of_squares(x)?;
        }
        Ok(sum)
    }
}

/// The trait's defaults, composed of the tensor library's operations, on any device: what tests compare with.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(crate) struct Portable {
    /// The device that tensors are on.
    pub device: Device,
}

#[cfg(test)]
impl Kernels for Portable {
    fn name(&self) -> &str {
        "portable"
    }

    fn device(&self) -> &Device {
        &self.device
    }
}
