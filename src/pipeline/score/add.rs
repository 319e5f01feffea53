//! remit-score --add: another model's log-probs, or numbers from elsewhere, for the rows of a finished set.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::super::{BadInput, Progress, StopFlag, Usage, refuse_below_a_set};
use super::options::{ComputeOptions, WorkerOptions};
use super::rescore;
use crate::escape::Show as _;
use crate::fs::{self, AtomicFile};
use crate::model::OpenModel;
use crate::shard;
use crate::shard::import;
use crate::shard::layout::shard_name;
use crate::shard::plan::ModelIdentity;
use crate::shard::read::{ShardFile, ShardSet};
use crate::shard::row::StoredRow;
use crate::shard::sidecar::{
    Origin, SIDECAR_VERSION, Sidecar, SidecarPlan, SidecarWriter, Values, assemble, check_name,
    sidecar_dir,
};
use crate::types::{ScoredRow, round_mantissa};

/// What is added to a set.
#[derive(Debug, Clone)]
pub struct AddOptions {
    /// The set.
    pub set: PathBuf,
    /// Name of the column.
    pub name: String,
    /// A file of numbers to import, and its column; `None` for log-probs of the model.
    pub import: Option<(PathBuf, String)>,
    /// The model, as the RL model, and its device.
    pub compute: ComputeOptions,
    /// Folder of the sidecar; `None` for the one beside the set.
    pub output: Option<PathBuf>,
    /// Keeps all 23 bits of the mantissas.
    pub exact: bool,
    /// This worker's part of the work.
    pub worker: WorkerOptions,
}

/// Report on what was added.
#[derive(Debug, Serialize)]
pub struct AddReport {
    /// Folder of the sidecar.
    pub sidecar: String,
    /// Parts that this run made.
    pub added_parts: usize,
    /// Number of parts in all.
    pub num_parts: usize,
    /// Tokens that this run went over.
    pub tokens: u64,
    /// Seconds that took.
    pub seconds: f64,
    /// Parts that are still missing.
    pub missing_parts: Vec<u32>,
}

/// Where the numbers come from.
enum Numbers<'a> {
    Scorer(Box<super::scorer::Scorer<'a>>),
    File(BTreeMap<u64, Values>, PathBuf),
}

