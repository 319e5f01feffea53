//! The rows that go through a decoder together.

use super::Error;
use super::architecture::Architecture;
use super::kernels::{Kernels, RopeTable};
use super::row_layout::RowLayout;

/// One batch: the tokens of its rows, side by side, without padding and without attention between rows.
pub(crate) struct Batch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Which tokens belong to which row.
    pub layout: RowLayout,
    /// One for each of the architecture's.
    ropes: Vec<RopeTable>,
}

impl Batch {
    /// Puts rows side by side.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] when an id has no embedding.
    pub fn new(
        rows: &[&[u32]],
        architecture: &Architecture,
        kernels: &dyn Kernels,
    ) -> Result<Self, Error> {
        let vocab_size = architecture.vocab_size;
        for row in rows {
            if let Some(position) = row.iter().position(|&id| id as usize >= vocab_size) {
                return Err(Error::TokenOutOfRange {
                    id: row[position],
                    position,
                    vocab_size,
                });
            }
        }
        let layout = RowLayout::new(rows.iter().map(|row| row.len()));
        let ropes = architecture.ropes.iter();
        let ropes = ropes
            .map(|rope| kernels.rope_table(&layout, rope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            ids: rows.concat(),
            layout,
            ropes,
        })
    }

    /// Returns the angles that a block asks for.
    pub fn rope(&self, index: usize) -> Result<&RopeTable, Error> {
        self.ropes.get(index).ok_or(Error::Internal(
            "a block names an index outside the architecture's ropes",
        ))
    }
}
