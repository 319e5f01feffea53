//! One decoder block, forward and backward.
//!
//! `T` tokens of a batch (all rows, side by side), `H` hidden size.

use candle_core::Tensor;

use super::Error;
use super::block_params::{Around, BlockParams, LatentQuery, LowRank, Norm, Projection, Qkv};
use super::decoder::{Batch, Decoder};
use super::ops::{add_assign, attention, latent, linear, mlp, norm};
use super::parameters::BatchGradients;

/// Tokens that go through the feed-forward part of a block at a time when no gradient is needed.
const MLP_TILE_TOKENS: usize = 1024;

const OTHER_TAPE: Error = Error::Internal("a tape of another kind of attention");

/// What a [`LowRank`] computed in between: before and after its norm.
type LowRankTape = (Tensor, Tensor);

/// What the backward of the projections needs of their forward.
enum QkvTape {
    /// Queries and keys before their norm, when there is one.
    Direct(Option<(Tensor, Tensor)>),
    /// Of the queries, when they are of low rank, and of keys and values.
    Latent(Option<LowRankTape>, LowRankTape),
}

/// What a block's backward needs of its forward.
pub(super) struct BlockTape {
    x: Tensor,
    attn_in: Tensor,
    qkv: QkvTape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_out: Tensor,
    /// What the norm after the attention was given, when there is one.
    raw_attn: Option<Tensor>,
    middle: Tensor,
    mlp_in: Tensor,
    gate: Tensor,
    up: Tensor,
    activated: Tensor,
    /// What the norm after the feed-forward layer was given, when there is one.
    raw_mlp: Option<Tensor>,
}

impl Decoder {
    pub(super) fn norm(&self, x: &Tensor, n: Norm) -> Result<Tensor, Error> {
        norm::forward(x, self.weight(n.weight), n.rms)
    }

