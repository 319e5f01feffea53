//! The CPU's kernels: loops over slices for the widest vector instructions of the machine, and the `gemm`
//! crate's products.
//!
//! Activations are f32; matrices are f32 or bf16, and widened where they are used, unless [`Cpu::activations`] says
//! otherwise. A token's results depend on its own row alone, bit for bit: not on the other rows of its batch, its
//! place among them, or the number of threads.

mod adamw;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bf16;
mod bf16_gradients;
mod buffers;
mod elementwise;
mod embedding;
mod gemm;
mod glu;
mod linear;
pub(crate) mod lm_head;
mod lm_head_soft;
mod malloc;
mod mla;
mod norm;
mod rope;
pub(crate) mod simd;
mod threads;

use candle_core::{Device, Tensor};

use self::bf16::Activations;

use super::backend::Kernels;
use super::distribution::HeadOutputs;
use super::shapes::{
    AdamWState, AdamWStep, Attended, AttentionShape, LmHead, LmLoss, MlaDims, Qkv, RmsNorm, Rope,
    RopeDirection,
};
use crate::model::Error;
use crate::model::architecture::Activation;
use crate::model::row_layout::RowLayout;
use crate::types::DistributionPlan;

/// Memory for the activations of a batch that is scored; larger batches are split.
pub const SCORING_ACTIVATION_BYTES: usize = 192 << 20;

/// Tokens that go through a feed-forward layer at a time when no gradient is needed: enough for products
/// to run at full speed, few enough for its wide activations not to decide the peak of memory.
const MLP_TILE_TOKENS: usize = 1024;

/// The kernels of the CPU.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    /// Precision of activations in products with matrices in bf16.
    pub activations: Activations,
    /// Precision of gradients, and of activations that they meet, in products of the backward pass: f32 or bf16. Where
    /// the CPU does not multiply bf16 these are f32 anyway.
    pub gradients: Activations,
}

impl Cpu {
    /// Name of the backend.
    pub const NAME: &str = "cpu";
}

impl Kernels for Cpu {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn scoring_budget_bytes(&self) -> usize {
        SCORING_ACTIVATION_BYTES
    }

    fn mlp_tile_tokens(&self) -> usize {
        MLP_TILE_TOKENS
    }

    fn adds_gradients_in_order(&self) -> bool {
        true
    }

    fn prepare_for_passes(&self) {
        malloc::keep_freed();
    }

    fn embedding(&self, table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
        embedding::embedding(table, ids, scale)
    }

    fn embedding_backward(
        &self,
        d_table: &Tensor,
        ids: &[u32],
        dx: &Tensor,
        scale: f32,
    ) -> Result<(), Error> {
        embedding::backward(d_table, ids, dx, scale)
    }

    fn rms_norm(&self, x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
        norm::forward(x, norm)
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: RmsNorm<'_>,
        layout: &RowLayout,
        d_w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        norm::backward(dy, x, norm, layout, d_w, accumulate_into)
    }

    fn linear(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
        linear::forward(x, w, b, self.activations)
    }

    fn linear_backward_input(
        &self,
        dy: &Tensor,
        w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        linear::backward_input(dy, w, accumulate_into, self.gradients)
    }

    fn linear_backward_weight(
        &self,
        d_w: &Tensor,
        dy: &Tensor,
        x: &Tensor,
        layout: &RowLayout,
    ) -> Result<(), Error> {
        linear::backward_weight(d_w, dy, x, layout, self.gradients)
    }

    fn linear_backward_bias(&self, d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
        linear::backward_bias(d_b, dy)
    }

    fn rope(&self, x: Tensor, rope: Rope<'_>, direction: RopeDirection) -> Result<Tensor, Error> {
        rope::rope(&x, rope, direction)?;
        Ok(x)
    }

    fn glu(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        glu::forward(gate, up, activation)
    }

    fn glu_backward(
        &self,
        dy: &Tensor,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor), Error> {
        glu::backward(dy, gate, up, activation)
    }

    fn mla(&self, kv: &Tensor, k_rope: &Tensor, dims: MlaDims) -> Result<(Tensor, Tensor), Error> {
        mla::forward(kv, k_rope, dims)
    }

    fn mla_backward(
        &self,
        d_keys: &Tensor,
        d_values: &Tensor,
        dims: MlaDims,
    ) -> Result<(Tensor, Tensor), Error> {
        mla::backward(d_keys, d_values, dims)
    }

    fn attention(
        &self,
        qkv: Qkv<'_>,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<Attended, Error> {
        Ok(Attended {
            out: attention::forward(qkv, layout, shape)?,
            log_sums: None,
        })
    }

    fn attention_backward(
        &self,
        d_out: &Tensor,
        qkv: Qkv<'_>,
        attended: &Attended,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<(Tensor, Tensor, Tensor), Error> {
        attention::backward(d_out, qkv, &attended.out, layout, shape)
    }

    fn lm_head_log_probs(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        ids: &[u32],
        layout: &RowLayout,
    ) -> Result<Vec<f32>, Error> {
        lm_head::log_probs(hidden, head, ids, layout, self.activations)
    }

    fn lm_head_distributions(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        ids: &[u32],
        layout: &RowLayout,
        plan: &DistributionPlan,
    ) -> Result<HeadOutputs, Error> {
        let activations = self.activations;
        lm_head::distributions(hidden, head, ids, layout, plan, activations)
    }

    fn lm_head_backward(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        d_head: &Tensor,
        ids: &[u32],
        layout: &RowLayout,
        loss: LmLoss<'_, '_>,
    ) -> Result<Tensor, Error> {
        lm_head::backward(hidden, head, d_head, ids, layout, loss, self.gradients)
    }

    fn adamw(&self, state: AdamWState<'_>, step: AdamWStep) -> Result<(), Error> {
        adamw::step(state, step)
    }

    fn add_assign(&self, sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
        elementwise::add_assign(sum, addend)
    }

    fn zero(&self, x: &Tensor) -> Result<(), Error> {
        elementwise::zero(x)
    }

    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Result<f64, Error> {
        let mut sum = 0.0;
        for x in tensors {
            sum += elementwise::sum_of_squares(x)?;
        }
        Ok(sum)
    }
}
