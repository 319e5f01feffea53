//! Texts of tokens, as long as a page can bear.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use anyhow::Result;
use serde::Serialize;
use serde::ser::{SerializeTuple, Serializer};

use super::kinds::Kind;
use crate::tokenize::TextTokenizer;
use crate::types::TokenId;

/// Characters of a piece that are kept.
const MAX_CHARS: usize = 120;

/// The text of one id, or of several that make a character only together. In JSON the text; with the number of ids
/// before it where that is not 1, and the number of its characters after it where it was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    ids: usize,
    text: String,
    /// Characters of the whole text, where it was cut.
    chars: Option<usize>,
}

impl Piece {
    fn new(ids: usize, text: &str) -> Self {
        match text.char_indices().nth(MAX_CHARS) {
            None => Self {
                ids,
                text: text.to_owned(),
                chars: None,
            },
            Some((end, _)) => Self {
                ids,
                text: text.get(..end).unwrap_or_default().to_owned(),
                chars: Some(text.chars().count()),
            },
        }
    }
}

impl Serialize for Piece {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.ids == 1 && self.chars.is_none() {
            return serializer.serialize_str(&self.text);
        }
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(&self.ids)?;
        tuple.serialize_element(&self.text)?;
        tuple.serialize_element(&self.chars)?;
        tuple.end()
    }
}

/// The texts of a set's tokens, if there is a tokenizer.
pub struct Texts<'a> {
    tokenizer: Option<&'a TextTokenizer>,
    by_id: HashMap<TokenId, (String, Kind)>,
}

impl<'a> Texts<'a> {
    /// Returns the texts that a tokenizer gives.
    pub fn new(tokenizer: Option<&'a TextTokenizer>) -> Self {
        Self {
            tokenizer,
            by_id: HashMap::new(),
        }
    }

    fn known(&mut self, id: TokenId) -> Result<Option<&(String, Kind)>> {
        let Some(tokenizer) = self.tokenizer else {
            return Ok(None);
        };
        let known = match self.by_id.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let text = tokenizer.decode(&[id])?;
                let kind = Kind::of(&text);
                // A part of a character has no text of its own, but a spelling.
                let text = match kind {
                    Kind::Bytes => tokenizer.id_to_token(id).unwrap_or(text),
                    _ => text,
                };
                place.insert((text, kind))
            }
        };
        Ok(Some(known))
    }

    /// Returns the text of an id alone.
    pub fn of_id(&mut self, id: TokenId) -> Result<Option<Piece>> {
        let known = self.known(id)?;
        Ok(known.map(|(text, _)| Piece::new(1, text)))
    }

    /// Returns the kind of a token.
    pub fn kind(&mut self, id: TokenId) -> Result<Option<Kind>> {
        let known = self.known(id)?;
        Ok(known.map(|(_, kind)| *kind))
    }

    /// Returns the text of ids, piece by piece; ids in words where there is no tokenizer.
    pub fn pieces(&self, ids: &[TokenId]) -> Result<Vec<Piece>> {
        let pieces = self.of_row(ids)?;
        let numbers = || ids.iter().map(|id| Piece::new(1, &format!("{id} ")));
        Ok(pieces.unwrap_or_else(|| numbers().collect()))
    }

    /// Returns the text of ids, piece by piece; `None` where there is no tokenizer.
    pub fn of_row(&self, ids: &[TokenId]) -> Result<Option<Vec<Piece>>> {
        let Some(tokenizer) = self.tokenizer else {
            return Ok(None);
        };
        let pieces = tokenizer.pieces(ids)?;
        let pieces = pieces.iter().map(|(ids, text)| Piece::new(*ids, text));
        Ok(Some(pieces.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_says_how_long_it_was() {
        let json = |ids, text: &str| serde_json::to_string(&Piece::new(ids, text)).unwrap();
        assert_eq!(json(1, "ab"), "\"ab\"");
        assert_eq!(json(2, "\u{4e2d}"), "[2,\"\u{4e2d}\",null]");
        let cut = json(1, &"\u{e9}".repeat(1 << 20));
        assert!(cut.ends_with("\",1048576]") && cut.chars().count() < 150);
    }
}
