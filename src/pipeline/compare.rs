//! remit-inspect compare and order: the losses of two models on a set, and the order in which training sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::anneal::{
    Evaluation, Rows, check_positions, check_tokenizer, evaluation, longest_row, losses,
};
use super::device::open_device;
use super::{BadInput, Progress, StopFlag};
use crate::batch::Order;
use crate::escape::Show as _;
use crate::loss::{LossSums, Normalize, Objective, Weighting};
use crate::model::{Compute, ComputeDtype, Decoder, DeviceChoice, ModelSource, OpenModel};
use crate::shard::read::ShardSet;
use crate::weight::Center;

/// Options of a comparison.
#[derive(Debug, Clone)]
pub struct CompareOptions {
    /// The two models.
    pub models: [PathBuf; 2],
    /// The set whose rows are used.
    pub weights: PathBuf,
    /// Tokens computed at a time.
    pub batch_tokens: usize,
    /// Device to compute on.
    pub device: DeviceChoice,
    /// Dtype to compute in.
    pub dtype: ComputeDtype,
}

/// Losses of a source, or of the whole set, under both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparedLosses {
    /// Number of targets.
    pub targets: u64,
    /// The plain next-token loss under each model, nats per target.
    pub ntp_loss: [f64; 2],
    /// The loss weighted as dynamic weighting does with that model as the learner.
    pub loss: [f64; 2],
}

/// Losses of two models on a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The models as given.
    pub models: [String; 2],
    /// The set as given.
    pub weights: String,
    /// Over the whole set.
    pub all: ComparedLosses,
    /// By source.
    pub sources: BTreeMap<String, ComparedLosses>,
}

/// Measures the losses of two models on the rows of a set, by source.
///
/// # Errors
///
/// When the set or a model is damaged or they do not belong together.
pub fn compare(
    options: &CompareOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Comparison> {
    let device = open_device(options.device, options.dtype, progress)?;
    let set = ShardSet::open(&options.weights)?;
    let manifest = set.manifest();
    if manifest.totals.rows == 0 {
        return Err(BadInput(format!(
            "the set in {} has no rows",
            options.weights.shown()
        ))
        .into());
    }
    let objective = Objective {
        weighting: Weighting::Dynamic,
        formula: manifest.plan.formula.unwrap_or_default(),
        center: Center::Row,
        normalize: Normalize::Targets,
        top_k_fraction: 1.0,
        distillation: None,
        z_loss: None,
    };
    let open = |path: &PathBuf| -> Result<OpenModel> {
        let model = OpenModel::open_ignoring(
            &ModelSource::Directory(path.clone()),
            &set.manifest().plan.ignored_config_fields,
        )?;
        check_tokenizer(&model, &options.weights, manifest)?;
        let positions = model.architecture().max_position_embeddings;
        check_positions(&model, longest_row(&set, positions)?)?;
        Ok(model)
    };
    let [a, b] = &options.models;
    let (a, b) = (open(a)?, open(b)?);
    let compute = Compute {
        device,
        dtype: options.dtype,
        trained: false,
    };
    // One after the other, so that there is memory for one.
    let measure = |model: &OpenModel| -> Result<Evaluation> {
        progress.note(&format!("measuring {model}"));
        let started = Instant::now();
        let model = Decoder::from_open(model, &compute)?;
        let (rows, tokens) = (Rows::Set(&set), options.batch_tokens);
        let sums: BTreeMap<Arc<str>, LossSums> =
            losses(&model, &rows, &objective, tokens, 0, stop, "it starts over")?;
        Ok(evaluation(0, &sums, &objective, started))
    };
    let [a, b] = [measure(&a)?, measure(&b)?];
    let both = |targets: u64, a: (f64, f64), b: (f64, f64)| ComparedLosses {
        targets,
        ntp_loss: [a.0, b.0],
        loss: [a.1, b.1],
    };
    let by_source = a.sources.iter().zip(&b.sources).map(|(a, b)| {
        let losses = both(a.targets, (a.ntp_loss, a.loss), (b.ntp_loss, b.loss));
        (a.source.clone(), losses)
    });
    Ok(Comparison {
        models: options
            .models
            .clone()
            .map(|model| model.display().to_string()),
        weights: options.weights.display().to_string(),
        all: both(a.targets, (a.ntp_loss, a.loss), (b.ntp_loss, b.loss)),
        sources: by_source.collect(),
    })
}

/// The rows of a step, by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepRows {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Its rows, in order.
    pub row_ids: Vec<u64>,
}

/// Calls `each` with the first `num_steps` steps of a training run, or with those of the first epoch.
///
/// # Errors
///
/// When the set is damaged, and what `each` returns.
pub fn order(
    dir: &Path,
    seed: u64,
    batch_tokens: usize,
    num_steps: Option<u64>,
    holdout: Option<f64>,
    each: &mut dyn FnMut(StepRows) -> Result<()>,
) -> Result<()> {
    let set = ShardSet::open(dir)?;
    let order = Order::new(&set, seed, holdout)?;
    if order.longest_row() == 0 {
        return Err(BadInput(format!("the set in {} has no rows", dir.shown())).into());
    }
    let mut step = 0;
    for epoch in 0.. {
        for row_ids in order.row_ids(epoch, batch_tokens) {
            if num_steps.is_some_and(|wanted| step == wanted) {
                return Ok(());
            }
            step += 1;
            each(StepRows {
                step,
                epoch,
                row_ids,
            })?;
        }
        if num_steps.is_none() {
            return Ok(());
        }
    }
    Ok(())
}
