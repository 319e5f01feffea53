//! Losses on rows that are not trained on, by source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::StopFlag;
use super::nonfinite::log_prob_error;
use crate::batch::{Order, micro_batches};
use crate::loss::{LossSums, Objective};
use crate::model::{Decoder, Error};
use crate::shard::read::ShardSet;
use crate::shard::row::StoredRow;

/// Losses over a source, or over all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceLosses {
    /// As in the shards.
    pub source: String,
    /// Number of targets.
    pub targets: u64,
    /// The weighted loss, as training has it.
    pub loss: f64,
    /// The plain next-token loss, nats per target.
    pub ntp_loss: f64,
}

/// One line of eval.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done before it.
    pub step: u64,
    /// Number of targets.
    pub targets: u64,
    /// The weighted loss, as training has it.
    pub loss: f64,
    /// The plain next-token loss, nats per target.
    pub ntp_loss: f64,
    /// The same by source, in byte order.
    pub sources: Vec<SourceLosses>,
    /// Duration.
    pub seconds: f64,
}

/// Rows to measure losses on.
pub(in super::super) enum Rows<'a> {
    /// All rows of a set.
    Set(&'a ShardSet),
    /// The rows of a set that its order holds out.
    HeldOut(&'a Order<'a>),
}

impl Rows<'_> {
    /// Calls `each` with runs of rows of at most `batch_tokens`, or one longer row.
    fn batches(
        &self,
        batch_tokens: usize,
        each: &mut dyn FnMut(&[StoredRow]) -> Result<()>,
    ) -> Result<()> {
        let mut split = |rows: &[StoredRow]| {
            micro_batches(rows, batch_tokens, 1, StoredRow::num_tokens)
                .into_iter()
                .try_for_each(&mut *each)
        };
        match self {
            Self::Set(set) => {
                for shard in set.shards() {
                    for group in 0..shard.num_row_groups() {
                        split(&shard.read_row_group(group)?)?;
                    }
                }
            }
            Self::HeldOut(order) => {
                for rows in order.held_out() {
                    split(&rows?)?;
                }
            }
        }
        Ok(())
    }
}

/// Measures the losses of a model on rows, by source. Weights come from the objective, with this model as the learner.
///
/// # Errors
///
/// [`NonFinite`](super::nonfinite::NonFinite), which names the row, when a log-prob is not finite; `step` is the
/// number of steps that were taken before.
pub(in super::super) fn losses(
    model: &Decoder,
    rows: &Rows<'_>,
    objective: &Objective,
    batch_tokens: usize,
    step: u64,
    stop: &StopFlag,
    next_time: &'static str,
) -> Result<BTreeMap<Arc<str>, LossSums>> {
    let mut sums: BTreeMap<Arc<str>, LossSums> = BTreeMap::new();
    rows.batches(batch_tokens, &mut |rows| {
        stop.check(next_time)?;
        let ids: Vec<&[u32]> = rows.iter().map(StoredRow::ids).collect();
        let all = model
            .target_log_probs(&ids)
            .map_err(|error| log_prob_error(error, step, rows))?;
        for (row, log_probs) in rows.iter().zip(all) {
            let mut weights = vec![0.0; log_probs.len()];
            objective
                .token_weights(&row.scored, &log_probs, &mut weights)
                .map_err(|_| Error::Internal("a row without static weights"))?;
            sums.entry(Arc::clone(&row.scored.source)).or_default().add(
                &log_probs,
                &[],
                &weights,
                objective,
            );
        }
        Ok(())
    })?;
    Ok(sums)
}

/// Turns sums by source into a line of eval.jsonl.
pub(in super::super) fn evaluation(
    step: u64,
    sums: &BTreeMap<Arc<str>, LossSums>,
    objective: &Objective,
    started: Instant,
) -> Evaluation {
    let mut all = LossSums::default();
    let sources = sums
        .iter()
        .map(|(source, sums)| {
            all.merge(sums);
            SourceLosses {
                source: source.to_string(),
                targets: sums.targets,
                loss: sums.loss(objective.normalize),
                ntp_loss: sums.ntp_loss(),
            }
        })
        .collect();
    Evaluation {
        step,
        targets: all.targets,
        loss: all.loss(objective.normalize),
        ntp_loss: all.ntp_loss(),
        sources,
        seconds: started.elapsed().as_secs_f64(),
    }
}
