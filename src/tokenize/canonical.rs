//! What decides which ids a text gets, in one canonical form that can be hashed and compared.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::fs::Digest;
use crate::types::TokenId;

/// Flags of an added token that decide where it is found in a text.
const ADDED_TOKEN_FIELDS: [&str; 5] = ["content", "single_word", "lstrip", "rstrip", "normalized"];

/// In what two tokenizers differ; the first value is that of the tokenizer that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The algorithm or one of its settings.
    Model {
        /// Name of the setting.
        setting: String,
        /// Its values.
        values: (String, String),
    },
    /// The number of tokens.
    VocabSize(usize, usize),
    /// The first id that stands for another token.
    Token {
        /// The id, where the first vocabulary has it.
        id: TokenId,
        /// The tokens, with their scores where the model has any; `None` where there is none.
        tokens: (Option<String>, Option<String>),
    },
    /// The list of merges.
    Merges {
        /// The first entry that differs, from 0.
        entry: usize,
        /// The merges; `None` after the end of a list.
        merges: (Option<String>, Option<String>),
    },
    /// The normalizer, as JSON.
    Normalizer(String, String),
    /// The pre-tokenizer, as JSON.
    PreTokenizer(String, String),
    /// The first added token that differs.
    AddedToken {
        /// Its id.
        id: TokenId,
        /// The tokens, as JSON; `None` where there is none.
        tokens: (Option<String>, Option<String>),
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none =
            |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        match self {
            Self::Model {
                setting,
                values: (a, b),
            } => write!(f, "the model's {setting} is {a} in one, {b} in the other"),
            Self::VocabSize(a, b) => write!(f, "the vocabularies have {a} and {b} tokens"),
            Self::Token { id, tokens: (a, b) } => write!(
                f,
                "id {id} is {} in one, {} in the other",
                or_none(a),
                or_none(b)
            ),
            Self::Merges {
                entry,
                merges: (a, b),
            } => write!(
                f,
                "the merges differ from entry {entry}: {} in one, {} in the other",
                or_none(a),
                or_none(b)
            ),
            Self::Normalizer(a, b) => write!(f, "the normalizer is {a} in one, {b} in the other"),
            Self::PreTokenizer(a, b) => {
                write!(f, "the pre-tokenizer is {a} in one, {b} in the other")
            }
            Self::AddedToken { id, tokens: (a, b) } => write!(
                f,
                "the added token {id} is {} in one, {} in the other",
                or_none(a),
                or_none(b)
            ),
        }
    }
}

/// The canonical form. Every value is JSON text with sorted keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Canonical {
    /// Settings of the model, its type among them.
    model: BTreeMap<String, String>,
    /// `(id, token)`, or `(id, [token, score])`, ascending.
    vocab: Vec<(TokenId, String)>,
    /// `["left","right"]` in order of rank.
    merges: Vec<String>,
    normalizer: String,
    pre_tokenizer: String,
    added_tokens: BTreeMap<TokenId, String>,
}

