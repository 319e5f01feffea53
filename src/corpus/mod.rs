//! The corpus: files to documents, and the parts in which the work is done.
//!
//! [`Corpus::discover`] finds the files, hashes each of them once and cuts the whole into parts;
//! [`Corpus::documents`] streams the documents of one part. The cut depends on the content of the
//! corpus and on [`CorpusOptions::part_bytes`] alone, so every worker, wherever it runs, sees the
//! same parts.
//!
//! | file name | documents |
//! |---|---|
//! | `*.txt`, `*.md` | the whole file is one |
//! | `*.jsonl`, `*.ndjson` | one a line, in a field of a JSON object |
//! | `*.parquet`, `*.arrow`, `*.feather` | one a row, in a column |
//! | `*.npy`, `*.bin` | token ids, a separator after each document |
//!
//! All but files of token ids may also be compressed: `*.jsonl.gz`, `*.parquet.zst`. Tables are then
//! unpacked to temporary files without names, since they are read at random. A UTF-8 byte order mark
//! at the start of a text file is left out. Where a field or column holds lists of integers, these are
//! token ids, which are taken as they are.
//!
//! ```no_run
//! use remit::corpus::{Corpus, CorpusOptions};
//!
//! let corpus = Corpus::discover(&["corpus".into()], &CorpusOptions::default())?;
//! for part in corpus.parts() {
//!     for document in corpus.documents(part) {
//!         let document = document?;
//!         assert!(!document.source.is_empty());
//!     }
//! }
//! # Ok::<(), remit::corpus::Error>(())
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fs::{self, Digest, Stamp};
use crate::types::{TokenDtype, TokenId};

mod arrow;
mod bytes;
mod columns;
mod discover;
mod error;
mod inputs;
mod jsonl;
mod parquet;
mod parts;
mod read;
mod tokens;

pub use error::{Error, ErrorKind, Place, RecordProblem, TokenFileProblem};
pub use inputs::Input;
pub use read::Documents;
pub use tokens::{IdType, TokenLayout};

/// Name of the JSON field or column that holds the text, where none is given.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Name of the JSON field or column that holds token ids, where none is given and there is no text.
pub const DEFAULT_IDS_FIELD: &str = "input_ids";

/// Default for [`CorpusOptions::max_record_bytes`]: 16 MiB.
pub const DEFAULT_MAX_RECORD_BYTES: u64 = 16 << 20;

/// Default for [`CorpusOptions::zstd_window_log`]: 128 MiB, as the zstd program's own.
pub const DEFAULT_ZSTD_WINDOW_LOG: u32 = 27;

/// A compressed file may unpack to this many times its size, once it is beyond 64 MiB. Text
/// compresses to a third or a tenth.
pub const MAX_EXPANSION: u64 = 256;

/// A corpus is cut into about this many parts, where [`MIN_PART_BYTES`] and [`MAX_PART_BYTES`]
/// allow it and no size is given.
pub const DEFAULT_NUM_PARTS: u64 = 64;

/// Times its size that a compressed file counts when the default part size is chosen, before anything
/// is unpacked.
pub const ASSUMED_EXPANSION: u64 = 4;

/// Smallest default part size: 256 KiB.
pub const MIN_PART_BYTES: u64 = 256 << 10;

/// Largest default part size: 16 MiB.
pub const MAX_PART_BYTES: u64 = 16 << 20;

/// What the inputs are taken for.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// JSON field or column that holds the text, or lists of token ids. Default:
    /// [`DEFAULT_TEXT_FIELD`], and where a record or table has none, [`DEFAULT_IDS_FIELD`].
    pub text_field: Option<String>,
    /// Target size of a part in bytes, unpacked (for Parquet and Arrow: of the text column). Where a
    /// file can't be cut finely enough, parts are larger; 0 is taken for 1. Default: a
    /// [`DEFAULT_NUM_PARTS`]th of the corpus, between [`MIN_PART_BYTES`] and [`MAX_PART_BYTES`];
    /// compressed files count [`ASSUMED_EXPANSION`] times their size there.
    pub part_bytes: Option<u64>,
    /// Bytes that one record may have: a line, a text file, a value, the ids of a document. Memory
    /// does not hold more of a longer one.
    pub max_record_bytes: u64,
    /// Documents after this many, in the order of the corpus, are left out, and files that are not
    /// reached are not looked at.
    pub limit_docs: Option<u64>,
    /// The largest window that a Zstandard frame may ask for, as a power of two.
    pub zstd_window_log: u32,
    /// Number of ids that the models have; an id in the corpus has to be below.
    pub num_ids: u64,
    /// How ids are stored in files without a header.
    pub token_dtype: Option<TokenDtype>,
    /// The id that ends a document in files of token ids in a line.
    pub separator: Option<TokenId>,
    /// Once it is set, whoever is on the way through a file ends with [`Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl CorpusOptions {
    fn check_stop(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self {
            text_field: None,
            part_bytes: None,
            max_record_bytes: DEFAULT_MAX_RECORD_BYTES,
            limit_docs: None,
            zstd_window_log: DEFAULT_ZSTD_WINDOW_LOG,
            num_ids: 1 << 32,
            token_dtype: None,
            separator: None,
            stop: Arc::default(),
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
    /// One row a document, in Arrow's IPC format.
    Arrow,
    /// Token ids.
    Tokens(TokenLayout),
}

/// How a file is compressed, whatever it does inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, with one or several members.
    Gzip,
    /// Zstandard, with one or several frames.
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
    /// What the file looked like when it was hashed.
    pub stamp: Stamp,
}

