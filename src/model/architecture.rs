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
    /// `model_type` of config.json, or of the `text_config` in it.
    pub model_type: String,
    /// `model_type` of the multimodal model that this decoder is the text part of; `None` for a model of text.
    pub multimodal: Option<String>,
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
}

impl Architecture {
    /// Returns the `model_type` at the top of config.json.
    pub fn outer_model_type(&self) -> &str {
        self.multimodal.as_deref().unwrap_or(&self.model_type)
    }

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
                        "RoPE rotates {} features of a head, which has {}",
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
}

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of an untied output head.
pub(crate) const LM_HEAD: &str = "lm_head.weight";
