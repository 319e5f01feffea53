//! Rows of a finished set, scored again: what `--add` and `--certify` share.

use std::path::Path;

use anyhow::Result;

use super::super::anneal::{check_positions, check_tokenizer, longest_row};
use super::super::device::open_device;
use super::super::stages::RowScorer as _;
use super::super::{BadInput, Progress};
use super::models::load_scorer;
use super::options::ComputeOptions;
use super::scorer::Scorer;
use crate::model::{Compute, ComputeDevice, ModelSource, OpenModel};
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;
use crate::shard::row::StoredRow;
use crate::types::{DistributionPlan, Row, ScoredRow};

/// Opens the device to compute on.
pub(super) fn device_of(
    options: &ComputeOptions,
    progress: &dyn Progress,
) -> Result<ComputeDevice> {
    open_device(options.device, options.dtype, progress)
}

/// Opens a model, and checks that the ids of the set in `dir` mean the same to it, and that it was made for rows as long.
pub(super) fn open_for(
    source: &ModelSource,
    options: &ComputeOptions,
    dir: &Path,
    set: &ShardSet,
) -> Result<OpenModel> {
    let ignored = [
        options.ignored_fields.as_slice(),
        &set.manifest().plan.ignored_config_fields,
    ]
    .concat();
    let model = OpenModel::open_ignoring(source, &ignored)?;
    check_tokenizer(&model, dir, set.manifest())?;
    let positions = model.architecture().max_position_embeddings;
    check_positions(&model, longest_row(set, positions)?)?;
    Ok(model)
}

/// Loads models to score rows of a set with.
pub(super) fn load<'a>(
    (rl, base): (&OpenModel, Option<&OpenModel>),
    options: &ComputeOptions,
    device: ComputeDevice,
    exact: bool,
    distributions: Option<DistributionPlan>,
    manifest: &Manifest,
    progress: &'a dyn Progress,
) -> Result<Scorer<'a>> {
    let compute = Compute {
        device,
        dtype: options.dtype,
        trained: false,
    };
    let mut scorer = load_scorer(
        (rl, base),
        manifest.plan.seq_len,
        options,
        &compute,
        progress,
    )?;
    scorer.exact = exact;
    scorer.formula = manifest.plan.formula.unwrap_or_default();
    scorer.distributions = distributions;
    Ok(scorer)
}

/// Scores rows of a set, in batches.
pub(super) fn score(scorer: &Scorer<'_>, rows: &[StoredRow]) -> Result<Vec<ScoredRow>> {
    let mut scored = Vec::with_capacity(rows.len());
    let mut batch: Vec<Row> = Vec::new();
    let mut tokens = 0;
    for row in rows {
        if tokens > 0 && tokens + row.num_tokens() > scorer.batch_tokens() {
            scored.extend(scorer.score(std::mem::take(&mut batch))?);
            tokens = 0;
        }
        tokens += row.num_tokens();
        batch.push(unscored(row));
    }
    if !batch.is_empty() {
        scored.extend(scorer.score(batch)?);
    }
    match scored.len() == rows.len() {
        true => Ok(scored),
        false => Err(BadInput("a batch lost rows".to_owned()).into()),
    }
}

/// A row as it was before it was scored.
fn unscored(row: &StoredRow) -> Row {
    let scored = &row.scored;
    Row {
        source: scored.source.clone(),
        doc_index: scored.doc_index,
        doc_starts: scored.doc_starts.clone(),
        input_ids: scored.input_ids.clone(),
        loss_mask: scored
            .target_mask
            .as_ref()
            .map(|mask| [&[true][..], mask.as_slice()].concat()),
    }
}
