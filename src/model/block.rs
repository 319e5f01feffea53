//! One decoder block, forward and backward: attention, then a gated feed-forward layer, each added to the
//! residual stream.
//!
//! ```text
//! m = x + post_norm(attention(pre_norm(x)))
//! y = m + post_norm(mlp(pre_norm(m)))
//! ```
//!
//! Shapes are written as in [`super::kernels`]'s trait. Tensors are dropped as soon as nothing reads them:
//! activations decide the peak of memory.

use candle_core::Tensor;

use super::Error;
use super::block_params::Block;
use super::gradients::Gradients;
use super::kernels::{Attended, Qkv};
use super::pass::Pass;
use super::qkv::QkvTape;

/// Everything that a block's backward reads of its forward.
pub(super) struct BlockTape {
    x: Tensor,       // [T, H]
    attn_in: Tensor, // [T, H]
    qkv: QkvTape,
    q: Tensor, // [T, num_heads * head_dim]
    k: Tensor, // [T, num_kv_heads * head_dim]
    v: Tensor, // [T, num_kv_heads * v_head_dim]
    attended: Attended,
    /// Input of the norm after the attention, when there is one.
    raw_attn: Option<Tensor>,
    /// The residual stream between the sublayers.
    resid_mid: Tensor, // [T, H]
    mlp: MlpTape,
}

/// Everything that the backward of the feed-forward layer reads of its forward.
struct MlpTape {
    mlp_in: Tensor,    // [T, H]
    gate: Tensor,      // [T, F]
    up: Tensor,        // [T, F]
    activated: Tensor, // [T, F]
    /// Input of the norm after the feed-forward layer, when there is one.
    raw_mlp: Option<Tensor>,
}

impl Block {
    /// Computes the block for `x` `[T, H]`, which is overwritten with the result. Keeps no tape.
    pub(super) fn forward(&self, x: Tensor, pass: Pass<'_>) -> Result<Tensor, Error> {
        let y = self.attention(&x, pass)?;
        let (tokens, _) = x.dims2()?;
        let tile = pass.kernels.mlp_tile_tokens();
        if tokens <= tile {
            let mlp_in = pass.add_pre_norm(&x, &y, self.mlp_norms)?;
            drop(y);
            let (y, _) = self.mlp(mlp_in, pass)?;
            pass.kernels.add_assign(&x, &y)?;
            return Ok(x);
        }
        // A token's result does not depend on the tile it is in, so tiles only bound memory.
        pass.kernels.add_assign(&x, &y)?;
        drop(y);
        for start in (0..tokens).step_by(tile) {
            let part = x.narrow(0, start, tile.min(tokens - start))?;
            let mlp_in = pass.pre_norm(&part, self.mlp_norms)?;
            let (y, _) = self.mlp(mlp_in, pass)?;
            pass.kernels.add_assign(&part, &y)?;
        }
        Ok(x)
    }

    /// Returns what the attention adds to the residual stream `x` `[T, H]`.
    fn attention(&self, x: &Tensor, pass: Pass<'_>) -> Result<Tensor, Error> {
        let attn_in = pass.pre_norm(x, self.attn_norms)?;
        let (q, k, v, _) = self.qkv(&attn_in, pass)?;
        drop(attn_in);
        let qkv = Qkv {
            q: &q,
            k: &k,
            v: &v,
        };
        let Attended { out, .. } =
            pass.kernels
                .attention(qkv, &pass.batch.layout, self.attention)?;
        drop((q, k, v));
        let (y, _) = pass.post_norm(pass.project(&out, self.o)?, self.attn_norms)?;
        Ok(y)
    }

