//! The description of a decoder, and the tensors that it asks for.
//!
//! Plain data, in the terms of the papers and of config.json: which norms a block has, how its heads are
//! shaped, how positions are encoded. One forward and one backward serve every family.

/// Largest number of features of a head; half as many frequencies are computed for it.
pub(super) const MAX_HEAD_DIM: usize = 1 << 16;

/// Everything about a decoder but its weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Rows of the embedding; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding (`tie_word_embeddings`).
    pub tied_head: bool,
    /// Factor on the embeddings, where they enter the residual stream.
    pub embedding_scale: f32,
    /// Added to the mean square in every norm of the residual stream, of queries and of keys.
    pub norm_eps: f32,
    /// Offset of the norms' weights: a norm multiplies by `norm_offset + weight`.
    pub norm_offset: f32,
    /// Logits are squeezed into this range: `cap * tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
    /// The RoPE configurations that blocks choose from.
    pub ropes: Vec<RopeConfig>,
    /// The blocks, first to last.
    pub blocks: Vec<BlockConfig>,
}

/// Rotary position embedding of queries and keys (Su et al., arXiv 2104.09864), with its scaling applied.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Radians per position, one for each pair of rotated features (`inv_freq`).
    pub frequencies: Vec<f32>,
    /// Other frequencies for long rows, where there are any.
    pub long: Option<LongRopeConfig>,
    /// Factor on rotated features (`attention_factor`).
    pub scale: f32,
}

/// LongRoPE's frequencies of rows that are longer than what a model was first trained on
/// (arXiv 2402.13753).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LongRopeConfig {
    /// They count in rows of more tokens than this.
    pub above_tokens: usize,
    /// Radians per position, one for each pair of rotated features.
    pub frequencies: Vec<f32>,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormPlacement {
    /// Pre-norm: `x += attention(norm(x)); x += mlp(norm(x))`
    Pre,
    /// Of a sublayer's output, within the residual connection: `x += norm(attention(x)); x += norm(mlp(x))`
    Post,
    /// Sandwich norm: `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`
    PreAndPost,
}

/// Span of the norm of queries and keys, before RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head by itself; one weight for all heads.
    Head,
    /// All heads together.
    Projection,
}

/// How queries, keys and values are made from the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Projections {
    /// By a matrix each.
    Separate {
        /// Whether they have biases.
        bias: bool,
    },
    /// By one matrix; its rows are those of the queries, of the keys, of the values.
    Fused,
    /// From low-rank projections, normalized in between (multi-head latent attention).
    Mla(MlaConfig),
}

/// Multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434).
///
/// Queries and keys have `head_dim` features, of which RoPE applies to the last `qk_rope_head_dim`; those
/// of the keys are one vector for all heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MlaConfig {
    /// Width between the two query projections; `None` when there is just one.
    pub q_lora_rank: Option<usize>,
    /// Width between the two projections of keys and values.
    pub kv_lora_rank: usize,
    /// Features of a head that RoPE applies to.
    pub qk_rope_head_dim: usize,
    /// Whether RoPE rotates neighbouring features together, and not those half a head apart.
    pub rope_interleave: bool,
    /// Whether the first projections have biases.
    pub attention_bias: bool,
}

impl MlaConfig {
    /// Returns the features of a head of `head_dim` that RoPE does not apply to.
    pub(crate) fn qk_nope_head_dim(&self, head_dim: usize) -> usize {
        head_dim - self.qk_rope_head_dim
    }
}

/// Activation function on the gate of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU in its approximation by a hyperbolic tangent.
    GeluTanh,
}

/// Configuration of one decoder block: attention, then a gated feed-forward layer, each added to the residual stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Features of a head of queries and keys.
    pub head_dim: usize,
    /// Features of a head of values.
    pub v_head_dim: usize,
    /// How queries, keys and values are made.
    pub projections: Projections,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// How queries and keys are normalized, before RoPE; `None` if they are not.
    pub qk_norm: Option<QkNorm>,
    /// Index of the block's RoPE in [`Architecture::ropes`]; `None` for no position embedding (NoPE).
    pub rope: Option<usize>,
    /// Positions that a token attends to, itself included (sliding window); `None` for all up to it.
    pub window: Option<usize>,
    /// Factor on the dot products of queries and keys.
    pub score_scale: f32,
    /// Scores are squeezed into this range: `cap * tanh(score / cap)`.
    pub score_soft_cap: Option<f32>,
    /// Where the norms stand.
    pub norms: NormPlacement,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Activation function on its gate.
    pub activation: Activation,
    /// Whether gate and up projection are one matrix.
    pub fused_mlp: bool,
    /// Whether its projections have biases.
    pub mlp_bias: bool,
}

