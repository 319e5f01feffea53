//! remit-inspect export: a set with a row for each token.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow_array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::inspect::tokenizer_of_set;
use super::{Progress, StopFlag, Usage, refuse_below_a_set, refuse_inside_set};
use crate::escape::Show as _;
use crate::fs::{self, AtomicFile};
use crate::model::ModelSource;
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardFile;
use crate::shard::row::StoredRow;
use crate::shard::sink::ZSTD_LEVEL;
use crate::tokenize::TextTokenizer;

/// Options of an export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The set.
    pub set: PathBuf,
    /// The file: `.parquet` or `.csv`.
    pub output: PathBuf,
    /// The model whose tokenizer the text is decoded with; `None` for the set's own.
    pub tokenizer: Option<ModelSource>,
    /// Leaves cells of a `.csv` as they are that a spreadsheet takes for formulas.
    pub raw_cells: bool,
}

/// Tokens as columns. Of the first position of a row, and of others that are no targets, `rl_logprob` and
/// `base_logprob` are null and `weight` is 0, as in the shards.
#[derive(Default)]
struct Tokens {
    row_id: Vec<u64>,
    position: Vec<u32>,
    source: Vec<Arc<str>>,
    doc_index: Vec<u64>,
    input_id: Vec<u32>,
    text: Option<Vec<String>>,
    rl_logprob: Vec<Option<f32>>,
    base: Option<(Vec<Option<f32>>, Vec<f32>)>,
}

/// Writes one row per token; returns the number of tokens. Memory holds one row group.
///
/// # Errors
///
/// When the set is damaged, or the file can't be written: then there is none.
pub fn tokens(options: &ExportOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<u64> {
    let path = &options.output;
    let is_csv = match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => true,
        Some("parquet") => false,
        _ => {
            return Err(Usage(format!(
                "{}: the file to write has to end with .parquet or .csv",
                path.shown()
            ))
            .into());
        }
    };
    let manifest = Manifest::load(&options.set)?;
    refuse_inside_set(path, &options.set)?;
    refuse_below_a_set(path)?;
    let exists = || {
        Usage(format!(
            "{} exists already\nhint: remove it, or give another name",
            path.shown()
        ))
    };
    if fs::exists(path)? {
        return Err(exists().into());
    }
    let tokenizer = tokenizer_of_set(&manifest, options.tokenizer.clone(), progress)?;
    let file = AtomicFile::create(path)?;
    let failure = file.failure();
    let failed = |error| fs::write_failure(path, &failure, error);
    let mut sink = if is_csv {
        Sink::Csv(CsvFile {
            file: io::BufWriter::new(file),
            has_header: false,
            raw_cells: options.raw_cells,
        })
    } else {
        Sink::Parquet(Some(file), None)
    };
    let identity = manifest.plan.identity()?;
    progress.begin("exporting", manifest.totals.tokens);
    let mut done = 0;
    for entry in &manifest.shards {
        let shard = ShardFile::open_verified(&options.set, entry, &manifest.plan, identity)?;
        for group in 0..shard.num_row_groups() {
            stop.check("nothing was written")?;
            let rows = shard.read_row_group(group)?;
            let tokens = Tokens::of(&rows, tokenizer.as_ref(), manifest.plan.base.is_some())?;
            let len = tokens.input_id.len() as u64;
            sink.write(tokens).map_err(failed)?;
            done += len;
            progress.advance(done, len, "");
        }
    }
    if done == 0 {
        let none = Tokens::of(&[], tokenizer.as_ref(), manifest.plan.base.is_some())?;
        sink.write(none).map_err(failed)?;
    }
    if !sink.finish().map_err(failed)?.publish_new()? {
        return Err(exists().into());
    }
    progress.finish();
    Ok(done)
}

impl Tokens {
    fn of(rows: &[StoredRow], tokenizer: Option<&TextTokenizer>, has_base: bool) -> Result<Self> {
        let mut tokens = Self {
            text: tokenizer.map(|_| Vec::new()),
            base: has_base.then(Default::default),
            ..Self::default()
        };
        for StoredRow {
            row_id,
            scored: row,
        } in rows
        {
            for (position, id) in (0..).zip(&row.input_ids) {
                tokens.row_id.push(*row_id);
                tokens.position.push(position);
                tokens.source.push(Arc::clone(&row.source));
                tokens.doc_index.push(row.doc_index);
                tokens.input_id.push(*id);
            }
            tokens.rl_logprob.push(None);
            let of_targets = |values: &[f32]| -> Vec<Option<f32>> {
                let values = values.iter().enumerate();
                values
                    .map(|(index, value)| row.is_target(index).then_some(*value))
                    .collect()
            };
            tokens.rl_logprob.extend(of_targets(&row.rl_logprobs));
            if let Some((base, weight)) = &mut tokens.base {
                base.push(None);
                base.extend(of_targets(row.base_logprobs.as_deref().unwrap_or_default()));
                weight.push(0.0);
                weight.extend(row.weights.iter().flatten());
            }
            if let (Some(text), Some(tokenizer)) = (&mut tokens.text, tokenizer) {
                for (len, piece) in tokenizer.pieces(&row.input_ids)? {
                    text.extend((1..len).map(|_| String::new()));
                    text.push(piece);
                }
            }
        }
        Ok(tokens)
    }

