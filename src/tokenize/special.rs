//! Special tokens: around documents, and spelled out in their text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::TokenId;

/// Which ids are put around the ids of every document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// In front of a document.
    pub bos: Option<TokenId>,
    /// After a document.
    pub eos: Option<TokenId>,
}

/// How text is read that spells out a special token, such as `<|endoftext|>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SpecialTokensInText {
    /// It becomes the token.
    #[default]
    Parse,
    /// It is text like any other. Added tokens that are not special are found all the same.
    Literal,
}

impl SpecialTokensInText {
    /// Returns whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A token that a file gives a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedToken {
    /// Its id.
    pub id: TokenId,
    /// Its spelling.
    pub token: String,
    /// The file that names it, or the class of transformers that has it by default.
    pub from: String,
}

/// The tokens that are put around documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentTokens {
    /// In front of a document.
    pub bos: Option<NamedToken>,
    /// After a document.
    pub eos: Option<NamedToken>,
}

impl DocumentTokens {
    /// Returns their ids.
    pub fn ids(&self) -> SpecialTokens {
        let id = |token: &Option<NamedToken>| token.as_ref().map(|token| token.id);
        SpecialTokens {
            bos: id(&self.bos),
            eos: id(&self.eos),
        }
    }
}

/// Writes `"<|endoftext|>" (id 0, tokenizer_config.json of base)`.
impl fmt::Display for NamedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, token, from } = self;
        write!(f, "{token:?} (id {id}, {from})")
    }
}