/// Adds a column to a set, as a sidecar; makes what is missing of it.
///
/// # Errors
///
/// When the set, the model or the file is missing or bad, when they don't belong together, and when the folder holds
/// another sidecar. Finished parts are kept in every case.
pub fn run(options: &AddOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<AddReport> {
    check_name(&options.name)
        .map_err(|reason| Usage(format!("--as {}: {reason}", options.name)))?;
    let dir = match &options.output {
        Some(dir) => dir.clone(),
        None => sidecar_dir(&options.set, &options.name),
    };
    refuse_below_a_set(&dir)?;
    let set = ShardSet::open(&options.set)?;
    let manifest = set.manifest();
    let device = rescore::device_of(&options.compute, progress)?;
    let model = match &options.import {
        None => Some(rescore::open_for(
            &options.compute.rl,
            &options.compute,
            &options.set,
            &set,
        )?),
        Some(_) => None,
    };
    let (dtype, kind) = (options.compute.dtype, device.kind());
    let origin = match (&model, &options.import) {
        (Some(model), _) => Origin::Model(identity(model, &dtype.to_string(), kind)),
        (None, Some((path, column))) => Origin::Imported {
            path: path.display().to_string(),
            column: column.clone(),
            blake3: fs::hash_file(path, |_| {})?.1,
        },
        (None, None) => return Err(Usage("--add needs a model or a file".to_owned()).into()),
    };
    let plan = SidecarPlan {
        sidecar_version: SIDECAR_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: options.name.clone(),
        set_blake3: manifest.content_blake3,
        origin,
        exact: options.exact,
        format: manifest.plan.format,
        num_parts: manifest.plan.num_parts,
    };
    // Before anything is written: a file that is refused leaves nothing behind.
    let imported = match &options.import {
        Some((path, column)) => {
            progress.note(&format!("reading {} of {}", column.shown(), path.shown()));
            Some((import::read(path, column)?, path))
        }
        None => None,
    };
    fs::create_dir_all(&dir)?;
    let plan = settle(&dir, plan)?;
    let mut report = AddReport {
        sidecar: dir.display().to_string(),
        added_parts: 0,
        num_parts: set.shards().len(),
        tokens: 0,
        seconds: 0.0,
        missing_parts: Vec::new(),
    };
    let mine: Vec<(u32, &ShardFile)> = missing(&dir, &plan)?
        .into_iter()
        .filter(|part| options.worker.has_part(*part))
        .filter_map(|part| Some((part, set.shards().get(part as usize)?)))
        .collect();
    if !mine.is_empty() {
        let numbers = match (&model, imported) {
            (Some(model), _) => Numbers::Scorer(Box::new(rescore::load(
                (model, None),
                &options.compute,
                device,
                options.exact,
                None,
                manifest,
                progress,
            )?)),
            (None, Some((numbers, path))) => Numbers::File(numbers, path.clone()),
            (None, None) => return Err(Usage("--add needs a model or a file".to_owned()).into()),
        };
        let started = std::time::Instant::now();
        let total: u64 = mine.iter().map(|(_, shard)| shard.num_rows()).sum();
        progress.begin("adding", total);
        let mut done = 0;
        for (part, shard) in mine {
            let tokens = write_part(&dir, &plan, part, shard, &numbers, stop)?;
            done += shard.num_rows();
            report.added_parts += 1;
            report.tokens += tokens;
            progress.advance(done, tokens, "");
        }
        progress.finish();
        report.seconds = started.elapsed().as_secs_f64();
    }
    report.missing_parts = missing(&dir, &plan)?;
    if report.missing_parts.is_empty() {
        match Sidecar::open(&dir, manifest) {
            Err(shard::Error::NoSidecar { .. }) => {
                assemble(&dir, plan, manifest)?;
            }
            opened => drop(opened?),
        }
    }
    Ok(report)
}

fn identity(model: &OpenModel, dtype: &str, device: &str) -> ModelIdentity {
    ModelIdentity {
        path: model.name(),
        fingerprint: model.fingerprint(),
        model_type: model.architecture().outer_model_type().to_owned(),
        dtype: dtype.to_owned(),
        device: device.to_owned(),
    }
}

/// Writes the plan, or compares with the existing one; returns the one in force.
fn settle(dir: &Path, plan: SidecarPlan) -> Result<SidecarPlan> {
    if SidecarPlan::load(dir)?.is_none() {
        if let Some(name) = fs::list(dir)?.first() {
            return Err(Usage(format!(
                "{} holds {}, and no sidecar\nhint: give another -o, or an empty folder",
                dir.shown(),
                name.shown()
            ))
            .into());
        }
        plan.save(dir)?;
    }
    let existing = SidecarPlan::load(dir)?.context("the plan has vanished while it was read")?;
    if existing.identity()? != plan.identity()? {
        let of = |plan: &SidecarPlan| match &plan.origin {
            Origin::Model(model) => format!(
                "model {} (fingerprint {}, {} on {})",
                model.path, model.fingerprint, model.dtype, model.device
            ),
            Origin::Imported {
                path,
                column,
                blake3,
            } => {
                format!("column {column} of {path} (BLAKE3 {blake3})")
            }
        };
        let exact = |plan: &SidecarPlan| if plan.exact { ", exact" } else { "" };
        return Err(Usage(format!(
            "{} was started with other inputs or options:\n  it is {} for the set {}: {}{}\n  now it would be {} for {}: {}{}\n\
             hint: give another --as or -o, or what it was started with",
            dir.shown(),
            existing.name,
            existing.set_blake3,
            of(&existing),
            exact(&existing),
            plan.name,
            plan.set_blake3,
            of(&plan),
            exact(&plan)
        ))
        .into());
    }
    Ok(existing)
}

fn missing(dir: &Path, plan: &SidecarPlan) -> Result<Vec<u32>> {
    let names: BTreeSet<OsString> = fs::list(dir)?.into_iter().collect();
    let is_missing = |part: &u32| !names.contains(OsStr::new(&shard_name(*part, plan.format)));
    Ok((0..plan.num_parts).filter(is_missing).collect())
}

/// Makes and publishes the shard of a part; returns its tokens.
fn write_part(
    dir: &Path,
    plan: &SidecarPlan,
    part: u32,
    shard: &ShardFile,
    numbers: &Numbers<'_>,
    stop: &StopFlag,
) -> Result<u64> {
    let path = dir.join(shard_name(part, plan.format));
    let file = AtomicFile::create(&path)?;
    let failure = file.failure();
    let failed = |error: shard::Error| fs::write_failure(&path, &failure, error.into());
    let mut writer = SidecarWriter::new(file, plan).map_err(failed)?;
    let mut tokens = 0;
    for group in 0..shard.num_row_groups() {
        stop.check("finished parts are kept, and it does the rest")?;
        let rows = shard.read_row_group(group)?;
        tokens += rows.iter().map(|row| row.num_tokens() as u64).sum::<u64>();
        let values = match numbers {
            Numbers::Scorer(scorer) => {
                let scored = rescore::score(scorer, &rows)?;
                rows.iter()
                    .zip(&scored)
                    .map(|(row, scored)| (row.row_id, values_of(scored)))
                    .collect()
            }
            Numbers::File(numbers, file) => rows
                .iter()
                .map(|row| imported(row, numbers, file, plan.exact))
                .collect::<Result<Vec<_>>>()?,
        };
        writer.push_group(&values).map_err(failed)?;
    }
    writer.finish().map_err(failed)?.publish_new()?;
    Ok(tokens)
}

/// The log-probs of a row as a sidecar has them.
fn values_of(row: &ScoredRow) -> Values {
    let of_targets = row.rl_logprobs.iter().enumerate();
    std::iter::once(None)
        .chain(of_targets.map(|(index, value)| row.is_target(index).then_some(*value)))
        .collect()
}

/// Returns the numbers of a file for a row, after checking that there is one for every target.
fn imported(
    row: &StoredRow,
    numbers: &BTreeMap<u64, Values>,
    file: &Path,
    exact: bool,
) -> Result<(u64, Values)> {
    let id = row.row_id;
    let Some(found) = numbers.get(&id) else {
        return Err(BadInput(format!("{}: there is no row_id {id}", file.shown())).into());
    };
    if found.len() != row.num_tokens() {
        return Err(BadInput(format!(
            "{}: row_id {id} has {} numbers; the row has {} tokens, the first of which needs one too, null",
            file.shown(),
            found.len(),
            row.num_tokens()
        ))
        .into());
    }
    let mut values: Values = vec![None];
    for (index, value) in found.iter().skip(1).enumerate() {
        values.push(match (row.scored.is_target(index), value) {
            (false, _) => None,
            (true, Some(value)) if value.is_finite() => Some(match exact {
                true => *value,
                false => round_mantissa(*value),
            }),
            (true, value) => {
                let value = value.map_or("null".to_owned(), |value| value.to_string());
                return Err(BadInput(format!(
                    "{}: row_id {id} has {value} at position {}; a finite number was expected",
                    file.shown(),
                    index + 1
                ))
                .into());
            }
        });
    }
    Ok((id, values))
}
