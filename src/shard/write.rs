//! Rows to one shard.

use std::io::Write;
use std::sync::Arc;

use arrow_array::builder::{
    Float32Builder, ListBuilder, StringBuilder, StringDictionaryBuilder, UInt32Builder,
    UInt64Builder,
};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, FieldRef, SchemaRef};

use super::Error;
use super::distributions::DistributionColumns;
use super::schema::{
    self, ColumnSet, FORMAT_VERSION_KEY, PACK_STATS_KEY, PLAN_KEY, REJECTS_KEY, ShardFormat,
    columns,
};
use super::sink::Sink;
use crate::fs::Digest;
use crate::pack::PackStats;
use crate::types::{Reject, ScoredRow, round_mantissa};

/// Tokens after which a row group is closed; it is also what the writer holds in memory.
pub const ROW_GROUP_TOKENS: usize = 524_288;

/// Default for [`ShardOptions::exact`].
pub const DEFAULT_EXACT: bool = false;

/// Options of a shard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShardOptions {
    /// Number of the part that the shard holds; the upper half of its row ids.
    pub part: u32,
    /// Its format.
    pub format: ShardFormat,
    /// The columns that not every set has.
    pub columns: ColumnSet,
    /// Keep all 23 bits of the mantissas instead of 12.
    pub exact: bool,
    /// Weights that are stored in full though they are not `exact`: the bounds of the formula, if at all.
    pub exact_weights: Option<(f32, f32)>,
    /// Fraction of a row group's targets that the most likely tokens are stored for, those with the lowest entropy;
    /// `None` for all.
    pub lowest_entropy: Option<f64>,
    /// Identity of the plan ([`Plan::identity`](super::plan::Plan::identity)).
    pub plan: Digest,
}

/// Numbers of what a shard holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Rows.
    pub rows: u64,
    /// Tokens of all rows.
    pub tokens: u64,
    /// Targets of all rows.
    pub targets: u64,
}

/// Rounds log-probs as the writer does, so that what is computed from them is computed from what is
/// stored.
pub fn round_log_probs(log_probs: &mut [f32]) {
    for value in log_probs {
        *value = round_mantissa(*value);
    }
}

/// Writes rows to one file.
///
/// The bytes are a pure function of the rows and the options. At most one row group,
/// [`ROW_GROUP_TOKENS`] tokens, is held in memory.
///
/// # Examples
///
/// ```
/// use remit::pack::PackStats;
/// use remit::shard::schema::ShardFormat;
/// use remit::shard::write::{ShardOptions, ShardWriter};
/// use remit::types::ScoredRow;
///
/// let plan = remit::fs::Digest::of(b"plan");
/// let format = ShardFormat::Parquet;
/// let options = ShardOptions {
///     part: 0,
///     format,
///     columns: false.into(),
///     exact: true,
///     exact_weights: None,
///     lowest_entropy: None,
///     plan,
/// };
/// let mut writer = ShardWriter::new(Vec::new(), options)?;
/// writer.push(&ScoredRow {
///     source: "a.txt".into(),
///     doc_index: 0,
///     doc_starts: vec![0],
///     input_ids: vec![5, 6],
///     rl_logprobs: vec![-1.5],
///     base_logprobs: None,
///     weights: None,
///     target_mask: None,
///     distributions: remit::types::Distributions::default(),
/// })?;
/// let (bytes, counts) = writer.finish(&PackStats::default())?;
/// assert_eq!((counts.rows, counts.tokens, counts.targets), (1, 2, 1));
/// assert_eq!(&bytes[..4], b"PAR1");
/// # Ok::<(), remit::shard::Error>(())
/// ```
pub struct ShardWriter<W: Write + Send> {
    sink: Sink<W>,
    schema: SchemaRef,
    options: ShardOptions,
    group: Group,
    counts: ShardCounts,
    rejects: Vec<Reject>,
    next_index: u32,
}

impl<W: Write + Send> ShardWriter<W> {
    /// A writer of a shard without rows.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn new(writer: W, options: ShardOptions) -> Result<Self, Error> {
        let schema = schema::schema(options.format, options.columns);
        Ok(Self {
            sink: Sink::new(writer, options.format, &schema)?,
            group: Group::new(&schema, options),
            schema,
            options,
            counts: ShardCounts::default(),
            rejects: Vec::new(),
            next_index: 0,
        })
    }

    /// Adds a row.
    ///
    /// # Errors
    ///
    /// [`Error::BadRow`] when it breaks a rule of the format, and when writing fails.
    pub fn push(&mut self, row: &ScoredRow) -> Result<(), Error> {
        let bad = |reason| Error::BadRow {
            source_name: row.source.to_string(),
            reason,
        };
        schema::validate(row).map_err(bad)?;
        let columns = self.options.columns;
        if row.weights.is_some() != columns.base {
            return Err(bad(schema::RowProblem::HalfScored));
        }
        let distributions = &row.distributions;
        if distributions.entropies.is_some() != columns.entropy
            || distributions.top.as_ref().map(|top| top.k) != columns.top_k
        {
            return Err(bad(schema::RowProblem::Distributions));
        }
        let id = schema::row_id(self.options.part, self.next_index);
        self.next_index = self.next_index.saturating_add(1);
        self.group.push(id, row, &self.options)?;
        self.counts.rows += 1;
        self.counts.tokens += row.input_ids.len() as u64;
        self.counts.targets += row.num_targets() as u64;
        if self.group.tokens >= ROW_GROUP_TOKENS {
            self.flush()?;
        }
        Ok(())
    }

    /// Notes a record of the part that can't be read. All of them are held until the file ends.
    pub fn reject(&mut self, reject: Reject) {
        self.rejects.push(reject);
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.group.tokens == 0 {
            return Ok(());
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), self.group.take(&self.schema))?;
        self.sink.write(&batch)
    }

    /// Ends the file; `stats` of the packer go into its footer, and a digest of all of it. The file is
    /// not yet durable: that is the business of whoever owns the inner writer.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn finish(mut self, stats: &PackStats) -> Result<(W, ShardCounts), Error> {
        self.flush()?;
        let stats = serde_json::to_string(stats).unwrap_or_default();
        let format = schema::SHARD_VERSION.to_string();
        let mut entries = vec![
            (FORMAT_VERSION_KEY, format),
            (PLAN_KEY, self.options.plan.to_string()),
            (PACK_STATS_KEY, stats),
        ];
        if !self.rejects.is_empty() {
            let rejects = serde_json::to_string(&self.rejects).unwrap_or_default();
            entries.push((REJECTS_KEY, rejects));
        }
        Ok((self.sink.finish(entries)?, self.counts))
    }
}

