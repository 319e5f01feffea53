//! The words that every stage shares: documents, rows and scored rows.
//!
//! Log-probabilities are natural logarithms, in nats. A *target* is a position that is predicted,
//! i.e. every position of a row but the first, so the per-target vectors of a row of `n` tokens
//! hold `n - 1` values: element `i` belongs to the token at position `i + 1`. The missing first
//! value never exists in memory, so it can't be mistaken for a log-prob of 0. Where a mask of the corpus
//! says that other positions are no targets either, their elements are there, and count for nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A token's id in the vocabulary of the model.
pub type TokenId = u32;

/// One record of the corpus, before tokenization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Path of the file relative to the corpus root, with `/` between its components.
    pub source: Arc<str>,
    /// Number of the record in its file, from 0.
    pub index: u64,
    /// What it says.
    pub content: Content,
}

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text, still to be tokenized.
    Text(String),
    /// Token ids that somebody else's tokenizer made; they are taken as they are.
    Ids {
        /// The ids.
        ids: Vec<TokenId>,
        /// As in [`TokenizedDocument::loss_mask`].
        loss_mask: Option<Vec<bool>>,
    },
    /// Messages of a chat, which a template makes text of.
    Messages {
        /// A JSON array of objects.
        messages: String,
        /// A JSON array of the tools that may be called.
        tools: Option<String>,
    },
}

impl Content {
    /// Returns the size in memory, bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ids { ids, .. } => size_of_val(ids.as_slice()),
            Self::Messages { messages, tools } => {
                messages.len() + tools.as_ref().map_or(0, String::len)
            }
        }
    }
}

/// Dtype of the ids in a file without a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TokenDtype {
    /// Two bytes per id, little-endian.
    Uint16,
    /// Four bytes per id, little-endian.
    Uint32,
}

/// How a record that can't be read is treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRecord {
    /// It ends the run.
    #[default]
    Fail,
    /// It is left out, and listed by remit-inspect rejects.
    Skip,
}

/// A record that was left out since it can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reject {
    /// As in [`Document::source`].
    pub source: String,
    /// As in [`Document::index`].
    pub doc_index: u64,
    /// What is wrong with it.
    pub reason: String,
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
    /// For each token whether it is to be predicted; `None` when all are.
    pub loss_mask: Option<Vec<bool>>,
    /// Number of special tokens that its text spelled out; BOS and EOS around it are none.
    pub num_spelled: u64,
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
    /// For each token whether it is to be predicted, which one after the first is; `None` when all are.
    pub loss_mask: Option<Vec<bool>>,
}

impl Row {
    /// Returns the token ids.
    pub fn ids(&self) -> &[TokenId] {
        &self.input_ids
    }

    /// Returns the number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Returns for each position after the first whether it is a target; `None` when all are.
    pub fn target_mask(&self) -> Option<&[bool]> {
        self.loss_mask.as_deref()?.get(1..)
    }

    /// Adds what the models say about it; each vector has an element for each position after the first. Those
    /// that are no targets lose what the models say about them.
    pub fn scored(
        self,
        mut rl_logprobs: Vec<f32>,
        mut base_logprobs: Option<Vec<f32>>,
        mut weights: Option<Vec<f32>>,
    ) -> ScoredRow {
        let mask = self.target_mask().filter(|mask| mask.contains(&false));
        let target_mask = mask.map(<[bool]>::to_vec);
        let Self {
            source,
            doc_index,
            doc_starts,
            input_ids,
            ..
        } = self;
        if let Some(mask) = &target_mask {
            let all = [
                Some(&mut rl_logprobs),
                base_logprobs.as_mut(),
                weights.as_mut(),
            ];
            for values in all.into_iter().flatten() {
                for (value, _) in values.iter_mut().zip(mask).filter(|(_, is)| !**is) {
                    *value = 0.0;
                }
            }
        }
        ScoredRow {
            source,
            doc_index,
            doc_starts,
            input_ids,
            rl_logprobs,
            base_logprobs,
            weights,
            target_mask,
            distributions: Distributions::default(),
        }
    }
}

/// A row with what the models say about it: the fields of [`Row`], and vectors with an element for each position after
/// the first.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRow {
    /// As in [`Row::source`].
    pub source: Arc<str>,
    /// As in [`Row::doc_index`].
    pub doc_index: u64,
    /// As in [`Row::doc_starts`].
    pub doc_starts: Vec<u32>,
    /// As in [`Row::input_ids`].
    pub input_ids: Vec<TokenId>,
    /// `log p_RL(x_t | x_<t)`, nats, one per target.
    pub rl_logprobs: Vec<f32>,
    /// The same under the frozen base, when a base was scored.
    pub base_logprobs: Option<Vec<f32>>,
    /// The static weight of each target, when a base was scored.
    pub weights: Option<Vec<f32>>,
    /// Whether each of these positions is a target, as a mask of the corpus has it; `None` when all are. The
    /// values of the others are 0, and stand for nothing.
    pub target_mask: Option<Vec<bool>>,
    /// What is known of the RL model's distributions besides.
    pub distributions: Distributions,
}

