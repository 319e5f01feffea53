//! Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split layout of the
//! Hugging Face models: feature `i` turns together with feature `i + half`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{rows_per_task, tensor, view};
use crate::model::Error;
use crate::model::simd::vectorized;

/// Cosines and sines of the positions of one batch, `[tokens, half]` each.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotation {
    /// Angles are `position * frequency`, in f32 as in transformers, for `half` frequencies a head.
    pub fn new(positions: &[u32], frequencies: &[f32]) -> Self {
        let half = frequencies.len();
        let angles = || {
            positions.par_iter().flat_map_iter(|&position| {
                frequencies
                    .iter()
                    .map(move |frequency| f64::from(position as f32 * frequency))
            })
        };
        Self {
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
            half,
        }
    }

    /// Turns the first `2 * half` features of each head of `x` `[tokens, heads * head_dim]`.
    pub fn forward(&self, x: &Tensor, head_dim: usize) -> Result<Tensor, Error> {
        self.turn(x, head_dim, 1.0)
    }

    /// The gradient with respect to the input: the same turn, backwards.
    pub fn backward(&self, dy: &Tensor, head_dim: usize) -> Result<Tensor, Error> {
        self.turn(dy, head_dim, -1.0)
    }

    fn turn(&self, x: &Tensor, head_dim: usize, direction: f32) -> Result<Tensor, Error> {
        let (_, features) = x.dims2()?;
        let half = self.half;
        let mut y = view(x)?.to_vec();
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
                            for head in token.chunks_exact_mut(head_dim) {
                                let (first, second) = head[..2 * half].split_at_mut(half);
                                for i in 0..half {
                                    let (a, b, s) = (first[i], second[i], sin[i] * direction);
                                    first[i] = a * cos[i] - b * s;
                                    second[i] = b * cos[i] + a * s;
                                }
                            }
                        }
                    },
                );
            });
        tensor(y, x.dims())
    }
}
