//! Columns of a batch to rows.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Int32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ListArray, PrimitiveArray, RecordBatch, StringArray};

use super::row::StoredRow;
use super::schema::{ColumnSet, RowProblem, columns};
use crate::types::{Distributions, ScoredRow, TopTokens};

/// The typed columns of a batch.
pub(super) struct Columns<'a> {
    row_id: &'a PrimitiveArray<UInt64Type>,
    source: Source<'a>,
    doc_index: &'a PrimitiveArray<UInt64Type>,
    doc_starts: &'a ListArray,
    input_ids: &'a ListArray,
    rl_logprob: &'a ListArray,
    base: Option<(&'a ListArray, &'a ListArray)>,
    entropy: Option<&'a ListArray>,
    top: Option<Top<'a>>,
}

/// The columns of the most likely tokens.
struct Top<'a> {
    k: usize,
    ids: &'a ListArray,
    log_probs: &'a ListArray,
    tail: &'a ListArray,
}

/// The column of sources: strings, or keys of a dictionary of strings.
struct Source<'a> {
    keys: Option<&'a PrimitiveArray<Int32Type>>,
    values: &'a StringArray,
}

impl Source<'_> {
    fn get(&self, i: usize) -> Option<&str> {
        let at = match self.keys {
            Some(keys) => usize::try_from(scalar(keys, i)?).ok()?,
            None => i,
        };
        (at < self.values.len() && self.values.is_valid(at)).then(|| self.values.value(at))
    }
}

impl<'a> Columns<'a> {
    pub(super) fn of(batch: &'a RecordBatch, has: ColumnSet) -> Option<Self> {
        let list = |name: &str| batch.column_by_name(name)?.as_list_opt::<i32>();
        let source = batch.column_by_name(columns::SOURCE)?;
        let source = match source.as_dictionary_opt::<Int32Type>() {
            Some(source) => Source {
                keys: Some(source.keys()),
                values: source.values().as_string_opt()?,
            },
            None => Source {
                keys: None,
                values: source.as_string_opt()?,
            },
        };
        Some(Self {
            row_id: batch.column_by_name(columns::ROW_ID)?.as_primitive_opt()?,
            source,
            doc_index: batch
                .column_by_name(columns::DOC_INDEX)?
                .as_primitive_opt()?,
            doc_starts: list(columns::DOC_STARTS)?,
            input_ids: list(columns::INPUT_IDS)?,
            rl_logprob: list(columns::RL_LOGPROB)?,
            base: match has.base {
                true => Some((list(columns::BASE_LOGPROB)?, list(columns::WEIGHT)?)),
                false => None,
            },
            entropy: match has.entropy {
                true => Some(list(columns::RL_ENTROPY)?),
                false => None,
            },
            top: match has.top_k {
                Some(k) => Some(Top {
                    k,
                    ids: list(columns::RL_TOP_IDS)?,
                    log_probs: list(columns::RL_TOP_LOGPROBS)?,
                    tail: list(columns::RL_TAIL_LOGPROB)?,
                }),
                None => None,
            },
        })
    }

    pub(super) fn row(&self, i: usize) -> Result<StoredRow, RowProblem> {
        let missing = |column| RowProblem::Null {
            column,
            position: 0,
        };
        let source = self.source.get(i).ok_or(missing(columns::SOURCE))?;
        let (rl_logprobs, target_mask) = log_probs(self.rl_logprob, i, columns::RL_LOGPROB)?;
        let base = self.base.map(|(base, weight)| {
            let (base, mask) = log_probs(base, i, columns::BASE_LOGPROB)?;
            if mask != target_mask {
                return Err(RowProblem::Masks);
            }
            Ok((base, after_first(weight, i, columns::WEIGHT)?))
        });
        let (base_logprobs, weights) = base.transpose()?.unzip();
        let entropies = self.entropy.map(|entropy| {
            let (entropies, mask) = log_probs(entropy, i, columns::RL_ENTROPY)?;
            match mask == target_mask {
                true => Ok(entropies),
                false => Err(RowProblem::Masks),
            }
        });
        let distributions = Distributions {
            entropies: entropies.transpose()?,
            top: self.top.as_ref().map(|top| top.row(i)).transpose()?,
        };
        Ok(StoredRow {
            row_id: scalar(self.row_id, i).ok_or(missing(columns::ROW_ID))?,
            scored: ScoredRow {
                source: Arc::from(source),
                doc_index: scalar(self.doc_index, i).ok_or(missing(columns::DOC_INDEX))?,
                doc_starts: values::<UInt32Type>(self.doc_starts, i, columns::DOC_STARTS, 0)?,
                input_ids: values::<UInt32Type>(self.input_ids, i, columns::INPUT_IDS, 0)?,
                rl_logprobs,
                base_logprobs,
                weights,
                target_mask,
                distributions,
            },
        })
    }
}

