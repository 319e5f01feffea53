//! What stands beside the ids of a document: which of them are padding, and which are to be predicted.

use std::ops::Range;

use super::RecordProblem;
use super::cells::checked_ids;
use crate::types::Content;

/// Field or column that says which ids are padding.
pub(super) const ATTENTION_MASK: &str = "attention_mask";

/// Field or column that says which ids are to be predicted.
pub(super) const LOSS_MASK: &str = "loss_mask";

/// Field or column that has the ids that are to be predicted, and [`IGNORED`] for the others.
pub(super) const LABELS: &str = "labels";

/// All of them.
pub(super) const NAMES: [&str; 3] = [ATTENTION_MASK, LOSS_MASK, LABELS];

/// The label of what is not to be predicted.
const IGNORED: i64 = -100;

/// The values beside the ids of a document, as far as they are there.
#[derive(Debug, Default)]
pub(super) struct Masks {
    pub(super) attention_mask: Option<Vec<i64>>,
    pub(super) loss_mask: Option<Vec<i64>>,
    pub(super) labels: Option<Vec<i64>>,
}

impl Masks {
    /// The values of a name of [`NAMES`].
    pub(super) fn slot(&mut self, name: &str) -> Option<&mut Option<Vec<i64>>> {
        match name {
            ATTENTION_MASK => Some(&mut self.attention_mask),
            LOSS_MASK => Some(&mut self.loss_mask),
            LABELS => Some(&mut self.labels),
            _ => None,
        }
    }

    /// The document of these ids: without padding, and with what is to be predicted of the rest. What is left of the
    /// ids has to be below `num_ids`.
    pub(super) fn apply(
        self,
        ids: impl ExactSizeIterator<Item = i128>,
        num_ids: u64,
    ) -> Result<Content, RecordProblem> {
        let len = ids.len();
        let fitting = |name, values: Option<Vec<i64>>| match values {
            Some(values) if values.len() != len => Err(RecordProblem::MaskLength {
                mask: name,
                found: values.len(),
                expected: len,
            }),
            values => Ok(values),
        };
        let kept = match fitting(ATTENTION_MASK, self.attention_mask)? {
            None => 0..len,
            Some(mask) => attended(&mask)?,
        };
        let loss_mask = fitting(LOSS_MASK, self.loss_mask)?;
        let labels = fitting(LABELS, self.labels)?;
        let ids = checked_ids(ids, kept.clone(), num_ids)?;
        if loss_mask.is_none() && labels.is_none() {
            return Ok(Content::Ids {
                ids,
                loss_mask: None,
            });
        }
        let mut mask = Vec::with_capacity(ids.len());
        for (&id, position) in ids.iter().zip(kept) {
            let value = |values: &Option<Vec<i64>>| values.as_ref()?.get(position).copied();
            let by_mask = match value(&loss_mask) {
                None | Some(1) => true,
                Some(0) => false,
                Some(value) => {
                    return Err(RecordProblem::MaskValue {
                        mask: LOSS_MASK,
                        position,
                        value,
                    });
                }
            };
            let by_label = match value(&labels) {
                None => true,
                Some(IGNORED) => false,
                Some(label) if label == i64::from(id) => true,
                Some(label) => {
                    return Err(RecordProblem::Label {
                        position,
                        label,
                        id,
                    });
                }
            };
            mask.push(by_mask && by_label);
        }
        let loss_mask = mask.contains(&false).then_some(mask);
        Ok(Content::Ids { ids, loss_mask })
    }
}

/// Where the ids are that are no padding: after it, before it, or between two stretches of it.
fn attended(mask: &[i64]) -> Result<Range<usize>, RecordProblem> {
    if let Some(position) = mask.iter().position(|value| !matches!(value, 0 | 1)) {
        return Err(RecordProblem::MaskValue {
            mask: ATTENTION_MASK,
            position,
            value: mask.get(position).copied().unwrap_or_default(),
        });
    }
    let Some(start) = mask.iter().position(|value| *value == 1) else {
        return Ok(0..0);
    };
    let end = mask
        .iter()
        .rposition(|value| *value == 1)
        .map_or(start, |last| last + 1);
    let between = mask.get(start..end).unwrap_or_default();
    match between.iter().position(|value| *value == 0) {
        None => Ok(start..end),
        Some(hole) => Err(RecordProblem::Hole {
            position: start + hole,
            end: end - 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(ids: &[i64], masks: Masks) -> Result<Content, String> {
        let ids = ids.iter().map(|&id| i128::from(id));
        masks.apply(ids, 10).map_err(|problem| problem.to_string())
    }

    fn ids(ids: &[u32], mask: Option<&[bool]>) -> Result<Content, String> {
        Ok(Content::Ids {
            ids: ids.to_vec(),
            loss_mask: mask.map(<[bool]>::to_vec),
        })
    }

    #[test]
    fn padding_is_cut_on_either_side_whatever_its_ids_are() {
        for (mask, expected) in [
            ([1, 1, 1, 0], &[1, 2, 3][..]),
            ([0, 1, 1, 0], &[2, 3]),
            ([0, 0, 0, 0], &[]),
        ] {
            let masks = Masks {
                attention_mask: Some(mask.to_vec()),
                ..Masks::default()
            };
            assert_eq!(apply(&[1, 2, 3, 99], masks), ids(expected, None));
        }
        for (mask, expected) in [
            (
                vec![1, 0, 0, 1],
                "attention_mask has a hole: position 1 is 0, and position 3 is 1 again; padding is only cut off the ends",
            ),
            (
                vec![1, 1, 2, 2],
                "attention_mask is 2 at position 2; expected 0 or 1",
            ),
            (
                vec![1],
                "attention_mask has 1 values beside 4 token ids; expected one for each",
            ),
        ] {
            let masks = Masks {
                attention_mask: Some(mask),
                ..Masks::default()
            };
            assert_eq!(apply(&[1, 2, 3, 4], masks).unwrap_err(), expected);
        }
    }

    #[test]
    fn what_a_mask_or_a_label_leaves_out_is_not_predicted() {
        let masks = |loss_mask: Option<&[i64]>, labels: Option<&[i64]>| Masks {
            loss_mask: loss_mask.map(<[i64]>::to_vec),
            labels: labels.map(<[i64]>::to_vec),
            attention_mask: Some(vec![0, 1, 1, 1]),
        };
        let cut = [2, 3, 4];
        for (loss_mask, labels, expected) in [
            (
                Some(&[0, 0, 1, 1][..]),
                None,
                Some(&[false, true, true][..]),
            ),
            (None, Some(&[7, -100, 3, 4][..]), Some(&[false, true, true])),
            (
                Some(&[1, 1, 1, 0]),
                Some(&[-100, -100, 3, 4]),
                Some(&[false, true, false]),
            ),
            (Some(&[0, 1, 1, 1]), Some(&[1, 2, 3, 4]), None),
        ] {
            let found = apply(&[1, 2, 3, 4], masks(loss_mask, labels));
            assert_eq!(found, ids(&cut, expected));
        }
        let shifted = apply(&[1, 2, 3, 4], masks(None, Some(&[2, 3, 4, -100])));
        assert_eq!(
            shifted.unwrap_err(),
            "labels is 3 at position 1, where the token id is 2; expected that id or -100: labels stand at the \
             place of the token that they name"
        );
    }
}
