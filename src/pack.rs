//! From tokenized documents to rows, the attention contexts. Pure: no I/O, no randomness.
//!
//! Example with rows of 4 tokens, documents `a b c d e f` and `g h` (each with its EOS `.`):
//!
//! | packing | rows | `doc_starts` |
//! |---|---|---|
//! | document | `a b c d`, `e f .`, `g h .` | `[0]`, `[]`, `[0]` |
//! | window | `a b c d`, `e f . g`, `h .` | `[0]`, `[3]`, `[]` |

use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{Row, TokenId, TokenizedDocument};

/// Fewest tokens that a row may have: with one token there is nothing to predict.
pub const MIN_ROW_TOKENS: u32 = 2;

/// How documents become rows.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// A row is one document, split where it is longer than a row.
    #[default]
    Document,
    /// Documents are concatenated and cut into rows of equal length.
    Window,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Document => "document",
            Self::Window => "window",
        })
    }
}

/// What packing can't do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The row length leaves no target.
    #[error("a row length of {found} tokens is too short; the least is {MIN_ROW_TOKENS}")]
    SeqLenTooShort {
        /// The length asked for, tokens.
        found: u32,
    },
}

/// What went in, what came out, and what was left out: the tokens that went in are `tokens +
/// dropped_tokens + short_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackStats {
    /// Documents that went in, empty ones included.
    pub documents: u64,
    /// Documents without a single token.
    pub empty_documents: u64,
    /// Documents whose tokens are in more than one row, a dropped row included.
    pub split_documents: u64,
    /// Rows that came out.
    pub rows: u64,
    /// Tokens in these rows.
    pub tokens: u64,
    /// Rows that were left out since they had fewer than [`MIN_ROW_TOKENS`] tokens, or no target by a mask.
    pub dropped_rows: u64,
    /// Tokens in the rows that were left out.
    pub dropped_tokens: u64,
    /// Documents that were left out since they had too few tokens, empty ones aside.
    pub short_documents: u64,
    /// Tokens in these documents.
    pub short_tokens: u64,
    /// Records that were left out since they can't be read; they are no documents.
    pub rejected_records: u64,
    /// Special tokens that the text of documents spelled out, and that became tokens.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spelled_tokens: u64,
    /// Documents with such tokens.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spelled_documents: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl AddAssign for PackStats {
    fn add_assign(&mut self, other: Self) {
        let Self {
            documents,
            empty_documents,
            split_documents,
            rows,
            tokens,
            dropped_rows,
            dropped_tokens,
            short_documents,
            short_tokens,
            rejected_records,
            spelled_tokens,
            spelled_documents,
        } = other;
        self.documents += documents;
        self.empty_documents += empty_documents;
        self.split_documents += split_documents;
        self.rows += rows;
        self.tokens += tokens;
        self.dropped_rows += dropped_rows;
        self.dropped_tokens += dropped_tokens;
        self.short_documents += short_documents;
        self.short_tokens += short_tokens;
        self.rejected_records += rejected_records;
        self.spelled_tokens += spelled_tokens;
        self.spelled_documents += spelled_documents;
    }
}

/// Turns the documents of one part into rows.
///
/// ```
/// use remit::pack::{Packer, Packing};
/// use remit::types::TokenizedDocument;
///
/// let mut packer = Packer::new(Packing::Window, 4)?;
/// let document = |index, input_ids| TokenizedDocument {
///     source: "a.txt".into(),
///     index,
///     input_ids,
///     loss_mask: None,
///     num_spelled: 0,
/// };
/// let mut rows = packer.push(document(0, vec![1, 2, 3, 4, 5, 6, 0]));
/// rows.extend(packer.push(document(1, vec![7, 8, 0])));
/// let (tail, stats) = packer.finish();
/// rows.extend(tail);
/// let ids: Vec<_> = rows.iter().map(|row| row.input_ids.as_slice()).collect();
/// assert_eq!(ids, [&[1, 2, 3, 4][..], &[5, 6, 0, 7], &[8, 0]]);
/// assert_eq!(rows[1].doc_starts, [3]);
/// assert_eq!((stats.rows, stats.tokens), (3, 10));
/// # Ok::<(), remit::pack::Error>(())
/// ```
#[derive(Debug)]
pub struct Packer {
    packing: Packing,
    seq_len: u32,
    min_tokens: usize,
    /// The row being filled (window packing).
    open: Option<Row>,
    stats: PackStats,
}