/// Names of the norms around a sublayer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormNames {
    /// The norm of the sublayer's input.
    pub before: Option<&'static str>,
    /// The norm of its output, before that is added to the residual stream.
    pub after: Option<&'static str>,
}

impl NormPlacement {
    /// Returns the names of the norms around the attention and around the feed-forward layer.
    pub(crate) fn tensor_names(self) -> [NormNames; 2] {
        const ATTENTION: &str = "post_attention_layernorm.weight";
        const AFTER_MLP: &str = "post_feedforward_layernorm.weight";
        let names = |before, after| NormNames { before, after };
        match self {
            Self::Pre => [
                names(Some("input_layernorm.weight"), None),
                // As it stands after the attention, before the feed-forward layer.
                names(Some(ATTENTION), None),
            ],
            Self::Post => [names(None, Some(ATTENTION)), names(None, Some(AFTER_MLP))],
            Self::PreAndPost => [
                names(Some("input_layernorm.weight"), Some(ATTENTION)),
                names(Some("pre_feedforward_layernorm.weight"), Some(AFTER_MLP)),
            ],
        }
    }
}

impl BlockConfig {
    /// Returns the features of a token's queries, all heads together.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Returns the features of a token's keys.
    pub fn key_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Returns the features of a token's values.
    pub fn value_width(&self) -> usize {
        self.num_kv_heads * self.v_head_dim
    }

    /// Returns the input features of the attention's output projection.
    pub fn attention_width(&self) -> usize {
        self.num_heads * self.v_head_dim
    }

