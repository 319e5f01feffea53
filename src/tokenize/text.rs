//! Text to ids and back.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::{Encoding, Tokenizer};

use super::apart::{self, Refusal};
use super::canonical::Canonical;
use super::chat::ChatTemplate;
use super::error::{Error, Mismatch};
use super::load::{guarded, load};
use super::special::{NamedToken, SpecialTokens, SpecialTokensInText};
use crate::fs::Digest;
use crate::types::{Content, Document, TokenId, TokenizedDocument};

/// A Hugging Face tokenizer, reduced to what is deterministic: no padding, no truncation, no BPE
/// dropout, and no special tokens but those of its policy.
///
/// Unless [`TextTokenizer::with_special_tokens_in_text`] says otherwise, text that spells a special token out
/// ("<|endoftext|>") is encoded as that token.
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
    /// The tokenizer for messages, whose template writes special tokens, where such tokens in text stay text.
    parsing: Option<Tokenizer>,
    pub(super) canonical: Canonical,
    pub(super) vocab_size: usize,
    /// Ids of special tokens.
    special_ids: HashSet<TokenId>,
    /// Ids that no file gives to a token: of tokens that are only named, to which transformers gives the next ids.
    pub(super) new_ids: HashSet<TokenId>,
    /// Number of ids that the models have embeddings for, if that is known.
    num_rows: Option<usize>,
    /// BOS and EOS as the files name them.
    pub(super) named: BTreeMap<String, NamedToken>,
    /// tokenizer_config.json asks for [`SpecialTokensInText::Literal`].
    pub(super) splits_special_tokens: bool,
    /// What a user should know of how the files were read.
    pub(super) warnings: Vec<String>,
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
    /// Loads the content of a `tokenizer.json`, without regard to other files; `name` stands for it in messages:
    /// the model's folder. No special tokens are put around documents until
    /// [`TextTokenizer::with_special_tokens`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] when it is not a tokenizer.
    pub fn from_bytes(tokenizer_json: &[u8], name: &str) -> Result<Self, Error> {
        Self::new(parsed(tokenizer_json, name)?, name)
    }

    pub(super) fn new(tokenizer: Tokenizer, name: &str) -> Result<Self, Error> {
        let canonical = Canonical::of(&tokenizer).map_err(|reason| Error::Load {
            name: name.to_owned(),
            reason,
        })?;
        let vocab_size = tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .and_then(|id| usize::try_from(id).ok())
            .map_or(0, |id| id.saturating_add(1));
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let special_ids = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| *id)
            .collect();
        Ok(Self {
            name: name.to_owned(),
            special: SpecialTokens::default(),
            chat: None,
            parsing: None,
            canonical,
            vocab_size,
            special_ids,
            new_ids: HashSet::new(),
            num_rows: None,
            named: BTreeMap::new(),
            splits_special_tokens: false,
            warnings: Vec::new(),
            tokenizer,
        })
    }

    /// Sets the ids that are put around every document.
    #[must_use]
    pub fn with_special_tokens(mut self, special: SpecialTokens) -> Self {
        self.special = special;
        self
    }

    /// Sets how text is read that spells out a special token. In messages such tokens are those of the template.
    #[must_use]
    pub fn with_special_tokens_in_text(mut self, reading: SpecialTokensInText) -> Self {
        let is_literal = reading == SpecialTokensInText::Literal;
        self.tokenizer.set_encode_special_tokens(false);
        self.parsing = is_literal.then(|| self.tokenizer.clone());
        self.tokenizer.set_encode_special_tokens(is_literal);
        self
    }

    /// Sets the number of ids that the models have embeddings for. A document with another id is bad.
    #[must_use]
    pub fn with_num_rows(mut self, num_rows: usize) -> Self {
        self.num_rows = Some(num_rows);
        self
    }

    /// Returns what its own files ask for about text that spells out a special token.
    pub fn default_special_tokens_in_text(&self) -> SpecialTokensInText {
        match self.splits_special_tokens {
            true => SpecialTokensInText::Literal,
            false => SpecialTokensInText::Parse,
        }
    }

    /// Returns the digest of which tokens are special.
    pub fn special_fingerprint(&self) -> Digest {
        let mut ids: Vec<TokenId> = self.special_ids.iter().copied().collect();
        ids.sort_unstable();
        Digest::of(format!("{ids:?}").as_bytes())
    }

    /// Returns the token that the files name `bos_token` or `eos_token`.
    pub fn named(&self, name: &str) -> Option<&NamedToken> {
        self.named.get(name)
    }

    /// Returns whether the files name the token of this id, but have it in no list of tokens.
    pub fn is_new(&self, id: TokenId) -> bool {
        self.new_ids.contains(&id)
    }

    /// Returns what a user should know of how the files were read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
                    num_spelled: 0,
                });
            }
        };
        let encoding = self.encoding(&self.tokenizer, text, &source, index)?;
        let ids = encoding.get_ids();
        let num_spelled = ids.iter().filter(|id| self.special_ids.contains(id));
        let num_spelled = num_spelled.count() as u64;
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
            num_spelled,
        })
    }

    fn encoding(
        &self,
        tokenizer: &Tokenizer,
        text: String,
        source: &str,
        index: u64,
    ) -> Result<Encoding, Error> {
        let failed = |reason| Error::Encode {
            name: self.name.clone(),
            document: source.to_owned(),
            index,
            reason,
        };
        let encoding = guarded(|| tokenizer.encode_fast(text, false)).map_err(failed)?;
        if let Some(num_rows) = self.num_rows
            && let Some(id) = encoding
                .get_ids()
                .iter()
                .find(|id| **id as usize >= num_rows)
        {
            return Err(failed(format!(
                "it has the token {:?}, whose id {id} has no row in the embedding of {num_rows} rows",
                self.id_to_token(*id).unwrap_or_default()
            )));
        }
        Ok(encoding)
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
        let tokenizer = self.parsing.as_ref().unwrap_or(&self.tokenizer);
        let encoding = self.encoding(tokenizer, text, &source, index)?;
        Ok(TokenizedDocument {
            source,
            index,
            input_ids: encoding.get_ids().to_vec(),
            loss_mask: None,
            num_spelled: 0,
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

    /// Returns the ids that the tokenizer's own template puts around a text. They are found by encoding a short
    /// text with and without the template.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] when it puts more there than one id in front and one after.
    pub fn template(&self) -> Result<SpecialTokens, Error> {
        for probe in ["a", "0", "the"] {
            let encode = |with_template| {
                guarded(|| self.tokenizer.encode_fast(probe, with_template))
                    .map(|encoding| encoding.get_ids().to_vec())
            };
            let (Ok(bare), Ok(framed)) = (encode(false), encode(true)) else {
                continue;
            };
            if bare.is_empty() {
                continue;
            }
            let frame = (0..=1).find_map(|start| {
                let (before, rest) = framed.split_at_checked(start)?;
                let after = rest.strip_prefix(bare.as_slice())?;
                (after.len() <= 1).then(|| SpecialTokens {
                    bos: before.first().copied(),
                    eos: after.first().copied(),
                })
            });
            return frame.ok_or_else(|| Error::Template {
                name: self.name.clone(),
                probe,
                bare,
                found: framed,
            });
        }
        Ok(SpecialTokens::default())
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

/// Loads a tokenizer.json that a process of its own survived.
pub(super) fn parsed(tokenizer_json: &[u8], name: &str) -> Result<Tokenizer, Error> {
    let failed = |reason| Error::Load {
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
    load(tokenizer_json).map_err(failed)
}
