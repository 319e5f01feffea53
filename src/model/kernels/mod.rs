//! Everything that a device computes, behind one trait.
//!
//! [`Kernels`] has a method for every operation of the decoder, forward and backward, and for the
//! optimizer's step. Its defaults are composed of the tensor library's operations and run on any device; a
//! backend overrides what it has kernels for ([`Cpu`]: all but the fusions; `Cuda`: everything). The backend is
//! chosen once, with the device; nothing that computes asks where a tensor is.
//!
//! A new backend is a struct in a folder of its own that implements [`Kernels`], and a line in
//! `conformance::backends`, whose tests run every operation against the portable one and against f64.

mod backend;
#[cfg(test)]
mod conformance;
pub(crate) mod cpu;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
pub(crate) mod cuda;
mod distribution;
mod portable;
mod portable_head;
mod rope_table;
mod shapes;
mod soft_targets;
#[cfg(test)]
mod soft_targets_tests;
mod targets;
pub(crate) mod tensor;

pub(crate) use backend::Kernels;
#[cfg(test)]
pub(crate) use backend::Portable;
pub(crate) use cpu::Cpu;
pub(crate) use cpu::bf16::Activations;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
pub(crate) use cuda::Cuda;
pub(crate) use distribution::HeadOutputs;
pub(crate) use rope_table::RopeTable;
pub(crate) use shapes::{
    AdamWState, AdamWStep, Attended, AttentionShape, LmHead, LmLoss, MlaDims, Qkv, RmsNorm, Rope,
    RopeDirection, RopeLayout,
};
pub use soft_targets::{SoftLoss, SoftTargets};
pub use targets::{RowOutputs, WeightFn};