impl ScoredRow {
    /// Returns the token ids.
    pub fn ids(&self) -> &[TokenId] {
        &self.input_ids
    }

    /// Returns the number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Returns the number of targets.
    pub fn num_targets(&self) -> usize {
        match &self.target_mask {
            None => self.input_ids.len().saturating_sub(1),
            Some(mask) => mask.iter().filter(|is_target| **is_target).count(),
        }
    }

    /// Adds what is known of the RL model's distributions. Positions that are no targets lose theirs.
    #[must_use]
    pub fn with_distributions(mut self, mut distributions: Distributions) -> Self {
        if let Some(mask) = &self.target_mask {
            for (entropy, is_target) in distributions.entropies.iter_mut().flatten().zip(mask) {
                *entropy = if *is_target { *entropy } else { 0.0 };
            }
            if let Some(top) = &mut distributions.top {
                top.retain(|target| mask.get(target).copied().unwrap_or(false));
            }
        }
        self.distributions = distributions;
        self
    }

    /// Returns whether the position after the first with this index is a target.
    pub fn is_target(&self, index: usize) -> bool {
        match &self.target_mask {
            None => true,
            Some(mask) => mask.get(index).copied().unwrap_or(false),
        }
    }
}

/// What is known of a model's next-token distributions at the targets of a row, at some temperature.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distributions {
    /// Entropy, nats, one per target; `None` where none was asked for.
    pub entropies: Option<Vec<f32>>,
    /// The most likely tokens; `None` where none were asked for.
    pub top: Option<TopTokens>,
}

/// The most likely tokens at some targets of a row, and what is left to all others.
///
/// The probabilities of the `k` tokens and of the tail sum to 1: the tail is one more class, and nothing is
/// renormalized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopTokens {
    /// Tokens per target.
    pub k: usize,
    /// Indices of the targets, ascending.
    pub targets: Vec<u32>,
    /// `k` ids for each of these targets, the most likely first; among equals the smallest id.
    pub ids: Vec<TokenId>,
    /// Their log-probs, nats.
    pub log_probs: Vec<f32>,
    /// Log of the probability of all other tokens together, one per target of these.
    pub tail_log_probs: Vec<f32>,
}

impl TopTokens {
    /// Keeps the targets that `keep` returns true for, given their index in the row.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut kept = Self {
            k: self.k,
            ..Self::default()
        };
        for (i, &target) in self.targets.iter().enumerate() {
            if keep(target as usize) {
                let range = i * self.k..(i + 1) * self.k;
                kept.targets.push(target);
                kept.ids.extend(&self.ids[range.clone()]);
                kept.log_probs.extend(&self.log_probs[range]);
                kept.tail_log_probs.push(self.tail_log_probs[i]);
            }
        }
        *self = kept;
    }
}

/// What is to be stored of the RL model's distributions, besides the log-probs of the targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributionPlan {
    /// Divisor of the logits, for all that follows.
    pub temperature: f64,
    /// The entropy of each target.
    pub entropy: bool,
    /// The most likely tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopKPlan>,
}

/// Which of the most likely tokens are to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopKPlan {
    /// Tokens per target.
    pub k: u32,
    /// Fraction of the targets of a row group, those with the lowest entropy, that they are stored for; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_entropy: Option<f64>,
}

/// Divergence of the learner's distribution from the RL model's, in both of which the tail is one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Divergence {
    /// KL(learner || RL model): the learner gives up what the RL model finds unlikely.
    #[default]
    Reverse,
    /// KL(RL model || learner): the learner covers all that the RL model finds likely.
    Forward,
}

/// How weights at a bound of the formula are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightBounds {
    /// As the other weights, rounded: 1.1999512 for 1.2
    #[default]
    Rounded,
    /// As the bound itself, so that weight >= 1.2 finds them
    Exact,
}

impl WeightBounds {
    /// Returns whether a plan leaves this out: what sets have that do not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Returns how many of `count` values a fraction in (0, 1] selects: rounded up, and at least one of any.
pub fn selected_of(fraction: f64, count: usize) -> usize {
    // Minus a trifle, since 0.07 of 100 would else be 8.
    ((fraction * count as f64 - 1e-9).ceil() as usize).clamp(count.min(1), count)
}

/// The weight of a position that is no target. Negative zero, which no weight of a target is: those who multiply
/// with it have 0, and those who count targets can tell it from one of weight 0.
pub const NO_TARGET: f32 = -0.0;

/// Returns whether a weight is that of a target, as opposed to [`NO_TARGET`].
#[inline(always)]
pub fn is_of_target(weight: f32) -> bool {
    weight.to_bits() != NO_TARGET.to_bits()
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
