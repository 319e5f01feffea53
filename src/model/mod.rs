//! The decoder: description, weights, forward and backward.
//!
//! A model goes from files to numbers in three steps: config.json is read into an [`Architecture`],
//! [`OpenModel`] finds and checks the tensors, [`Decoder`] computes.
//!
//! On the CPU a row's log-probs depend on that row alone, bit for bit: not on the other rows of its
//! batch, its place among them, or the number of threads.

mod architecture;
mod batch;
mod block;
mod block_params;
mod config;
mod cost;
mod decoder;
#[cfg(test)]
mod decoder_tests;
mod device;
mod error;
mod files;
mod gradients;
mod kernels;
mod no_gpu;
mod parameters;
mod pass;
mod qkv;
mod row_layout;
mod streamed;

pub use architecture::{
    Activation, Architecture, BlockConfig, LongRopeConfig, MlaConfig, NormPlacement, Projections,
    QkNorm, RopeConfig,
};
pub use config::supported_model_types;
pub use cost::{AnnealingMemory, AnnealingShape, GpuScoringMemory};
pub use decoder::{Backward, Decoder};
#[cfg(feature = "cuda-emulator")]
pub use device::EmulatedCard;
pub use device::{Compute, ComputeDevice, ComputeDtype, DeviceChoice};
pub use error::Error;
pub use files::{Builtin, ModelFile, ModelSource, ModelWeights, OpenModel};
pub(crate) use files::{Content, Entry, check_exportable, widened, write_tensors, write_weights};
pub use gradients::Gradients;
pub use kernels::cpu::SCORING_ACTIVATION_BYTES;
pub(crate) use kernels::tensor::{set_values, zeros_f32};
pub(crate) use kernels::{AdamWState, AdamWStep};
pub use kernels::{RowOutputs, SoftLoss, SoftTargets, WeightFn};
pub use no_gpu::NoGpu;
pub use parameters::{Parameter, Parameters};
pub use row_layout::{GRAD_CHUNK_TOKENS, RowLayout};
pub use streamed::StreamedDecoder;
