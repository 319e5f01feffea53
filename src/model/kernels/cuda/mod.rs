//! The backend for NVIDIA GPUs: kernels of our own, in `sources/`, and cuBLASLt for products.
//!
//! Candle's tensors hold the memory. Token tensors are f32 or bf16, as the model's matrices are; everything is
//! added up in f32. What runs kernels and products is behind [`driver::Driver`]: a GPU, or an emulation of one on
//! the CPU, by which the tests run all of this, from here to the kernels' last line, on a machine without a GPU.
//! What is in `gpu.rs` and `cublaslt.rs` runs on a GPU only.
//!
//! A row's log-probs have the same bits in every batch: no kernel's result for a token depends on other rows,
//! and products are computed in whole tiles of [`driver::ROW_TILE`] rows, with one algorithm for each matrix.

mod attention;
mod batch_rows;
mod context;
#[cfg(feature = "cuda")]
mod cublaslt;
mod driver;
mod elementwise;
#[cfg(feature = "cuda-emulator")]
mod emulated;
#[cfg(feature = "cuda-emulator")]
mod emulated_memory;
#[cfg(feature = "cuda")]
mod gpu;
mod head;
#[cfg(any(feature = "cuda", test))]
mod images;
mod launch;
mod linear;
mod norm;
mod place;
mod rows;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};

use self::context::Context;
use super::backend::Kernels;
use super::rope_table::RopeTable;
use super::shapes::{
    AdamWState, AdamWStep, Attended, AttentionShape, LmHead, LmLoss, MlaDims, Qkv, RmsNorm, Rope,
    RopeDirection,
};
use crate::model::Error;
use crate::model::architecture::{Activation, RopeConfig};
#[cfg(feature = "cuda")]
use crate::model::no_gpu::NoGpu;
use crate::model::row_layout::RowLayout;

/// The kernels of an NVIDIA GPU.
#[derive(Debug)]
pub(crate) struct Cuda {
    context: Context,
}

impl Cuda {
    /// Opens the GPU of a number; an error says why that is impossible.
    #[cfg(feature = "cuda")]
    pub fn open(number: usize) -> Result<Self, NoGpu> {
        Ok(Self {
            context: Context::new(Box::new(gpu::Gpu::open(number)?)),
        })
    }

    /// Opens the first GPU where REMIT_TEST_GPU is set: scripts/bench/gpu.sh carries the tests to a machine with one.
    #[cfg(all(test, feature = "cuda"))]
    pub fn of_tests() -> Option<Self> {
        std::env::var_os("REMIT_TEST_GPU")?;
        Some(Self::open(0).expect("REMIT_TEST_GPU is set, so there has to be a GPU"))
    }

    /// Returns nothing, since no GPU can be opened.
    #[cfg(all(test, not(feature = "cuda")))]
    pub fn of_tests() -> Option<Self> {
        None
    }

    /// Returns the number of GPUs, of which there is one at least.
    #[cfg(feature = "cuda")]
    pub fn count() -> Result<usize, NoGpu> {
        gpu::Gpu::count()
    }

    /// Returns the backend on an emulated GPU that nothing but the machine's memory limits.
    #[cfg(all(test, feature = "cuda-emulator"))]
    pub fn emulated() -> Self {
        Self::emulated_with(None)
    }

    /// Returns the backend on an emulated GPU, with so many bytes of memory that are free for activations.
    #[cfg(feature = "cuda-emulator")]
    pub fn emulated_with(free_bytes: Option<u64>) -> Self {
        Self {
            context: Context::new(Box::new(emulated::Emulated::new(free_bytes))),
        }
    }
}

impl Kernels for Cuda {
    fn name(&self) -> &str {
        self.context.driver().name()
    }

    fn device(&self) -> &Device {
        self.context.driver().device()
    }

    fn description(&self) -> Option<&str> {
        self.context.driver().description()
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        self.context.driver().free_bytes()
    }

    fn rope_table(&self, layout: &RowLayout, rope: &RopeConfig) -> Result<RopeTable, Error> {
        self.context.rope_table(layout, rope)
    }

    fn embedding(&self, table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
        rows::embedding(&self.context, table, ids, scale)
    }

