//! Losses, gradients and weights that are not finite.

use crate::model::{self, Decoder};
use crate::shard::row::StoredRow;

/// Most rows that an error names.
const MAX_ROWS_NAMED: usize = 8;

/// A loss, gradient or weight is NaN or infinite.
#[derive(Debug, thiserror::Error)]
#[error(
    "step {step}: {what}{rows}\nhint: a lower --lr, a longer --warmup-steps or a smaller --clip; --on-nonfinite skip leaves such steps out"
)]
pub struct NonFinite {
    /// The step, from 1.
    pub step: u64,
    /// Description of what is not finite.
    pub what: String,
    /// The rows that it came from, each after a line break.
    pub rows: String,
}

impl NonFinite {
    /// Names the step and the rows that a value which is not finite came from.
    pub(super) fn new(step: u64, what: String, rows: &[StoredRow]) -> Self {
        let mut lines: Vec<String> = rows
            .iter()
            .take(MAX_ROWS_NAMED)
            .map(|stored| {
                let row = &stored.scored;
                format!(
                    "row_id {}: document {} of {}, {} tokens",
                    stored.row_id,
                    row.doc_index,
                    row.source,
                    row.num_tokens()
                )
            })
            .collect();
        if rows.len() > MAX_ROWS_NAMED {
            lines.push(format!("and {} more rows", rows.len() - MAX_ROWS_NAMED));
        }
        Self {
            step,
            what,
            rows: lines.iter().map(|line| format!("\n  {line}")).collect(),
        }
    }
}

/// Names the row of a log-prob that is not finite, among those that were computed together.
pub(super) fn log_prob_error(error: model::Error, step: u64, rows: &[StoredRow]) -> anyhow::Error {
    match error {
        model::Error::NotFiniteLogProb {
            model,
            row,
            position,
            value,
        } => {
            let what = format!(
                "the learner, trained from {model}, gives {value} as the log-probability of token {position} of a row"
            );
            NonFinite::new(step, what, rows.get(row..=row).unwrap_or(rows)).into()
        }
        short if short.is_out_of_memory() => {
            let tokens: usize = rows.iter().map(StoredRow::num_tokens).sum();
            anyhow::Error::new(short).context(format!(
                "step {step} failed at {tokens} tokens at a time\nhint: give a smaller --micro-batch-tokens, or \
                 --activation-checkpointing"
            ))
        }
        other => anyhow::Error::new(other).context(format!("step {step} failed")),
    }
}

/// Checks that every weight is finite in the dtype that it is exported in, `step` being the last one taken.
pub(super) fn check_weights(model: &Decoder, step: u64) -> anyhow::Result<()> {
    match model::check_exportable(model.name(), model.stored()) {
        Err(model::Error::NotFinite {
            tensor,
            element,
            value,
            ..
        }) => {
            let what = format!("{tensor} has become {value} at element {element}");
            Err(NonFinite::new(step, what, &[]).into())
        }
        outcome => Ok(outcome?),
    }
}