/// The rows of an open row group, as column builders.
struct Group {
    row_id: UInt64Builder,
    source: SourceBuilder,
    doc_index: UInt64Builder,
    doc_starts: ListBuilder<UInt32Builder>,
    input_ids: ListBuilder<UInt32Builder>,
    floats: Vec<ListBuilder<Float32Builder>>,
    distributions: DistributionColumns,
    tokens: usize,
}

enum SourceBuilder {
    Dictionary(StringDictionaryBuilder<Int32Type>),
    Plain(StringBuilder),
}

impl Group {
    fn new(schema: &SchemaRef, options: ShardOptions) -> Self {
        let element = |column| element_of(schema, column);
        let mut floats = vec![columns::RL_LOGPROB];
        if options.columns.base {
            floats.extend([columns::BASE_LOGPROB, columns::WEIGHT]);
        }
        let ids = |column| ListBuilder::new(UInt32Builder::new()).with_field(element(column));
        Self {
            row_id: UInt64Builder::new(),
            source: match options.format {
                ShardFormat::Parquet => SourceBuilder::Dictionary(StringDictionaryBuilder::new()),
                ShardFormat::Arrow => SourceBuilder::Plain(StringBuilder::new()),
            },
            doc_index: UInt64Builder::new(),
            doc_starts: ids(columns::DOC_STARTS),
            input_ids: ids(columns::INPUT_IDS),
            floats: floats
                .into_iter()
                .map(|column| ListBuilder::new(Float32Builder::new()).with_field(element(column)))
                .collect(),
            distributions: DistributionColumns::new(
                options.columns.entropy,
                options.columns.top_k.is_some(),
                options.lowest_entropy,
            ),
            tokens: 0,
        }
    }

    fn push(&mut self, id: u64, row: &ScoredRow, options: &ShardOptions) -> Result<(), ArrowError> {
        self.row_id.append_value(id);
        match &mut self.source {
            SourceBuilder::Dictionary(builder) => {
                builder.append(&*row.source)?;
            }
            SourceBuilder::Plain(builder) => builder.append_value(&*row.source),
        }
        self.doc_index.append_value(row.doc_index);
        self.doc_starts.values().append_slice(&row.doc_starts);
        self.doc_starts.append(true);
        self.input_ids.values().append_slice(&row.input_ids);
        self.input_ids.append(true);
        let columns = [
            (Some(&row.rl_logprobs), None),
            (row.base_logprobs.as_ref(), None),
            (row.weights.as_ref(), Some(0.0)),
        ];
        for (builder, (values, first)) in self.floats.iter_mut().zip(columns) {
            // As the first position, so all that are no targets.
            builder.values().append_option(first);
            for (index, &value) in values.into_iter().flatten().enumerate() {
                // Of the columns, weights alone have a first value.
                let bounds = options.exact_weights.filter(|_| first.is_some());
                let is_bound = bounds.is_some_and(|bounds| value == bounds.0 || value == bounds.1);
                let value = match options.exact || is_bound {
                    true => value,
                    false => round_mantissa(value),
                };
                let value = row.is_target(index).then_some(value);
                builder.values().append_option(value.or(first));
            }
            builder.append(true);
        }
        self.distributions.push(row, options.exact);
        self.tokens += row.input_ids.len();
        Ok(())
    }

    fn take(&mut self, schema: &SchemaRef) -> Vec<ArrayRef> {
        self.tokens = 0;
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            match &mut self.source {
                SourceBuilder::Dictionary(builder) => Arc::new(builder.finish()),
                SourceBuilder::Plain(builder) => Arc::new(builder.finish()),
            },
            Arc::new(self.doc_index.finish()),
            Arc::new(self.doc_starts.finish()),
            Arc::new(self.input_ids.finish()),
        ];
        for builder in &mut self.floats {
            arrays.push(Arc::new(builder.finish()));
        }
        let element = |column: &str| element_of(schema, column);
        arrays.extend(self.distributions.take(&element));
        arrays
    }
}

/// Returns the field of the values of a list column.
fn element_of(schema: &SchemaRef, column: &str) -> FieldRef {
    match schema
        .field_with_name(column)
        .map(|field| field.data_type())
    {
        Ok(DataType::List(element)) => Arc::clone(element),
        _ => unreachable!("{column} is a list column of the schema"),
    }
}