impl Packer {
    /// A packer for rows of at most `seq_len` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::SeqLenTooShort`] below [`MIN_ROW_TOKENS`].
    pub fn new(packing: Packing, seq_len: u32) -> Result<Self, Error> {
        if seq_len < MIN_ROW_TOKENS {
            return Err(Error::SeqLenTooShort { found: seq_len });
        }
        Ok(Self {
            packing,
            seq_len,
            min_tokens: 0,
            open: None,
            stats: PackStats::default(),
        })
    }

    /// Leaves out documents of fewer tokens than this, BOS and EOS included.
    #[must_use]
    pub fn with_min_tokens(mut self, min_tokens: usize) -> Self {
        self.min_tokens = min_tokens;
        self
    }

    /// Takes the next document and returns the rows that are complete with it, in order.
    pub fn push(&mut self, document: TokenizedDocument) -> Vec<Row> {
        self.stats.documents += 1;
        if document.input_ids.is_empty() {
            self.stats.empty_documents += 1;
            return Vec::new();
        }
        if document.input_ids.len() < self.min_tokens {
            self.stats.short_documents += 1;
            self.stats.short_tokens += document.input_ids.len() as u64;
            return Vec::new();
        }
        self.stats.spelled_tokens += document.num_spelled;
        self.stats.spelled_documents += u64::from(document.num_spelled > 0);
        match self.packing {
            Packing::Document => self.push_document(document),
            Packing::Window => self.push_window(&document),
        }
    }

    /// Returns the unfinished last row, where there is one that is long enough, and the counts.
    pub fn finish(mut self) -> (Option<Row>, PackStats) {
        let tail = self.open.take().and_then(|row| self.count(row));
        (tail, self.stats)
    }

    fn push_document(&mut self, document: TokenizedDocument) -> Vec<Row> {
        let TokenizedDocument {
            source,
            index,
            input_ids,
            loss_mask,
            num_spelled: _,
        } = document;
        let row_tokens = self.row_tokens();
        let row = |doc_starts, input_ids, loss_mask| Row {
            source: Arc::clone(&source),
            doc_index: index,
            doc_starts,
            input_ids,
            loss_mask,
        };
        if input_ids.len() <= row_tokens {
            let row = self.count(row(vec![0], input_ids, loss_mask));
            return row.into_iter().collect();
        }
        let mut masks = loss_mask.iter().flat_map(|mask| mask.chunks(row_tokens));
        self.stats.split_documents += 1;
        input_ids
            .chunks(row_tokens)
            .enumerate()
            .filter_map(|(piece, ids)| {
                let doc_starts = if piece == 0 { vec![0] } else { Vec::new() };
                let mask = masks.next().map(<[bool]>::to_vec);
                self.count(row(doc_starts, ids.to_vec(), mask))
            })
            .collect()
    }

    fn push_window(&mut self, document: &TokenizedDocument) -> Vec<Row> {
        let row_tokens = self.row_tokens();
        let mut complete = Vec::new();
        let mut rest: &[TokenId] = &document.input_ids;
        let mut mask = document.loss_mask.as_deref();
        let mut pieces = 0;
        while !rest.is_empty() {
            let mut row = self.open.take().unwrap_or_else(|| Row {
                source: Arc::clone(&document.source),
                doc_index: document.index,
                doc_starts: Vec::new(),
                input_ids: Vec::new(),
                loss_mask: None,
            });
            if pieces == 0 {
                // A row is shorter than `seq_len`, a u32, when a document begins in it.
                row.doc_starts
                    .push(u32::try_from(row.input_ids.len()).unwrap_or(u32::MAX));
            }
            pieces += 1;
            let room = row_tokens.saturating_sub(row.input_ids.len());
            let (now, later) = rest.split_at(room.min(rest.len()));
            extend_mask(&mut row, now.len(), &mut mask);
            row.input_ids.extend_from_slice(now);
            rest = later;
            if row.input_ids.len() >= row_tokens {
                complete.extend(self.count(row));
            } else {
                self.open = Some(row);
            }
        }
        if pieces > 1 {
            self.stats.split_documents += 1;
        }
        complete
    }

