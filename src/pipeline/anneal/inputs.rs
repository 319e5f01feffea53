//! Opens and checks what a run reads: the device, the sets and the initial model.

use std::path::Path;

use anyhow::Result;

use super::super::device::open_device;
use super::super::{BadInput, Progress, refuse_inside_set};
use super::compat::{check_special_tokens, check_tokenizer, check_weighting, learner};
use super::options::{AnnealOptions, EvalOptions, EvalRows};
use super::{export, run_file};
use crate::model::{ComputeDevice, OpenModel};
use crate::shard::read::ShardSet;

/// The inputs of a run.
pub(super) struct Inputs {
    /// The device to compute on.
    pub device: ComputeDevice,
    /// The set to train on.
    pub set: ShardSet,
    /// Another set to measure losses on, if one was given.
    pub eval_set: Option<ShardSet>,
    /// The initial model.
    pub initial: OpenModel,
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
        run_file::refuse_foreign_files(&options.output.dir)?;
        let device = open_device(options.compute.device, progress)?;
        let set = ShardSet::open(&options.weights)?;
        refuse_inside_set(&options.output.dir, &options.weights)?;
        let initial = learner(options.model.as_ref(), &options.weights, set.manifest())?;
        let check = |dir: &Path, set: &ShardSet| -> Result<()> {
            let manifest = set.manifest();
            let own = check_tokenizer(&initial, dir, manifest)?;
            check_special_tokens(&own, options.keep_special_tokens, dir, manifest, progress)?;
            check_weighting(options.loss.weighting, dir, manifest)
        };
        check(&options.weights, &set)?;
        let eval_set = match &options.eval {
            Some(EvalOptions {
                rows: EvalRows::Set(dir),
                ..
            }) => {
                let set = ShardSet::open(dir)?;
                check(dir, &set)?;
                if set.manifest().totals.rows == 0 {
                    return Err(
                        BadInput(format!("the set in {} has no rows", dir.display())).into(),
                    );
                }
                Some(set)
            }
            _ => None,
        };
        export::open_carried_over(&initial)?;
        Ok(Self {
            device,
            set,
            eval_set,
            initial,
        })
    }
}
