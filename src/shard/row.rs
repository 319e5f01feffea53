//! A row as it stands in a shard.

use crate::types::{ScoredRow, TokenId};

/// A scored row and its place in the set.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRow {
    /// `row_id` column.
    pub row_id: u64,
    /// Everything else.
    pub scored: ScoredRow,
}

impl StoredRow {
    /// Returns the token ids.
    pub fn ids(&self) -> &[TokenId] {
        self.scored.ids()
    }

    /// Returns the number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.scored.num_tokens()
    }

    /// Returns the number of predicted positions.
    pub fn num_targets(&self) -> usize {
        self.scored.num_targets()
    }
}
