//! Cosines and sines of the positions of a batch.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::tensor::tensor;
use crate::model::Error;
use crate::model::architecture::RopeConfig;
use crate::model::row_layout::RowLayout;

/// Cosines and sines of the angles of a batch's tokens (RoPE, Su et al., arXiv 2104.09864).
#[derive(Debug, Clone)]
pub(crate) struct RopeTable {
    /// `[T, half]`, f32; more rows where `token_rows` says which count.
    pub cos: Tensor,
    /// As `cos`.
    pub sin: Tensor,
    /// The row of each token, `[T]`, in the table of a backend that keeps one for all batches; `None` where
    /// token `t` has row `t`.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "cuda-emulator")),
        expect(dead_code, reason = "the CUDA backend alone has any")
    )]
    pub token_rows: Option<Tensor>,
}

impl RopeTable {
    /// Computes the table on the host and copies it to `device`.
    ///
    /// Angles are `position * frequency`, in f32 as in transformers; a row's length decides which
    /// frequencies count for it.
    pub fn new(layout: &RowLayout, rope: &RopeConfig, device: &Device) -> Result<Self, Error> {
        let frequencies: Vec<(usize, &[f32])> = layout
            .rows()
            .flat_map(|row| {
                let frequencies = match &rope.long {
                    Some(long) if row.len() > long.above_tokens => &long.frequencies,
                    _ => &rope.frequencies,
                };
                (0..row.len()).map(|position| (position, frequencies.as_slice()))
            })
            .collect();
        let shape = (layout.num_tokens(), rope.frequencies.len());
        let table = |f: fn(f64) -> f64| {
            let values = frequencies
                .par_iter()
                .flat_map_iter(|&(position, frequencies)| {
                    frequencies.iter().map(move |frequency| {
                        f(f64::from(position as f32 * frequency)) as f32 * rope.scale
                    })
                })
                .collect();
            Ok::<_, Error>(tensor(values, shape)?.to_device(device)?)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            token_rows: None,
        })
    }
}
