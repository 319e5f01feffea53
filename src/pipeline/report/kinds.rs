//! Kinds of tokens, told by their text alone.

use serde::Serialize;

/// Kind of a token. The first that fits counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A token of the tokenizer's own, such as the end of a document.
    Special,
    /// A part of a character.
    Bytes,
    /// Spaces and line breaks.
    Space,
    /// Has a digit, and no letter.
    Digits,
    /// Has a character that code and formulas have, and prose hardly.
    Code,
    /// Punctuation and other signs.
    Punctuation,
    /// A word that says how others go together.
    Connective,
    /// Begins with a capital: names, and beginnings of sentences.
    Capitalized,
    /// Any other word, or a part of one.
    Word,
}

/// Words that say how others go together.
const CONNECTIVES: [&str; 64] = [
    "a",
    "after",
    "all",
    "also",
    "although",
    "an",
    "and",
    "as",
    "at",
    "because",
    "before",
    "but",
    "by",
    "each",
    "for",
    "from",
    "has",
    "have",
    "hence",
    "how",
    "however",
    "if",
    "in",
    "into",
    "is",
    "it",
    "its",
    "nor",
    "not",
    "now",
    "of",
    "on",
    "or",
    "our",
    "since",
    "so",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "therefore",
    "these",
    "they",
    "this",
    "those",
    "thus",
    "to",
    "too",
    "until",
    "wait",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "with",
    "would",
    "yet",
];

const CODE: &str = "{}[]()<>=+*/\\|_^~`@#$%&;";

impl Kind {
    /// Tells the kind of a token by its text.
    pub fn of(text: &str) -> Self {
        let trimmed = text.trim();
        let has = |is: fn(char) -> bool| trimmed.contains(is);
        if trimmed.len() > 2 && trimmed.starts_with('<') && trimmed.ends_with('>') {
            Self::Special
        } else if text.is_empty() || has(|c| c == '\u{fffd}') {
            Self::Bytes
        } else if trimmed.is_empty() {
            Self::Space
        } else if has(char::is_numeric) && !has(char::is_alphabetic) {
            Self::Digits
        } else if has(|c| CODE.contains(c)) {
            Self::Code
        } else if !has(char::is_alphabetic) {
            Self::Punctuation
        } else if CONNECTIVES.contains(&trimmed.to_lowercase().as_str()) {
            Self::Connective
        } else if trimmed.starts_with(char::is_uppercase) {
            Self::Capitalized
        } else {
            Self::Word
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_text() {
        for (text, kind) in [
            ("<|endoftext|>", Kind::Special),
            ("</s>", Kind::Special),
            ("<>", Kind::Code),
            ("\u{fffd}", Kind::Bytes),
            ("", Kind::Bytes),
            (" \n", Kind::Space),
            (" 17", Kind::Digits),
            ("\u{0664}", Kind::Digits),
            ("x_1", Kind::Code),
            (" =", Kind::Code),
            (", ", Kind::Punctuation),
            (" The", Kind::Connective),
            (" therefore", Kind::Connective),
            (" Ada", Kind::Capitalized),
            ("ing", Kind::Word),
            ("\u{4e2d}", Kind::Word),
        ] {
            assert_eq!(Kind::of(text), kind, "{text:?}");
        }
        assert!(CONNECTIVES.is_sorted());
    }
}
