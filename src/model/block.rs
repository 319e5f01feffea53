//! One decoder block, forward and backward.
//!
//! `T` tokens of a batch (all rows, side by side), `H` hidden size.

use candle_core::Tensor;

use super::Error;
use super::architecture::{
    Activation, Architecture, Block, Latent, NormNames, Projections, QkNorm, block_tensor,
};
use super::decoder::{Batch, Decoder};
use super::ops::attention::{self, Shape};
use super::ops::latent::{self, Parts};
use super::ops::norm::{self, Rms};
use super::ops::rope::Turned;
use super::ops::{add_assign, linear, mlp};
use super::parameters::{Gradients, ParamId};

/// Tokens that go through the feed-forward part of a block at a time when no gradient is needed.
const MLP_TILE_TOKENS: usize = 1024;

/// Added to the mean square in the norms inside latent attention, whatever the config says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// A linear projection: all rows of a matrix, or those that belong to it in a fused one.
#[derive(Debug, Clone, Copy)]
struct Projection {
    weight: ParamId,
    bias: Option<ParamId>,
    /// First row and number of rows.
    rows: Option<(usize, usize)>,
}

/// A norm: its weight and its constants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub weight: ParamId,
    pub rms: Rms,
}

/// The norms around a sublayer.
#[derive(Debug, Clone, Copy)]
struct Around {
    before: Option<Norm>,
    after: Option<Norm>,
}

/// How queries, keys and values are made.
#[derive(Debug, Clone, Copy)]
enum Qkv {
    Direct {
        q: Projection,
        k: Projection,
        v: Projection,
        norms: Option<(Norm, Norm)>,
    },
    Latent {
        /// The first projection of the queries and its norm, when there are two.
        q_low: Option<(Projection, Norm)>,
        q: Projection,
        kv_low: Projection,
        kv_norm: Norm,
        kv: Projection,
        shared: Projection,
        parts: Parts,
        /// How the shared key turns.
        shared_turned: Turned,
    },
}

/// Where the parameters of one block are, and what it does with them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockParams {
    attn_norms: Around,
    qkv: Qkv,
    rotary: Option<usize>,
    turned: Turned,
    shape: Shape,
    o: Projection,
    mlp_norms: Around,
    gate: Projection,
    up: Projection,
    activation: Activation,
    down: Projection,
}

/// What the backward of the projections needs of their forward.
enum QkvTape {
    /// Queries and keys before their norm, when there is one.
    Direct(Option<(Tensor, Tensor)>),
    /// The low-rank queries, when there are any, and keys and values: before and after their norm.
    Latent {
        q_low: Option<(Tensor, Tensor)>,
        kv_low: (Tensor, Tensor),
    },
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
        grads: &mut Gradients,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(n.weight);
        let sum = grads.sum(n.weight, w)?;
        norm::backward(dy, x, w, n.rms, &sum, onto)
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
        grads: &mut Gradients,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(p.weight);
        linear::accumulate_weight(&p.of(&grads.sum(p.weight, w)?)?, dy, x)?;
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
        grads: &mut Gradients,
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
        grads: &mut Gradients,
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

