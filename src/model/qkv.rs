//! Queries, keys and values of a block, ready for the attention: by a projection each, or by multi-head
//! latent attention (DeepSeek-V2, arXiv 2405.04434).
//!
//! Shapes are written as in [`super::kernels`]'s trait.

use candle_core::Tensor;

use super::Error;
use super::block_params::{Block, MlaQuery, Norm, QkvParams};
use super::gradients::Gradients;
use super::kernels::{Rope, RopeDirection, RopeLayout};
use super::pass::{LowRankTape, OTHER_TAPE, Pass};

/// Everything that the backward of the projections reads of their forward.
pub(super) enum QkvTape {
    /// Queries and keys before their norms, when there are any.
    Direct(Option<(Tensor, Tensor)>),
    /// Of the queries, when they are of low rank, and of keys and values.
    Mla(Option<LowRankTape>, LowRankTape),
}

impl<'a> Pass<'a> {
    /// Returns the rotation of queries and keys in a block, where there is one.
    fn rope(self, p: &Block) -> Result<Option<Rope<'a>>, Error> {
        let Some((index, layout)) = p.rope else {
            return Ok(None);
        };
        let table = self.batch.rope(index)?;
        Ok(Some(Rope { table, layout }))
    }

    /// Normalizes queries or keys, then rotates them, where a block does; without a norm `x` may be overwritten.
    fn norm_rope(
        self,
        x: Tensor,
        norm: Option<Norm>,
        rope: Option<Rope<'_>>,
    ) -> Result<Tensor, Error> {
        match (norm, rope) {
            (Some(norm), Some(rope)) => self.kernels.norm_rope(&x, self.rms_norm(norm), rope),
            (Some(norm), None) => self.norm(&x, norm),
            (None, Some(rope)) => self.kernels.rope(x, rope, RopeDirection::Forward),
            (None, None) => Ok(x),
        }
    }

    /// Returns the gradient of what [`Pass::norm_rope`] was given, which is `raw` if there is a norm.
    fn norm_rope_backward(
        self,
        dy: Tensor,
        raw: Option<&Tensor>,
        norm: Option<Norm>,
        rope: Option<Rope<'_>>,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        match (norm, raw, rope) {
            (Some(n), Some(raw), Some(rope)) => {
                let norm = self.rms_norm(n);
                let d_w = grads.sum(n.weight, norm.weight)?;
                let layout = &self.batch.layout;
                self.kernels
                    .norm_rope_backward(dy, raw, norm, rope, layout, &d_w)
            }
            (Some(norm), Some(raw), None) => self.norm_backward(&dy, raw, norm, grads, None),
            (None, None, Some(rope)) => self.kernels.rope(dy, rope, RopeDirection::Backward),
            (None, None, None) => Ok(dy),
            _ => Err(OTHER_TAPE),
        }
    }
}

/// Returns a rotation of other features: those of `k_rope` `[T, rope]` in place of a head's.
fn with_layout(rope: Option<Rope<'_>>, layout: RopeLayout) -> Option<Rope<'_>> {
    rope.map(|rope| Rope { layout, ..rope })
}

impl Block {
    /// Returns queries, keys and values of `x` `[T, H]`, and what the backward reads.
    pub(super) fn qkv(
        &self,
        x: &Tensor,
        pass: Pass<'_>,
    ) -> Result<(Tensor, Tensor, Tensor, QkvTape), Error> {
        let rope = pass.rope(self)?;
        match self.qkv {
            QkvParams::Direct { q, k, v, qk_norms } => {
                // First, so that raw queries and keys are not in memory any longer than they have to be.
                let v = pass.project(x, v)?;
                let (q, k) = (pass.project(x, q)?, pass.project(x, k)?);
                let (q_norm, k_norm) = qk_norms.unzip();
                let raw = qk_norms.map(|_| (q.clone(), k.clone()));
                let q = pass.norm_rope(q, q_norm, rope)?;
                let k = pass.norm_rope(k, k_norm, rope)?;
                Ok((q, k, v, QkvTape::Direct(raw)))
            }
            QkvParams::Mla(mla) => {
                let (q, q_tape) = match mla.q {
                    MlaQuery::Direct(q) => (pass.project(x, q)?, None),
                    MlaQuery::LowRank(q) => {
                        let (q, tape) = pass.low_rank(x, q)?;
                        (q, Some(tape))
                    }
                };
                let (kv, kv_tape) = pass.low_rank(x, mla.kv)?;
                let k_rope = pass.project(x, mla.k_rope)?;
                let q = pass.norm_rope(q, None, rope)?;
                let k_rope = pass.norm_rope(k_rope, None, with_layout(rope, mla.k_rope_layout))?;
                let (k, v) = pass.kernels.mla(&kv, &k_rope, mla.dims)?;
                Ok((q, k, v, QkvTape::Mla(q_tape, kv_tape)))
            }
        }
    }

    /// Adds the gradients of the projections' parameters and returns that of their input `x` `[T, H]`.
    pub(super) fn qkv_backward(
        &self,
        (dq, dk, dv): (Tensor, Tensor, Tensor),
        x: &Tensor,
        tape: &QkvTape,
        pass: Pass<'_>,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        let rope = pass.rope(self)?;
        match (self.qkv, tape) {
            (QkvParams::Direct { q, k, v, qk_norms }, QkvTape::Direct(raw)) => {
                let (q_norm, k_norm) = qk_norms.unzip();
                let (raw_q, raw_k) = raw.as_ref().map(|(q, k)| (q, k)).unzip();
                let dq = pass.norm_rope_backward(dq, raw_q, q_norm, rope, grads)?;
                let dk = pass.norm_rope_backward(dk, raw_k, k_norm, rope, grads)?;
                let d_in = pass.project_backward(&dq, x, q, grads, None)?;
                let d_in = pass.project_backward(&dk, x, k, grads, Some(d_in))?;
                pass.project_backward(&dv, x, v, grads, Some(d_in))
            }
            (QkvParams::Mla(mla), QkvTape::Mla(q_tape, kv_tape)) => {
                let dq = pass.norm_rope_backward(dq, None, None, rope, grads)?;
                let (d_kv, d_k_rope) = pass.kernels.mla_backward(&dk, &dv, mla.dims)?;
                drop((dk, dv));
                let k_rope = with_layout(rope, mla.k_rope_layout);
                let d_k_rope = pass.norm_rope_backward(d_k_rope, None, None, k_rope, grads)?;
                let d_in = pass.project_backward(&d_k_rope, x, mla.k_rope, grads, None)?;
                let d_in = pass.low_rank_backward(&d_kv, x, kv_tape, mla.kv, grads, Some(d_in))?;
                match (mla.q, q_tape) {
                    (MlaQuery::Direct(q), None) => {
                        pass.project_backward(&dq, x, q, grads, Some(d_in))
                    }
                    (MlaQuery::LowRank(q), Some(tape)) => {
                        pass.low_rank_backward(&dq, x, tape, q, grads, Some(d_in))
                    }
                    _ => Err(OTHER_TAPE),
                }
            }
            _ => Err(OTHER_TAPE),
        }
    }
}