    /// Returns what the feed-forward layer adds to the residual stream, `post_norm(down(activation(gate) * up))`,
    /// given `mlp_in` `[T, H]`.
    fn mlp(&self, mlp_in: Tensor, pass: Pass<'_>) -> Result<(Tensor, MlpTape), Error> {
        let gate = pass.project(&mlp_in, self.gate)?;
        let up = pass.project(&mlp_in, self.up)?;
        let activated = pass.kernels.glu(&gate, &up, self.activation)?;
        let (y, raw_mlp) = pass.post_norm(pass.project(&activated, self.down)?, self.mlp_norms)?;
        let tape = MlpTape {
            mlp_in,
            gate,
            up,
            activated,
            raw_mlp,
        };
        Ok((y, tape))
    }

    /// Computes the block for `x` `[T, H]`, and returns with the result what its backward reads.
    pub(super) fn forward_with_tape(
        &self,
        x: Tensor,
        pass: Pass<'_>,
    ) -> Result<(Tensor, BlockTape), Error> {
        let attn_in = pass.pre_norm(&x, self.attn_norms)?;
        let (q, k, v, qkv) = self.qkv(&attn_in, pass)?;
        let inputs = Qkv {
            q: &q,
            k: &k,
            v: &v,
        };
        let attended = pass
            .kernels
            .attention(inputs, &pass.batch.layout, self.attention)?;
        let (resid_mid, raw_attn) =
            pass.post_norm(pass.project(&attended.out, self.o)?, self.attn_norms)?;
        // Into the attention's output, since the backward reads `x`.
        let mlp_in = pass.add_pre_norm(&resid_mid, &x, self.mlp_norms)?;
        let (y, mlp) = self.mlp(mlp_in, pass)?;
        pass.kernels.add_assign(&y, &resid_mid)?;
        let tape = BlockTape {
            x,
            attn_in,
            qkv,
            q,
            k,
            v,
            attended,
            raw_attn,
            resid_mid,
            mlp,
        };
        Ok((y, tape))
    }

    /// Adds the gradients of the block's parameters and returns that of its input `[T, H]`, given that of
    /// its output.
    pub(super) fn backward(
        &self,
        dy: Tensor,
        tape: BlockTape,
        pass: Pass<'_>,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        let d_in = self.mlp_backward(&dy, tape.mlp, pass, grads)?;
        let d_mid = pass.pre_norm_backward(&d_in, &tape.resid_mid, self.mlp_norms, grads, dy)?;
        drop((d_in, tape.resid_mid));

        let raw_attn = tape.raw_attn.as_ref();
        let d_o = pass.post_norm_backward(&d_mid, raw_attn, self.attn_norms, grads)?;
        let d_attn = pass.project_backward(&d_o, &tape.attended.out, self.o, grads, None)?;
        drop(d_o);
        let qkv = Qkv {
            q: &tape.q,
            k: &tape.k,
            v: &tape.v,
        };
        let (layout, shape) = (&pass.batch.layout, self.attention);
        let d_qkv = pass
            .kernels
            .attention_backward(&d_attn, qkv, &tape.attended, layout, shape)?;
        drop(d_attn);
        let d_in = self.qkv_backward(d_qkv, &tape.attn_in, &tape.qkv, pass, grads)?;
        pass.pre_norm_backward(&d_in, &tape.x, self.attn_norms, grads, d_mid)
    }

    /// Adds the gradients of the feed-forward layer's parameters and returns that of `mlp_in` `[T, H]`.
    fn mlp_backward(
        &self,
        dy: &Tensor,
        tape: MlpTape,
        pass: Pass<'_>,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        let d_down = pass.post_norm_backward(dy, tape.raw_mlp.as_ref(), self.mlp_norms, grads)?;
        let d_activated =
            pass.project_backward(&d_down, &tape.activated, self.down, grads, None)?;
        drop((d_down, tape.activated));
        let (d_gate, d_up) =
            pass.kernels
                .glu_backward(&d_activated, tape.gate, tape.up, self.activation)?;
        drop(d_activated);
        let d_in = pass.project_backward(&d_gate, &tape.mlp_in, self.gate, grads, None)?;
        pass.project_backward(&d_up, &tape.mlp_in, self.up, grads, Some(d_in))
    }
}
