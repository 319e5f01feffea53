//! remit-inspect sweep: what other formulas would make of a set, as the sliders of the page show it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::super::{BadInput, Progress, StopFlag};
use super::histogram::WeightTotals;
use super::pass::{Group, PassOptions, pass};
use super::tally::Detail;
use crate::escape::Show as _;
use crate::loss::Weighting;
use crate::shard::manifest::Manifest;
use crate::weight::{Center, WeightFormula, shortest_decimal};

/// Sources that are told apart; 200 kB of memory each.
const MAX_SOURCES: usize = 512;

/// Formulas to try.
#[derive(Debug, Clone)]
pub struct SweepOptions {
    /// The set.
    pub set: PathBuf,
    /// Half-widths of the interval of weights.
    pub epsilons: Vec<f32>,
    /// Divisors of the differences, nats.
    pub temperatures: Vec<f32>,
    /// Offsets of the differences.
    pub centers: Vec<Center>,
    /// Fractions of excess-top-k weighting.
    pub top_k_fractions: Vec<f64>,
}

/// Numbers about the weights of some targets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweptNumbers {
    /// The source; null for all rows, or for the sources that are not told apart.
    pub source: Option<String>,
    /// Number of targets.
    pub targets: u64,
    /// Mean weight.
    pub weight_mean: f64,
    /// `(sum w)² / sum w²`.
    pub effective_targets: f64,
    /// Share of the targets at the lower bound.
    pub share_at_lower: f64,
    /// Share of the targets at the upper bound.
    pub share_at_upper: f64,
}

/// What a formula makes of the set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweptWeights {
    /// dynamic or excess-top-k.
    pub weighting: Weighting,
    /// Half-width of the interval of weights.
    pub epsilon: Option<f64>,
    /// Divisor of the differences, nats.
    pub temperature: Option<f64>,
    /// Offset of the differences.
    pub center: Option<Center>,
    /// Fraction of excess-top-k weighting.
    pub top_k_fraction: Option<f64>,
    /// Over all rows.
    pub all: SweptNumbers,
    /// By source, in byte order; what is not told apart last.
    pub sources: Vec<SweptNumbers>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// The set as given.
    pub set: String,
    /// In the order of the options, excess-top-k last.
    pub weights: Vec<SweptWeights>,
}

/// Tries formulas on the differences between the RL model and the base: what weights are at the first step, when the base
/// is the learner. Shares at the bounds are exact for an epsilon of two decimals and a temperature of the page's slider, and
/// else but for what lies in the bins at the bounds.
///
/// # Errors
///
/// When the set is damaged, or has no base or no rows.
pub fn sweep(options: &SweepOptions, stop: &StopFlag, progress: &dyn Progress) -> Result<Sweep> {
    let dir: &Path = &options.set;
    let manifest = Manifest::load(dir)?;
    if manifest.plan.base.is_none() {
        return Err(BadInput(format!(
            "the set in {} was scored without a base, so there are no differences to make weights of\nhint: score it with \
             --base-model",
            dir.shown()
        ))
        .into());
    }
    if manifest.totals.rows == 0 {
        return Err(BadInput(format!("the set in {} has no rows", dir.shown())).into());
    }
    let pass_options = PassOptions {
        detail: Detail::Differences,
        max_sources: MAX_SOURCES,
        sample_tokens: 0,
        seed: 0,
        wanted: Default::default(),
    };
    let groups = pass(dir, &manifest, &pass_options, stop, progress)?;
    let mut weights = Vec::new();
    for center in &options.centers {
        let bins: Vec<_> = groups
            .iter()
            .map(|group| match center {
                Center::Row => group.tally.centred.bins(),
                Center::None => group.tally.raw.bins(),
            })
            .collect();
        for epsilon in &options.epsilons {
            for temperature in &options.temperatures {
                let formula = WeightFormula::new(*epsilon, *temperature)?;
                let epsilon = shortest_decimal(formula.epsilon());
                let temperature = shortest_decimal(formula.temperature());
                let totals = bins.iter().map(|bins| bins.weights(epsilon, temperature));
                let (all, sources) = numbers(&groups, totals);
                weights.push(SweptWeights {
                    weighting: Weighting::Dynamic,
                    epsilon: Some(epsilon),
                    temperature: Some(temperature),
                    center: Some(*center),
                    top_k_fraction: None,
                    all,
                    sources,
                });
            }
        }
    }
    for fraction in &options.top_k_fractions {
        let totals = groups.iter().map(|group| {
            let tally = &group.tally;
            WeightTotals::of_selection(tally.sums.targets, tally.selected(*fraction))
        });
        let (all, sources) = numbers(&groups, totals);
        weights.push(SweptWeights {
            weighting: Weighting::ExcessTopK,
            epsilon: None,
            temperature: None,
            center: None,
            top_k_fraction: Some(*fraction),
            all,
            sources,
        });
    }
    Ok(Sweep {
        set: dir.display().to_string(),
        weights,
    })
}

fn numbers(
    groups: &[Group],
    totals: impl Iterator<Item = WeightTotals>,
) -> (SweptNumbers, Vec<SweptNumbers>) {
    let mut all = WeightTotals::default();
    let sources = groups
        .iter()
        .zip(totals)
        .map(|(group, totals)| {
            all.merge(&totals);
            of_totals(group.source.clone(), &totals)
        })
        .collect();
    (of_totals(None, &all), sources)
}

fn of_totals(source: Option<String>, totals: &WeightTotals) -> SweptNumbers {
    let targets = totals.targets.max(1.0);
    SweptNumbers {
        source,
        targets: totals.targets as u64,
        weight_mean: totals.sum / targets,
        effective_targets: totals.effective(),
        share_at_lower: totals.at_lower / targets,
        share_at_upper: totals.at_upper / targets,
    }
}
