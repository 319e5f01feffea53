//! Log-probs and static weights of rows, by models that are loaded.

use anyhow::Result;

use super::super::stages::RowScorer;
use super::batches::Batches;
use crate::model::{self, Decoder, StreamedDecoder};
use crate::shard::write::round_log_probs;
use crate::types::{DistributionPlan, Distributions, Row, ScoredRow, TokenId};
use crate::weight::{WeightFormula, of_targets};

/// A model, with its weights where they are.
pub(super) enum Weights {
    InMemory(Decoder),
    OnDisk(StreamedDecoder),
}

impl Weights {
    pub fn max_batch_tokens(&self) -> usize {
        match self {
            Self::InMemory(model) => model.max_batch_tokens(),
            // It divides them itself.
            Self::OnDisk(_) => usize::MAX,
        }
    }

    fn score(
        &self,
        rows: &[&[TokenId]],
        plan: Option<&DistributionPlan>,
    ) -> Result<Vec<Scored>, model::Error> {
        let log_probs = match (self, plan) {
            (Self::InMemory(model), Some(plan)) => return model.target_distributions(rows, plan),
            (Self::OnDisk(model), Some(plan)) => return model.target_distributions(rows, plan),
            (Self::InMemory(model), None) => model.target_log_probs(rows)?,
            (Self::OnDisk(model), None) => model.target_log_probs(rows)?,
        };
        let without = |log_probs| (log_probs, Distributions::default());
        Ok(log_probs.into_iter().map(without).collect())
    }
}

/// Log-probs of a row, and what was asked for of the distributions.
type Scored = (Vec<f32>, Distributions);

/// The models of a run, loaded.
pub(in super::super) struct Scorer<'a> {
    pub(super) exact: bool,
    pub(super) formula: WeightFormula,
    pub(super) distributions: Option<DistributionPlan>,
    pub(super) rl: Weights,
    pub(super) base: Option<Weights>,
    pub(super) batches: Batches<'a>,
}

impl RowScorer for Scorer<'_> {
    fn batch_tokens(&self) -> usize {
        self.batches.tokens()
    }

    /// Static weights are made from the log-probs as they are stored, so that they can be made again from the
    /// columns.
    fn score(&self, rows: Vec<Row>) -> Result<Vec<ScoredRow>> {
        let ids: Vec<&[TokenId]> = rows.iter().map(|row| row.input_ids.as_slice()).collect();
        let log_probs = self.batches.run(&ids, |ids| {
            let run = |model: &Weights, plan| -> Result<Vec<Scored>, model::Error> {
                let mut all = model.score(ids, plan)?;
                if !self.exact {
                    all.iter_mut()
                        .for_each(|(log_probs, _)| round_log_probs(log_probs));
                }
                Ok(all)
            };
            let rl = run(&self.rl, self.distributions.as_ref())?;
            let base = match &self.base {
                Some(base) => run(base, None)?
                    .into_iter()
                    .map(|(base, _)| Some(base))
                    .collect(),
                None => vec![None; ids.len()],
            };
            Ok(rl.into_iter().zip(base).collect())
        })?;
        let scored = rows.into_iter().zip(log_probs).map(
            |(row, ((rl_logprobs, distributions), base_logprobs))| {
                let weights = base_logprobs.as_ref().map(|base| {
                    let mut weights = vec![0.0; base.len()];
                    of_targets(
                        row.target_mask(),
                        &rl_logprobs,
                        base,
                        &mut weights,
                        |rl, base, weights| self.formula.weights(rl, base, weights),
                    );
                    weights
                });
                row.scored(rl_logprobs, base_logprobs, weights)
                    .with_distributions(distributions)
            },
        );
        Ok(scored.collect())
    }
}