    fn validate(&self) -> Result<(), String> {
        if self.num_heads == 0 || self.num_kv_heads == 0 || self.intermediate_size == 0 {
            return Err("a block has no heads or an intermediate_size of 0".to_owned());
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_heads, self.num_kv_heads
            ));
        }
        let (name, rotated) = match self.projections {
            Projections::Mla(mla) => ("qk_rope_head_dim", mla.qk_rope_head_dim),
            _ => ("head_dim", self.head_dim),
        };
        if rotated < 2 || !rotated.is_multiple_of(2) {
            return Err(format!("{name} {rotated} is not even, as RoPE needs"));
        }
        if self.head_dim > MAX_HEAD_DIM || self.v_head_dim > MAX_HEAD_DIM {
            return Err(format!(
                "head_dim {} is more than {MAX_HEAD_DIM}",
                self.head_dim.max(self.v_head_dim)
            ));
        }
        if self.window == Some(0) {
            return Err("sliding_window is 0".to_owned());
        }
        if self.v_head_dim == 0 {
            return Err("a head of values has no features".to_owned());
        }
        if let Projections::Mla(mla) = self.projections
            && (mla.kv_lora_rank == 0 || mla.q_lora_rank == Some(0))
        {
            return Err("a rank of latent attention is 0".to_owned());
        }
        if !(self.score_scale.is_finite() && self.score_scale > 0.0) {
            return Err("the factor on attention scores is not a positive number".to_owned());
        }
        Ok(())
    }

    /// Returns names, without the block's prefix, and shapes of its tensors, in the order of the forward pass.
    fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_owned(), shape.to_vec()));
        let [attention_norms, mlp_norms] = self.norms.tensor_names();
        if let Some(name) = attention_norms.before {
            add(name, &[hidden]);
        }
        let (q, k, v) = (self.query_width(), self.key_width(), self.value_width());
        match self.projections {
            Projections::Separate { bias } => {
                for (name, out) in [("q_proj", q), ("k_proj", k), ("v_proj", v)] {
                    add(&format!("self_attn.{name}.weight"), &[out, hidden]);
                    if bias {
                        add(&format!("self_attn.{name}.bias"), &[out]);
                    }
                }
            }
            Projections::Fused => add("self_attn.qkv_proj.weight", &[q + k + v, hidden]),
            Projections::Mla(mla) => {
                match mla.q_lora_rank {
                    None => add("self_attn.q_proj.weight", &[q, hidden]),
                    Some(rank) => {
                        add("self_attn.q_a_proj.weight", &[rank, hidden]);
                        if mla.attention_bias {
                            add("self_attn.q_a_proj.bias", &[rank]);
                        }
                        add("self_attn.q_a_layernorm.weight", &[rank]);
                        add("self_attn.q_b_proj.weight", &[q, rank]);
                    }
                }
                let rank = mla.kv_lora_rank;
                let first = rank + mla.qk_rope_head_dim;
                add("self_attn.kv_a_proj_with_mqa.weight", &[first, hidden]);
                if mla.attention_bias {
                    add("self_attn.kv_a_proj_with_mqa.bias", &[first]);
                }
                add("self_attn.kv_a_layernorm.weight", &[rank]);
                let nope = self.num_kv_heads * mla.qk_nope_head_dim(self.head_dim);
                add("self_attn.kv_b_proj.weight", &[nope + v, rank]);
            }
        }
        if let Some(kind) = self.qk_norm {
            let (q_width, k_width) = match kind {
                QkNorm::Head => (self.head_dim, self.head_dim),
                QkNorm::Projection => (q, k),
            };
            add("self_attn.q_norm.weight", &[q_width]);
            add("self_attn.k_norm.weight", &[k_width]);
        }
        add("self_attn.o_proj.weight", &[hidden, self.attention_width()]);
        if self.output_bias {
            add("self_attn.o_proj.bias", &[hidden]);
        }
        for name in [attention_norms.after, mlp_norms.before]
            .into_iter()
            .flatten()
        {
            add(name, &[hidden]);
        }
        let wide = self.intermediate_size;
        let mut projections = match self.fused_mlp {
            true => vec![("gate_up_proj", 2 * wide, hidden)],
            false => vec![("gate_proj", wide, hidden), ("up_proj", wide, hidden)],
        };
        projections.push(("down_proj", hidden, wide));
        for (name, out, inner) in projections {
            add(&format!("mlp.{name}.weight"), &[out, inner]);
            if self.mlp_bias {
                add(&format!("mlp.{name}.bias"), &[out]);
            }
        }
        if let Some(name) = mlp_norms.after {
            add(name, &[hidden]);
        }
        tensors
    }
}

impl Architecture {
    /// Checks that the sizes fit together; returns the problem if they don't.
    pub(super) fn validate(&self) -> Result<(), String> {
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.blocks.len()),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 {
                return Err(format!("{name} is 0"));
            }
        }
        for block in &self.blocks {
            block.validate()?;
            if let Some(rope) = block.rope {
                let rotated = self.ropes.get(rope).map(|r| 2 * r.frequencies.len());
                if rotated.is_none_or(|rotated| rotated == 0 || rotated > block.head_dim) {
                    return Err(format!(
                        "RoPE turns {} features of a head, which has {}",
                        rotated.unwrap_or(0),
                        block.head_dim
                    ));
                }
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps {} makes no sense", self.norm_eps));
        }
        for rope in &self.ropes {
            let long = rope.long.iter().flat_map(|long| &long.frequencies);
            let all = rope.frequencies.iter().chain(long).chain([&rope.scale]);
            if !all.copied().all(f32::is_finite) {
                return Err("the RoPE parameters give frequencies that are not finite".to_owned());
            }
        }
        Ok(())
    }

    /// Returns name and shape of every tensor that a checkpoint of this architecture holds, in the order
    /// of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut tensors = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, hidden])];
        for (i, block) in self.blocks.iter().enumerate() {
            let named = block.tensors(hidden).into_iter();
            tensors.extend(named.map(|(name, shape)| (block_tensor(i, &name), shape)));
        }
        tensors.push((FINAL_NORM.to_owned(), vec![hidden]));
        if !self.tied_head {
            tensors.push((HEAD.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// Returns the number of parameters.
    pub fn num_parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }
}

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the last norm.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// Name of an untied output head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Returns the name of a tensor of block `i`.
pub(crate) fn block_tensor(i: usize, name: &str) -> String {
    format!("model.layers.{i}.{name}")
}
