//! What kinds of files there are, told by their names.

use std::path::Path;

use super::compression::Compression;
use super::tokens::TokenLayout;

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The whole file is one document.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// One row a document.
    Parquet,
    /// One row a document, in Arrow's IPC format.
    Arrow,
    /// Token ids.
    Tokens(TokenLayout),
}

/// Returns whether a file of this name can be read.
pub fn is_supported(name: &str) -> bool {
    classify(Path::new(name), &[]).is_some()
}

/// Returns what a file's name says about its content; `None` when it is not supported. Files that end in one of
/// `text_ext` are text.
pub(super) fn classify(path: &Path, text_ext: &[String]) -> Option<(Format, Compression)> {
    let name = path.file_name()?.as_encoded_bytes().to_ascii_lowercase();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(b".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(b".zst") {
        (stem, Compression::Zstd)
    } else {
        (name.as_slice(), Compression::None)
    };
    let is_text = |ext: &String| {
        stem.strip_suffix(ext.as_bytes())
            .is_some_and(|stem| stem.ends_with(b"."))
    };
    if text_ext.iter().any(is_text) {
        return Some((Format::Text, compression));
    }
    let ends = |suffix: &str| stem.ends_with(suffix.as_bytes());
    if ends(".txt") || ends(".md") {
        Some((Format::Text, compression))
    } else if ends(".jsonl") || ends(".ndjson") || ends(".json") {
        Some((Format::Jsonl, compression))
    } else if ends(".parquet") {
        Some((Format::Parquet, compression))
    } else if ends(".arrow") || ends(".feather") {
        Some((Format::Arrow, compression))
    } else if compression != Compression::None {
        None
    } else if ends(".npy") || ends(".bin") {
        Some((Format::Tokens(TokenLayout::UNREAD), compression))
    } else {
        None
    }
}
