//! Rotary position embedding (Su et al., arXiv 2104.09864).
//!
//! In the half-split layout of most Hugging Face models feature `i` of the rotated ones turns together
//! with feature `i + half`; in the interleaved layout neighbours turn together.

use std::sync::OnceLock;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{RowLayout, composed, copied, is_ours, rows_per_task, tensor, view};
use crate::model::Error;
use crate::model::architecture::RopeConfig;
use crate::model::simd::vectorized;

/// Cosines and sines of the tokens of one batch, `[tokens, half]` each.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// The same on the device that asked first.
    uploaded: OnceLock<(Tensor, Tensor)>,
}

/// Which features of a token turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Turned {
    /// Features of a head.
    pub head_dim: usize,
    /// The first feature of a head that turns.
    pub first: usize,
    /// Whether neighbours turn together.
    pub interleaved: bool,
}

impl Rotation {
    /// Angles are `position * frequency`, in f32 as in transformers; a row's length decides which
    /// frequencies count for it.
    pub fn new(layout: &RowLayout, rotary: &RopeConfig) -> Self {
        let frequencies: Vec<(usize, &[f32])> = layout
            .rows()
            .flat_map(|row| {
                let frequencies = match &rotary.long {
                    Some(long) if row.len() > long.above_tokens => &long.frequencies,
                    _ => &rotary.frequencies,
                };
                (0..row.len()).map(|position| (position, frequencies.as_slice()))
            })
            .collect();
        let table = |f: fn(f64) -> f64| {
            frequencies
                .par_iter()
                .flat_map_iter(|&(position, frequencies)| {
                    frequencies.iter().map(move |frequency| {
                        f(f64::from(position as f32 * frequency)) as f32 * rotary.scale
                    })
                })
                .collect()
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            half: rotary.frequencies.len(),
            uploaded: OnceLock::new(),
        }
    }

    /// Turns features of each head of `x` `[tokens, heads * head_dim]`.
    pub fn forward(&self, x: &Tensor, turned: Turned) -> Result<Tensor, Error> {
        self.turn(x, turned, 1.0)
    }

    /// The gradient with respect to the input: the same turn, backwards.
    pub fn backward(&self, dy: &Tensor, turned: Turned) -> Result<Tensor, Error> {
        self.turn(dy, turned, -1.0)
    }

    fn on_device_of(&self, x: &Tensor) -> Result<&(Tensor, Tensor), Error> {
        if self.uploaded.get().is_none() {
            let shape = [self.cos.len() / self.half, self.half];
            let upload = |values: &[f32]| composed::upload(values, &shape, x.device());
            // Another thread's tables would be as good.
            let _ = self.uploaded.set((upload(&self.cos)?, upload(&self.sin)?));
        }
        self.uploaded.get().ok_or(Error::Internal(
            "the tables of a rotation were not uploaded",
        ))
    }

    fn turn(&self, x: &Tensor, turned: Turned, direction: f32) -> Result<Tensor, Error> {
        if !is_ours(x) {
            let (cos, sin) = self.on_device_of(x)?;
            return composed::turn(x, cos, sin, turned, direction);
        }
        let (_, features) = x.dims2()?;
        let half = self.half;
        let end = turned.first + 2 * half;
        let mut y = copied(&view(x)?);
        let tokens = rows_per_task(features);
        y.par_chunks_mut(features * tokens)
            .zip(self.cos.par_chunks(half * tokens))
            .zip(self.sin.par_chunks(half * tokens))
            .for_each(|((y, cos), sin)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((token, cos), sin) in y
                            .chunks_exact_mut(features)
                            .zip(cos.chunks_exact(half))
                            .zip(sin.chunks_exact(half))
                        {
                            for head in token.chunks_exact_mut(turned.head_dim) {
                                let rotated = &mut head[turned.first..end];
                                if turned.interleaved {
                                    for (i, pair) in rotated.chunks_exact_mut(2).enumerate() {
                                        let (a, b, s) = (pair[0], pair[1], sin[i] * direction);
                                        pair[0] = a * cos[i] - b * s;
                                        pair[1] = b * cos[i] + a * s;
                                    }
                                } else {
                                    let (first, second) = rotated.split_at_mut(half);
                                    for i in 0..half {
                                        let (a, b, s) = (first[i], second[i], sin[i] * direction);
                                        first[i] = a * cos[i] - b * s;
                                        second[i] = b * cos[i] + a * s;
                                    }
                                }
                            }
                        }
                    },
                );
            });
        tensor(y, x.dims())
    }
}
