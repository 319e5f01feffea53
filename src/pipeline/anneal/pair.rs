//! Whether set, learner and objective belong together.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::super::{BadInput, Usage};
use super::AnnealOptions;
use crate::demo;
use crate::fs::Digest;
use crate::loss::{Normalize, Objective, Weighting};
use crate::model::{ModelSource, OpenModel};
use crate::shard::manifest::{MANIFEST_FILE, Manifest};
use crate::weight::{Center, DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// Opens the model to begin with.
pub(super) fn learner(options: &AnnealOptions, manifest: &Manifest) -> Result<OpenModel> {
    if let Some(source) = &options.model {
        return Ok(OpenModel::open(source)?);
    }
    let Some(base) = &manifest.plan.base else {
        return Err(Usage(format!(
            "the set in {} was scored without a base model, so there is none to begin with\nhint: give --model DIR",
            options.weights.display()
        ))
        .into());
    };
    let source = demo::by_name(&base.path)
        .unwrap_or_else(|| ModelSource::Directory(PathBuf::from(&base.path)));
    let model = OpenModel::open(&source).with_context(|| {
        format!(
            "cannot open the base model {} of {}; give --model DIR if it has moved",
            base.path, MANIFEST_FILE
        )
    })?;
    let found = model.fingerprint();
    if found != base.fingerprint {
        return Err(BadInput(format!(
            "the base model {} has changed since the set was scored: its fingerprint is {found}, the manifest says {}\nhint: give --model DIR to train another model on purpose",
            base.path, base.fingerprint
        ))
        .into());
    }
    Ok(model)
}

/// Checks that a set's ids are those of the learner, whose tokenizer has the fingerprint `tokenizer`, and that
/// it holds what the weighting needs.
pub(in super::super) fn check(
    model: &OpenModel,
    tokenizer: Digest,
    weighting: Weighting,
    dir: &Path,
    manifest: &Manifest,
) -> Result<()> {
    let wanted = &manifest.plan.tokenizer;
    if tokenizer != wanted.fingerprint {
        return Err(BadInput(format!(
            "the set in {} was tokenized with the tokenizer of {} (fingerprint {}), but that of {model} is another (fingerprint {tokenizer}); their ids do not mean the same\nhint: score the corpus again with an RL model that shares the tokenizer of {model}",
            dir.display(),
            wanted.path,
            wanted.fingerprint
        ))
        .into());
    }
    if weighting == Weighting::Static && manifest.plan.base.is_none() {
        return Err(Usage(format!(
            "--weighting static needs stored weights, but the set in {} was scored without --base-model\nhint: --weighting dynamic needs none",
            dir.display()
        ))
        .into());
    }
    Ok(())
}

/// Checks that a model has positions for the longest row of a set.
pub(in super::super) fn check_positions(model: &OpenModel, longest_row: usize) -> Result<()> {
    let positions = model.architecture().max_position_embeddings;
    if longest_row > positions {
        return Err(BadInput(format!(
            "the set has rows of {longest_row} tokens, but {model} was made for {positions} positions"
        ))
        .into());
    }
    Ok(())
}

/// What is minimised: what was asked for, and for what was left open, what the set was scored with.
pub(super) fn objective(options: &AnnealOptions, manifest: &Manifest) -> Result<Objective> {
    let stored = manifest.plan.formula;
    if options.weighting == Weighting::Static {
        if let Some(stored) = stored
            && (options
                .epsilon
                .is_some_and(|epsilon| epsilon != stored.epsilon())
                || options
                    .temperature
                    .is_some_and(|temperature| temperature != stored.temperature()))
        {
            return Err(Usage(format!(
                "static weights were made with epsilon {} and temperature {}, and can't be changed here\nhint: --weighting dynamic computes them anew, or score again with other values",
                stored.epsilon(),
                stored.temperature()
            ))
            .into());
        }
        if options.center == Center::None {
            return Err(Usage(
                "static weights were centred on the mean of their row when they were made, so --center none can't be had here\nhint: --weighting dynamic computes them anew".to_owned(),
            )
            .into());
        }
    }
    let epsilon = stored.map_or(DEFAULT_EPSILON, |stored| stored.epsilon());
    let temperature = stored.map_or(DEFAULT_TEMPERATURE, |stored| stored.temperature());
    let formula = WeightFormula::new(
        options.epsilon.unwrap_or(epsilon),
        options.temperature.unwrap_or(temperature),
    )
    .map_err(|error| Usage(error.to_string()))?;
    let default_normalize = match options.weighting {
        Weighting::ExcessTopK => Normalize::Weights,
        _ => Normalize::Targets,
    };
    Ok(Objective {
        weighting: options.weighting,
        formula,
        center: options.center,
        normalize: options.normalize.unwrap_or(default_normalize),
        top_k_fraction: options.top_k_fraction,
        z_loss: options.z_loss,
    })
}
