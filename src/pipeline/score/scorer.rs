//! Log-probs and static weights of rows, by models that are loaded.

use anyhow::Result;

use super::super::stages::RowScorer;
use super::batches::Batches;
use crate::model::{self, Decoder, StreamedDecoder};
use crate::shard::write::round_log_probs;
use crate::types::{Row, ScoredRow, TokenId};
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

    fn target_log_probs(&self, rows: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, model::Error> {
        match self {
            Self::InMemory(model) => model.target_log_probs(rows),
            Self::OnDisk(model) => model.target_log_probs(rows),
        }
    }
}

/// The models of a run, loaded.
pub(in super::super) struct Scorer<'a> {
    pub(super) exact: bool,
    pub(super) formula: WeightFormula,
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
            let run = |model: &Weights| -> Result<Vec<Vec<f32>>, model::Error> {
                let mut all = model.target_log_probs(ids)?;
                if !self.exact {
                    all.iter_mut()
                        .for_each(|log_probs| round_log_probs(log_probs));
                }
                Ok(all)
            };
            let rl = run(&self.rl)?;
            let base = match &self.base {
                Some(base) => run(base)?.into_iter().map(Some).collect(),
                None => vec![None; ids.len()],
            };
            Ok(rl.into_iter().zip(base).collect())
        })?;
        let scored = rows
            .into_iter()
            .zip(log_probs)
            .map(|(row, (rl_logprobs, base_logprobs))| {
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
            });
        Ok(scored.collect())
    }
}
