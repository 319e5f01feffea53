//! The corpus: files to documents, and the parts in which the work is done.
//!
//! [`Corpus::discover`] finds the files, hashes each of them once and cuts the whole into parts;
//! [`Corpus::read_part`] streams the documents of one part. The cut depends on the content of the
//! corpus and on [`CorpusOptions::part_bytes`] alone, so every worker, wherever it runs, sees the
//! same parts.
//!
//! | file name | documents |
//! |---|---|
//! | `*.txt`, `*.md` | the whole file is one |
//! | `*.jsonl`, `*.ndjson` | one a line, in the text field of a JSON object |
//! | `*.parquet` | one a row, in the text column |
//!
//! The text formats may also be compressed: `*.jsonl.gz`, `*.txt.zst`. A UTF-8 byte order mark at
//! the start of a text file is left out.
//!
//! ```no_run
//! use remit::corpus::{Corpus, CorpusOptions};
//!
//! let corpus = Corpus::discover(&["corpus".into()], &CorpusOptions::default())?;
//! for part in corpus.parts() {
//!     for document in corpus.read_part(part) {
//!         let document = document?;
//!         assert!(!document.source.is_empty());
//!     }
//! }
//! # Ok::<(), remit::corpus::Error>(())
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::Digest;

mod discover;
mod error;
mod jsonl;
mod parquet;
mod parts;
mod read;

pub use error::{Error, ErrorKind};
pub use read::Documents;

/// Name of the JSON field or Parquet column that holds the text, where none is given.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Bytes that one document may have: a line of JSONL, a text file, a Parquet value. 256 MiB.
pub const MAX_RECORD_BYTES: u64 = 256 << 20;

/// A corpus is cut into about this many parts, where [`MIN_PART_BYTES`] and [`MAX_PART_BYTES`]
/// allow it and no size is given.
pub const DEFAULT_NUM_PARTS: u64 = 64;

/// Smallest default part size: 256 KiB.
pub const MIN_PART_BYTES: u64 = 256 << 10;

/// Largest default part size: 16 MiB.
pub const MAX_PART_BYTES: u64 = 16 << 20;

/// What the inputs are taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusOptions {
    /// JSON field or Parquet column that holds the text. Default: [`DEFAULT_TEXT_FIELD`].
    pub text_field: String,
    /// Target size of a part in bytes of the files as they are stored (for Parquet: of the text
    /// column, uncompressed). Where a file can't be cut finely enough, parts are larger; 0 is
    /// taken for 1. Default: a [`DEFAULT_NUM_PARTS`]th of the corpus, between [`MIN_PART_BYTES`]
    /// and [`MAX_PART_BYTES`].
    pub part_bytes: Option<u64>,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self {
            text_field: DEFAULT_TEXT_FIELD.to_owned(),
            part_bytes: None,
        }
    }
}

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
}

/// How a text file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, with one or several members.
    Gzip,
    /// Zstandard, with one or several frames and any window.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// One file of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its documents carry as their source; unique in the corpus.
    pub source: Arc<str>,
    /// How it holds documents.
    pub format: Format,
    /// How it is compressed.
    pub compression: Compression,
    /// Size as stored, bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the file as stored.
    pub digest: Digest,
}

/// A deterministic slice of the corpus: the unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Number of the part, from 0.
    pub index: u32,
    /// What it consists of, in the order of the corpus.
    pub slices: Vec<Slice>,
    /// Size as [`CorpusOptions::part_bytes`] measures it.
    pub size_bytes: u64,
}

/// What a part takes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Index in [`Corpus::files`].
    pub file: usize,
    /// Which of its records.
    pub range: SliceRange,
}

/// Which records of a file a slice takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceRange {
    /// All of them.
    Whole,
    /// The lines of a plain JSONL file that lie in `start..end`.
    Bytes {
        /// Offset of the first byte; a line starts there.
        start: u64,
        /// Offset after the last byte.
        end: u64,
        /// Number of the first line in the file, from 0.
        first_record: u64,
    },
    /// The row groups `start..end` of a Parquet file.
    RowGroups {
        /// First row group.
        start: usize,
        /// Row group after the last.
        end: usize,
        /// Number of the first row in the file, from 0.
        first_record: u64,
        /// Rows in all of these groups.
        num_records: u64,
    },
}

/// Files, known by content, and their parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    files: Vec<CorpusFile>,
    parts: Vec<Part>,
    skipped: Vec<PathBuf>,
    text_field: String,
    part_bytes: u64,
}

impl Corpus {
    /// Finds the files of the inputs (files, or folders with all below them), hashes them, and
    /// cuts the corpus into parts.
    ///
    /// A file's source is its path relative to the folder that was given, or its file name where
    /// it was given itself; with several inputs, a folder's own name goes in front. Files are in
    /// byte order of their sources. Hidden files are left out, and files of an unsupported type
    /// inside a folder are listed by [`Corpus::skipped`].
    ///
    /// Every file is read once, to hash it. That a Parquet file has the text column is checked
    /// here, other content when it is read.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Unsupported`], [`Error::NameNotUtf8`] and
    /// [`Error::Collision`] for the inputs' names, [`Error::Empty`] when nothing is left, those
    /// for Parquet files, and [`Error::Io`]. Of several errors, the first in the order of the
    /// files is returned.
    pub fn discover(inputs: &[PathBuf], options: &CorpusOptions) -> Result<Self, Error> {
        discover::discover(inputs, options)
    }

    /// The files, in byte order of their sources.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// The parts; together they are the whole corpus, in order. There is at least one.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Files inside the given folders that are of no supported type.
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// Target size of a part that was used, bytes.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// Size of all files as stored, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Streams the documents of a part, in order.
    ///
    /// Memory holds one record of a text file, or one batch of a few dozen rows of a Parquet file,
    /// never a whole part. The iterator ends after the first error. A document's index is its line
    /// number (from 0; blank lines count and are no documents), its row number in the Parquet
    /// file, or 0 for a text file. Documents without any text are yielded as they are.
    pub fn read_part<'a>(&'a self, part: &'a Part) -> Documents<'a> {
        Documents::new(self, part, MAX_RECORD_BYTES)
    }

    fn file(&self, index: usize) -> Option<&CorpusFile> {
        self.files.get(index)
    }
}

/// What a file's name says about its content; `None` when it is not supported.
fn classify(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.as_encoded_bytes().to_ascii_lowercase();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(b".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(b".zst") {
        (stem, Compression::Zstd)
    } else {
        (name.as_slice(), Compression::None)
    };
    let ends = |suffix: &str| stem.ends_with(suffix.as_bytes());
    if ends(".txt") || ends(".md") {
        Some((Format::Text, compression))
    } else if ends(".jsonl") || ends(".ndjson") {
        Some((Format::Jsonl, compression))
    } else if ends(".parquet") && compression == Compression::None {
        Some((Format::Parquet, compression))
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