    /// Counts a row and lets it through when it has a target.
    fn count(&mut self, row: Row) -> Option<Row> {
        let tokens = row.input_ids.len() as u64;
        let has_target = row.target_mask().is_none_or(|mask| mask.contains(&true));
        if tokens < u64::from(MIN_ROW_TOKENS) || !has_target {
            self.stats.dropped_rows += 1;
            self.stats.dropped_tokens += tokens;
            return None;
        }
        self.stats.rows += 1;
        self.stats.tokens += tokens;
        Some(row)
    }

    fn row_tokens(&self) -> usize {
        usize::try_from(self.seq_len).unwrap_or(usize::MAX)
    }
}

/// Takes the next `len` elements of a document's mask over to the row that gets its tokens. Tokens of documents
/// without a mask are all to be predicted.
fn extend_mask(row: &mut Row, len: usize, mask: &mut Option<&[bool]>) {
    let now = mask.map(|all| {
        let (now, later) = all.split_at(len.min(all.len()));
        *mask = Some(later);
        now
    });
    if now.is_none() && row.loss_mask.is_none() {
        return;
    }
    let before = row.input_ids.len();
    let kept = row.loss_mask.get_or_insert_with(|| vec![true; before]);
    kept.extend_from_slice(now.unwrap_or_default());
    kept.resize(before + len, true);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(index: u64, input_ids: Vec<TokenId>) -> TokenizedDocument {
        TokenizedDocument {
            source: "a.jsonl".into(),
            index,
            input_ids,
            loss_mask: None,
            num_spelled: 0,
        }
    }

    fn pack(packing: Packing, seq_len: u32, lengths: &[usize]) -> (Vec<Row>, PackStats) {
        let mut packer = Packer::new(packing, seq_len).unwrap();
        let mut rows = Vec::new();
        let mut next = 0;
        for (index, &length) in lengths.iter().enumerate() {
            let ids = (next..next + length as u32).collect();
            next += length as u32;
            rows.extend(packer.push(document(index as u64, ids)));
        }
        let (tail, stats) = packer.finish();
        rows.extend(tail);
        (rows, stats)
    }

    #[test]
    fn document_packing_splits_long_documents_and_drops_single_tokens() {
        let (rows, stats) = pack(Packing::Document, 3, &[7, 0, 1, 2]);
        let ids: Vec<_> = rows.iter().map(|row| row.input_ids.clone()).collect();
        assert_eq!(ids, [vec![0, 1, 2], vec![3, 4, 5], vec![8, 9]]);
        let starts: Vec<_> = rows.iter().map(|row| row.doc_starts.clone()).collect();
        assert_eq!(starts, [vec![0], vec![], vec![0]]);
        assert_eq!(
            stats,
            PackStats {
                documents: 4,
                empty_documents: 1,
                split_documents: 1,
                rows: 3,
                tokens: 8,
                dropped_rows: 2,
                dropped_tokens: 2,
                ..PackStats::default()
            }
        );
    }

    #[test]
    fn window_packing_names_the_document_of_the_first_token() {
        let (rows, _) = pack(Packing::Window, 4, &[3, 0, 1, 6, 2]);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.doc_index, row.doc_starts.clone(), row.input_ids.len()))
            .collect();
        assert_eq!(seen, [(0, vec![0, 3], 4), (3, vec![0], 4), (3, vec![2], 4)]);
    }

    #[test]
    fn a_window_tail_of_one_token_is_dropped_and_counted() {
        let (rows, stats) = pack(Packing::Window, 4, &[5]);
        assert_eq!(rows.len(), 1);
        assert_eq!((stats.dropped_rows, stats.dropped_tokens), (1, 1));
    }

    #[test]
    fn documents_that_are_too_short_are_left_out_and_counted() {
        for packing in [Packing::Document, Packing::Window] {
            let mut packer = Packer::new(packing, 4).unwrap().with_min_tokens(3);
            let rows: Vec<_> = [vec![1, 2], vec![], vec![3, 4, 5]]
                .into_iter()
                .flat_map(|ids| packer.push(document(0, ids)))
                .collect();
            let (tail, stats) = packer.finish();
            let rows: Vec<_> = rows
                .into_iter()
                .chain(tail)
                .map(|row| row.input_ids)
                .collect();
            assert_eq!(rows, [[3, 4, 5]]);
            assert_eq!(
                (
                    stats.documents,
                    stats.empty_documents,
                    stats.short_documents
                ),
                (3, 1, 1)
            );
            assert_eq!(stats.short_tokens, 2);
        }
    }

    #[test]
    fn a_mask_goes_with_its_tokens_and_a_row_without_a_target_is_left_out() {
        let masked = |index, ids: &[TokenId]| TokenizedDocument {
            loss_mask: Some(ids.iter().map(|id| id % 2 == 0).collect()),
            ..document(index, ids.to_vec())
        };
        let documents = [
            document(0, vec![10, 11, 12]),
            masked(1, &[20, 21, 22, 24, 25]),
            masked(2, &[31, 33, 35, 37]),
            document(3, vec![40, 41]),
        ];
        for (packing, rows, dropped) in [
            (
                Packing::Document,
                vec![
                    (vec![10, 11, 12], None),
                    (vec![20, 21, 22, 24], Some(vec![true, false, true, true])),
                    (vec![40, 41], None),
                ],
                // The second row of document 1 has one token, document 2 no target.
                (2, 5),
            ),
            (
                Packing::Window,
                vec![
                    (vec![10, 11, 12, 20], Some(vec![true; 4])),
                    (vec![21, 22, 24, 25], Some(vec![false, true, true, false])),
                    (vec![40, 41], None),
                ],
                (1, 4),
            ),
        ] {
            let mut packer = Packer::new(packing, 4).unwrap();
            let mut found = Vec::new();
            for document in documents.clone() {
                found.extend(packer.push(document));
            }
            let (tail, stats) = packer.finish();
            found.extend(tail);
            let found: Vec<_> = found
                .into_iter()
                .map(|row| (row.input_ids, row.loss_mask))
                .collect();
            assert_eq!(found, rows);
            assert_eq!((stats.dropped_rows, stats.dropped_tokens), dropped);
        }
    }

    #[test]
    fn rows_of_one_token_are_refused() {
        for packing in [Packing::Document, Packing::Window] {
            let error = Packer::new(packing, 1).unwrap_err();
            assert_eq!(
                error.to_string(),
                "a row length of 1 tokens is too short; the least is 2"
            );
        }
    }

    #[test]
    fn packing_names_are_the_same_as_text_and_as_json() {
        for packing in [Packing::Document, Packing::Window] {
            let json = serde_json::to_string(&packing).unwrap();
            assert_eq!(json, format!("\"{packing}\""));
        }
    }

    proptest! {
        #[test]
        fn tokens_keep_their_order_and_none_is_lost_uncounted(
            window in any::<bool>(),
            seq_len in 2_u32..9,
            lengths in prop::collection::vec(0_usize..20, 0..20),
        ) {
            let packing = if window { Packing::Window } else { Packing::Document };
            let (rows, stats) = pack(packing, seq_len, &lengths);
            let total: usize = lengths.iter().sum();
            prop_assert_eq!(stats.tokens + stats.dropped_tokens, total as u64);
            prop_assert_eq!(stats.documents, lengths.len() as u64);
            prop_assert_eq!(stats.rows, rows.len() as u64);

            // Token ids count up from 0 over the whole corpus, so an id tells its document.
            let starts: Vec<usize> = lengths
                .iter()
                .scan(0, |next, &length| { let start = *next; *next += length; Some(start) })
                .collect();
            let holder = |id: usize| (0..lengths.len())
                .find(|&doc| (starts[doc]..starts[doc] + lengths[doc]).contains(&id))
                .unwrap();
            let mut last = None;
            for (number, row) in rows.iter().enumerate() {
                prop_assert!(row.input_ids.len() >= 2 && row.input_ids.len() <= seq_len as usize);
                if window && number + 1 < rows.len() {
                    prop_assert_eq!(row.input_ids.len(), seq_len as usize);
                }
                for &id in &row.input_ids {
                    prop_assert!(last < Some(id));
                    last = Some(id);
                }
                prop_assert_eq!(row.doc_index, holder(row.input_ids[0] as usize) as u64);
                let expected: Vec<u32> = row.input_ids.iter().enumerate()
                    .filter(|(_, id)| starts[holder(**id as usize)] == **id as usize)
                    .map(|(position, _)| position as u32)
                    .collect();
                prop_assert_eq!(&row.doc_starts, &expected);
            }
            if window {
                prop_assert_eq!(stats.tokens as usize / seq_len as usize, total / seq_len as usize);
            }
        }
    }
}
