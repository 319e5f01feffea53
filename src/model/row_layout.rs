//! Where the rows of a batch lie among its tokens, and how their gradients are summed.

use std::ops::Range;

/// The most tokens whose gradients are summed in one go, unless a single row has more.
///
/// See [`RowLayout::grad_chunks`].
pub const GRAD_CHUNK_TOKENS: usize = 1024;

/// The places of rows among a batch's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLayout {
    ends: Vec<usize>,
    /// Numbers of the rows that follow a gradient chunk's last.
    chunk_ends: Vec<usize>,
}

impl RowLayout {
    /// Lays rows of these lengths side by side.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let (mut total, mut chunk_start) = (0, 0);
        let (mut ends, mut chunk_ends) = (Vec::new(), Vec::new());
        for (row, len) in lengths.into_iter().enumerate() {
            if total > chunk_start && total + len - chunk_start > GRAD_CHUNK_TOKENS {
                chunk_ends.push(row);
                chunk_start = total;
            }
            total += len;
            ends.push(total);
        }
        if !ends.is_empty() {
            chunk_ends.push(ends.len());
        }
        Self { ends, chunk_ends }
    }

    /// Returns the rows of each gradient chunk: consecutive rows of at most [`GRAD_CHUNK_TOKENS`] in all, or one longer row.
    ///
    /// On the CPU a parameter's gradient is the sum over chunks, in order, of the chunk's gradient. As chunks
    /// are formed from the first row on, a batch that is cut between chunks has the chunks of its
    /// pieces, and the sum is the same, bit for bit, however a step is cut into micro-batches.
    pub fn grad_chunks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.chunk_ends.iter().copied());
        starts
            .zip(self.chunk_ends.iter().copied())
            .map(|(start, end)| start..end)
    }

    /// Returns the tokens of each gradient chunk.
    pub fn grad_chunk_tokens(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.grad_chunks().map(|rows| {
            let start = rows.start.checked_sub(1).map_or(0, |last| self.ends[last]);
            start..self.ends[rows.end - 1]
        })
    }

    /// Returns the number of tokens in all rows.
    pub fn num_tokens(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the number of rows.
    pub fn num_rows(&self) -> usize {
        self.ends.len()
    }

    /// Returns the token range of each row.
    pub fn rows(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(self.ends.iter().copied())
            .map(|(start, end)| start..end)
    }
}
