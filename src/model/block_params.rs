//! The tensors of a decoder: each is declared once, by name and shape, at its place in the
//! computation.
//!
//! Declaring is pure: [`Layers::declare`] turns an [`Architecture`] into the ids of all parameters and
//! the list of tensors that a checkpoint has to hold, in the order of the forward pass.

use candle_core::Tensor;

use super::Error;
use super::architecture::{
    Activation, Architecture, BlockConfig, EMBEDDING, LM_HEAD, MlaConfig, NormPlacement,
    Projections, QkNorm,
};
use super::kernels::{AttentionShape, MlaDims, RopeLayout};
use super::parameters::ParamId;

/// Added to the mean square in the norms inside latent attention: transformers makes them without the config's
/// value, so that the class's default counts.
const MLA_NORM_EPS: f32 = 1e-6;

/// A linear projection: all rows of a matrix, or those that belong to it in a fused one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projection {
    pub weight: ParamId,
    pub bias: Option<ParamId>,
    /// First row and number of rows.
    pub rows: Option<(usize, usize)>,
}

impl Projection {
    /// Returns the rows of a tensor that are this projection's.
    pub fn of(self, tensor: &Tensor) -> Result<Tensor, Error> {
        match self.rows {
            None => Ok(tensor.clone()),
            Some((start, len)) => Ok(tensor.narrow(0, start, len)?),
        }
    }
}

/// A norm: its weight and its constants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub weight: ParamId,
    pub eps: f32,
    pub offset: f32,
}

/// The norms around a sublayer: of what it is given, and of what it adds to the residual stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct SublayerNorms {
    pub pre: Option<Norm>,
    pub post: Option<Norm>,
}

/// The projections of queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) enum QkvParams {
    /// By a projection each, with norms of queries and keys where there are any.
    Direct {
        q: Projection,
        k: Projection,
        v: Projection,
        qk_norms: Option<(Norm, Norm)>,
    },
    /// Multi-head latent attention.
    Mla(MlaParams),
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
pub(super) enum MlaQuery {
    Direct(Projection),
    LowRank(LowRank),
}

/// The projections of latent attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct MlaParams {
    pub q: MlaQuery,
    pub kv: LowRank,
    /// The rotated part of the keys, which all heads share.
    pub k_rope: Projection,
    pub k_rope_layout: RopeLayout,
    pub dims: MlaDims,
}

/// One decoder block: the ids of its parameters, and the constants that belong to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// Id of the first of its parameters, and how many it has.
    pub params: (ParamId, usize),
    pub attn_norms: SublayerNorms,
    pub qkv: QkvParams,
    /// Index into [`Architecture::ropes`], and the features of a head that it rotates.
    pub rope: Option<(usize, RopeLayout)>,
    pub attention: AttentionShape,
    pub o: Projection,
    pub mlp_norms: SublayerNorms,
    pub gate: Projection,
    pub up: Projection,
    pub activation: Activation,
    pub down: Projection,
}

/// All that a decoder computes with: ids of its parameters, in the order of the forward pass.
#[derive(Debug)]
pub(super) struct Layers {
    pub embedding: ParamId,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    /// The embedding again where the head is tied to it.
    pub lm_head: ParamId,
}

/// Names and shapes, in the order of their declaration.
type Tensors = Vec<(String, Vec<usize>)>;

impl Layers {
    /// Declares all tensors of an architecture, in the order of the forward pass, which is that of files, of sums
    /// over parameters and of checkpoints. Returns their ids, and their names and shapes.
    pub fn declare(architecture: &Architecture) -> (Self, Tensors) {
        let hidden = architecture.hidden_size;
        let table = [architecture.vocab_size, hidden];
        let mut tensors = Tensors::new();
        let embedding = declare(&mut tensors, EMBEDDING, &table);
        let mut blocks = Vec::with_capacity(architecture.blocks.len());
        for (i, block) in architecture.blocks.iter().enumerate() {
            let mut declared = BlockDeclaration {
                prefix: format!("model.layers.{i}."),
                architecture,
                tensors: &mut tensors,
            };
            blocks.push(declared.block(block));
        }
        let final_norm = Norm {
            weight: declare(&mut tensors, "model.norm.weight", &[hidden]),
            eps: architecture.norm_eps,
            offset: architecture.norm_offset,
        };
        let lm_head = match architecture.tied_head {
            true => embedding,
            false => declare(&mut tensors, LM_HEAD, &table),
        };
        let layers = Self {
            embedding,
            blocks,
            final_norm,
            lm_head,
        };
        (layers, tensors)
    }
}

