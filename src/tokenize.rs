//! Documents to token ids, and whether two tokenizers turn text into the same ids.

use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenizers::{Encoding, Tokenizer};

use crate::escape::Show as _;
use crate::fs::Digest;
use crate::types::{Content, Document, Reject, TokenId, TokenizedDocument};

mod apart;
mod canonical;
mod chat;
mod limits;
mod load;

pub use apart::TOKENIZERS;

use apart::Refusal;
use canonical::Canonical;
pub use canonical::Difference;
pub use chat::ChatTemplate;
use load::{guarded, load};

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

/// Which ids are put around the ids of every document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// In front of a document.
    pub bos: Option<TokenId>,
    /// After a document.
    pub eos: Option<TokenId>,
}

/// A Hugging Face tokenizer, reduced to what is deterministic: no padding, no truncation, no BPE
/// dropout, and no special tokens but those of its policy.
///
/// As everywhere with such tokenizers, text that spells a special token out ("<|endoftext|>") is
/// encoded as that token.
///
/// ```no_run
/// use remit::tokenize::{SpecialTokens, TextTokenizer};
///
/// let json = remit::fs::read("model/tokenizer.json".as_ref())?;
/// let tokenizer = TextTokenizer::from_bytes(&json, "model")?;
/// let eos = tokenizer.token_to_id("<|endoftext|>");
/// let tokenizer = tokenizer.with_special_tokens(SpecialTokens { bos: None, eos });
/// let documents = tokenizer.encode_batch(Vec::new());
/// assert!(documents.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TextTokenizer {
    name: String,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    chat: Option<ChatTemplate>,
    canonical: Canonical,
    vocab_size: usize,
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("name", &self.name)
            .field("special", &self.special)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Loads the content of a `tokenizer.json`; `name` stands for it in messages: the model's
    /// folder. No special tokens are put around documents until
    /// [`TextTokenizer::with_special_tokens`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] when it is not a tokenizer.
    pub fn from_bytes(tokenizer_json: &[u8], name: &str) -> Result<Self, Error> {
        let failed = |reason: String| Error::Load {
            name: name.to_owned(),
            reason,
        };
        apart::check(tokenizer_json).map_err(|refusal| match refusal {
            Refusal::Bad(reason) => failed(reason),
            Refusal::NoProcess(source) => Error::Trial {
                name: name.to_owned(),
                source,
            },
        })?;
        let (tokenizer, canonical) = load(tokenizer_json).map_err(failed)?;
        let vocab_size = tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .and_then(|id| usize::try_from(id).ok())
            .map_or(0, |id| id.saturating_add(1));
        Ok(Self {
            name: name.to_owned(),
            tokenizer,
            special: SpecialTokens::default(),
            chat: None,
            canonical,
            vocab_size,
        })
    }

    /// Sets the ids that are put around every document.
    #[must_use]
    pub fn with_special_tokens(mut self, special: SpecialTokens) -> Self {
        self.special = special;
        self
    }

    /// Sets the template that makes text of messages.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.chat = Some(template);
    }

    /// The template that makes text of messages.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// The ids that are put around every document.
    pub fn special_tokens(&self) -> SpecialTokens {
        self.special
    }

    /// The name given at loading.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token that is spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.tokenizer.token_to_id(token)
    }

    /// Spelling of a token in the vocabulary.
    pub fn id_to_token(&self, id: TokenId) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Encodes documents, in parallel on the current rayon pool and in their order. The result is
    /// the same on any number of threads.
    ///
    /// A document whose text gives no ids stays empty: it gets no special tokens either, so that
    /// it can't become a row. A document that consists of ids stays as it is. One of messages gets no special tokens
    /// but those that its template writes.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] in the place of each document that can't be encoded.
    pub fn encode_batch(&self, docs: Vec<Document>) -> Vec<Result<TokenizedDocument, Error>> {
        docs.into_par_iter().map(|doc| self.encode(doc)).collect()
    }

    fn encode(&self, document: Document) -> Result<TokenizedDocument, Error> {
        let Document {
            source,
            index,
            content,
        } = document;
        let text = match content {
            Content::Text(text) => text,
            Content::Messages { messages, tools } => {
                return self.encode_messages(source, index, &messages, tools.as_deref());
            }
            Content::Ids { ids, loss_mask } => {
                return Ok(TokenizedDocument {
                    source,
                    index,
                    input_ids: ids,
                    loss_mask,
                });
            }
        };
        let encoding = self.encoding(text, &source, index)?;
        let ids = encoding.get_ids();
        let mut input_ids = Vec::with_capacity(ids.len().saturating_add(2));
        if !ids.is_empty() {
            input_ids.extend(self.special.bos);
            input_ids.extend_from_slice(ids);
            input_ids.extend(self.special.eos);
        }
        Ok(TokenizedDocument {
            source,
            index,
            input_ids,
            loss_mask: None,
        })
    }

    fn encoding(&self, text: String, source: &str, index: u64) -> Result<Encoding, Error> {
        guarded(|| self.tokenizer.encode_fast(text, false)).map_err(|reason| Error::Encode {
            name: self.name.clone(),
            document: source.to_owned(),
            index,
            reason,
        })
    }

    fn encode_messages(
        &self,
        source: Arc<str>,
        index: u64,
        messages: &str,
        tools: Option<&str>,
    ) -> Result<TokenizedDocument, Error> {
        let Some(template) = &self.chat else {
            return Err(Error::NoChatTemplate {
                name: self.name.clone(),
                document: source.to_string(),
                index,
            });
        };
        let text = template
            .render(messages, tools)
            .map_err(|reason| Error::Render {
                document: source.to_string(),
                index,
                reason,
            })?;
        let encoding = self.encoding(text, &source, index)?;
        Ok(TokenizedDocument {
            source,
            index,
            input_ids: encoding.get_ids().to_vec(),
            loss_mask: None,
        })
    }

    /// The text of ids, special tokens included.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] when the decoder refuses. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[TokenId]) -> Result<String, Error> {
        guarded(|| self.tokenizer.decode(ids, false)).map_err(|reason| Error::Decode {
            name: self.name.clone(),
            num_ids: ids.len(),
            reason,
        })
    }

    /// The text of ids piece by piece: how many ids, and what they add. Ids that make a character only
    /// together come together. In a row, the pieces are its text.
    ///
    /// # Errors
    ///
    /// Those of [`TextTokenizer::decode`].
    pub fn pieces(&self, ids: &[TokenId]) -> Result<Vec<(usize, String)>, Error> {
        // What an unfinished character decodes to: at most one of these a byte.
        const REPLACEMENT: char = '\u{fffd}';
        const MAX_UNFINISHED: usize = 3;
        // Most ids of a piece; most that are decoded at a time, and how many of these are kept when there are more.
        const MAX_PIECE_IDS: usize = 64;
        const MAX_CONTEXT_IDS: usize = 256;
        const KEPT_IDS: usize = 8;
        let mut pieces = Vec::new();
        // What a decoder makes of an id may depend on the ids before, so these are decoded again: all
        // since `context`, whose first `printed` bytes are in pieces already.
        let (mut context, mut whole, mut printed, mut start) = (0, 0, 0, 0);
        // The text without characters that the next ids may yet finish.
        let finished = |text: &str| {
            (0..MAX_UNFINISHED).fold(text.len(), |len, _| {
                let text = text.get(..len).unwrap_or_default();
                text.strip_suffix(REPLACEMENT).map_or(len, str::len)
            })
        };
        for end in 1..=ids.len() {
            let text = self.decode(ids.get(context..end).unwrap_or_default())?;
            let is_last = end == ids.len();
            let stable = if is_last { text.len() } else { finished(&text) };
            let added = text.get(printed..stable).unwrap_or_default();
            // Ids without a text come together, but not without end: all of them are decoded again each time.
            if added.is_empty() && !is_last && end - start < MAX_PIECE_IDS {
                continue;
            }
            pieces.push((end - start, added.to_owned()));
            printed = stable.max(printed);
            start = end;
            let is_whole = stable == text.len();
            if is_last || !(is_whole || end - context >= MAX_CONTEXT_IDS) {
                continue;
            }
            context = if is_whole { whole } else { end - KEPT_IDS };
            whole = end;
            let text = self.decode(ids.get(context..end).unwrap_or_default())?;
            printed = if is_whole {
                text.len()
            } else {
                finished(&text)
            };
        }
        Ok(pieces)
    }

    /// The id that the tokenizer's own template puts in front of a text, where it puts one.
    ///
    /// It is found by encoding a short text with and without the template.
    pub fn default_bos(&self) -> Option<TokenId> {
        for probe in ["a", "0", "the"] {
            let encode = |with_template| {
                guarded(|| self.tokenizer.encode_fast(probe, with_template))
                    .map(|encoding| encoding.get_ids().to_vec())
            };
            let (Ok(bare), Ok(framed)) = (encode(false), encode(true)) else {
                return None;
            };
            if bare.is_empty() {
                continue;
            }
            let at = framed
                .windows(bare.len())
                .position(|window| window == bare)?;
            return framed.get(..at)?.first().copied();
        }
        None
    }

    /// Fingerprint of all that decides which ids a text gets: model, vocabulary, merges,
    /// normalizer, pre-tokenizer and added tokens.
    ///
    /// It does not depend on how the JSON is laid out, nor on what only matters elsewhere:
    /// padding, truncation, the template of special tokens, the decoder.
    pub fn fingerprint(&self) -> Digest {
        self.canonical.fingerprint()
    }

    /// Whether both turn every text into the same ids.
    ///
    /// # Errors
    ///
    /// [`Mismatch`], with the first difference.
    pub fn compare(&self, other: &Self) -> Result<(), Mismatch> {
        match self.canonical.difference(&other.canonical) {
            None => Ok(()),
            Some(difference) => Err(Mismatch {
                this: self.name.clone(),
                other: other.name.clone(),
                difference,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
