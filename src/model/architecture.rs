//! The description of a decoder.
//!
//! Plain data: which norms a block has, how its heads are shaped, how positions are encoded. One
//! forward and one backward serve every family.

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
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Factor on the embeddings, where they enter the residual stream.
    pub embedding_scale: f32,
    /// Added to the mean square in every norm of the residual stream, of queries and of keys.
    pub norm_eps: f32,
    /// What a norm's weight is counted from: it multiplies by `norm_offset + weight`.
    pub norm_offset: f32,
    /// Logits are squeezed into this range: `cap * tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
    /// The rotations by position that blocks choose from.
    pub rotaries: Vec<Rotary>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
}

/// A rotation of queries and keys by their position.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rotary {
    /// Radians a position, one for each pair of rotated features.
    pub frequencies: Vec<f32>,
    /// Other frequencies for long rows, where there are any.
    pub long: Option<LongRotary>,
    /// Factor on rotated features.
    pub scale: f32,
}

/// Frequencies of rows that are longer than what a model was first trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LongRotary {
    /// They count in rows of more tokens than this.
    pub above_tokens: usize,
    /// Radians a position, one for each pair of rotated features.
    pub frequencies: Vec<f32>,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormPlacement {
    /// `x += attention(norm(x)); x += mlp(norm(x))`
    Before,
    /// `x += norm(attention(x)); x += norm(mlp(x))`
    After,
    /// `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`
    Both,
}

/// What the norm of queries and keys, before rotation, spans.
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
    Latent(Latent),
}

/// The sizes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
///
/// Queries and keys have `head_dim` features of which the last `rotary_dim` are rotated; those of
/// the keys are one vector for all heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latent {
    /// Width between the two query projections; `None` when there is just one.
    pub query_rank: Option<usize>,
    /// Width between the two projections of keys and values.
    pub kv_rank: usize,
    /// Features of a head that are rotated.
    pub rotary_dim: usize,
    /// Whether neighbouring features turn together, and not those half a head apart.
    pub interleaved: bool,
    /// Whether the first projections have biases.
    pub bias: bool,
}

/// The function on the gate of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU in its approximation by a hyperbolic tangent.
    GeluTanh,
}

/// One decoder block: attention, then a gated feed-forward layer, each added to the residual stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Block {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Features of a head of queries and keys.
    pub head_dim: usize,
    /// Features of a head of values.
    pub value_dim: usize,
    /// How queries, keys and values are made.
    pub projections: Projections,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether and how queries and keys are normalized, before rotation.
    pub qk_norm: Option<QkNorm>,
    /// Which of [`Architecture::rotaries`] turns queries and keys; `None` for no rotation.
    pub rotary: Option<usize>,
    /// Number of positions that a token sees, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// Factor on the products of queries and keys.
    pub score_scale: f32,
    /// Scores are squeezed into this range: `cap * tanh(score / cap)`.
    pub score_soft_cap: Option<f32>,
    /// Where the norms stand.
    pub norms: NormPlacement,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// The function on its gate.
    pub activation: Activation,
    /// Whether one matrix makes the gate and what it multiplies.
    pub fused_mlp: bool,
    /// Whether its projections have biases.
    pub mlp_bias: bool,
}

impl Block {
    /// Features of the queries of a token, all heads together.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Features of the keys of a token.
    pub fn key_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Features of the values of a token.
    pub fn value_width(&self) -> usize {
        self.num_kv_heads * self.value_dim
    }

    /// Features of what the attention gives its output projection.
    pub fn attention_width(&self) -> usize {
        self.num_heads * self.value_dim
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
        let (name, turned) = match self.projections {
            Projections::Latent(latent) => ("qk_rope_head_dim", latent.rotary_dim),
            _ => ("head_dim", self.head_dim),
        };
        if turned < 2 || !turned.is_multiple_of(2) {
            return Err(format!("{name} {turned} is not even, as RoPE needs"));
        }
        if self.head_dim > MAX_HEAD_DIM || self.value_dim > MAX_HEAD_DIM {
            return Err(format!(
                "head_dim {} is more than {MAX_HEAD_DIM}",
                self.head_dim.max(self.value_dim)
            ));
        }
        if self.window == Some(0) {
            return Err("sliding_window is 0".to_owned());
        }
        if self.value_dim == 0 {
            return Err("a head of values has no features".to_owned());
        }
        if let Projections::Latent(latent) = self.projections
            && (latent.kv_rank == 0 || latent.query_rank == Some(0))
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
    /// Whether the sizes fit together; the problem if they don't.
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
            if let Some(rotary) = block.rotary {
                let rotated = self.rotaries.get(rotary).map(|r| 2 * r.frequencies.len());
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
        for rotary in &self.rotaries {
            let long = rotary.long.iter().flat_map(|long| &long.frequencies);
            let all = rotary.frequencies.iter().chain(long).chain([&rotary.scale]);
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
