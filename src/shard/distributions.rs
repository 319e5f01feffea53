//! Columns of the RL model's distributions, as they are written.
//!
//! Which targets have the lowest entropy is known when a row group is complete: till then the most likely tokens
//! of all of its targets are held, 8 bytes each. Row groups are cut by rows alone, so that the choice does not depend on
//! how rows were batched.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{Float32Builder, ListBuilder, UInt32Builder};
use arrow_schema::FieldRef;

use super::schema::columns;
use crate::types::{Distributions, ScoredRow, round_mantissa, selected_of};

/// A row's part of these columns.
struct Waiting {
    /// Positions of the row.
    num_tokens: usize,
    mask: Option<Vec<bool>>,
    distributions: Distributions,
}

/// The rows of an open row group, as these columns see them.
pub(super) struct DistributionColumns {
    has_entropy: bool,
    has_top: bool,
    /// Fraction of the targets that the most likely tokens are stored for, those with the lowest entropy.
    lowest_entropy: Option<f64>,
    waiting: Vec<Waiting>,
}

impl DistributionColumns {
    pub(super) fn new(has_entropy: bool, has_top: bool, lowest_entropy: Option<f64>) -> Self {
        Self {
            has_entropy,
            has_top,
            lowest_entropy,
            waiting: Vec::new(),
        }
    }

    /// Takes a row; its values are rounded unless they are to be `exact`.
    pub(super) fn push(&mut self, row: &ScoredRow, exact: bool) {
        if !self.has_entropy && !self.has_top {
            return;
        }
        let mut distributions = row.distributions.clone();
        if !exact {
            let round = |values: &mut Vec<f32>| {
                values
                    .iter_mut()
                    .for_each(|value| *value = round_mantissa(*value));
            };
            distributions.entropies.iter_mut().for_each(round);
            if let Some(top) = &mut distributions.top {
                round(&mut top.log_probs);
                round(&mut top.tail_log_probs);
            }
        }
        self.waiting.push(Waiting {
            num_tokens: row.input_ids.len(),
            mask: row.target_mask.clone(),
            distributions,
        });
    }

    /// Returns the columns of the row group, in the order of the schema; `element` returns the values' field of a
    /// column.
    pub(super) fn take(&mut self, element: &dyn Fn(&str) -> FieldRef) -> Vec<ArrayRef> {
        let mut rows = std::mem::take(&mut self.waiting);
        if let Some(fraction) = self.lowest_entropy {
            keep_lowest(&mut rows, fraction);
        }
        let mut arrays: Vec<ArrayRef> = Vec::new();
        if self.has_entropy {
            arrays.push(entropies(&rows, element(columns::RL_ENTROPY)));
        }
        if self.has_top {
            arrays.extend(most_likely(&rows, element));
        }
        arrays
    }
}

/// Drops the most likely tokens of all targets but the fraction with the lowest entropy; among equals the earlier
/// target goes first.
fn keep_lowest(rows: &mut [Waiting], fraction: f64) {
    let mut ranked: Vec<(f32, usize, u32)> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let (Some(entropies), Some(top)) = (&row.distributions.entropies, &row.distributions.top)
        else {
            continue;
        };
        ranked.extend(top.targets.iter().filter_map(|&target| {
            let entropy = entropies.get(usize::try_from(target).ok()?)?;
            Some((*entropy, number, target))
        }));
    }
    let selected = selected_of(fraction, ranked.len());
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    ranked.truncate(selected);
    let mut kept: Vec<(usize, u32)> = ranked.into_iter().map(|(_, row, at)| (row, at)).collect();
    kept.sort_unstable();
    for (number, row) in rows.iter_mut().enumerate() {
        if let Some(top) = &mut row.distributions.top {
            top.retain(|target| {
                u32::try_from(target).is_ok_and(|at| kept.binary_search(&(number, at)).is_ok())
            });
        }
    }
}

fn entropies(rows: &[Waiting], element: FieldRef) -> ArrayRef {
    let mut builder = ListBuilder::new(Float32Builder::new()).with_field(element);
    for row in rows {
        builder.values().append_null();
        let values = row.distributions.entropies.iter().flatten();
        for (index, value) in values.enumerate() {
            let is_target = row
                .mask
                .as_ref()
                .is_none_or(|mask| mask.get(index) == Some(&true));
            builder.values().append_option(is_target.then_some(*value));
        }
        builder.append(true);
    }
    Arc::new(builder.finish())
}

fn most_likely(rows: &[Waiting], element: &dyn Fn(&str) -> FieldRef) -> [ArrayRef; 3] {
    let inner = |column: &str| match element(column).data_type() {
        arrow_schema::DataType::List(inner) => Arc::clone(inner),
        _ => unreachable!("{column} is a column of lists of lists"),
    };
    let ids = ListBuilder::new(UInt32Builder::new()).with_field(inner(columns::RL_TOP_IDS));
    let mut ids = ListBuilder::new(ids).with_field(element(columns::RL_TOP_IDS));
    let log_probs =
        ListBuilder::new(Float32Builder::new()).with_field(inner(columns::RL_TOP_LOGPROBS));
    let mut log_probs = ListBuilder::new(log_probs).with_field(element(columns::RL_TOP_LOGPROBS));
    let mut tails =
        ListBuilder::new(Float32Builder::new()).with_field(element(columns::RL_TAIL_LOGPROB));
    for row in rows {
        let Some(top) = &row.distributions.top else {
            continue;
        };
        let mut lists = top
            .targets
            .iter()
            .zip(
                top.ids
                    .chunks(top.k.max(1))
                    .zip(top.log_probs.chunks(top.k.max(1))),
            )
            .zip(&top.tail_log_probs)
            .peekable();
        for position in 0..row.num_tokens {
            let here = lists.next_if(|((target, _), _)| {
                usize::try_from(**target).is_ok_and(|target| target + 1 == position)
            });
            if let Some(((_, (of_ids, of_log_probs)), tail)) = here {
                ids.values().values().append_slice(of_ids);
                log_probs.values().values().append_slice(of_log_probs);
                tails.values().append_value(*tail);
            } else {
                tails.values().append_null();
            }
            ids.values().append(here.is_some());
            log_probs.values().append(here.is_some());
        }
        ids.append(true);
        log_probs.append(true);
        tails.append(true);
    }
    [
        Arc::new(ids.finish()),
        Arc::new(log_probs.finish()),
        Arc::new(tails.finish()),
    ]
}
