//! What can be wrong with a record or with the content of a file.

use std::path::Path;

use super::compression::Compression;
use crate::escape::Show as _;
use crate::types::TokenId;

/// Most keys or columns that a message lists.
const MAX_LISTED: usize = 20;

/// What a file is whose name says something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disguise {
    /// The lines that Git LFS or git-annex keeps in the place of a large file.
    Pointer,
    /// Text in another encoding.
    Encoding(&'static str),
    /// One array of all records.
    JsonArray,
    /// A value that goes over several lines.
    JsonOverLines,
    /// Something else.
    Other(&'static str),
}

impl Disguise {
    /// Says what the file is, and what to do about it.
    pub(super) fn message(self, path: &Path, packed: Option<Compression>) -> String {
        let name = path.file_name().unwrap_or_default().shown().to_string();
        let through = |command: &str, result: &str| match packed {
            Some(Compression::Gzip) => format!("gzip -dc {name} | {command} > {result}"),
            Some(Compression::Zstd) => format!("zstd -dc {name} | {command} > {result}"),
            Some(Compression::None) | None => format!("{command} {name} > {result}"),
        };
        match self {
            Self::Pointer => "a pointer of Git LFS or git-annex, not the data itself\nhint: fetch the data with git \
                              lfs pull, git annex get or hf download"
                .to_owned(),
            Self::Encoding(encoding) => format!(
                "text in {encoding}; expected UTF-8\nhint: {}",
                through(
                    &format!("iconv -f {encoding} -t UTF-8"),
                    &format!("converted-{}", bare(&name))
                )
            ),
            Self::JsonArray => format!(
                "one JSON array of all records; expected one JSON object per line\nhint: {}",
                through("jq -c '.[]'", &with_ending(&name, "jsonl"))
            ),
            Self::JsonOverLines => format!(
                "JSON that goes over several lines; expected one JSON object per line\nhint: {}",
                through("jq -c .", &with_ending(&name, "jsonl"))
            ),
            Self::Other(found) => {
                let unpacked = format!("unpacked-{name}");
                let hint = match found {
                    "gzip data" | "zstd data" if packed.is_some() => {
                        Some("it was packed twice: unpack it once".to_owned())
                    }
                    "gzip data" => Some(format!("rename it to {}", repacked(&name, "gz"))),
                    "zstd data" => Some(format!("rename it to {}", repacked(&name, "zst"))),
                    "bzip2 data" => Some(through("bzip2 -dc", bare(&unpacked))),
                    "xz data" => Some(through("xz -dc", bare(&unpacked))),
                    "lz4 data" => Some(through("lz4 -dc", bare(&unpacked))),
                    "no compressed data" => Some(format!("rename it to {}", bare(&name))),
                    "a Parquet file" => Some(format!("rename it to {}", with_ending(&name, "parquet"))),
                    "an Arrow file" => Some(format!("rename it to {}", with_ending(&name, "arrow"))),
                    "a .npy array" => Some(format!("rename it to {}", with_ending(&name, "npy"))),
                    "a tar archive" | "a ZIP archive" | "a 7z archive" | "a RAR archive" => {
                        Some("unpack it, and give the folder".to_owned())
                    }
                    "HTML or XML" => {
                        Some("if a download gave it, look into it: it may be an error page".to_owned())
                    }
                    "a checkpoint of PyTorch" => {
                        Some("leave it out with --exclude".to_owned())
                    }
                    "a Feather file of version 1" => {
                        Some("write it again with pyarrow.feather.write_feather".to_owned())
                    }
                    _ => None,
                };
                let hint = hint.map_or_else(String::new, |hint| format!("\nhint: {hint}"));
                format!("{found}, which its name does not say{hint}")
            }
        }
    }
}

/// A name without the ending that says how a file is packed.
fn bare(name: &str) -> &str {
    let dot = name.rfind('.').filter(|&dot| {
        let ending = name.get(dot..).unwrap_or_default();
        ending.eq_ignore_ascii_case(".gz") || ending.eq_ignore_ascii_case(".zst")
    });
    dot.and_then(|dot| name.get(..dot)).unwrap_or(name)
}

fn repacked(name: &str, ending: &str) -> String {
    format!("{}.{ending}", bare(name))
}

fn with_ending(name: &str, ending: &str) -> String {
    let bare = bare(name);
    let stem = bare.rsplit_once('.').map_or(bare, |(stem, _)| stem);
    format!("{stem}.{ending}")
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordProblem {
    /// What another process says of it.
    #[error("{reason}")]
    Told {
        /// Its words.
        reason: String,
    },
    /// It is too long to be held in memory.
    #[error(
        "longer than {max_bytes} bytes, the most that a record may have; split it, or give a larger \
         --max-record-bytes"
    )]
    TooLong {
        /// The limit.
        max_bytes: u64,
    },
    /// Text is not UTF-8.
    #[error("not valid UTF-8 at byte {byte_offset} of the text; convert the file to UTF-8")]
    NotUtf8 {
        /// Offset of the first bad byte in the uncompressed file, from 0.
        byte_offset: u64,
    },
    /// A line of a JSONL file is no JSON.
    #[error("not valid JSON: {reason} (column {column})")]
    Json {
        /// Byte in the line, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A line of a JSONL file is JSON, but no object.
    #[error("expected an object like {{{field:?}: \"...\"}}, found {found}")]
    NotObject {
        /// The field that was looked for.
        field: String,
        /// What the value is.
        found: &'static str,
    },
    /// A record lacks the text field.
    #[error(
        "no field {field:?}; the record has {}; name the field that holds the text with --text-field",
        listed(keys)
    )]
    NoTextField {
        /// The field that was looked for.
        field: String,
        /// The keys that the record has, in its order.
        keys: Vec<String>,
    },
    /// A record's text field is no string.
    #[error(
        "the field {field:?} is {found}, not a string; name the field that holds the text with \
         --text-field"
    )]
    TextNotString {
        /// The field.
        field: String,
        /// What its value is.
        found: &'static str,
    },
    /// A row has no text.
    #[error("the text in column {field:?} is null; remove the row")]
    NullText {
        /// The column.
        field: String,
    },
    /// A binary value is not UTF-8.
    #[error(
        "not valid UTF-8 at byte {byte_offset} of the value; binary columns are read as UTF-8 text"
    )]
    NotUtf8Value {
        /// Offset of the first bad byte in the value, from 0.
        byte_offset: usize,
    },
    /// A mask has another number of values than there are ids.
    #[error("{mask} has {found} values beside {expected} token ids; expected one for each")]
    MaskLength {
        /// Name of the mask.
        mask: &'static str,
        /// Values of the mask.
        found: usize,
        /// Token ids.
        expected: usize,
    },
    /// A mask has a value that says neither yes nor no.
    #[error("{mask} is {value} at position {position}; expected 0 or 1")]
    MaskValue {
        /// Name of the mask.
        mask: &'static str,
        /// Position in the list.
        position: usize,
        /// The value.
        value: i64,
    },
    /// A value of a mask is null.
    #[error("{mask} is null at position {position}")]
    MaskNull {
        /// Name of the mask.
        mask: &'static str,
        /// Position in the list.
        position: usize,
    },
    /// An attention mask leaves out ids between others.
    #[error(
        "attention_mask has a hole: position {position} is 0, and position {end} is 1 again; padding is only cut off \
         the ends"
    )]
    Hole {
        /// First position that is left out.
        position: usize,
        /// Last position that is not.
        end: usize,
    },
    /// A label is another id than the token's.
    #[error(
        "labels is {label} at position {position}, where the token id is {id}; expected that id or -100: labels stand \
         at the place of the token that they name"
    )]
    Label {
        /// Position in the list.
        position: usize,
        /// The label.
        label: i64,
        /// The token id there.
        id: TokenId,
    },
    /// A list of token ids has a hole.
    #[error("the token id at position {position} is null")]
    NullId {
        /// Position in the list.
        position: usize,
    },
    /// A token id that the models don't have.
    #[error("the token id at position {position} is {id}; the models have the ids 0 to {}", num_ids.saturating_sub(1))]
    IdOutOfRange {
        /// Position in the document.
        position: usize,
        /// The id.
        id: i128,
        /// Number of ids that there are.
        num_ids: u64,
    },
}

/// What is wrong with a file of token ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileProblem {
    /// Nothing says how wide an id is.
    #[error(
        "a file of token ids without a header; say what they are with --token-dtype uint16 or uint32"
    )]
    NoDtype,
    /// Nothing says where documents end.
    #[error(
        "a file of token ids in a line, and the models have no EOS; say which id ends a document with \
         --separator"
    )]
    NoSeparator,
    /// The size does not fit the dtype.
    #[error("{size_bytes} bytes are no whole number of ids of {width} bytes")]
    Size {
        /// Bytes of ids in the file.
        size_bytes: u64,
        /// Bytes of an id.
        width: u64,
    },
    /// The header of a .npy file says something that isn't supported.
    #[error("a .npy file with {found}; expected {expected}")]
    Header {
        /// What is there.
        found: String,
        /// What is read.
        expected: &'static str,
    },
}

pub(super) fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MAX_LISTED {
        text.push_str(&format!(" and {} more", names.len() - MAX_LISTED));
    }
    text
}