impl Top<'_> {
    fn row(&self, i: usize) -> Result<TopTokens, RowProblem> {
        let (tails, mask) = log_probs(self.tail, i, columns::RL_TAIL_LOGPROB)?;
        let stored: Vec<usize> = (0..tails.len())
            .filter(|at| {
                mask.as_ref()
                    .is_none_or(|mask| mask.get(*at) == Some(&true))
            })
            .collect();
        let at = stored.iter().filter_map(|&at| u32::try_from(at).ok());
        Ok(TopTokens {
            k: self.k,
            targets: at.collect(),
            ids: self.flat::<UInt32Type>(self.ids, i, columns::RL_TOP_IDS, &stored)?,
            log_probs: self.flat::<Float32Type>(
                self.log_probs,
                i,
                columns::RL_TOP_LOGPROBS,
                &stored,
            )?,
            tail_log_probs: stored
                .iter()
                .filter_map(|&at| tails.get(at).copied())
                .collect(),
        })
    }

    /// Element `i` of a column of lists of lists: those at the targets `stored`, end to end. The others have to be null.
    fn flat<T: ArrowPrimitiveType>(
        &self,
        lists: &ListArray,
        i: usize,
        column: &'static str,
        stored: &[usize],
    ) -> Result<Vec<T::Native>, RowProblem> {
        let null = |position| RowProblem::Null { column, position };
        if i >= lists.len() || lists.is_null(i) {
            return Err(null(0));
        }
        let lists = lists.value(i);
        let lists = lists.as_list_opt::<i32>().ok_or(null(0))?;
        if lists.len() - lists.null_count() != stored.len() {
            return Err(RowProblem::Masks);
        }
        let mut flat = Vec::with_capacity(stored.len().min(lists.len()).saturating_mul(self.k));
        for target in stored {
            let tokens = values::<T>(lists, target + 1, column, 0)?;
            if tokens.len() != self.k {
                return Err(RowProblem::TopTokens {
                    position: target + 1,
                    reason: "there are more or fewer than the plan says",
                });
            }
            flat.extend(tokens);
        }
        Ok(flat)
    }
}

fn scalar<T: ArrowPrimitiveType>(array: &PrimitiveArray<T>, i: usize) -> Option<T::Native> {
    (i < array.len() && array.is_valid(i)).then(|| array.value(i))
}

/// Element `i` of a list column, from its value `skip` on; none of them may be null.
fn values<T: ArrowPrimitiveType>(
    lists: &ListArray,
    i: usize,
    column: &'static str,
    skip: usize,
) -> Result<Vec<T::Native>, RowProblem> {
    let null = |position| RowProblem::Null { column, position };
    if i >= lists.len() || lists.is_null(i) {
        return Err(null(0));
    }
    let list = lists.value(i);
    let list = list.as_primitive_opt::<T>().ok_or(null(0))?;
    if let Some(position) = (skip..list.len()).find(|&position| list.is_null(position)) {
        return Err(null(position));
    }
    Ok(list
        .values()
        .get(skip..)
        .map(<[_]>::to_vec)
        .unwrap_or_default())
}

/// The values after the first, which has to be 0.
fn after_first(lists: &ListArray, i: usize, column: &'static str) -> Result<Vec<f32>, RowProblem> {
    let targets = values::<Float32Type>(lists, i, column, 1)?;
    let list = lists.value(i);
    let list = list
        .as_primitive_opt::<Float32Type>()
        .ok_or(RowProblem::FirstValue(column))?;
    if scalar(list, 0).map(f32::to_bits) != Some(0.0_f32.to_bits()) {
        return Err(RowProblem::FirstValue(column));
    }
    Ok(targets)
}

/// The values after the first, which has to be null, and which of them are there, unless all are; the others are 0.
fn log_probs(
    lists: &ListArray,
    i: usize,
    column: &'static str,
) -> Result<(Vec<f32>, Option<Vec<bool>>), RowProblem> {
    let null = RowProblem::Null {
        column,
        position: 0,
    };
    if i >= lists.len() || lists.is_null(i) {
        return Err(null);
    }
    let list = lists.value(i);
    let list = list.as_primitive_opt::<Float32Type>().ok_or(null)?;
    if list.is_empty() || list.is_valid(0) {
        return Err(RowProblem::FirstValue(column));
    }
    if list.null_count() == 1 {
        let values = list.values().get(1..).unwrap_or_default();
        return Ok((values.to_vec(), None));
    }
    let values = (1..list.len()).map(|at| scalar(list, at).unwrap_or(0.0));
    let is_there = (1..list.len()).map(|at| list.is_valid(at));
    Ok((values.collect(), Some(is_there.collect())))
}
