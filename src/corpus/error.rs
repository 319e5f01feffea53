//! What can be wrong with a corpus, in words that say where and what to do.

use std::io;
use std::path::PathBuf;

use ::parquet::errors::ParquetError;

use super::{Compression, MAX_RECORD_BYTES};
use crate::fs;

/// Most keys or columns that a message lists.
const MAX_LISTED: usize = 20;

/// What is supported, as the messages list it.
const SUPPORTED: &str = ".txt, .md, .jsonl and .ndjson (plain, .gz or .zst), and .parquet";

/// The class of an error, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An input does not exist.
    Missing,
    /// An input is there, but its content is not what it has to be.
    BadData,
    /// The operating system failed to read.
    Io,
}

/// Why a corpus can't be read.
///
/// Lines are counted from 1 and rows from 0; byte offsets are those of the uncompressed text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input does not exist.
    #[error("no such file or folder: {}", path.display())]
    Missing {
        /// The input as given.
        path: PathBuf,
    },
    /// A file that was named as an input has no supported name.
    #[error("{}: a file of this type is not supported; supported are {SUPPORTED}", path.display())]
    Unsupported {
        /// The input as given.
        path: PathBuf,
    },
    /// There is nothing to read.
    #[error("empty corpus: {}; supported are {SUPPORTED}", empty_reason(*num_files, *num_skipped))]
    Empty {
        /// Supported files that were found, all of them empty.
        num_files: usize,
        /// Files that were found and are of no supported type.
        num_skipped: usize,
    },
    /// Two files would be known by one name.
    #[error(
        "{} and {} would both be called {name:?} in the output; rename one, or give their common \
         parent folder as the only input",
        first.display(),
        second.display()
    )]
    Collision {
        /// The name they share.
        name: String,
        /// One of the files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A file's name can't be stored as text.
    #[error("{}: the name is not valid UTF-8; rename the file", path.display())]
    NameNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// The corpus would have more parts than can be numbered.
    #[error(
        "the corpus has more than {} parts; use a larger part size than {part_bytes} bytes",
        u32::MAX
    )]
    TooManyParts {
        /// The part size that was used.
        part_bytes: u64,
    },
    /// A file is not as long as it was when the corpus was discovered.
    #[error(
        "{}: the file changed while it was in use: it had {expected} bytes and now has {actual}; \
         start again once nothing writes to the corpus",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Size at discovery, bytes.
        expected: u64,
        /// Size now, bytes.
        actual: u64,
    },
    /// A record is longer than [`MAX_RECORD_BYTES`].
    #[error(
        "{}: {place} is longer than {MAX_RECORD_BYTES} bytes, the most that one document may have; \
         split it",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Which record: "line 3", "row 7", "the document".
        place: String,
    },
    /// Text is not UTF-8.
    #[error(
        "{}, line {line}: not valid UTF-8 at byte {byte_offset} of the text; convert the file to \
         UTF-8",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Offset of the first bad byte in the uncompressed file, from 0.
        byte_offset: u64,
    },
    /// A line of a JSONL file is no JSON.
    #[error("{}, line {line}: not valid JSON: {reason} (column {column})", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Byte in the line, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A line of a JSONL file is JSON, but no object.
    #[error(
        "{}, line {line}: expected an object like {{{field:?}: \"...\"}}, found {found}",
        path.display()
    )]
    NotObject {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field that was looked for.
        field: String,
        /// What the value is.
        found: &'static str,
    },
    /// A record lacks the text field.
    #[error(
        "{}, line {line}: no field {field:?}; the record has {}; name the field that holds the \
         text with --text-field",
        path.display(),
        listed(keys)
    )]
    NoTextField {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field that was looked for.
        field: String,
        /// The keys that the record has, in its order.
        keys: Vec<String>,
    },
    /// A record's text field is no string.
    #[error(
        "{}, line {line}: the field {field:?} is {found}, not a string; name the field that holds \
         the text with --text-field",
        path.display()
    )]
    TextNotString {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field.
        field: String,
        /// What its value is.
        found: &'static str,
    },
    /// A compressed file can't be unpacked to its end.
    #[error("{}: the {compression} data is damaged or cut short", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        compression: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// A Parquet file lacks the text column.
    #[error(
        "{}: no column {field:?}; the file has {}; name the column that holds the text with \
         --text-field",
        path.display(),
        listed(columns)
    )]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column that was looked for.
        field: String,
        /// The columns that the file has, in its order.
        columns: Vec<String>,
    },
    /// A Parquet file's text column holds no strings.
    #[error(
        "{}: the column {field:?} is of type {found}, not a string; name the column that holds the \
         text with --text-field",
        path.display()
    )]
    ColumnNotString {
        /// The file.
        path: PathBuf,
        /// The column.
        field: String,
        /// Its type, as Arrow calls it.
        found: String,
    },
    /// A row of a Parquet file has no text.
    #[error("{}, row {row}: the text in column {field:?} is null; remove the row", path.display())]
    NullText {
        /// The file.
        path: PathBuf,
        /// Row in the file, from 0.
        row: u64,
        /// The column.
        field: String,
    },
    /// A Parquet file can't be parsed.
    #[error("{}: not a readable Parquet file", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: ParquetError,
    },
    /// A Parquet file contradicts itself.
    #[error("{}: the Parquet file is damaged: {reason}", path.display())]
    DamagedParquet {
        /// The file.
        path: PathBuf,
        /// In what.
        reason: String,
    },
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] fs::Error),
}

impl Error {
    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::Missing,
            Self::Io(error) if error.is_missing() => ErrorKind::Missing,
            Self::Io(_) => ErrorKind::Io,
            _ => ErrorKind::BadData,
        }
    }
}

fn empty_reason(num_files: usize, num_skipped: usize) -> String {
    match (num_files, num_skipped) {
        (0, 0) => "no file was found".to_owned(),
        (0, skipped) => format!("none of the {skipped} files found is of a supported type"),
        (files, _) => format!("all {files} supported files are empty"),
    }
}

fn listed(names: &[String]) -> String {
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