impl Canonical {
    /// From a loaded tokenizer, not from its file: so defaults that a file leaves out, and old
    /// ways to write the same thing, are already resolved.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let mut whole = serde_json::to_value(tokenizer).map_err(|error| error.to_string())?;
        let mut take = |key: &str| whole.get_mut(key).map(Value::take).unwrap_or_default();
        let Value::Object(mut model) = take("model") else {
            return Err("the model is not an object".to_owned());
        };
        let mut vocab = vocab(model.remove("vocab").unwrap_or_default())?;
        vocab.sort();
        let merges = match model.remove("merges") {
            Some(Value::Array(merges)) => merges.into_iter().map(merge).collect(),
            _ => Vec::new(),
        };
        let mut added_tokens = BTreeMap::new();
        if let Value::Array(tokens) = take("added_tokens") {
            for token in tokens {
                let id = token_id(token.get("id"))?;
                let fields: Map<String, Value> = ADDED_TOKEN_FIELDS
                    .iter()
                    .filter_map(|key| Some(((*key).to_owned(), token.get(key)?.clone())))
                    .collect();
                added_tokens.insert(id, text(&Value::Object(fields)));
            }
        }
        Ok(Self {
            model: model
                .into_iter()
                .filter(|(_, value)| !is_default(value))
                .map(|(key, value)| (key, text(&value)))
                .collect(),
            vocab,
            merges,
            normalizer: text(&take("normalizer")),
            pre_tokenizer: text(&take("pre_tokenizer")),
            added_tokens,
        })
    }

    pub(super) fn fingerprint(&self) -> Digest {
        let Self {
            model,
            vocab,
            merges,
            normalizer,
            pre_tokenizer,
            added_tokens,
        } = self;
        let whole = json!([
            model,
            vocab,
            merges,
            normalizer,
            pre_tokenizer,
            added_tokens
        ]);
        Digest::of(text(&whole).as_bytes())
    }

    /// The first difference, those that say most coming first.
    pub(super) fn difference(&self, other: &Self) -> Option<Difference> {
        let none = || "not set".to_owned();
        if let Some((setting, a, b)) = first_in_maps(&self.model, &other.model) {
            return Some(Difference::Model {
                setting,
                values: (a.unwrap_or_else(none), b.unwrap_or_else(none)),
            });
        }
        if self.vocab.len() != other.vocab.len() {
            return Some(Difference::VocabSize(self.vocab.len(), other.vocab.len()));
        }
        if let Some((a, b)) = self.vocab.iter().zip(&other.vocab).find(|(a, b)| a != b) {
            let id = a.0.min(b.0);
            let token = |entry: &(TokenId, String)| (entry.0 == id).then(|| entry.1.clone());
            return Some(Difference::Token {
                id,
                tokens: (token(a), token(b)),
            });
        }
        if let Some(difference) = self.splitting_difference(other) {
            return Some(difference);
        }
        first_in_maps(&self.added_tokens, &other.added_tokens)
            .map(|(id, a, b)| Difference::AddedToken { id, tokens: (a, b) })
    }

    /// Returns how tokens are spelled: the type of the model, and whether in bytes.
    pub(super) fn spelling(&self) -> (Option<&String>, bool) {
        let is_byte_level = [&self.normalizer, &self.pre_tokenizer]
            .iter()
            .any(|part| part.contains("\"ByteLevel\""));
        (self.model.get("type"), is_byte_level)
    }

    /// Returns the first difference that is not about which tokens there are.
    pub(super) fn splitting_difference(&self, other: &Self) -> Option<Difference> {
        let none = || "not set".to_owned();
        if let Some((setting, a, b)) = first_in_maps(&self.model, &other.model) {
            return Some(Difference::Model {
                setting,
                values: (a.unwrap_or_else(none), b.unwrap_or_else(none)),
            });
        }
        if self.merges != other.merges {
            let same = self.merges.iter().zip(&other.merges);
            let entry = same.take_while(|(a, b)| a == b).count();
            return Some(Difference::Merges {
                entry,
                merges: (
                    self.merges.get(entry).cloned(),
                    other.merges.get(entry).cloned(),
                ),
            });
        }
        if self.normalizer != other.normalizer {
            return Some(Difference::Normalizer(
                self.normalizer.clone(),
                other.normalizer.clone(),
            ));
        }
        if self.pre_tokenizer != other.pre_tokenizer {
            return Some(Difference::PreTokenizer(
                self.pre_tokenizer.clone(),
                other.pre_tokenizer.clone(),
            ));
        }
        None
    }
}

/// The first key whose value differs, with both values.
fn first_in_maps<K: Ord + Clone>(
    a: &BTreeMap<K, String>,
    b: &BTreeMap<K, String>,
) -> Option<(K, Option<String>, Option<String>)> {
    let key = a
        .keys()
        .chain(b.keys())
        .filter(|key| a.get(key) != b.get(key))
        .min()?;
    Some((key.clone(), a.get(key).cloned(), b.get(key).cloned()))
}

/// An object of token to id, or, for Unigram, an array of `[token, score]` in the order of ids.
fn vocab(vocab: Value) -> Result<Vec<(TokenId, String)>, String> {
    match vocab {
        Value::Object(ids) => ids
            .into_iter()
            .map(|(token, id)| Ok((token_id(Some(&id))?, text(&Value::String(token)))))
            .collect(),
        Value::Array(entries) => entries
            .iter()
            .enumerate()
            .map(|(id, entry)| {
                let id = TokenId::try_from(id).map_err(|error| error.to_string())?;
                Ok((id, text(entry)))
            })
            .collect(),
        _ => Err("the vocabulary is neither an object nor an array".to_owned()),
    }
}

/// A merge is `"left right"` in older files and `["left", "right"]` in newer ones.
fn merge(merge: Value) -> String {
    match &merge {
        Value::String(pair) => match pair.split_once(' ') {
            Some((left, right)) => text(&json!([left, right])),
            None => text(&merge),
        },
        _ => text(&merge),
    }
}

fn token_id(id: Option<&Value>) -> Result<TokenId, String> {
    id.and_then(Value::as_u64)
        .and_then(|id| TokenId::try_from(id).ok())
        .ok_or_else(|| "an id is not a 32-bit number".to_owned())
}

/// A model's settings are off unless set, and an empty prefix or suffix is none: leaving these
/// out makes files alike that write them and files that don't.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// JSON text with sorted keys and without spaces, whatever order the map type keeps.
fn text(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write(item, out);
                }
                out.push(']');
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                out.push('{');
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    write(value, out);
                }
                out.push('}');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out
}
