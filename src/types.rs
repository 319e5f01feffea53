//! The words that every stage shares: documents, rows and scored rows.
//!
//! Log-probabilities are natural logarithms, in nats. A *target* is a position that is predicted,
//! i.e. every position of a row but the first, so the per-target vectors of a row of `n` tokens
//! hold `n - 1` values: element `i` belongs to the token at position `i + 1`. The missing first
//! value never exists in memory, so it can't be mistaken for a log-prob of 0.

use std::sync::Arc;

/// A token's id in the vocabulary of the model.
pub type TokenId = u32;

/// One record of the corpus, before tokenization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Path of the file relative to the corpus root, with `/` between its components.
    pub source: Arc<str>,
    /// Number of the record in its file, from 0.
    pub index: u64,
    /// The text.
    pub text: String,
}

/// One document as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedDocument {
    /// As in [`Document::source`].
    pub source: Arc<str>,
    /// As in [`Document::index`].
    pub index: u64,
    /// Token ids, with BOS and EOS where the policy asks for them.
    pub input_ids: Vec<TokenId>,
}

/// One attention context: the unit that is scored, stored and trained on.
///
/// No token of a row attends to a token of another row, in the scorer or in the learner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Source of the document that holds the row's first token.
    pub source: Arc<str>,
    /// Record number of that document in its file.
    pub doc_index: u64,
    /// Positions in the row at which a document begins, ascending; empty when the row starts and
    /// ends inside one document.
    pub doc_starts: Vec<u32>,
    /// Token ids; at least 2, since a row without a target carries no loss.
    pub input_ids: Vec<TokenId>,
}

impl Row {
    /// Number of predicted positions.
    pub fn num_targets(&self) -> usize {
        self.input_ids.len().saturating_sub(1)
    }
}

/// A row with what the models say about it. Every vector has [`Row::num_targets`] elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRow {
    /// The context.
    pub row: Row,
    /// `log p_RL(x_t | x_<t)`, nats, one a target.
    pub rl_logprobs: Vec<f32>,
    /// The same under the frozen base, when a base was scored.
    pub base_logprobs: Option<Vec<f32>>,
    /// The static weight of each target, when a base was scored.
    pub weights: Option<Vec<f32>>,
}

/// Bits of the mantissa that a stored float keeps, unless all 23 are asked for.
pub const STORED_MANTISSA_BITS: u32 = 12;

/// Rounds to [`STORED_MANTISSA_BITS`] bits of mantissa, to nearest, ties to even.
///
/// The relative error is at most 2⁻¹³: 0.001 nats for a log-prob of -8, 0.002 for one of -16. Zeros
/// in the low bits are what lets a log-prob compress to about 2 bytes.
///
/// # Examples
///
/// ```
/// use remit::types::round_mantissa;
///
/// assert_eq!(round_mantissa(-1.0), -1.0);
/// assert!((round_mantissa(-15.999) + 15.999).abs() < 0.002);
/// assert_eq!(round_mantissa(round_mantissa(-0.1)), round_mantissa(-0.1));
/// ```
pub fn round_mantissa(value: f32) -> f32 {
    const DROPPED: u32 = f32::MANTISSA_DIGITS - 1 - STORED_MANTISSA_BITS;
    if !value.is_finite() {
        return value;
    }
    let bits = value.to_bits();
    let half = (1 << (DROPPED - 1)) - 1;
    let even = (bits >> DROPPED) & 1;
    f32::from_bits((bits + half + even) & !((1 << DROPPED) - 1))
}