    fn batch(self) -> Result<RecordBatch> {
        let mut columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("row_id", Arc::new(UInt64Array::from(self.row_id)), false),
            (
                "position",
                Arc::new(UInt32Array::from(self.position)),
                false,
            ),
            (
                "source",
                Arc::new(StringArray::from_iter_values(self.source.iter())),
                false,
            ),
            (
                "doc_index",
                Arc::new(UInt64Array::from(self.doc_index)),
                false,
            ),
            (
                "input_id",
                Arc::new(UInt32Array::from(self.input_id)),
                false,
            ),
        ];
        if let Some(text) = self.text {
            columns.push(("text", Arc::new(StringArray::from(text)), false));
        }
        columns.push((
            "rl_logprob",
            Arc::new(Float32Array::from(self.rl_logprob)),
            true,
        ));
        if let Some((base, weight)) = self.base {
            columns.push(("base_logprob", Arc::new(Float32Array::from(base)), true));
            columns.push(("weight", Arc::new(Float32Array::from(weight)), false));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
    }
}

struct CsvFile {
    file: io::BufWriter<AtomicFile>,
    has_header: bool,
    raw_cells: bool,
}

enum Sink {
    Csv(CsvFile),
    /// The file, until the writer has it.
    Parquet(Option<AtomicFile>, Option<Box<ArrowWriter<AtomicFile>>>),
}

impl Sink {
    fn write(&mut self, tokens: Tokens) -> Result<()> {
        match self {
            Self::Csv(csv) => {
                if !csv.has_header {
                    write_header(&mut csv.file, &tokens)?;
                    csv.has_header = true;
                }
                Ok(write_csv(&mut csv.file, &tokens, csv.raw_cells)?)
            }
            Self::Parquet(file, writer) => {
                let batch = tokens.batch()?;
                if let Some(file) = file.take() {
                    let zstd = ZstdLevel::try_new(ZSTD_LEVEL)?;
                    let properties = WriterProperties::builder()
                        .set_compression(Compression::ZSTD(zstd))
                        .build();
                    let new = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
                    *writer = Some(Box::new(new));
                }
                let writer = writer.as_mut().context("the writer was just made")?;
                writer.write(&batch)?;
                Ok(writer.flush()?)
            }
        }
    }

    fn finish(self) -> Result<AtomicFile> {
        match self {
            Self::Csv(csv) => Ok(csv
                .file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?),
            Self::Parquet(_, writer) => Ok(writer.context("nothing was written")?.into_inner()?),
        }
    }
}

fn write_header(file: &mut impl Write, tokens: &Tokens) -> io::Result<()> {
    write!(file, "row_id,position,source,doc_index,input_id")?;
    if tokens.text.is_some() {
        write!(file, ",text")?;
    }
    write!(file, ",rl_logprob")?;
    if tokens.base.is_some() {
        write!(file, ",base_logprob,weight")?;
    }
    writeln!(file)
}

fn write_csv(file: &mut impl Write, tokens: &Tokens, raw_cells: bool) -> io::Result<()> {
    let quoted = |text: &str| quoted(text, raw_cells);
    let number = |value: Option<f32>| value.map_or_else(String::new, |value| value.to_string());
    for (i, id) in tokens.input_id.iter().enumerate() {
        write!(
            file,
            "{},{},{},{},{id}",
            tokens.row_id[i],
            tokens.position[i],
            quoted(&tokens.source[i]),
            tokens.doc_index[i],
        )?;
        if let Some(text) = &tokens.text {
            write!(file, ",{}", quoted(&text[i]))?;
        }
        write!(file, ",{}", number(tokens.rl_logprob[i]))?;
        if let Some((base, weight)) = &tokens.base {
            write!(file, ",{},{}", number(base[i]), weight[i])?;
        }
        writeln!(file)?;
    }
    Ok(())
}

/// What a cell begins with that a spreadsheet takes for a formula, which may call programs and send data away.
const FORMULA_STARTS: [char; 7] = ['=', '+', '-', '@', '\t', '\r', '\n'];

/// A field of a CSV file, after RFC 4180. An apostrophe goes before what a spreadsheet would take for a formula,
/// unless it is to stay as it is.
fn quoted(text: &str, raw: bool) -> String {
    let guard = if !raw && text.starts_with(FORMULA_STARTS) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_a_spreadsheet_would_run_is_marked_as_text() {
        for (text, cell) in [
            ("=cmd|' /C calc'!A0", "\"'=cmd|' /C calc'!A0\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("\r=1", "\"'\r=1\""),
            ("\n=1", "\"'\n=1\""),
            (" a", "\" a\""),
            ("1-1", "\"1-1\""),
            ("\"=1", "\"\"\"=1\""),
        ] {
            assert_eq!(quoted(text, false), cell);
            assert_eq!(quoted(text, true), cell.replacen("\"'", "\"", 1));
        }
    }
}
