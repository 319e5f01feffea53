//! Writes the page of one or two sets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::super::compare::Comparison;
use super::super::inspect::tokenizer_of_set;
use super::super::{BadInput, Progress, StopFlag, Usage, refuse_below_a_set, refuse_inside_set};
use super::data::{Numbers, RowData, SourceData, TokenData, of_groups};
use super::histogram::{TEMPERATURES, ends};
use super::page::page;
use super::pass::{PassOptions, pass};
use super::repeats::{KNOWN_NATS, LEAST_RUN};
use super::runs::{self, RunData};
use super::tally::{Detail, Tally};
use super::text::Texts;
use super::verdict;
use crate::escape::Show as _;
use crate::fs;
use crate::model::ModelSource;
use crate::shard::manifest::Manifest;
use crate::weight::shortest_decimal;

/// Default for the tokens of rows that are shown.
pub const DEFAULT_SAMPLE_TOKENS: usize = 60_000;
/// Default for the most bytes of a page.
pub const MAX_PAGE_BYTES: usize = 5_000_000;
/// Sources that are told apart, in all sets together.
const MAX_SOURCES: usize = 32;

/// Options of a report.
#[derive(Debug, Clone)]
pub struct ReportOptions {
    /// The set, and maybe another beside it.
    pub sets: Vec<PathBuf>,
    /// The file to write, which ends with `.html`.
    pub output: PathBuf,
    /// Folders of training runs.
    pub runs: Vec<PathBuf>,
    /// A file that `remit-inspect compare --json` printed.
    pub losses: Option<PathBuf>,
    /// Tokens of rows that are shown, of each set.
    pub sample_tokens: usize,
    /// Seed of the rows that are shown.
    pub seed: u64,
    /// Rows that are shown besides.
    pub row_ids: Vec<u64>,
    /// Most bytes of the page; rows are left out of one that would have more.
    pub max_page_bytes: usize,
    /// The model whose tokenizer the text is decoded with; `None` for the sets' own.
    pub tokenizer: Option<ModelSource>,
}

/// A page that was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its size.
    pub bytes: usize,
    /// Rows that are shown, of all.
    pub rows: u64,
    /// Rows of all sets.
    pub all_rows: u64,
    /// The verdict on each set: lines that say what there is to say first, and what looks odd.
    pub verdicts: Vec<(Vec<String>, Vec<String>)>,
}

#[derive(Serialize)]
struct ModelData<'a> {
    path: &'a str,
    model_type: &'a str,
}

/// What the page has of a set.
#[derive(Serialize)]
struct SetData<'a> {
    name: String,
    rl: ModelData<'a>,
    base: Option<ModelData<'a>>,
    packing: String,
    seq_len: u32,
    epsilon: Option<f64>,
    temperature: Option<f64>,
    files: usize,
    split_documents: u64,
    all_documents: u64,
    headlines: Vec<String>,
    odd: Vec<String>,
    totals: Numbers,
    sources: Vec<SourceData>,
    raised: Vec<TokenData>,
    lowered: Vec<TokenData>,
    num_tokens: usize,
    rows: Vec<RowData>,
    #[serde(skip)]
    ranked: Vec<(u64, RowData)>,
}

#[derive(Serialize)]
struct Page<'p, 'a> {
    version: &'static str,
    seed: u64,
    sample_tokens: usize,
    known_nats: f32,
    least_run: usize,
    ends: &'static [f64],
    temperatures: [f64; 20],
    sets: &'p [SetData<'a>],
    runs: &'p [RunData],
    losses: &'p Option<Comparison>,
}

