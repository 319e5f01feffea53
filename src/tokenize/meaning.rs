//! Whether ids mean the same in two tokenizers, also where the two would not turn a text into the same ids.

use std::fmt;

use super::canonical::Difference;
use super::text::TextTokenizer;
use crate::types::TokenId;

/// An id that does not mean the same in two tokenizers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// The id.
    pub id: TokenId,
    /// Its token in the tokenizer that was asked.
    pub this: String,
    /// Its token in the other; `None` where it has none.
    pub other: Option<String>,
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, this, other } = self;
        match other {
            Some(other) => write!(f, "id {id} is {this:?} in one, {other:?} in the other"),
            None => write!(f, "id {id} is {this:?} in one, nothing in the other"),
        }
    }
}

impl TextTokenizer {
    /// Lists the ids of this tokenizer below `num_ids` that mean something else in another one. Ids that only the
    /// other one has make no difference.
    pub fn other_meanings(&self, other: &Self, num_ids: usize) -> Vec<Meaning> {
        if self.canonical == other.canonical {
            return Vec::new();
        }
        let num_ids = TokenId::try_from(self.vocab_size.min(num_ids)).unwrap_or(TokenId::MAX);
        let differs = |id| {
            let this = self.id_to_token(id)?;
            let other = other.id_to_token(id);
            (other.as_ref() != Some(&this)).then_some(Meaning { id, this, other })
        };
        (0..num_ids).filter_map(differs).collect()
    }

    /// Returns the first reason why another tokenizer may split a text otherwise, besides the tokens that there
    /// are: settings of the model, merges, normalizer or pre-tokenizer.
    pub fn other_splitting(&self, other: &Self) -> Option<Difference> {
        self.canonical.splitting_difference(&other.canonical)
    }

    /// Returns whether tokens are spelled by the same rules, so that equal spellings mean the same: in bytes or in
    /// characters, and by a model of the same type.
    pub fn spells_like(&self, other: &Self) -> bool {
        self.canonical.spelling() == other.canonical.spelling()
    }
}