    fn embedding_backward(
        &self,
        d_table: &Tensor,
        ids: &[u32],
        dx: &Tensor,
        scale: f32,
    ) -> Result<(), Error> {
        rows::embedding_backward(&self.context, d_table, ids, dx, scale)
    }

    fn rms_norm(&self, x: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
        norm::rms_norm(&self.context, x, norm)
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        norm: RmsNorm<'_>,
        _layout: &RowLayout,
        d_w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        norm::rms_norm_backward(&self.context, dy, x, norm, d_w, accumulate_into)
    }

    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, norm: RmsNorm<'_>) -> Result<Tensor, Error> {
        norm::add_rms_norm(&self.context, x, y, norm)
    }

    fn linear(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, Error> {
        linear::forward(&self.context, x, w, b)
    }

    fn linear_backward_input(
        &self,
        dy: &Tensor,
        w: &Tensor,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        linear::backward_input(&self.context, dy, w, accumulate_into)
    }

    fn linear_backward_weight(
        &self,
        d_w: &Tensor,
        dy: &Tensor,
        x: &Tensor,
        _layout: &RowLayout,
    ) -> Result<(), Error> {
        linear::backward_weight(&self.context, d_w, dy, x)
    }

    fn linear_backward_bias(&self, d_b: &Tensor, dy: &Tensor) -> Result<(), Error> {
        rows::bias_backward(&self.context, d_b, dy)
    }

    fn rope(&self, x: Tensor, rope: Rope<'_>, direction: RopeDirection) -> Result<Tensor, Error> {
        norm::rope(&self.context, x, rope, direction)
    }

    fn norm_rope(&self, x: &Tensor, norm: RmsNorm<'_>, rope: Rope<'_>) -> Result<Tensor, Error> {
        norm::norm_rope(&self.context, x, norm, rope)
    }

    fn norm_rope_backward(
        &self,
        dy: Tensor,
        x: &Tensor,
        norm: RmsNorm<'_>,
        rope: Rope<'_>,
        _layout: &RowLayout,
        d_w: &Tensor,
    ) -> Result<Tensor, Error> {
        norm::norm_rope_backward(&self.context, dy, x, norm, rope, d_w)
    }

    fn glu(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        elementwise::glu(&self.context, gate, up, activation)
    }

    fn glu_backward(
        &self,
        dy: &Tensor,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor), Error> {
        elementwise::glu_backward(&self.context, dy, gate, up, activation)
    }

    fn mla(&self, kv: &Tensor, k_rope: &Tensor, dims: MlaDims) -> Result<(Tensor, Tensor), Error> {
        rows::mla(&self.context, kv, k_rope, dims)
    }

    fn mla_backward(
        &self,
        d_keys: &Tensor,
        d_values: &Tensor,
        dims: MlaDims,
    ) -> Result<(Tensor, Tensor), Error> {
        rows::mla_backward(&self.context, d_keys, d_values, dims)
    }

    fn attention(
        &self,
        qkv: Qkv<'_>,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<Attended, Error> {
        attention::forward(&self.context, qkv, layout, shape)
    }

    fn attention_backward(
        &self,
        d_out: &Tensor,
        qkv: Qkv<'_>,
        attended: &Attended,
        layout: &RowLayout,
        shape: AttentionShape,
    ) -> Result<(Tensor, Tensor, Tensor), Error> {
        attention::backward(&self.context, d_out, qkv, attended, layout, shape)
    }

    fn lm_head_log_probs(
        &self,
        hidden: &Tensor,
        head: LmHead<'_>,
        ids: &[u32],
        layout: &RowLayout,
    ) -> Result<Vec<f32>, Error> {
        head::log_probs(&self.context, hidden, head, ids, layout)
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
        head::backward(&self.context, hidden, head, d_head, ids, layout, loss)
    }

    fn adamw(&self, state: AdamWState<'_>, step: AdamWStep) -> Result<(), Error> {
        elementwise::adamw(&self.context, state, step)
    }

    fn add_assign(&self, sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
        elementwise::add_assign(&self.context, sum, addend)
    }

    fn zero(&self, x: &Tensor) -> Result<(), Error> {
        elementwise::zero(&self.context, x)
    }

    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Result<f64, Error> {
        elementwise::sum_of_squares(&self.context, tensors)
    }
}
