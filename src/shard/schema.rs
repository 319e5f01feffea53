//! Columns of a shard, and the rules that a row has to keep; shared by writer and reader.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};

use serde::{Deserialize, Serialize};

use crate::types::ScoredRow;

/// Version of a shard's columns and metadata. A reader refuses any other.
pub const SHARD_VERSION: u64 = 1;

/// Name of the values in a list column.
pub const LIST_ELEMENT: &str = "element";

/// Column names, in order.
pub mod columns {
    /// Position in the whole set's order.
    pub const ROW_ID: &str = "row_id";
    /// Path of the first document's file.
    pub const SOURCE: &str = "source";
    /// Record number of the first document.
    pub const DOC_INDEX: &str = "doc_index";
    /// Where documents begin.
    pub const DOC_STARTS: &str = "doc_starts";
    /// Token ids.
    pub const INPUT_IDS: &str = "input_ids";
    /// Log-probs of the RL model.
    pub const RL_LOGPROB: &str = "rl_logprob";
    /// Log-probs of the base.
    pub const BASE_LOGPROB: &str = "base_logprob";
    /// Static weights.
    pub const WEIGHT: &str = "weight";
    /// Entropies of the RL model's distributions.
    pub const RL_ENTROPY: &str = "rl_entropy";
    /// Ids of the RL model's most likely tokens.
    pub const RL_TOP_IDS: &str = "rl_top_ids";
    /// Their log-probs.
    pub const RL_TOP_LOGPROBS: &str = "rl_top_logprobs";
    /// Log-probs of all other tokens together.
    pub const RL_TAIL_LOGPROB: &str = "rl_tail_logprob";
}

/// Key of the footer's metadata that holds [`SHARD_VERSION`].
pub const FORMAT_VERSION_KEY: &str = "remit.format_version";
/// Key of the footer's metadata that holds the identity of the plan the shard was made under.
pub const PLAN_KEY: &str = "remit.plan_blake3";
/// Key of the footer's metadata that holds the counts of the packer, as JSON.
pub const PACK_STATS_KEY: &str = "remit.pack_stats";

/// Key of the footer's metadata that holds the records that could not be read, as a JSON array; absent
/// when there are none.
pub const REJECTS_KEY: &str = "remit.rejects";

/// Key of the footer's metadata that holds the BLAKE3 of the file, these 64 digits read as zeros.
pub const SEAL_KEY: &str = "remit.content_blake3";

/// Key of an Arrow file's metadata that holds the number of rows of each batch, as a JSON array: its
/// footer, unlike Parquet's, does not say.
pub const BATCH_ROWS_KEY: &str = "remit.batch_rows";

/// Format of the shards of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ShardFormat {
    /// Parquet: compressed, about 4 bytes per token with a base.
    #[default]
    Parquet,
    /// Arrow IPC file, not compressed: for readers that map it into memory.
    Arrow,
}

impl ShardFormat {
    /// Returns the extension of file names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
        }
    }

    /// Returns the other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Parquet => Self::Arrow,
            Self::Arrow => Self::Parquet,
        }
    }
}

impl fmt::Display for ShardFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
        })
    }
}

/// The columns that a set has or lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColumnSet {
    /// `base_logprob` and `weight`.
    pub base: bool,
    /// `rl_entropy`.
    pub entropy: bool,
    /// `rl_top_ids`, `rl_top_logprobs` and `rl_tail_logprob`, with this many tokens per target.
    pub top_k: Option<usize>,
}

/// The columns of a set with a base or without one, and nothing else that a set may lack.
impl From<bool> for ColumnSet {
    fn from(base: bool) -> Self {
        Self {
            base,
            ..Self::default()
        }
    }
}

/// A log-prob may exceed 0 by this much, from rounding in its log-sum-exp.
const LOG_PROB_SLACK_NATS: f32 = 1e-3;