impl Architecture {
    /// Returns the name and shape of every tensor that a checkpoint of this architecture holds, in the order
    /// of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        Layers::declare(self).1
    }

    /// Returns the number of parameters.
    pub fn num_parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }
}

fn declare(tensors: &mut Tensors, name: &str, shape: &[usize]) -> ParamId {
    tensors.push((name.to_owned(), shape.to_vec()));
    tensors.len() - 1
}

/// The declaration of one block's tensors.
struct BlockDeclaration<'a> {
    prefix: String,
    architecture: &'a Architecture,
    tensors: &'a mut Tensors,
}

impl BlockDeclaration<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ParamId {
        let name = format!("{}{name}", self.prefix);
        declare(self.tensors, &name, shape)
    }

    fn norm_with(&mut self, name: &str, width: usize, eps: f32) -> Norm {
        Norm {
            weight: self.tensor(&format!("{name}.weight"), &[width]),
            eps,
            offset: self.architecture.norm_offset,
        }
    }

    fn norm(&mut self, name: &str, width: usize) -> Norm {
        self.norm_with(name, width, self.architecture.norm_eps)
    }

    /// Declares a norm of the residual stream, where there is one.
    fn block_norm(&mut self, name: Option<&str>) -> Option<Norm> {
        name.map(|name| self.norm(name, self.architecture.hidden_size))
    }

    fn projection(&mut self, name: &str, out: usize, inner: usize, bias: bool) -> Projection {
        let weight = self.tensor(&format!("{name}.weight"), &[out, inner]);
        Projection {
            weight,
            bias: bias.then(|| self.tensor(&format!("{name}.bias"), &[out])),
            rows: None,
        }
    }

    /// Declares projections whose rows stand below each other in one matrix.
    fn fused<const N: usize>(
        &mut self,
        name: &str,
        outs: [usize; N],
        inner: usize,
        bias: bool,
    ) -> [Projection; N] {
        let whole = self.projection(name, outs.iter().sum(), inner, bias);
        let mut start = 0;
        outs.map(|out| {
            let rows = Some((start, out));
            start += out;
            Projection { rows, ..whole }
        })
    }

    fn qk_norms(&mut self, block: &BlockConfig) -> Option<(Norm, Norm)> {
        let (q, k) = match block.qk_norm? {
            QkNorm::Head => (block.head_dim, block.head_dim),
            QkNorm::Projection => (block.query_width(), block.key_width()),
        };
        Some((
            self.norm("self_attn.q_norm", q),
            self.norm("self_attn.k_norm", k),
        ))
    }

    fn mla(&mut self, block: &BlockConfig, sizes: MlaConfig) -> MlaParams {
        let hidden = self.architecture.hidden_size;
        let q = match sizes.q_lora_rank {
            None => MlaQuery::Direct(self.projection(
                "self_attn.q_proj",
                block.query_width(),
                hidden,
                false,
            )),
            Some(rank) => MlaQuery::LowRank(LowRank {
                down: self.projection("self_attn.q_a_proj", rank, hidden, sizes.attention_bias),
                norm: self.norm_with("self_attn.q_a_layernorm", rank, MLA_NORM_EPS),
                up: self.projection("self_attn.q_b_proj", block.query_width(), rank, false),
            }),
        };
        let dims = MlaDims {
            nope: sizes.qk_nope_head_dim(block.head_dim),
            rope: sizes.qk_rope_head_dim,
            value: block.v_head_dim,
        };
        let rank = sizes.kv_lora_rank;
        let [down, k_rope] = self.fused(
            "self_attn.kv_a_proj_with_mqa",
            [rank, dims.rope],
            hidden,
            sizes.attention_bias,
        );
        MlaParams {
            q,
            kv: LowRank {
                down,
                norm: self.norm_with("self_attn.kv_a_layernorm", rank, MLA_NORM_EPS),
                up: self.projection(
                    "self_attn.kv_b_proj",
                    block.num_kv_heads * dims.kv_width(),
                    rank,
                    false,
                ),
            },
            k_rope,
            k_rope_layout: RopeLayout {
                head_dim: dims.rope,
                first: 0,
                interleaved: sizes.rope_interleave,
            },
            dims,
        }
    }

    fn block(&mut self, block: &BlockConfig) -> Block {
        let first = self.tensors.len();
        let hidden = self.architecture.hidden_size;
        const AFTER_ATTENTION: &str = "post_attention_layernorm";
        const AFTER_MLP: &str = "post_feedforward_layernorm";
        let (pre_attn, post_attn, pre_mlp, post_mlp) = match block.norms {
            // Llama's name for the norm before the feed-forward layer says what it stands after.
            NormPlacement::Pre => (Some("input_layernorm"), None, Some(AFTER_ATTENTION), None),
            NormPlacement::Post => (None, Some(AFTER_ATTENTION), None, Some(AFTER_MLP)),
            NormPlacement::PreAndPost => (
                Some("input_layernorm"),
                Some(AFTER_ATTENTION),
                Some("pre_feedforward_layernorm"),
                Some(AFTER_MLP),
            ),
        };
        let pre_attn = self.block_norm(pre_attn);
        let mut rope_layout = RopeLayout {
            head_dim: block.head_dim,
            first: 0,
            interleaved: false,
        };
        let widths = [block.query_width(), block.key_width(), block.value_width()];
        let qkv = match block.projections {
            Projections::Separate { bias } => {
                let [q_width, k_width, v_width] = widths;
                QkvParams::Direct {
                    q: self.projection("self_attn.q_proj", q_width, hidden, bias),
                    k: self.projection("self_attn.k_proj", k_width, hidden, bias),
                    v: self.projection("self_attn.v_proj", v_width, hidden, bias),
                    qk_norms: self.qk_norms(block),
                }
            }
            Projections::Fused => {
                let [q, k, v] = self.fused("self_attn.qkv_proj", widths, hidden, false);
                QkvParams::Direct {
                    q,
                    k,
                    v,
                    qk_norms: self.qk_norms(block),
                }
            }
            Projections::Mla(sizes) => {
                rope_layout.first = block.head_dim - sizes.qk_rope_head_dim;
                rope_layout.interleaved = sizes.rope_interleave;
                QkvParams::Mla(self.mla(block, sizes))
            }
        };
        let attn_width = block.attention_width();
        let o = self.projection("self_attn.o_proj", hidden, attn_width, block.output_bias);
        let (post_attn, pre_mlp) = (self.block_norm(post_attn), self.block_norm(pre_mlp));
        let (wide, bias) = (block.intermediate_size, block.mlp_bias);
        let [gate, up] = match block.fused_mlp {
            true => self.fused("mlp.gate_up_proj", [wide, wide], hidden, bias),
            false => ["mlp.gate_proj", "mlp.up_proj"]
                .map(|name| self.projection(name, wide, hidden, bias)),
        };
        let down = self.projection("mlp.down_proj", hidden, wide, bias);
        let post_mlp = self.block_norm(post_mlp);
        Block {
            params: (first, self.tensors.len() - first),
            attn_norms: SublayerNorms {
                pre: pre_attn,
                post: post_attn,
            },
            qkv,
            rope: block.rope.map(|index| (index, rope_layout)),
            attention: AttentionShape {
                num_heads: block.num_heads,
                num_kv_heads: block.num_kv_heads,
                head_dim: block.head_dim,
                v_head_dim: block.v_head_dim,
                scale: block.score_scale,
                soft_cap: block.score_soft_cap,
                window: block.window,
            },
            o,
            mlp_norms: SublayerNorms {
                pre: pre_mlp,
                post: post_mlp,
            },
            gate,
            up,
            activation: block.activation,
            down,
        }
    }
}