    pub(super) fn norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        n: Norm,
        grads: &mut BatchGradients<'_>,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(n.weight);
        let sum = grads.sum(n.weight, w)?;
        norm::backward(dy, x, w, n.rms, grads.layout, &sum, onto)
    }

    fn project(&self, x: &Tensor, p: Projection) -> Result<Tensor, Error> {
        let weight = p.of(self.weight(p.weight))?;
        let bias = p.bias.map(|bias| p.of(self.weight(bias))).transpose()?;
        linear::forward(x, &weight, bias.as_ref())
    }

    /// Adds the gradients of a projection's parameters and returns that of its input.
    fn project_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        p: Projection,
        grads: &mut BatchGradients<'_>,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(p.weight);
        let sum = grads.sum(p.weight, w)?;
        linear::accumulate_weight(&p.of(&sum)?, dy, x, grads.layout)?;
        if let Some(bias) = p.bias {
            let sum = grads.sum(bias, self.weight(bias))?;
            linear::accumulate_bias(&p.of(&sum)?, dy)?;
        }
        linear::backward_input(dy, &p.of(w)?, onto)
    }

    /// What a sublayer is given: `x`, normalized if a norm stands before it.
    fn enter(&self, x: &Tensor, norms: Around) -> Result<Tensor, Error> {
        match norms.before {
            Some(norm) => self.norm(x, norm),
            None => Ok(x.clone()),
        }
    }

    /// What a sublayer adds to the residual stream, given what it computed; and that itself, if a
    /// norm stands in between.
    fn leave(&self, y: Tensor, norms: Around) -> Result<(Tensor, Option<Tensor>), Error> {
        match norms.after {
            Some(norm) => Ok((self.norm(&y, norm)?, Some(y))),
            None => Ok((y, None)),
        }
    }

    /// The gradient of what [`Decoder::leave`] was given.
    fn leave_backward(
        &self,
        dy: &Tensor,
        raw: Option<&Tensor>,
        norms: Around,
        grads: &mut BatchGradients<'_>,
    ) -> Result<Tensor, Error> {
        match (norms.after, raw) {
            (Some(norm), Some(raw)) => self.norm_backward(dy, raw, norm, grads, None),
            _ => Ok(dy.clone()),
        }
    }

    /// The gradient of `x` in `x + sublayer(enter(x))`: `dy` of the sum, with what came through
    /// the sublayer, `d_in`, added.
    fn enter_backward(
        &self,
        d_in: &Tensor,
        x: &Tensor,
        norms: Around,
        grads: &mut BatchGradients<'_>,
        dy: Tensor,
    ) -> Result<Tensor, Error> {
        match norms.before {
            Some(norm) => self.norm_backward(d_in, x, norm, grads, Some(dy)),
            None => {
                add_assign(&dy, d_in)?;
                Ok(dy)
            }
        }
    }

    fn low_rank(&self, x: &Tensor, p: LowRank) -> Result<(Tensor, LowRankTape), Error> {
        let raw = self.project(x, p.down)?;
        let normed = self.norm(&raw, p.norm)?;
        Ok((self.project(&normed, p.up)?, (raw, normed)))
    }

    /// Adds the gradients of both projections and the norm, and returns that of their input.
    fn low_rank_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        (raw, normed): &LowRankTape,
        p: LowRank,
        grads: &mut BatchGradients<'_>,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let d_normed = self.project_backward(dy, normed, p.up, grads, None)?;
        let d_raw = self.norm_backward(&d_normed, raw, p.norm, grads, None)?;
        self.project_backward(&d_raw, x, p.down, grads, onto)
    }

    /// Queries, keys and values, ready for the attention; with `keep`, what the backward needs.
    fn qkv_forward(
        &self,
        p: &BlockParams,
        x: &Tensor,
        batch: &Batch,
        keep: bool,
    ) -> Result<(Tensor, Tensor, Tensor, Option<QkvTape>), Error> {
        let rotation = batch.rotation(p.rotary)?;
        match p.qkv {
            Qkv::Direct { q, k, v, norms } => {
                let v = self.project(x, v)?;
                let (mut q, mut k) = (self.project(x, q)?, self.project(x, k)?);
                let mut raw = None;
                if let Some((q_norm, k_norm)) = norms {
                    let normed = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
                    raw = keep.then_some((q, k));
                    (q, k) = normed;
                }
                if let Some(rotation) = rotation {
                    q = rotation.forward(&q, p.turned)?;
                    k = rotation.forward(&k, p.turned)?;
                }
                Ok((q, k, v, keep.then_some(QkvTape::Direct(raw))))
            }
            Qkv::Latent(p_latent) => {
                let (mut q, q_tape) = match p_latent.q {
                    LatentQuery::Direct(q) => (self.project(x, q)?, None),
                    LatentQuery::LowRank(q) => {
                        let (q, tape) = self.low_rank(x, q)?;
                        (q, keep.then_some(tape))
                    }
                };
                let (kv, kv_tape) = self.low_rank(x, p_latent.kv)?;
                let tape = keep.then_some(QkvTape::Latent(q_tape, kv_tape));
                let mut shared = self.project(x, p_latent.shared)?;
                if let Some(rotation) = rotation {
                    q = rotation.forward(&q, p.turned)?;
                    shared = rotation.forward(&shared, p_latent.shared_turned)?;
                }
                let (k, v) = latent::forward(&kv, &shared, p_latent.parts)?;
                Ok((q, k, v, tape))
            }
        }
    }

    /// Adds the gradients of the projections and returns that of their input.
    fn qkv_backward(
        &self,
        p: &BlockParams,
        x: &Tensor,
        tape: &QkvTape,
        (mut dq, mut dk, dv): (Tensor, Tensor, Tensor),
        batch: &Batch,
        grads: &mut BatchGradients<'_>,
    ) -> Result<Tensor, Error> {
        let rotation = batch.rotation(p.rotary)?;
        if let Some(rotation) = rotation {
            dq = rotation.backward(&dq, p.turned)?;
        }
        match (p.qkv, tape) {
            (Qkv::Direct { q, k, v, norms }, QkvTape::Direct(raw)) => {
                if let Some(rotation) = rotation {
                    dk = rotation.backward(&dk, p.turned)?;
                }
                if let (Some((q_norm, k_norm)), Some((raw_q, raw_k))) = (norms, raw) {
                    dq = self.norm_backward(&dq, raw_q, q_norm, grads, None)?;
                    dk = self.norm_backward(&dk, raw_k, k_norm, grads, None)?;
                }
                let d_in = self.project_backward(&dq, x, q, grads, None)?;
                let d_in = self.project_backward(&dk, x, k, grads, Some(d_in))?;
                self.project_backward(&dv, x, v, grads, Some(d_in))
            }
            (Qkv::Latent(p_latent), QkvTape::Latent(q_tape, kv_tape)) => {
                let (d_kv, mut d_shared) = latent::backward(&dk, &dv, p_latent.parts)?;
                drop((dk, dv));
                if let Some(rotation) = rotation {
                    d_shared = rotation.backward(&d_shared, p_latent.shared_turned)?;
                }
                let d_in = self.project_backward(&d_shared, x, p_latent.shared, grads, None)?;
                let d_in =
                    self.low_rank_backward(&d_kv, x, kv_tape, p_latent.kv, grads, Some(d_in))?;
                match (p_latent.q, q_tape) {
                    (LatentQuery::Direct(q), None) => {
                        self.project_backward(&dq, x, q, grads, Some(d_in))
                    }
                    (LatentQuery::LowRank(q), Some(tape)) => {
                        self.low_rank_backward(&dq, x, tape, q, grads, Some(d_in))
                    }
                    _ => Err(OTHER_TAPE),
                }
            }
            _ => Err(OTHER_TAPE),
        }
    }

    /// `[T, H]` to `[T, H]`; `x` may be overwritten when no tape is kept.
    pub(super) fn block_forward(
        &self,
        p: &BlockParams,
        x: Tensor,
        batch: &Batch,
        tapes: Option<&mut Vec<BlockTape>>,
    ) -> Result<Tensor, Error> {
        let attn_in = self.enter(&x, p.attn_norms)?;
        let (q, k, v, qkv) = self.qkv_forward(p, &attn_in, batch, tapes.is_some())?;

        let (Some(tapes), Some(qkv)) = (tapes, qkv) else {
            drop(attn_in);
            let attn_out = attention::forward(&q, &k, &v, &batch.layout, p.shape)?;
            drop((q, k, v));
            let (y, _) = self.leave(self.project(&attn_out, p.o)?, p.attn_norms)?;
            drop(attn_out);
            add_assign(&x, &y)?;
            drop(y);
            // A token's result does not depend on the tile it is in, so tiles only bound memory.
            let tokens = batch.layout.num_tokens();
            for start in (0..tokens).step_by(MLP_TILE_TOKENS) {
                let part = x.narrow(0, start, MLP_TILE_TOKENS.min(tokens - start))?;
                let mlp_in = self.enter(&part, p.mlp_norms)?;
                let gate = self.project(&mlp_in, p.gate)?;
                let up = self.project(&mlp_in, p.up)?;
                let activated = mlp::forward(&gate, &up, p.activation)?;
                let (y, _) = self.leave(self.project(&activated, p.down)?, p.mlp_norms)?;
                add_assign(&part, &y)?;
            }
            return Ok(x);
        };

        let attn_out = attention::forward(&q, &k, &v, &batch.layout, p.shape)?;
        let (middle, raw_attn) = self.leave(self.project(&attn_out, p.o)?, p.attn_norms)?;
        add_assign(&middle, &x)?;
        let mlp_in = self.enter(&middle, p.mlp_norms)?;
        let gate = self.project(&mlp_in, p.gate)?;
        let up = self.project(&mlp_in, p.up)?;
        let activated = mlp::forward(&gate, &up, p.activation)?;
        let (y, raw_mlp) = self.leave(self.project(&activated, p.down)?, p.mlp_norms)?;
        add_assign(&y, &middle)?;
        tapes.push(BlockTape {
            x,
            attn_in,
            qkv,
            q,
            k,
            v,
            attn_out,
            raw_attn,
            middle,
            mlp_in,
            gate,
            up,
            activated,
            raw_mlp,
        });
        Ok(y)
    }

    /// The gradient of the block's input, given that of its output.
    pub(super) fn block_backward(
        &self,
        p: &BlockParams,
        dy: Tensor,
        tape: BlockTape,
        batch: &Batch,
        grads: &mut BatchGradients<'_>,
    ) -> Result<Tensor, Error> {
        // y = middle + leave(down(activation(gate) * up))
        let d_mlp = self.leave_backward(&dy, tape.raw_mlp.as_ref(), p.mlp_norms, grads)?;
        let d_activated = self.project_backward(&d_mlp, &tape.activated, p.down, grads, None)?;
        drop(d_mlp);
        let (d_gate, d_up) = mlp::backward(&d_activated, tape.gate, tape.up, p.activation)?;
        drop(d_activated);
        let d_in = self.project_backward(&d_gate, &tape.mlp_in, p.gate, grads, None)?;
        let d_in = self.project_backward(&d_up, &tape.mlp_in, p.up, grads, Some(d_in))?;
        drop((d_gate, d_up));
        let d_middle = self.enter_backward(&d_in, &tape.middle, p.mlp_norms, grads, dy)?;

        // middle = x + leave(o(attention(q, k, v)))
        let d_o = self.leave_backward(&d_middle, tape.raw_attn.as_ref(), p.attn_norms, grads)?;
        let d_attn = self.project_backward(&d_o, &tape.attn_out, p.o, grads, None)?;
        drop(d_o);
        let d_qkv = attention::backward(
            &d_attn,
            &tape.q,
            &tape.k,
            &tape.v,
            &tape.attn_out,
            &batch.layout,
            p.shape,
        )?;
        drop(d_attn);
        let d_in = self.qkv_backward(p, &tape.attn_in, &tape.qkv, d_qkv, batch, grads)?;
        self.enter_backward(&d_in, &tape.x, p.attn_norms, grads, d_middle)
    }
}
