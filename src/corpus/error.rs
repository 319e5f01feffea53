//! What can be wrong with a corpus, in words that say where and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::compression::{Compression, MAX_EXPANSION};
use super::problem::{Disguise, RecordProblem, TokenFileProblem, listed};
use crate::escape::Show as _;
use crate::fs;
use crate::types::Reject;

/// What is supported, as the messages list it.
const SUPPORTED: &str = ".txt, .md, .jsonl, .ndjson, .json, .parquet and .arrow (each plain, .gz or .zst), .npy and .bin";

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
    /// It was asked to stop.
    Stopped,
}

/// Returns the hint of a file of an unknown type, as a line that begins with `hint:`; empty if its name has no ending.
fn text_hint(path: &Path) -> String {
    let ext = path.extension().and_then(|ext| ext.to_str());
    ext.map_or_else(String::new, |ext| {
        format!(
            "\nhint: if it is text, --text-ext {} reads it, as one document",
            ext.to_lowercase()
        )
    })
}

/// Why a corpus can't be read.
///
/// Lines are counted from 1 and rows from 0; byte offsets are those of the unpacked text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input does not exist.
    #[error("no such file or folder: {}", path.shown())]
    Missing {
        /// The input as given.
        path: PathBuf,
    },
    /// A file that was named as an input has no supported name.
    #[error("{}: a file of this type is not supported; supported are {SUPPORTED}{}", path.shown(), text_hint(path))]
    Unsupported {
        /// The input as given.
        path: PathBuf,
    },
    /// There is nothing to read.
    #[error(
        "empty corpus: {}; supported are {SUPPORTED}",
        empty_reason(*num_files, *num_skipped, *num_excluded)
    )]
    Empty {
        /// Supported files that were found, all of them empty.
        num_files: usize,
        /// Files that were found and are of no supported type.
        num_skipped: usize,
        /// Files that were found, and that the patterns leave out.
        num_excluded: usize,
    },
    /// One file is there twice.
    #[error(
        "{}; its documents would be scored twice\nhint: give it once, or leave one out with --exclude; to have \
         documents twice on purpose, copy the file under another name",
        if first == second {
            format!("{} was given twice", first.shown())
        } else {
            format!("{} and {} are the same file", first.shown(), second.shown())
        }
    )]
    SameFile {
        /// The file.
        first: PathBuf,
        /// The file again.
        second: PathBuf,
    },
    /// Two files would be known by one name.
    #[error(
        "{} and {} would both be called {name:?} in the output; rename one, or give their common \
         parent folder as the only input",
        first.shown(),
        second.shown()
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
    #[error("{}: the name is not valid UTF-8; rename the file", path.shown())]
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
    /// A file is not what it was when the corpus was discovered.
    #[error(
        "{}: the file changed while it was in use: {how}; start again once nothing writes to the \
         corpus",
        path.shown()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What tells so.
        how: String,
    },
    /// One record can't be read; the file can be read on after it.
    #[error(
        "{}{place}: {problem}\nhint: --on-bad-record skip leaves out what can't be read; \
         remit-inspect rejects lists it",
        path.shown()
    )]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Which record.
        place: Place,
        /// What is wrong with it.
        problem: Box<RecordProblem>,
    },
    /// A file's content is not what its name says.
    #[error(
        "{}: {}{}",
        path.shown(),
        match packed {
            Some(compression) => format!("in the {compression} data is "),
            None => String::new(),
        },
        disguise.message(path, *packed)
    )]
    Disguised {
        /// The file.
        path: PathBuf,
        /// How it is packed, when it is what is in there that is not as expected.
        packed: Option<Compression>,
        /// What it is.
        disguise: Disguise,
    },
    /// A compressed file can't be unpacked to its end.
    #[error("{}: the {compression} data is damaged or cut short", path.shown())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        compression: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// A compressed file unpacks to far more than its size.
    #[error(
        "{}: the {compression} data unpacks to more than {MAX_EXPANSION} times its size; if that is \
         meant, unpack the file first",
        path.shown()
    )]
    Expansion {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        compression: Compression,
    },
    /// A Zstandard frame asks for a larger window than is allowed.
    #[error(
        "{}: to unpack it takes a zstd window of more than {} MiB; if the memory is there, allow it \
         with --zstd-window-log 31",
        path.shown(),
        1_u64 << window_log.saturating_sub(20)
    )]
    Window {
        /// The file.
        path: PathBuf,
        /// The largest window that is allowed, as a power of two.
        window_log: u32,
    },
    /// A Parquet or Arrow file lacks the text column.
    #[error(
        "{}: no column {field:?}; the file has {}; name the column that holds the text with \
         --text-field",
        path.shown(),
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
    /// The text column of a Parquet or Arrow file holds neither strings nor lists of ids.
    #[error(
        "{}: the column {field:?} is of type {found}, not a string or a list of integers; name the \
         column that holds the text or the token ids with --text-field",
        path.shown()
    )]
    ColumnNotText {
        /// The file.
        path: PathBuf,
        /// The column.
        field: String,
        /// Its type, as Arrow calls it.
        found: String,
    },
    /// A Parquet file can't be parsed.
    #[error("{}: not a readable Parquet file: {}", path.shown(), reason.shown())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A column is compressed in a way that is not supported.
    #[error(
        "{}: the column {field:?} is compressed with {codec}, which is not supported; supported are \
         zstd, snappy, gzip, lz4 and none: write the file again with one of them",
        path.shown()
    )]
    Codec {
        /// The file.
        path: PathBuf,
        /// The column.
        field: String,
        /// The codec, as Parquet calls it.
        codec: String,
    },
    /// A Parquet file contradicts itself.
    #[error("{}: the Parquet file is damaged: {}", path.shown(), reason.shown())]
    DamagedParquet {
        /// The file.
        path: PathBuf,
        /// In what.
        reason: String,
    },
    /// An Arrow file can't be parsed.
    #[error("{}: not a readable Arrow IPC file: {}", path.shown(), reason.shown())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A file of token ids is of no layout that can be read.
    #[error("{}: {problem}", path.shown())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: TokenFileProblem,
    },
    /// A pattern matches no file.
    #[error("no file matches {}", pattern.shown())]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A pattern is none.
    #[error("{}: not a pattern of file names: {reason}", pattern.shown())]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It was asked to stop, by [`CorpusOptions::stop`](super::CorpusOptions::stop).
    #[error("interrupted\nhint: run the same command again")]
    Stopped,
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] fs::Error),
}

