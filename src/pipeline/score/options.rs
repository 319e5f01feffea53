//! Options of a run.

use std::path::PathBuf;

use chrono::NaiveDate;

use crate::corpus::Input;
use crate::fs::NamePattern;
use crate::model::{ComputeDtype, DeviceChoice, ModelSource};
use crate::pack::Packing;
use crate::shard::schema::ShardFormat;
use crate::tokenize::SpecialTokensInText;
use crate::types::{DistributionPlan, OnBadRecord, TokenDtype, TokenId, WeightBounds};
use crate::weight::WeightFormula;

/// Default for the most tokens of a batch.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;
/// Default for it where weights stay on disk: so many that reading these takes little of the time.
pub const DEFAULT_STREAMED_BATCH_TOKENS: usize = 131_072;
/// Default for the longest row, in tokens, where the models allow it.
pub const DEFAULT_SEQ_LEN: u32 = 4096;

/// Choice about a special token around documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum AddToken {
    /// BOS where the tokenizer's own template has one; EOS where the model has one.
    #[default]
    Auto,
    /// Yes; an error when the model has none.
    Always,
    /// No.
    Never,
}

/// Everything that a run is asked for.
#[derive(Debug, Clone)]
pub struct ScoreOptions {
    /// The corpus to score.
    pub corpus: InputOptions,
    /// The way from documents to rows.
    pub rows: RowOptions,
    /// The models that score them, and their device.
    pub compute: ComputeOptions,
    /// The set to write.
    pub shards: SetOptions,
    /// This worker's part of the work.
    pub worker: WorkerOptions,
    /// Makes signals that mean nothing an error.
    pub strict: bool,
}

/// The corpus to score.
#[derive(Debug, Clone)]
pub struct InputOptions {
    /// Files, folders, patterns, lists of files.
    pub inputs: Vec<Input>,
    /// Patterns of which a file has to match one; none for all files.
    pub include: Vec<NamePattern>,
    /// Patterns of which a file may match none.
    pub exclude: Vec<NamePattern>,
    /// Key or column that holds the text, or token ids; `None` for the default.
    pub text_field: Option<String>,
    /// File of the chat template; `None` for that of a model.
    pub chat_template: Option<PathBuf>,
    /// Date that the chat template is told; `None` for that of the set that is there, else today.
    pub chat_date: Option<NaiveDate>,
    /// Endings of files that are taken for text, without the dot.
    pub text_ext: Vec<String>,
    /// Reaction to records that can't be read.
    pub on_bad_record: OnBadRecord,
    /// Most bytes of one record.
    pub max_record_bytes: u64,
    /// Documents after this many are left out.
    pub limit_docs: Option<u64>,
    /// How ids are stored in files of token ids without a header.
    pub token_dtype: Option<TokenDtype>,
    /// The id that ends a document in files of token ids; `None` for the model's EOS.
    pub separator: Option<TokenId>,
    /// The largest window that a Zstandard frame may ask for, as a power of two.
    pub zstd_window_log: u32,
    /// Target size of a part in bytes; `None` for the default.
    pub part_bytes: Option<u64>,
}

/// The way from documents to rows.
#[derive(Debug, Clone, Copy)]
pub struct RowOptions {
    /// Rows are documents, or windows over them.
    pub packing: Packing,
    /// Longest row in tokens; `None` for the default.
    pub seq_len: Option<u32>,
    /// Documents of fewer tokens are left out.
    pub min_tokens: usize,
    /// BOS before documents.
    pub bos: AddToken,
    /// EOS after documents.
    pub eos: AddToken,
    /// Reading of text that spells out a special token; `None` for what the tokenizer's files say.
    pub special_tokens_in_text: Option<SpecialTokensInText>,
}

/// The models that score rows, and their device.
#[derive(Debug, Clone)]
pub struct ComputeOptions {
    /// The RL-tuned model.
    pub rl: ModelSource,
    /// The frozen base, if static weights are wanted.
    pub base: Option<ModelSource>,
    /// Folder of the tokenizer; `None` for that of the base, or of the RL model without one.
    pub tokenizer: Option<ModelSource>,
    /// Most tokens of a batch; `None` for what a GPU has memory for, else [`DEFAULT_BATCH_TOKENS`], or
    /// [`DEFAULT_STREAMED_BATCH_TOKENS`].
    pub batch_tokens: Option<usize>,
    /// Leaves the weights on disk, and reads them once for every batch.
    pub stream_weights: bool,
    /// Dtype that the models compute in.
    pub dtype: ComputeDtype,
    /// Device that the models compute on.
    pub device: DeviceChoice,
    /// Fields of config.json that are accepted though they are not understood.
    pub ignored_fields: Vec<String>,
}

/// The set to write.
#[derive(Debug, Clone)]
pub struct SetOptions {
    /// Folder for the set.
    pub output: PathBuf,
    /// Format of the shards.
    pub format: ShardFormat,
    /// Keeps all 23 bits of the mantissas.
    pub exact: bool,
    /// Formula of the static weights.
    pub formula: WeightFormula,
    /// How weights at its bounds are stored.
    pub weight_bounds: WeightBounds,
    /// What is stored of the RL model's distributions, if anything.
    pub distributions: Option<DistributionPlan>,
    /// Reads and hashes the shards of a set that is complete already, besides comparing their sizes.
    pub verify: bool,
}

/// One of several workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerOptions {
    /// Number of workers.
    pub count: u32,
    /// Number of this worker, from 0.
    pub index: u32,
}

impl WorkerOptions {
    /// Returns the number of the worker that a part belongs to.
    pub fn of_part(&self, part: u32) -> u32 {
        part % self.count.max(1)
    }

    /// Returns whether a part is this worker's.
    pub(in super::super) fn has_part(&self, part: u32) -> bool {
        self.of_part(part) == self.index
    }
}
