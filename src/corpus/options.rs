//! What a corpus is read with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use crate::fs::NamePattern;
use crate::types::{TokenDtype, TokenId};

/// Name of the JSON field or column that holds the text, where none is given.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Name of the JSON field or column that holds token ids, where none is given and there is no text.
pub const DEFAULT_IDS_FIELD: &str = "input_ids";

/// Name of the JSON field or column that holds messages of a chat, where none is given and there is neither.
pub const DEFAULT_MESSAGES_FIELD: &str = "messages";

/// Name of the JSON field or column that holds the tools that messages may call.
pub(super) const TOOLS_FIELD: &str = "tools";

/// Default for [`CorpusOptions::max_record_bytes`]: 16 MiB.
pub const DEFAULT_MAX_RECORD_BYTES: u64 = 16 << 20;

/// Default for [`CorpusOptions::zstd_window_log`]: 128 MiB, as the zstd program's own.
pub const DEFAULT_ZSTD_WINDOW_LOG: u32 = 27;

/// What the inputs are taken for.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// JSON field or column that holds the text, lists of token ids, or messages. Default: [`DEFAULT_TEXT_FIELD`], and
    /// where a record or table has none, [`DEFAULT_IDS_FIELD`], then [`DEFAULT_MESSAGES_FIELD`]. Where no field has a
    /// name with dots in it, these lead into nested fields.
    pub text_field: Option<String>,
    /// Files are read that one of these patterns matches; all, where there is none.
    pub include: Vec<NamePattern>,
    /// Files that one of these patterns matches are not read.
    pub exclude: Vec<NamePattern>,
    /// Endings of files, without the dot and in lower case, that are taken for text, one document each, whatever
    /// they are taken for otherwise.
    pub text_ext: Vec<String>,
    /// Target size of a part in bytes, unpacked (for Parquet and Arrow: of the text column). Where a
    /// file can't be cut finely enough, parts are larger; 0 is taken for 1. Default: a
    /// [`DEFAULT_NUM_PARTS`](super::DEFAULT_NUM_PARTS)th of the corpus, between
    /// [`MIN_PART_BYTES`](super::MIN_PART_BYTES) and [`MAX_PART_BYTES`](super::MAX_PART_BYTES);
    /// compressed files count [`ASSUMED_EXPANSION`](super::ASSUMED_EXPANSION) times their size there.
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
    pub(super) fn check_stop(&self) -> Result<(), Error> {
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
            include: Vec::new(),
            exclude: Vec::new(),
            text_ext: Vec::new(),
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