    /// Queries, keys and values, ready for the attention.
    fn qkv_forward(
        &self,
        p: &BlockParams,
        x: &Tensor,
        batch: &Batch,
    ) -> Result<(Tensor, Tensor, Tensor, QkvTape), Error> {
        let rotation = batch.rotation(p.rotary)?;
        match p.qkv {
            Qkv::Direct { q, k, v, norms } => {
                let v = self.project(x, v)?;
                let (mut q, mut k) = (self.project(x, q)?, self.project(x, k)?);
                let mut raw = None;
                if let Some((q_norm, k_norm)) = norms {
                    let normed = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
                    raw = Some((q, k));
                    (q, k) = normed;
                }
                if let Some(rotation) = rotation {
                    q = rotation.forward(&q, p.turned)?;
                    k = rotation.forward(&k, p.turned)?;
                }
                Ok((q, k, v, QkvTape::Direct(raw)))
            }
            Qkv::Latent {
                q_low,
                q,
                kv_low,
                kv_norm,
                kv,
                shared,
                parts,
                shared_turned,
            } => {
                let mut q_kept = None;
                let mut queries = match q_low {
                    None => self.project(x, q)?,
                    Some((low, norm)) => {
                        let raw = self.project(x, low)?;
                        let normed = self.norm(&raw, norm)?;
                        let queries = self.project(&normed, q)?;
                        q_kept = Some((raw, normed));
                        queries
                    }
                };
                let raw = self.project(x, kv_low)?;
                let normed = self.norm(&raw, kv_norm)?;
                let kv = self.project(&normed, kv)?;
                let mut shared = self.project(x, shared)?;
                if let Some(rotation) = rotation {
                    queries = rotation.forward(&queries, p.turned)?;
                    shared = rotation.forward(&shared, shared_turned)?;
                }
                let (keys, values) = latent::forward(&kv, &shared, parts)?;
                let tape = QkvTape::Latent {
                    q_low: q_kept,
                    kv_low: (raw, normed),
                };
                Ok((queries, keys, values, tape))
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
        grads: &mut Gradients,
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
            (
                Qkv::Latent {
                    q_low,
                    q,
                    kv_low,
                    kv_norm,
                    kv,
                    shared,
                    parts,
                    shared_turned,
                },
                QkvTape::Latent {
                    q_low: q_kept,
                    kv_low: (raw, normed),
                },
            ) => {
                let (d_kv, mut d_shared) = latent::backward(&dk, &dv, parts)?;
                drop((dk, dv));
                if let Some(rotation) = rotation {
                    d_shared = rotation.backward(&d_shared, shared_turned)?;
                }
                let d_in = self.project_backward(&d_shared, x, shared, grads, None)?;
                let d_normed = self.project_backward(&d_kv, normed, kv, grads, None)?;
                let d_raw = self.norm_backward(&d_normed, raw, kv_norm, grads, None)?;
                let d_in = self.project_backward(&d_raw, x, kv_low, grads, Some(d_in))?;
                match (q_low, q_kept) {
                    (Some((low, norm)), Some((raw, normed))) => {
                        let d_normed = self.project_backward(&dq, normed, q, grads, None)?;
                        let d_raw = self.norm_backward(&d_normed, raw, norm, grads, None)?;
                        self.project_backward(&d_raw, x, low, grads, Some(d_in))
                    }
                    _ => self.project_backward(&dq, x, q, grads, Some(d_in)),
                }
            }
            _ => Err(Error::Internal("a tape of another kind of attention")),
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
        let (q, k, v, qkv) = self.qkv_forward(p, &attn_in, batch)?;

        let Some(tapes) = tapes else {
            drop((attn_in, qkv));
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
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        // y = middle + leave(down(activation(gate) * up))
        let d_mlp = self.leave_backward(&dy, tape.raw_mlp.as_ref(), p.mlp_norms, grads)?;
        let d_activated = self.project_backward(&d_mlp, &tape.activated, p.down, grads, None)?;
        drop(d_mlp);
        let (d_gate, d_up) = mlp::backward(&d_activated, &tape.gate, &tape.up, p.activation)?;
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

impl Projection {
    /// The rows of a tensor that are this projection's.
    fn of(self, tensor: &Tensor) -> Result<Tensor, Error> {
        match self.rows {
            None => Ok(tensor.clone()),
            Some((start, len)) => Ok(tensor.narrow(0, start, len)?),
        }
    }
}

/// Looks up the parameters of block `i` by name.
struct Finder<'a, F> {
    i: usize,
    architecture: &'a Architecture,
    find: &'a F,
}

impl<F: Fn(&str) -> Result<ParamId, Error>> Finder<'_, F> {
    fn id(&self, name: &str) -> Result<ParamId, Error> {
        (self.find)(&block_tensor(self.i, name))
    }

    fn norm(&self, name: &str, eps: f32) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.id(name)?,
            rms: Rms {
                eps,
                offset: self.architecture.norm_offset,
            },
        })
    }

