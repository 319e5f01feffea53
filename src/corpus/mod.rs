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
//! | `*.jsonl`, `*.ndjson`, `*.json` | one a line, in a field of a JSON object |
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

mod amplify;
mod arrow;
mod aside;
mod bytes;
mod cells;
mod columns;
mod compression;
mod discover;
mod error;
mod files;
mod format;
mod gzip;
mod inputs;
mod jsonl;
mod masks;
mod nested;
mod options;
mod parquet;
mod parts;
mod problem;
mod read;
mod scans;
#[cfg(test)]
mod scans_tests;
mod sniff;
#[cfg(test)]
mod table_tests;
mod tables;
#[cfg(test)]
mod tests;
mod tokens;
#[cfg(test)]
mod wild_tests;

pub use compression::{ASSUMED_EXPANSION, Compression, MAX_EXPANSION};
pub use error::{Error, ErrorKind, Place};
pub use files::{Corpus, CorpusFile};
pub use format::{Format, is_supported};
pub use inputs::{Input, LeftOut};
pub use options::{
    CorpusOptions, DEFAULT_IDS_FIELD, DEFAULT_MAX_RECORD_BYTES, DEFAULT_MESSAGES_FIELD,
    DEFAULT_TEXT_FIELD, DEFAULT_ZSTD_WINDOW_LOG,
};
pub use parts::{DEFAULT_NUM_PARTS, MAX_PART_BYTES, MIN_PART_BYTES, Part, Slice, SliceRange};
pub use problem::{Disguise, RecordProblem, TokenFileProblem};
pub use read::Documents;
pub use scans::Scans;
pub use tables::TABLES;
pub use tokens::{IdType, TokenLayout};