/// Returns the columns of a shard. In Arrow files `source` is not a dictionary, since all batches of a file would
/// have to share one.
pub fn schema(format: ShardFormat, has: impl Into<ColumnSet>) -> SchemaRef {
    let has = has.into();
    let list = |name: &str, item: DataType, nullable_items: bool| {
        let element = Field::new(LIST_ELEMENT, item, nullable_items);
        Field::new(name, DataType::List(Arc::new(element)), false)
    };
    let source = match format {
        ShardFormat::Parquet => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
        }
        ShardFormat::Arrow => DataType::Utf8,
    };
    let mut fields = vec![
        Field::new(columns::ROW_ID, DataType::UInt64, false),
        Field::new(columns::SOURCE, source, false),
        Field::new(columns::DOC_INDEX, DataType::UInt64, false),
        list(columns::DOC_STARTS, DataType::UInt32, false),
        list(columns::INPUT_IDS, DataType::UInt32, false),
        list(columns::RL_LOGPROB, DataType::Float32, true),
    ];
    if has.base {
        fields.push(list(columns::BASE_LOGPROB, DataType::Float32, true));
        fields.push(list(columns::WEIGHT, DataType::Float32, false));
    }
    if has.entropy {
        fields.push(list(columns::RL_ENTROPY, DataType::Float32, true));
    }
    if has.top_k.is_some() {
        let nested =
            |item: DataType| DataType::List(Arc::new(Field::new(LIST_ELEMENT, item, false)));
        fields.push(list(columns::RL_TOP_IDS, nested(DataType::UInt32), true));
        fields.push(list(
            columns::RL_TOP_LOGPROBS,
            nested(DataType::Float32),
            true,
        ));
        fields.push(list(columns::RL_TAIL_LOGPROB, DataType::Float32, true));
    }
    Arc::new(Schema::new(fields))
}

/// Returns the `row_id` of the row with this number in a part.
pub fn row_id(part: u32, index_in_part: u32) -> u64 {
    u64::from(part) << 32 | u64::from(index_in_part)
}

/// A rule of the format that a row breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// Too short to hold a target, or too long to be counted.
    #[error("it has {0} tokens; a row has at least 2 and less than 2^32")]
    Length(usize),
    /// A column has another number of values than the row has targets.
    #[error("{column} has {found} values besides the first; the row has {expected} targets")]
    Values {
        /// The column.
        column: &'static str,
        /// Targets of the row.
        expected: usize,
        /// Values found.
        found: usize,
    },
    /// A log-prob is no log-prob.
    #[error(
        "{column} at position {position} is {value}; a log-probability is finite and at most 0"
    )]
    LogProb {
        /// The column.
        column: &'static str,
        /// Position in the row.
        position: usize,
        /// The value.
        value: f32,
    },
    /// A weight is no weight.
    #[error("weight at position {position} is {value}; a weight is finite and not negative")]
    Weight {
        /// Position in the row.
        position: usize,
        /// The value.
        value: f32,
    },
    /// Document starts are not ascending positions of the row.
    #[error("doc_starts is not an ascending list of positions below {len}: {value} at {index}")]
    DocStarts {
        /// Tokens of the row.
        len: usize,
        /// Index in doc_starts.
        index: usize,
        /// The value.
        value: u32,
    },
    /// The first value of a list, which is no target, is not what it has to be.
    #[error("the first value of {0} is not the one that marks a position without a target")]
    FirstValue(&'static str),
    /// A value that has to be there is null.
    #[error("{column} is null at position {position}")]
    Null {
        /// The column.
        column: &'static str,
        /// Position in the row.
        position: usize,
    },
    /// The row's number in the set is not the next one.
    #[error("row_id is {found}; {expected} was expected")]
    RowId {
        /// The id that was expected.
        expected: u64,
        /// The id that was found.
        found: u64,
    },
    /// The two log-probs disagree on which positions are targets.
    #[error("rl_logprob and base_logprob are not null at the same positions")]
    Masks,
    /// A mask has another length than the row, says nothing, or leaves no target.
    #[error(
        "the mask of its targets has {found} values, {targets} of them true; expected {expected}, some of both"
    )]
    Mask {
        /// Positions after the first.
        expected: usize,
        /// Values of the mask.
        found: usize,
        /// Those that are true.
        targets: usize,
    },
    /// A position that is no target has a weight.
    #[error("weight at position {position} is {value}; this is no target, so it has to be 0")]
    WeightOfNone {
        /// Position in the row.
        position: usize,
        /// The value.
        value: f32,
    },
    /// An entropy is no entropy.
    #[error("rl_entropy at position {position} is {value}; an entropy is finite and not negative")]
    Entropy {
        /// Position in the row.
        position: usize,
        /// The value.
        value: f32,
    },
    /// The most likely tokens at a position are not what they have to be.
    #[error("the most likely tokens at position {position}: {reason}")]
    TopTokens {
        /// Position in the row.
        position: usize,
        /// In what.
        reason: &'static str,
    },
    /// A row has other columns of the RL model's distributions than its set.
    #[error("it has not the columns of the RL model's distributions that its set has")]
    Distributions,
    /// Base log-probs without weights or the other way round.
    #[error("base log-probs and weights come together or not at all")]
    HalfScored,
}

