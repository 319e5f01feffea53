//! What can go wrong with tokenizers.

use super::canonical::Difference;
use crate::escape::Show as _;
use crate::types::{Reject, TokenId};

/// What can go wrong between text and ids.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tokenizer can't be loaded.
    #[error("{name}: tokenizer.json is not a tokenizer that can be used: {}", reason.shown())]
    Load {
        /// The model's folder, as given.
        name: String,
        /// What the parser says.
        reason: String,
    },
    /// No process can be started that tries the tokenizer first.
    #[error("cannot start a process to read the tokenizer.json of {name}")]
    Trial {
        /// The model's folder, as given.
        name: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file beside tokenizer.json is not what it has to be, or asks for what is not implemented.
    #[error("{name}: the tokenizer can't be used as transformers uses it: {reason}")]
    Files {
        /// The model's folder, as given.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The template puts more around a text than documents can have.
    #[error(
        "{name}: the template of the tokenizer turns the text {probe:?} into {found:?}, which is not {bare:?} with at \
         most one token in front and one after\nhint: --bos and --eos always or never overrule the template"
    )]
    Template {
        /// The model's folder, as given.
        name: String,
        /// A text.
        probe: &'static str,
        /// Its ids.
        bare: Vec<TokenId>,
        /// Its ids with the template.
        found: Vec<TokenId>,
    },
    /// A document can't be encoded.
    #[error(
        "{}, record {index}: the tokenizer of {name} can't encode the text: {}\nhint: \
         --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it",
        document.shown(),
        reason.shown()
    )]
    Encode {
        /// The tokenizer.
        name: String,
        /// Source of the document.
        document: String,
        /// Its record number, from 0.
        index: u64,
        /// What the tokenizer says.
        reason: String,
    },
    /// Messages can't be made text.
    #[error(
        "{}, record {index}: {}\nhint: --on-bad-record skip leaves out what can't be read; \
         remit-inspect rejects lists it",
        document.shown(),
        reason.shown()
    )]
    Render {
        /// Source of the document.
        document: String,
        /// Its record number, from 0.
        index: u64,
        /// What the template says.
        reason: String,
    },
    /// There are messages, and no template for them.
    #[error(
        "{}, record {index}: a record of messages, and the tokenizer of {name} has no chat template that would \
         make text of them\nhint: give one with --chat-template FILE, or the field that holds text with --text-field",
        document.shown()
    )]
    NoChatTemplate {
        /// The tokenizer.
        name: String,
        /// Source of the document.
        document: String,
        /// Its record number, from 0.
        index: u64,
    },
    /// Ids can't be decoded.
    #[error("the tokenizer of {name} can't decode {num_ids} ids: {}", reason.shown())]
    Decode {
        /// The tokenizer.
        name: String,
        /// How many ids.
        num_ids: usize,
        /// What the tokenizer says.
        reason: String,
    },
}

impl Error {
    /// The document that can't be encoded, as it is listed among the rejects, when that is what is
    /// wrong.
    pub fn reject(&self) -> Option<Reject> {
        let (document, index, reason) = match self {
            Self::Encode {
                document,
                index,
                reason,
                ..
            } => {
                let reason = format!("the tokenizer can't encode the text: {reason}");
                (document, index, reason)
            }
            Self::Render {
                document,
                index,
                reason,
            } => (document, index, reason.clone()),
            _ => return None,
        };
        Some(Reject {
            source: document.clone(),
            doc_index: *index,
            reason,
        })
    }
}

/// Two tokenizers do not turn text into the same ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizers of {this} and {other} differ: {difference}")]
#[non_exhaustive]
pub struct Mismatch {
    /// The one that was asked.
    pub this: String,
    /// The one it was compared with.
    pub other: String,
    /// The first difference that was found.
    pub difference: Difference,
}
