//! Where the parameters of a block are, and what it does with them.

use candle_core::Tensor;

use super::Error;
use super::architecture::{
    Activation, Architecture, BlockConfig, MlaConfig, NormNames, Projections, QkNorm, block_tensor,
};
use super::ops::attention::Shape;
use super::ops::latent::Parts;
use super::ops::norm::Rms;
use super::ops::rope::Turned;
use super::parameters::ParamId;

/// Added to the mean square in the norms inside latent attention, whatever the config says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// A linear projection: all rows of a matrix, or those that belong to it in a fused one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projection {
    pub weight: ParamId,
    pub bias: Option<ParamId>,
    /// First row and number of rows.
    pub rows: Option<(usize, usize)>,
}

/// A norm: its weight and its constants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub weight: ParamId,
    pub rms: Rms,
}

impl Norm {
    /// A norm of this architecture; those inside latent attention have an epsilon of their own.
    pub fn new(weight: ParamId, eps: f32, architecture: &Architecture) -> Self {
        let offset = architecture.norm_offset;
        Self {
            weight,
            rms: Rms { eps, offset },
        }
    }
}

/// The norms around a sublayer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    pub before: Option<Norm>,
    pub after: Option<Norm>,
}

/// How queries, keys and values are made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Qkv {
    Direct {
        q: Projection,
        k: Projection,
        v: Projection,
        norms: Option<(Norm, Norm)>,
    },
    Latent(LatentParams),
}

/// Two projections with a norm in between.
#[derive(Debug, Clone, Copy)]
pub(super) struct LowRank {
    pub down: Projection,
    pub norm: Norm,
    pub up: Projection,
}

/// The queries of latent attention.
#[derive(Debug, Clone, Copy)]
pub(super) enum LatentQuery {
    Direct(Projection),
    LowRank(LowRank),
}

/// The projections of latent attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentParams {
    pub q: LatentQuery,
    pub kv: LowRank,
    /// The part of the keys that all heads share, and how it turns.
    pub shared: Projection,
    pub shared_turned: Turned,
    pub parts: Parts,
}

/// Where the parameters of one block are, and what it does with them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockParams {
    pub attn_norms: Around,
    pub qkv: Qkv,
    pub rotary: Option<usize>,
    pub turned: Turned,
    pub shape: Shape,
    pub o: Projection,
    pub mlp_norms: Around,
    pub gate: Projection,
    pub up: Projection,
    pub activation: Activation,
    pub down: Projection,
}

impl Projection {
    /// The rows of a tensor that are this projection's.
    pub fn of(self, tensor: &Tensor) -> Result<Tensor, Error> {
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
        Ok(Norm::new(self.id(name)?, eps, self.architecture))
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

    fn latent(&self, block: &BlockConfig, sizes: MlaConfig) -> Result<LatentParams, Error> {
        let low_rank = |down, norm: &str, up: &str| -> Result<LowRank, Error> {
            Ok(LowRank {
                down,
                norm: self.norm(norm, LATENT_NORM_EPS)?,
                up: self.projection(up, false)?,
            })
        };
        let q = match sizes.q_lora_rank {
            None => LatentQuery::Direct(self.projection("self_attn.q_proj", false)?),
            Some(_) => LatentQuery::LowRank(low_rank(
                self.projection("self_attn.q_a_proj", sizes.attention_bias)?,
                "self_attn.q_a_layernorm.weight",
                "self_attn.q_b_proj",
            )?),
        };
        let [down, shared] = self.fused(
            "self_attn.kv_a_proj_with_mqa",
            sizes.attention_bias,
            [sizes.kv_lora_rank, sizes.qk_rope_head_dim],
        )?;
        Ok(LatentParams {
            q,
            kv: low_rank(
                down,
                "self_attn.kv_a_layernorm.weight",
                "self_attn.kv_b_proj",
            )?,
            shared,
            shared_turned: Turned {
                head_dim: sizes.qk_rope_head_dim,
                first: 0,
                interleaved: sizes.rope_interleave,
            },
            parts: Parts {
                plain: block.head_dim - sizes.qk_rope_head_dim,
                rotated: sizes.qk_rope_head_dim,
                value: block.v_head_dim,
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
    pub fn find(
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
            Projections::Mla(sizes) => {
                turned.first = block.head_dim - sizes.qk_rope_head_dim;
                turned.interleaved = sizes.rope_interleave;
                Qkv::Latent(finder.latent(block, sizes)?)
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
            rotary: block.rope,
            turned,
            shape: Shape {
                heads: block.num_heads,
                kv_heads: block.num_kv_heads,
                head_dim: block.head_dim,
                value_dim: block.v_head_dim,
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