    fn around(&self, names: NormNames) -> Result<Around, Error> {
        let norm = |name: Option<&'static str>| {
            name.map(|name| self.norm(name, self.architecture.norm_eps))
                .transpose()
        };
        Ok(Around {
            before: norm(names.before)?,
            after: norm(names.after)?,
        })
    }

    fn projection(&self, name: &str, has_bias: bool) -> Result<Projection, Error> {
        Ok(Projection {
            weight: self.id(&format!("{name}.weight"))?,
            bias: has_bias
                .then(|| self.id(&format!("{name}.bias")))
                .transpose()?,
            rows: None,
        })
    }

    /// Projections whose rows stand below each other in one matrix.
    fn fused<const N: usize>(
        &self,
        name: &str,
        has_bias: bool,
        lengths: [usize; N],
    ) -> Result<[Projection; N], Error> {
        let whole = self.projection(name, has_bias)?;
        let mut start = 0;
        Ok(lengths.map(|len| {
            let rows = Some((start, len));
            start += len;
            Projection { rows, ..whole }
        }))
    }

    fn latent(&self, block: &Block, sizes: Latent) -> Result<Qkv, Error> {
        let low_norm = |name: &str| self.norm(name, LATENT_NORM_EPS);
        let (q_low, q) = match sizes.query_rank {
            None => (None, self.projection("self_attn.q_proj", false)?),
            Some(_) => {
                let low = self.projection("self_attn.q_a_proj", sizes.bias)?;
                let norm = low_norm("self_attn.q_a_layernorm.weight")?;
                let q = self.projection("self_attn.q_b_proj", false)?;
                (Some((low, norm)), q)
            }
        };
        let [kv_low, shared] = self.fused(
            "self_attn.kv_a_proj_with_mqa",
            sizes.bias,
            [sizes.kv_rank, sizes.rotary_dim],
        )?;
        Ok(Qkv::Latent {
            q_low,
            q,
            kv_low,
            kv_norm: low_norm("self_attn.kv_a_layernorm.weight")?,
            kv: self.projection("self_attn.kv_b_proj", false)?,
            shared,
            parts: Parts {
                plain: block.head_dim - sizes.rotary_dim,
                rotated: sizes.rotary_dim,
                value: block.value_dim,
            },
            shared_turned: Turned {
                head_dim: sizes.rotary_dim,
                first: 0,
                interleaved: sizes.interleaved,
            },
        })
    }

    fn qk_norms(&self, kind: Option<QkNorm>) -> Result<Option<(Norm, Norm)>, Error> {
        let eps = self.architecture.norm_eps;
        kind.map(|_| {
            Ok((
                self.norm("self_attn.q_norm.weight", eps)?,
                self.norm("self_attn.k_norm.weight", eps)?,
            ))
        })
        .transpose()
    }
}

impl BlockParams {
    /// Finds the parameters of block `i`.
    pub(super) fn find(
        i: usize,
        architecture: &Architecture,
        find: &impl Fn(&str) -> Result<ParamId, Error>,
    ) -> Result<Self, Error> {
        let block = &architecture.blocks[i];
        let finder = Finder {
            i,
            architecture,
            find,
        };
        let [attn_norms, mlp_norms] = block.norms.tensor_names();
        let mut turned = Turned {
            head_dim: block.head_dim,
            first: 0,
            interleaved: false,
        };
        let qkv = match block.projections {
            Projections::Separate { bias } => Qkv::Direct {
                q: finder.projection("self_attn.q_proj", bias)?,
                k: finder.projection("self_attn.k_proj", bias)?,
                v: finder.projection("self_attn.v_proj", bias)?,
                norms: finder.qk_norms(block.qk_norm)?,
            },
            Projections::Fused => {
                let widths = [block.query_width(), block.key_width(), block.value_width()];
                let [q, k, v] = finder.fused("self_attn.qkv_proj", false, widths)?;
                let norms = finder.qk_norms(block.qk_norm)?;
                Qkv::Direct { q, k, v, norms }
            }
            Projections::Latent(sizes) => {
                turned.first = block.head_dim - sizes.rotary_dim;
                turned.interleaved = sizes.interleaved;
                finder.latent(block, sizes)?
            }
        };
        let wide = block.intermediate_size;
        let [gate, up] = if block.fused_mlp {
            finder.fused("mlp.gate_up_proj", block.mlp_bias, [wide, wide])?
        } else {
            [
                finder.projection("mlp.gate_proj", block.mlp_bias)?,
                finder.projection("mlp.up_proj", block.mlp_bias)?,
            ]
        };
        Ok(Self {
            attn_norms: finder.around(attn_norms)?,
            qkv,
            rotary: block.rotary,
            turned,
            shape: Shape {
                heads: block.num_heads,
                kv_heads: block.num_kv_heads,
                head_dim: block.head_dim,
                value_dim: block.value_dim,
                scale: block.score_scale,
                soft_cap: block.score_soft_cap,
                window: block.window,
            },
            o: finder.projection("self_attn.o_proj", block.output_bias)?,
            mlp_norms: finder.around(mlp_norms)?,
            gate,
            up,
            activation: block.activation,
            down: finder.projection("mlp.down_proj", block.mlp_bias)?,
        })
    }
}
