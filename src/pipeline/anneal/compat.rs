//! Checks that a set, a learner and an objective fit together.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::super::score::AddToken;
use super::super::special::{TokenizerSource, difference};
use super::super::tokenizer::tokenizer_in;
use super::super::{BadInput, Progress, Usage};
use super::options::LossOptions;
use crate::batch::Order;
use crate::demo;
use crate::escape::Show as _;
use crate::loss::{
    DEFAULT_ALPHA, DEFAULT_SWITCH_FRACTION, DEFAULT_TOP_K_FRACTION, Distillation, Normalize,
    Objective, Weighting,
};
use crate::model::{ModelSource, OpenModel};
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;
use crate::tokenize::NamedToken;
use crate::types::{Divergence, TokenId};
use crate::weight::{Center, DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// Opens the initial model: the one that was given, else the base that the set in `dir` was scored with.
pub(super) fn learner(
    given: Option<&ModelSource>,
    ignored: &[String],
    dir: &Path,
    manifest: &Manifest,
) -> Result<OpenModel> {
    let ignored = [ignored, &manifest.plan.ignored_config_fields].concat();
    if let Some(source) = given {
        return Ok(OpenModel::open_ignoring(source, &ignored)?);
    }
    let Some(base) = &manifest.plan.base else {
        return Err(Usage(format!(
            "the set in {} was scored without a base model, so there is no initial model\nhint: give --model DIR",
            dir.shown()
        ))
        .into());
    };
    let source = demo::by_name(&base.path)
        .unwrap_or_else(|| ModelSource::Directory(PathBuf::from(&base.path)));
    let model = OpenModel::open_ignoring(&source, &ignored).with_context(|| {
        format!(
            "cannot open the base model {} of the manifest; give --model DIR if it has moved",
            base.path
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

/// Checks that the ids of the set in `dir` mean the same to a model, and returns the model's own tokenizer.
///
/// They do if both have the same tokenizer. If not, and the one of the set is still where it was, ids are compared
/// one by one.
pub(in super::super) fn check_tokenizer(
    model: &OpenModel,
    dir: &Path,
    manifest: &Manifest,
) -> Result<TokenizerSource> {
    let own = TokenizerSource::of(model)?;
    let wanted = &manifest.plan.tokenizer;
    let found = own.tokenizer.fingerprint();
    if found == wanted.fingerprint {
        return Ok(own);
    }
    let source = demo::by_name(&wanted.path)
        .unwrap_or_else(|| ModelSource::Directory(PathBuf::from(&wanted.path)));
    let of_set = tokenizer_in(&source).ok();
    let of_set = of_set.filter(|tokenizer| tokenizer.fingerprint() == wanted.fingerprint);
    let reason = match of_set {
        Some(of_set) => match difference(&of_set, &own.tokenizer, usize::MAX) {
            None => return Ok(own),
            Some(difference) => difference,
        },
        None => format!(
            "{} no longer has the tokenizer that could be compared id by id",
            wanted.path.shown()
        ),
    };
    Err(BadInput(format!(
        "the set in {} was tokenized with the tokenizer of {} (fingerprint {}), but that of {model} is another \
         (fingerprint {found}), and their ids do not mean the same: {reason}\nhint: score the corpus again with \
         --tokenizer {model}, and with an RL model to which those ids mean the same",
        dir.shown(),
        wanted.path.shown(),
        wanted.fingerprint
    ))
    .into())
}

/// Checks that documents of the set in `dir` begin and end with the tokens that the learner's own files say.
pub(super) fn check_special_tokens(
    own: &TokenizerSource,
    keep: bool,
    dir: &Path,
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<()> {
    // A template that can't be understood is no policy to compare with.
    let Ok(policy) = own.document_tokens(AddToken::Auto, AddToken::Auto) else {
        return Ok(());
    };
    let of_set = manifest.plan.special_tokens;
    let named = manifest.plan.tokenizer.document_tokens.clone();
    let named = named.unwrap_or_default();
    let spelled = |id: Option<TokenId>, named: Option<NamedToken>| match (id, named) {
        (_, Some(token)) => token.to_string(),
        (Some(id), None) => format!("id {id}"),
        (None, None) => "nothing".to_owned(),
    };
    let ids = policy.ids();
    let mut differences = Vec::new();
    if of_set.bos != ids.bos {
        differences.push(format!(
            "begin with {}, not with {}",
            spelled(of_set.bos, named.bos),
            spelled(ids.bos, policy.bos)
        ));
    }
    // A model that names no EOS says nothing about how documents end.
    if ids.eos.is_some() && of_set.eos != ids.eos {
        differences.push(format!(
            "end with {}, not with {}",
            spelled(of_set.eos, named.eos),
            spelled(ids.eos, policy.eos)
        ));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the documents of the set in {} {}, as the files of the initial model, {}, say",
        dir.shown(),
        differences.join(", and "),
        own.source
    );
    if keep {
        progress.note(&message);
        return Ok(());
    }
    Err(BadInput(format!(
        "{message}\nhint: score again with --base-model or --tokenizer {}, or give --keep-special-tokens to train on \
         the set as it is",
        own.source
    ))
    .into())
}

/// Checks that the set in `dir` stores what the weighting needs.
pub(super) fn check_weighting(
    options: &LossOptions,
    dir: &Path,
    manifest: &Manifest,
) -> Result<()> {
    let weighting = options.weighting;
    if weighting.is_distillation() {
        check_distributions(options, dir, manifest)?;
    }
    if weighting == Weighting::Static && manifest.plan.base.is_none() {
        return Err(Usage(format!(
            "--weighting static needs stored weights, but the set in {} was scored without --base-model\nhint: --weighting dynamic needs none",
            dir.shown()
        ))
        .into());
    }
    Ok(())
}

/// Checks that the set in `dir` stores the distributions that switch and kd weighting learn.
fn check_distributions(options: &LossOptions, dir: &Path, manifest: &Manifest) -> Result<()> {
    let refuse = |missing: String, hint: &str| {
        Err(Usage(format!(
            "--weighting {} {missing} the set in {}\nhint: score the corpus again with {hint}",
            options.weighting,
            dir.shown()
        ))
        .into())
    };
    let stored = manifest.plan.distributions;
    let Some((stored, top)) = stored.and_then(|stored| Some((stored, stored.top_k?))) else {
        return refuse(
            "needs distributions of the RL model, which are not in".to_owned(),
            "--entropy --top-k 16 --entropy-temperature 2",
        );
    };
    match (options.weighting, top.lowest_entropy) {
        (Weighting::Switch, _) if !stored.entropy => refuse(
            "needs entropies of the RL model, which are not in".to_owned(),
            "--entropy",
        ),
        (Weighting::Switch, Some(fraction)) if fraction < options.switch_fraction => refuse(
            format!(
                "needs distributions for {} of the targets (--switch-fraction), and {fraction} of them have one in",
                options.switch_fraction
            ),
            "a larger --top-k-where entropy<=qN",
        ),
        (Weighting::Kd, Some(fraction)) => refuse(
            format!("needs the distribution of every target, and {fraction} of them have one in"),
            "--top-k-where all",
        ),
        _ => Ok(()),
    }
}

/// Checks that a model was made for as many positions as the longest row of a set has.
pub(in super::super) fn check_positions(model: &OpenModel, longest_row: usize) -> Result<()> {
    let positions = model.architecture().max_position_embeddings;
    if longest_row > positions {
        return Err(BadInput(format!(
            "the set has rows of {longest_row} tokens, but {model} was made for {positions} positions\nhint: score \
             the corpus again with --seq-len {positions}, or train a model that was made for more"
        ))
        .into());
    }
    Ok(())
}

/// Returns a length in tokens that no row of a set exceeds. If the row length of its plan is at most `enough`, it
/// is that; else it is the length of the longest row, for which all ids are decoded.
pub(in super::super) fn longest_row(set: &ShardSet, enough: usize) -> Result<usize> {
    let bound = set.manifest().plan.seq_len as usize;
    if bound <= enough {
        return Ok(bound);
    }
    Ok(Order::new(set, 0, None)?.longest_row() as usize)
}

/// Lists the options that were given another value than their default, but that the weighting does not use.
pub(super) fn unused(options: &LossOptions) -> Vec<&'static str> {
    let (has_formula, has_fraction) = match options.weighting {
        Weighting::Dynamic | Weighting::Static | Weighting::RlNll => (true, false),
        Weighting::Uniform | Weighting::Switch | Weighting::Kd => (false, false),
        Weighting::ExcessTopK => (false, true),
    };
    let given = [
        ("--epsilon", options.epsilon.is_some(), has_formula),
        ("--temperature", options.temperature.is_some(), has_formula),
        ("--center", options.center != Center::default(), has_formula),
        (
            "--top-k-fraction",
            options.top_k_fraction != DEFAULT_TOP_K_FRACTION,
            has_fraction,
        ),
        (
            "--switch-fraction",
            options.switch_fraction != DEFAULT_SWITCH_FRACTION,
            options.weighting == Weighting::Switch,
        ),
        (
            "--alpha",
            options.alpha != DEFAULT_ALPHA,
            options.weighting == Weighting::Kd,
        ),
        (
            "--divergence",
            options.divergence != Divergence::default(),
            options.weighting.is_distillation(),
        ),
    ];
    given
        .iter()
        .filter(|(_, is_given, is_used)| *is_given && !*is_used)
        .map(|(name, ..)| *name)
        .collect()
}

/// Returns what is minimised: what was asked for, and for what was left open, what the set was scored with.
pub(super) fn objective(options: &LossOptions, manifest: &Manifest) -> Result<Objective> {
    let LossOptions {
        weighting,
        epsilon,
        temperature,
        center,
        normalize,
        top_k_fraction,
        switch_fraction,
        alpha,
        divergence,
        z_loss,
    } = *options;
    if weighting.is_distillation() && normalize == Some(Normalize::Weights) {
        return Err(Usage(format!(
            "--normalize weights can't be had with --weighting {weighting}, whose means are over targets\nhint: leave it out"
        ))
        .into());
    }
    let stored_distributions = manifest.plan.distributions;
    let distillation = stored_distributions
        .filter(|_| weighting.is_distillation())
        .map(|stored| Distillation {
            divergence,
            temperature: stored.temperature,
            fraction: (weighting == Weighting::Switch).then_some(switch_fraction),
            alpha: (weighting == Weighting::Kd).then_some(alpha),
        });
    let stored = manifest.plan.formula;
    if weighting == Weighting::Static {
        if let Some(stored) = stored
            && (epsilon.is_some_and(|epsilon| epsilon != stored.epsilon())
                || temperature.is_some_and(|temperature| temperature != stored.temperature()))
        {
            return Err(Usage(format!(
                "static weights were made with epsilon {} and temperature {}, and can't be changed here\nhint: --weighting dynamic computes them anew, or score again with other values",
                stored.epsilon(),
                stored.temperature()
            ))
            .into());
        }
        if center == Center::None {
            return Err(Usage(
                "static weights were centred on the mean of their row when they were made, so --center none can't be had here\nhint: --weighting dynamic computes them anew".to_owned(),
            )
            .into());
        }
    }
    let default_epsilon = stored.map_or(DEFAULT_EPSILON, |stored| stored.epsilon());
    let default_temperature = stored.map_or(DEFAULT_TEMPERATURE, |stored| stored.temperature());
    let formula = WeightFormula::new(
        epsilon.unwrap_or(default_epsilon),
        temperature.unwrap_or(default_temperature),
    )
    .map_err(|error| Usage(error.to_string()))?;
    let default_normalize = match weighting {
        Weighting::ExcessTopK => Normalize::Weights,
        Weighting::Dynamic
        | Weighting::Static
        | Weighting::Uniform
        | Weighting::RlNll
        | Weighting::Switch
        | Weighting::Kd => Normalize::Targets,
    };
    Ok(Objective {
        weighting,
        formula,
        center,
        normalize: normalize.unwrap_or(default_normalize),
        top_k_fraction,
        distillation,
        z_loss,
    })
}