impl Error {
    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::NoMatch { .. } => ErrorKind::Missing,
            Self::Io(error) if error.is_missing() => ErrorKind::Missing,
            Self::Io(_) => ErrorKind::Io,
            Self::Stopped => ErrorKind::Stopped,
            _ => ErrorKind::BadData,
        }
    }

    /// The record that can't be read, as it is listed among the rejects, when the error is one of
    /// that kind: everything after it can still be read. The path isn't part of it, so that the
    /// same corpus in another place gives the same.
    pub fn reject(&self, source: &str) -> Option<Reject> {
        let Self::BadRecord { place, problem, .. } = self else {
            return None;
        };
        Some(Reject {
            source: source.to_owned(),
            doc_index: place.index(),
            reason: problem.to_string(),
        })
    }
}

/// Where a record is in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The whole file is the record.
    File,
    /// The whole file is the record, and the trouble is in this line of it, from 1.
    TextLine(u64),
    /// A line, from 1.
    Line(u64),
    /// A row of a table, from 0.
    Row(u64),
    /// A document in a file of token ids, from 0.
    Document(u64),
}

impl Place {
    /// Number of the record in its file, from 0.
    pub fn index(self) -> u64 {
        match self {
            Self::File | Self::TextLine(_) => 0,
            Self::Line(line) => line.saturating_sub(1),
            Self::Row(index) | Self::Document(index) => index,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::TextLine(line) | Self::Line(line) => write!(f, ", line {line}"),
            Self::Row(row) => write!(f, ", row {row}"),
            Self::Document(index) => write!(f, ", document {index}"),
        }
    }
}

fn empty_reason(num_files: usize, num_skipped: usize, num_excluded: usize) -> String {
    match (num_files, num_skipped) {
        (0, 0) if num_excluded > 0 => {
            format!("--include and --exclude leave out all {num_excluded} files found")
        }
        (0, 0) => "no file was found".to_owned(),
        (0, skipped) => format!("none of the {skipped} files found is of a supported type"),
        (files, _) => format!("all {files} supported files are empty"),
    }
}
