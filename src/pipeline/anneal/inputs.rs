//! Opens and checks what a run reads: the device, the sets and the initial model.

use std::path::Path;

use anyhow::Result;

use super::super::device::open_device;
use super::super::signals;
use super::super::{BadInput, Progress, Usage, refuse_below_a_set};
use super::carried::Carried;
use super::compat::{check_special_tokens, check_tokenizer, check_weighting, learner};
use super::options::{AnnealOptions, EvalOptions, EvalRows};
use super::run_file;
use crate::escape::Show as _;
use crate::model::{ComputeDevice, ComputeDtype, OpenModel};
use crate::shard::read::ShardSet;
use crate::shard::sidecar::{Origin, Sidecar, check_name, sidecar_dir};

/// The inputs of a run.
pub(super) struct Inputs {
    /// The device to compute on.
    pub device: ComputeDevice,
    /// The set to train on.
    pub set: ShardSet,
    /// Names and digests of the columns that stand for the RL model's log-probs, if they are not the set's own.
    pub rl_columns: Option<String>,
    /// Another set to measure losses on, if one was given.
    pub eval_set: Option<ShardSet>,
    /// The initial model.
    pub initial: OpenModel,
    /// What an export carries over from it.
    pub carried: Carried,
}

impl Inputs {
    /// Opens everything. What is cheap to refuse comes first: the output folder and the device before the shards,
    /// which are hashed.
    ///
    /// # Errors
    ///
    /// When the output folder holds files of another origin, when the device can't be used, when a set or the
    /// model is missing or damaged, and when they don't fit together.
    pub fn open(options: &AnnealOptions, progress: &dyn Progress) -> Result<Self> {
        refuse_below_a_set(&options.output.dir)?;
        run_file::refuse_foreign_files(&options.output.dir)?;
        let dtype = options.compute.dtype;
        if dtype == ComputeDtype::Bf16Split {
            return Err(Usage(
                "--dtype bf16-split is for scoring: training in bf16 keeps the forward pass in f32 on the CPU\nhint: --dtype \
                 bf16 trains with matrices in bf16"
                    .to_owned(),
            )
            .into());
        }
        let device = open_device(options.compute.device, dtype, progress)?;
        if options.loss.weighting.is_distillation() && device.kind() != "cpu" {
            return Err(Usage(format!(
                "--weighting {} is computed on the CPU only so far, and the device is {device}\nhint: --device cpu",
                options.loss.weighting
            ))
            .into());
        }
        let names = options.rl_columns.as_slice();
        let (set, rl_columns) = open_set(&options.weights, names, progress)?;
        let initial = learner(
            options.model.as_ref(),
            &options.ignored_fields,
            &options.weights,
            set.manifest(),
        )?;
        let signals = signals::of_learner(&initial, &options.weights, set.manifest());
        signals::report(&signals, options.strict, progress)?;
        let check = |dir: &Path, set: &ShardSet| -> Result<()> {
            let manifest = set.manifest();
            let own = check_tokenizer(&initial, dir, manifest)?;
            check_special_tokens(&own, options.keep_special_tokens, dir, manifest, progress)?;
            check_weighting(&options.loss, dir, manifest)
        };
        check(&options.weights, &set)?;
        let eval_set = match &options.eval {
            Some(EvalOptions {
                rows: EvalRows::Set(dir),
                ..
            }) => {
                let (set, _) = open_set(dir, names, progress)?;
                check(dir, &set)?;
                if set.manifest().totals.rows == 0 {
                    return Err(BadInput(format!("the set in {} has no rows", dir.shown())).into());
                }
                Some(set)
            }
            _ => None,
        };
        let carried = Carried::open(&initial)?;
        run_file::refuse_overwriting(&options.output.dir, carried.files().map(|(name, _)| name))?;
        if !carried.dropped().is_empty() {
            progress.note(&format!(
                "auto_map names code that is not in {initial}, so the export does without: {}",
                carried.dropped().join(", ")
            ));
        }
        Ok(Self {
            device,
            set,
            rl_columns,
            eval_set,
            initial,
            carried,
        })
    }
}

/// Opens a set, with columns in the place of the RL model's log-probs; returns also what names them in the settings.
fn open_set(
    dir: &Path,
    names: &[String],
    progress: &dyn Progress,
) -> Result<(ShardSet, Option<String>)> {
    let set = ShardSet::open(dir)?;
    if names.is_empty() || names == ["rl"] {
        return Ok((set, None));
    }
    let mut sidecars = Vec::new();
    let mut recorded = Vec::new();
    let mut own = false;
    for (i, name) in names.iter().enumerate() {
        if names.iter().skip(i + 1).any(|other| other == name) {
            return Err(Usage(format!("--rl-column names {name} twice")).into());
        }
        if name == "rl" {
            own = true;
            recorded.push(name.clone());
            continue;
        }
        check_name(name).map_err(|reason| Usage(format!("--rl-column {name}: {reason}")))?;
        let sidecar = Sidecar::open(&sidecar_dir(dir, name), set.manifest())?;
        let manifest = sidecar.manifest();
        if let Origin::Imported { path, .. } = &manifest.plan.origin {
            progress.note(&format!("{name} was imported from {}", path.shown()));
        }
        recorded.push(format!("{name}={}", manifest.content_blake3));
        sidecars.push(sidecar);
    }
    Ok((set.with_rl_columns(own, sidecars), Some(recorded.join(","))))
}