/// Checks every rule that concerns a row alone.
pub fn validate(row: &ScoredRow) -> Result<(), RowProblem> {
    let len = row.input_ids.len();
    if len < 2 || u32::try_from(len).is_err() {
        return Err(RowProblem::Length(len));
    }
    let mut last = None;
    for (index, &start) in row.doc_starts.iter().enumerate() {
        let inside = usize::try_from(start).is_ok_and(|start| start < len);
        if !inside || last.is_some_and(|last| start <= last) {
            return Err(RowProblem::DocStarts {
                len,
                index,
                value: start,
            });
        }
        last = Some(start);
    }
    if let Some(mask) = &row.target_mask {
        let targets = row.num_targets();
        if mask.len() != len - 1 || targets == 0 || targets == mask.len() {
            return Err(RowProblem::Mask {
                expected: len - 1,
                found: mask.len(),
                targets,
            });
        }
        let mut weights = row.weights.iter().flatten().zip(mask);
        if let Some(at) = weights.position(|(weight, is_target)| !is_target && *weight != 0.0) {
            let value = row.weights.as_ref().and_then(|weights| weights.get(at));
            return Err(RowProblem::WeightOfNone {
                position: at + 1,
                value: value.copied().unwrap_or(f32::NAN),
            });
        }
    }
    log_probs(columns::RL_LOGPROB, &row.rl_logprobs, len - 1)?;
    distributions(row)?;
    match (&row.base_logprobs, &row.weights) {
        (None, None) => Ok(()),
        (Some(base), Some(weights)) => {
            log_probs(columns::BASE_LOGPROB, base, len - 1)?;
            count(columns::WEIGHT, weights, len - 1)?;
            match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
                None => Ok(()),
                Some(i) => Err(RowProblem::Weight {
                    position: i + 1,
                    value: weights.get(i).copied().unwrap_or(f32::NAN),
                }),
            }
        }
        _ => Err(RowProblem::HalfScored),
    }
}

/// Checks the entropies and the most likely tokens of a row.
fn distributions(row: &ScoredRow) -> Result<(), RowProblem> {
    let num_targets = row.input_ids.len() - 1;
    if let Some(entropies) = &row.distributions.entropies {
        count(columns::RL_ENTROPY, entropies, num_targets)?;
        let bad = |value: &f32| !(value.is_finite() && *value >= 0.0);
        if let Some(i) = entropies.iter().position(bad) {
            return Err(RowProblem::Entropy {
                position: i + 1,
                value: entropies.get(i).copied().unwrap_or(f32::NAN),
            });
        }
    }
    let Some(top) = &row.distributions.top else {
        return Ok(());
    };
    let stored = top.targets.len();
    let values = stored.saturating_mul(top.k);
    count(columns::RL_TOP_LOGPROBS, &top.log_probs, values)?;
    count(columns::RL_TAIL_LOGPROB, &top.tail_log_probs, stored)?;
    if top.ids.len() != values || top.k == 0 {
        return Err(RowProblem::Distributions);
    }
    let lists = top.ids.chunks(top.k).zip(top.log_probs.chunks(top.k));
    let mut last = None;
    for ((&target, (ids, log_probs)), tail) in
        top.targets.iter().zip(lists).zip(&top.tail_log_probs)
    {
        let index = usize::try_from(target).unwrap_or(usize::MAX);
        let problem = |reason| {
            Err(RowProblem::TopTokens {
                position: index.saturating_add(1),
                reason,
            })
        };
        if index >= num_targets || !row.is_target(index) {
            return problem("this is no target");
        }
        if last.is_some_and(|last| target <= last) {
            return problem("the position comes twice, or out of order");
        }
        last = Some(target);
        let is_log_prob = |value: &f32| value.is_finite() && *value <= LOG_PROB_SLACK_NATS;
        if !log_probs.iter().chain([tail]).all(is_log_prob) {
            return problem("a log-probability is finite and at most 0");
        }
        if !log_probs.is_sorted_by(|a, b| a >= b) {
            return problem("the most likely comes first");
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair.first() == pair.last()) {
            return problem("an id comes twice");
        }
    }
    Ok(())
}

fn count(column: &'static str, values: &[f32], expected: usize) -> Result<(), RowProblem> {
    if values.len() == expected {
        return Ok(());
    }
    Err(RowProblem::Values {
        column,
        expected,
        found: values.len(),
    })
}

fn log_probs(column: &'static str, values: &[f32], expected: usize) -> Result<(), RowProblem> {
    count(column, values, expected)?;
    let good = |value: &f32| value.is_finite() && *value <= LOG_PROB_SLACK_NATS;
    match values.iter().position(|value| !good(value)) {
        None => Ok(()),
        Some(i) => Err(RowProblem::LogProb {
            column,
            position: i + 1,
            value: values.get(i).copied().unwrap_or(f32::NAN),
        }),
    }
}