impl CorpusFile {
    /// Fails when the file has been written to since it was hashed.
    fn expect_unchanged(&self) -> Result<(), Error> {
        match self.stamp.difference(&fs::stamp(&self.path)?) {
            None => Ok(()),
            Some(how) => Err(Error::Changed {
                path: self.path.clone(),
                how,
            }),
        }
    }
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

impl Part {
    /// Number of its records, if all of them are rows of tables.
    pub fn num_rows(&self) -> Option<u64> {
        self.slices.iter().try_fold(0, |sum: u64, slice| {
            let SliceRange::RowGroups { num_records, .. } = slice.range else {
                return None;
            };
            let rows = slice
                .max_documents
                .map_or(num_records, |max| max.min(num_records));
            Some(sum.saturating_add(rows))
        })
    }
}

/// What a part takes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Index in [`Corpus::files`].
    pub file: usize,
    /// Which of its records.
    pub range: SliceRange,
    /// Most documents that are taken of it, where that is less than it holds.
    pub max_documents: Option<u64>,
}

/// Which records of a file a slice takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceRange {
    /// All of them.
    Whole,
    /// The records that lie in the bytes `start..end` of the file, unpacked.
    Bytes {
        /// Offset of the first byte; a record starts there.
        start: u64,
        /// Offset after the last byte.
        end: u64,
        /// Number of the first record in the file, from 0.
        first_record: u64,
    },
    /// The row groups `start..end` of a Parquet file, or batches of an Arrow file.
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
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<CorpusFile>,
    parts: Vec<Part>,
    skipped: Vec<PathBuf>,
    options: CorpusOptions,
    part_bytes: u64,
}

impl Corpus {
    /// Finds the files of the inputs (files, or folders with all below them), hashes them, and
    /// cuts the corpus into parts.
    ///
    /// A file's source is its path relative to the folder that was given, or its file name where
    /// it was given itself; with several inputs, a folder's own name goes in front. A path that
    /// does not exist and has `*`, `?` or `[` in it is a pattern; sources are then relative to the
    /// folder in front of the first of these. Files are in byte order of their sources. Hidden
    /// files are left out, and files of an unsupported type inside a folder are listed by
    /// [`Corpus::skipped`].
    ///
    /// Every file is read once, unpacked, to hash it and to find where it can be cut. That a table
    /// has the column is checked here, other content when it is read.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::NoMatch`], [`Error::Unsupported`], [`Error::NameNotUtf8`] and
    /// [`Error::Collision`] for the inputs' names, [`Error::Empty`] when nothing is left, those
    /// for damaged files, and [`Error::Io`]. Of several errors, the first in the order of the
    /// files is returned.
    pub fn discover(inputs: &[PathBuf], options: &CorpusOptions) -> Result<Self, Error> {
        let inputs: Vec<Input> = inputs.iter().cloned().map(Input::Path).collect();
        Self::discover_inputs(&inputs, options)
    }

    /// As [`Corpus::discover`], also from lists of files.
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::discover`].
    pub fn discover_inputs(inputs: &[Input], options: &CorpusOptions) -> Result<Self, Error> {
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

    /// A reader of documents, to be told with which part to begin. One reader for several parts
    /// unpacks a compressed file only once.
    ///
    /// Memory holds one record of a text file, or one batch of rows of a table, never a whole part.
    /// A document's index is its line number (from 0; blank lines count and are no documents), its
    /// row number, its number in a file of token ids, or 0 for a text file. Documents without any
    /// text are yielded as they are.
    pub fn reader(&self) -> Documents<'_> {
        Documents::new(self)
    }

    /// Streams the documents of a part, in order.
    pub fn documents<'a>(&'a self, part: &'a Part) -> Documents<'a> {
        let mut documents = self.reader();
        documents.begin(part);
        documents
    }

    /// What the inputs are taken for.
    pub fn options(&self) -> &CorpusOptions {
        &self.options
    }

    fn file(&self, index: usize) -> Option<&CorpusFile> {
        self.files.get(index)
    }

    fn read_error(&self, file: &CorpusFile, error: io::Error) -> Error {
        let window_log = self.options.zstd_window_log;
        bytes::read_error(&file.path, file.compression, window_log, error)
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

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
