//! What the operations are told besides their tensors: constants, layouts and widths.

use std::ops::Range;

use candle_core::Tensor;

use super::rope_table::RopeTable;
use super::soft_targets::SoftLoss;
use super::targets::WeightFn;

/// A root-mean-square norm, `y = x / sqrt(mean(x²) + eps) * (offset + w)`
/// (Zhang & Sennrich, arXiv 1910.07467).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNorm<'a> {
    /// `w`, f32.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 0, or 1 in Gemma's models.
    pub offset: f32,
}

/// Which features of a head RoPE rotates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RopeLayout {
    /// Features of a head.
    pub head_dim: usize,
    /// The first feature of a head that is rotated.
    pub first: usize,
    /// Whether neighbours are rotated together, and not those half the rotated features apart.
    pub interleaved: bool,
}

/// A rotation of features by position (RoPE).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rope<'a> {
    /// Angles of the batch's tokens.
    pub table: &'a RopeTable,
    /// Which features are rotated.
    pub layout: RopeLayout,
}

/// Which way RoPE rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeDirection {
    /// As in the forward pass.
    Forward,
    /// Back: the gradient with respect to the input.
    Backward,
}

impl RopeDirection {
    /// Returns the factor on the sines.
    pub fn sign(self) -> f32 {
        match self {
            Self::Forward => 1.0,
            Self::Backward => -1.0,
        }
    }
}

/// Features of a head in multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MlaDims {
    /// Key features that are not rotated.
    pub nope: usize,
    /// Key features that are rotated, and shared by all heads.
    pub rope: usize,
    /// Value features.
    pub value: usize,
}

impl MlaDims {
    /// Returns the features of a head's key.
    pub fn key(self) -> usize {
        self.nope + self.rope
    }

    /// Returns the features that a head has for itself: of its unrotated key and of its value.
    pub fn kv_width(self) -> usize {
        self.nope + self.value
    }
}

/// The shape of an attention: queries are `[T, num_heads * head_dim]`, keys `[T, num_kv_heads * head_dim]`;
/// values and the output have `v_head_dim` in place of `head_dim`. Query head `h` reads key head
/// `h / (num_heads / num_kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionShape {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Features of a head of queries and keys.
    pub head_dim: usize,
    /// Features of a head of values.
    pub v_head_dim: usize,
    /// Factor on the scores, before the softmax.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Number of positions that a query sees, its own included; `None` for all before it.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Returns how many query heads share a key head.
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Returns the first position that the query at `position` sees.
    pub fn first_seen(self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Returns the positions that a tile of queries sees between them.
    pub fn seen(self, tile: &Range<usize>) -> Range<usize> {
        self.first_seen(tile.start)..tile.end
    }

    /// Returns the features of a token's queries.
    pub fn query_width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Returns the features of a token's keys.
    pub fn key_width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Returns the features of a token's values.
    pub fn value_width(self) -> usize {
        self.num_kv_heads * self.v_head_dim
    }

    /// Returns the features of a token's output.
    pub fn out_width(self) -> usize {
        self.num_heads * self.v_head_dim
    }
}

/// Queries, keys and values of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Qkv<'a> {
    /// `[T, num_heads * head_dim]`.
    pub q: &'a Tensor,
    /// `[T, num_kv_heads * head_dim]`.
    pub k: &'a Tensor,
    /// `[T, num_kv_heads * v_head_dim]`.
    pub v: &'a Tensor,
}

/// What an attention computed.
#[derive(Debug, Clone)]
pub(crate) struct Attended {
    /// `[T, num_heads * v_head_dim]`.
    pub out: Tensor,
    /// Log-sum-exp of each query's scores, in the backend's own arrangement; `None` where its backward computes
    /// them again.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "cuda-emulator")),
        expect(dead_code, reason = "the CUDA backend alone has any")
    )]
    pub log_sums: Option<Tensor>,
}

/// The output head: `[V, H]`, and the range that its logits are squeezed into, if they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LmHead<'a> {
    /// The matrix.
    pub weight: &'a Tensor,
    /// Logits become `cap * tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
}

/// The loss over the targets: `sum of weight * -log p + z_loss * (log-sum-exp)²`, and of divergences.
pub(crate) struct LmLoss<'a, 'f> {
    /// Coefficient of the squared log-sum-exp of the logits; `None` for no such term.
    pub z_loss: Option<f32>,
    /// Gives the weights of each row in turn; they are constants to the gradient.
    pub token_weights: &'a mut WeightFn<'f>,
    /// Targets whose distribution is learnt, besides.
    pub soft: Option<SoftLoss<'a>>,
}

/// The constants of a step of AdamW (Loshchilov & Hutter, arXiv 1711.05101); all that depends on the
/// step's number is worked into them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    /// Factor on the gradient: clipping and the division by the step's global count.
    pub gradient_scale: f32,
    /// Factor on the parameter: what decoupled decay leaves of it.
    pub keep: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub root_correction: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

/// One parameter and its state, all of one shape, that a step of AdamW changes in place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWState<'a> {
    /// The parameter, f32.
    pub parameter: &'a Tensor,
    /// The tensor that the model computes with where that is not the f32 parameter itself.
    pub rounded: Option<&'a Tensor>,
    /// The gradient's sum, f32; zero after the step.
    pub gradient: &'a Tensor,
    /// Running mean of the gradient, f32.
    pub first_moment: &'a Tensor,
    /// Running mean of its square, f32.
    pub second_moment: &'a Tensor,
}
