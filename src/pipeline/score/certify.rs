//! remit-score --certify: a sample of a set's rows, scored again on this machine, against what is stored.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::super::{BadInput, Progress, StopFlag};
use super::options::ComputeOptions;
use super::rescore;
use crate::demo;
use crate::escape::Show as _;
use crate::fs::Digest;
use crate::model::{ModelSource, OpenModel};
use crate::shard::plan::ModelIdentity;
use crate::shard::read::ShardSet;
use crate::shard::row::StoredRow;
use crate::shard::write::round_log_probs;
use crate::types::{DistributionPlan, ScoredRow};

/// What is to be certified.
#[derive(Debug, Clone)]
pub struct CertifyOptions {
    /// The set.
    pub set: PathBuf,
    /// Fraction of the rows, in (0, 1].
    pub fraction: f64,
    /// Seed of the sample.
    pub seed: u64,
    /// Models and device; those of the set where the RL model is `None`.
    pub compute: ComputeOptions,
    /// Whether models were given; else those of the manifest are opened.
    pub has_models: bool,
}

/// How far a column is from what this machine computes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ColumnDifference {
    /// The column.
    pub column: &'static str,
    /// Values that were compared.
    pub values: u64,
    /// Values with the same bits.
    pub identical: u64,
    /// Largest difference, nats.
    pub max_nats: f64,
    /// Mean difference, nats.
    pub mean_nats: f64,
    /// The row of the largest difference.
    pub row_id: u64,
    /// Its position in that row.
    pub position: usize,
    #[serde(skip)]
    sum: f64,
}

/// The outcome.
#[derive(Debug, Serialize)]
pub struct Certificate {
    /// Rows that were scored again.
    pub rows: u64,
    /// Rows of the set.
    pub of_rows: u64,
    /// Tokens of these rows.
    pub tokens: u64,
    /// dtype and device of the set, and those that were computed with here.
    pub made_with: String,
    /// See `made_with`.
    pub computed_with: String,
    /// By column.
    pub columns: Vec<ColumnDifference>,
}

/// Scores a sample of a set's rows again. The same seed takes the same rows on every machine.
///
/// # Errors
///
/// When the set is damaged, or a model is not the one that the set was scored with.
pub fn run(
    options: &CertifyOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Certificate> {
    let set = ShardSet::open(&options.set)?;
    let plan = &set.manifest().plan;
    let compute = &options.compute;
    let device = rescore::device_of(compute, progress)?;
    let open = |given: Option<&ModelSource>, identity: &ModelIdentity| -> Result<OpenModel> {
        let source = given
            .filter(|_| options.has_models)
            .cloned()
            .unwrap_or_else(|| {
                demo::by_name(&identity.path)
                    .unwrap_or_else(|| ModelSource::Directory(PathBuf::from(&identity.path)))
            });
        let model = rescore::open_for(&source, compute, &options.set, &set)?;
        if model.fingerprint() != identity.fingerprint {
            return Err(BadInput(format!(
                "{model} is not the model that the set was scored with: its fingerprint is {}, the manifest says {}\n\
                 hint: --rl-model and --base-model name the models, if they have moved",
                model.fingerprint(),
                identity.fingerprint
            ))
            .into());
        }
        Ok(model)
    };
    let rl = open(Some(&compute.rl), &plan.rl)?;
    let base = plan
        .base
        .as_ref()
        .map(|base| open(compute.base.as_ref(), base))
        .transpose()?;
    let kind = device.kind();
    let with_entropy = plan
        .distributions
        .filter(|stored| stored.entropy && kind == "cpu")
        .map(|stored| DistributionPlan {
            top_k: None,
            ..stored
        });
    let computed_with = format!("{} on {kind}", compute.dtype);
    let scorer = rescore::load(
        (&rl, base.as_ref()),
        compute,
        device,
        plan.exact,
        with_entropy,
        set.manifest(),
        progress,
    )?;
    let mut found = Certificate {
        rows: 0,
        of_rows: set.manifest().totals.rows,
        tokens: 0,
        made_with: format!("{} on {}", plan.rl.dtype, plan.rl.device),
        computed_with,
        columns: Vec::new(),
    };
    progress.begin("certifying", found.of_rows);
    let mut seen = 0;
    let mut differences: [ColumnDifference; 3] =
        ["rl_logprob", "base_logprob", "rl_entropy"].map(|column| ColumnDifference {
            column,
            ..ColumnDifference::default()
        });
    for shard in set.shards() {
        for group in 0..shard.num_row_groups() {
            stop.check("it begins anew")?;
            let rows = shard.read_row_group(group)?;
            seen += rows.len() as u64;
            let sampled: Vec<StoredRow> = rows
                .into_iter()
                .filter(|row| is_sampled(options.seed, row.row_id, options.fraction))
                .collect();
            let mut again = rescore::score(&scorer, &sampled)?;
            if !plan.exact {
                // Log-probs are rounded already; the writer rounds these.
                let entropies = again
                    .iter_mut()
                    .filter_map(|row| row.distributions.entropies.as_mut());
                entropies.for_each(|entropies| round_log_probs(entropies));
            }
            let mut tokens = 0;
            for (row, again) in sampled.iter().zip(&again) {
                tokens += row.num_tokens() as u64;
                for (difference, of) in differences.iter_mut().zip(COLUMNS) {
                    if let (Some(stored), Some(own)) = (of(&row.scored), of(again)) {
                        difference.add(row, stored, own);
                    }
                }
            }
            found.rows += sampled.len() as u64;
            found.tokens += tokens;
            progress.advance(seen, tokens, "");
        }
    }
    progress.finish();
    if found.rows == 0 {
        return Err(BadInput(format!(
            "--certify {} takes none of the {} rows of {}\nhint: give a larger fraction",
            options.fraction,
            found.of_rows,
            options.set.shown()
        ))
        .into());
    }
    found.columns = differences
        .into_iter()
        .filter(|difference| difference.values > 0)
        .map(|difference| ColumnDifference {
            mean_nats: difference.sum / difference.values as f64,
            ..difference
        })
        .collect();
    Ok(found)
}

type ColumnOf = fn(&ScoredRow) -> Option<&[f32]>;

/// The columns that are compared, in the order of their names above.
const COLUMNS: [ColumnOf; 3] = [
    |row| Some(row.rl_logprobs.as_slice()),
    |row| row.base_logprobs.as_deref(),
    |row| row.distributions.entropies.as_deref(),
];

impl ColumnDifference {
    fn add(&mut self, row: &StoredRow, stored: &[f32], own: &[f32]) {
        for (index, (stored, own)) in stored.iter().zip(own).enumerate() {
            if !row.scored.is_target(index) {
                continue;
            }
            let difference = (f64::from(*stored) - f64::from(*own)).abs();
            self.values += 1;
            self.identical += u64::from(stored.to_bits() == own.to_bits());
            self.sum += difference;
            if difference > self.max_nats {
                self.max_nats = difference;
                self.row_id = row.row_id;
                self.position = index + 1;
            }
        }
    }
}

/// Returns whether a row is in the sample; decided by its id and the seed alone.
fn is_sampled(seed: u64, row_id: u64, fraction: f64) -> bool {
    let digest = Digest::of(format!("{seed}/{row_id}").as_bytes()).to_string();
    let digits = digest.get(..13).unwrap_or_default();
    let draw = u64::from_str_radix(digits, 16).unwrap_or(0) as f64 / (1_u64 << 52) as f64;
    draw < fraction
}