/// Writes the page; nothing is written over.
///
/// # Errors
///
/// When a set is missing or damaged, a log is not one, a row is not there, or the file exists or can't be written.
pub fn write(options: &ReportOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<Written> {
    let output = &options.output;
    let extension = output.extension().and_then(|extension| extension.to_str());
    if !matches!(extension, Some("html" | "htm")) {
        return Err(Usage(format!(
            "{}: the file to write has to end with .html",
            output.shown()
        ))
        .into());
    }
    let manifests: Vec<Manifest> = options
        .sets
        .iter()
        .map(|set| Ok(Manifest::load(set)?))
        .collect::<Result<_>>()?;
    for set in &options.sets {
        refuse_inside_set(output, set)?;
    }
    refuse_below_a_set(output)?;
    let exists = || {
        Usage(format!(
            "{} exists already\nhint: remove it, or give another name",
            output.shown()
        ))
    };
    if fs::exists(output)? {
        return Err(exists().into());
    }
    // What is cheap comes first, so that a mistake in it costs no time.
    let runs: Vec<RunData> = options
        .runs
        .iter()
        .map(|dir| runs::read(dir))
        .collect::<Result<_>>()?;
    let losses = options.losses.as_deref().map(read_losses).transpose()?;
    let mut sets = Vec::new();
    for (dir, manifest) in options.sets.iter().zip(&manifests) {
        sets.push(set_data(dir, manifest, options, stop, progress)?);
    }
    let (text, rows) = fitting(&mut sets, &runs, &losses, options)?;
    if rows.dropped {
        progress.note(&format!(
            "only {} rows are shown, so that the page has no more than {} bytes",
            rows.shown, options.max_page_bytes
        ));
    }
    if !fs::write_new(output, text.as_bytes())? {
        return Err(exists().into());
    }
    Ok(Written {
        bytes: text.len(),
        rows: rows.shown,
        all_rows: sets.iter().map(|set| set.totals.rows).sum(),
        verdicts: sets
            .into_iter()
            .map(|set| (set.headlines, set.odd))
            .collect(),
    })
}

fn read_losses(path: &Path) -> Result<Comparison> {
    let text = fs::read_given(path, fs::MAX_READ_BYTES)?;
    serde_json::from_slice(&text).map_err(|error| {
        BadInput(format!(
            "{} is not what remit-inspect compare prints with --json: {}",
            path.shown(),
            error.to_string().shown()
        ))
        .into()
    })
}

fn set_data<'a>(
    dir: &Path,
    manifest: &'a Manifest,
    options: &ReportOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<SetData<'a>> {
    let plan = &manifest.plan;
    let tokenizer = tokenizer_of_set(manifest, options.tokenizer.clone(), progress)?;
    let pass_options = PassOptions {
        detail: Detail::All,
        max_sources: MAX_SOURCES / options.sets.len().max(1),
        sample_tokens: options.sample_tokens,
        seed: options.seed,
        wanted: options.row_ids.iter().copied().collect(),
    };
    let groups = pass(dir, manifest, &pass_options, stop, progress)?;
    let found: BTreeSet<u64> = groups
        .iter()
        .flat_map(|group| &group.rows)
        .map(|row| row.row.row_id)
        .collect();
    if let Some(id) = pass_options.wanted.difference(&found).next() {
        return Err(Usage(format!(
            "{} has no row with the row_id {id}, and there are {}",
            dir.shown(),
            manifest.totals.rows
        ))
        .into());
    }
    let has_base = plan.base.is_some();
    let tallies: Vec<&Tally> = groups.iter().map(|group| &group.tally).collect();
    let totals = Numbers::of(&tallies, has_base);
    let mut texts = Texts::new(tokenizer.as_ref());
    let data = of_groups(groups, manifest.sources.len(), has_base, &mut texts)?;
    Ok(SetData {
        name: dir.display().to_string(),
        rl: ModelData {
            path: &plan.rl.path,
            model_type: &plan.rl.model_type,
        },
        base: plan.base.as_ref().map(|base| ModelData {
            path: &base.path,
            model_type: &base.model_type,
        }),
        packing: plan.packing.to_string(),
        seq_len: plan.seq_len,
        epsilon: plan.formula.map(|f| shortest_decimal(f.epsilon())),
        temperature: plan.formula.map(|f| shortest_decimal(f.temperature())),
        files: plan.corpus.len(),
        split_documents: manifest.documents.split_documents,
        all_documents: manifest.documents.documents,
        headlines: verdict::headlines(&totals, manifest),
        odd: verdict::oddities(manifest, &data.sources),
        totals,
        sources: data.sources,
        raised: data.raised,
        lowered: data.lowered,
        num_tokens: data.num_tokens,
        rows: Vec::new(),
        ranked: data.rows,
    })
}

struct Rows {
    shown: u64,
    dropped: bool,
}

/// Returns the page with as many rows as fit into it: those of each source that have the lowest ranks.
fn fitting(
    sets: &mut [SetData<'_>],
    runs: &[RunData],
    losses: &Option<Comparison>,
    options: &ReportOptions,
) -> Result<(String, Rows)> {
    let num_rows = sets.iter().map(|set| set.ranked.len()).max().unwrap_or(0);
    let mut most = num_rows;
    loop {
        for set in &mut *sets {
            let of_source = |source: usize| {
                let rows = set
                    .ranked
                    .iter()
                    .filter(move |(_, row)| row.source == source);
                rows.take(most).map(|(_, row)| row.clone())
            };
            let mut rows: Vec<RowData> = (0..set.sources.len()).flat_map(of_source).collect();
            rows.sort_by_cached_key(|row| (row.source, row.id.parse::<u64>().unwrap_or(0)));
            set.rows = rows;
        }
        let text = page(&Page {
            version: env!("CARGO_PKG_VERSION"),
            seed: options.seed,
            sample_tokens: options.sample_tokens,
            known_nats: KNOWN_NATS,
            least_run: LEAST_RUN,
            ends: ends(),
            temperatures: TEMPERATURES,
            sets,
            runs,
            losses,
        })
        .context("making the page")?;
        let shown = sets.iter().map(|set| set.rows.len() as u64).sum();
        if text.len() <= options.max_page_bytes || most == 0 {
            let dropped = most < num_rows;
            return Ok((text, Rows { shown, dropped }));
        }
        most /= 2;
    }
}
