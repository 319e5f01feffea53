//! The rows of a batch in the device's memory: the tiles of attention, and the rows of RoPE's table.

use candle_core::Tensor;

use super::driver::Driver;
use crate::model::Error;
use crate::model::architecture::RopeConfig;
use crate::model::kernels::rope_table::RopeTable;
use crate::model::row_layout::RowLayout;

/// Tokens of a tile of attention, and half of those of a wide one.
pub(super) const TILE: usize = 64;

/// Tiles in the device's memory.
#[derive(Debug)]
pub(super) struct Tiles {
    /// `[count, 4]`, in the order in which blocks begin: that of the falling amount of work, so that the last ones to
    /// run are short.
    pub words: Tensor,
    pub count: usize,
}

/// The tiles of attention of a batch.
#[derive(Debug)]
pub(super) struct AttentionTiles {
    /// Of [`TILE`] queries, which see the more keys the later in their row they are.
    pub queries: Tiles,
    /// Of twice as many queries.
    pub wide_queries: Tiles,
    /// Of [`TILE`] keys, which are seen by the more queries the earlier they are.
    pub keys: Tiles,
}

fn word(value: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::TooLarge {
        rows: value,
        cols: 1,
    })
}

/// Cuts the rows of a batch into tiles, in the order of their positions in their rows.
fn cut(layout: &RowLayout, tile: usize) -> Result<Vec<[u32; 4]>, Error> {
    let mut tiles = Vec::new();
    for row in layout.rows() {
        for position in (0..row.len()).step_by(tile) {
            tiles.push([word(row.start)?, word(row.len())?, word(position)?, 0]);
        }
    }
    tiles.sort_by_key(|[_, _, position, _]| *position);
    Ok(tiles)
}

impl AttentionTiles {
    /// Cuts the rows of a batch into tiles.
    pub fn new(driver: &dyn Driver, layout: &RowLayout) -> Result<Self, Error> {
        let upload = |tiles: &[[u32; 4]]| -> Result<Tiles, Error> {
            Ok(Tiles {
                words: driver.upload(tiles.as_flattened())?,
                count: tiles.len(),
            })
        };
        let mut tiles = cut(layout, TILE)?;
        let keys = upload(&tiles)?;
        tiles.reverse();
        let queries = upload(&tiles)?;
        let mut wide = cut(layout, 2 * TILE)?;
        wide.reverse();
        Ok(Self {
            queries,
            wide_queries: upload(&wide)?,
            keys,
        })
    }
}

/// Cosines and sines of one kind of rotation, for all positions up to some number: of the usual frequencies, then,
/// where a model has others for long rows, of those.
#[derive(Debug)]
pub(super) struct RopeCache {
    pub config: RopeConfig,
    positions: usize,
    cos: Tensor,
    sin: Tensor,
}

impl RopeCache {
    /// Computes the table for rows of up to `longest` tokens, and some more.
    pub fn new(driver: &dyn Driver, config: &RopeConfig, longest: usize) -> Result<Self, Error> {
        let positions = longest.next_power_of_two().max(64);
        let layout = RowLayout::new([positions]);
        let mut tables = Vec::new();
        for frequencies in std::iter::once(&config.frequencies)
            .chain(config.long.as_ref().map(|long| &long.frequencies))
        {
            let one = RopeConfig {
                frequencies: frequencies.clone(),
                long: None,
                scale: config.scale,
            };
            tables.push(RopeTable::new(&layout, &one, driver.device())?);
        }
        let joined = |part: fn(&RopeTable) -> &Tensor| -> Result<Tensor, Error> {
            Ok(Tensor::cat(
                &tables.iter().map(part).collect::<Vec<_>>(),
                0,
            )?)
        };
        Ok(Self {
            cos: joined(|table| &table.cos)?,
            sin: joined(|table| &table.sin)?,
            config: config.clone(),
            positions,
        })
    }

    /// Returns whether it has all positions of rows of `longest` tokens.
    pub fn reaches(&self, longest: usize) -> bool {
        longest <= self.positions
    }

    /// Returns the table with the rows of a batch's tokens.
    pub fn table(&self, driver: &dyn Driver, layout: &RowLayout) -> Result<RopeTable, Error> {
        let mut rows = Vec::with_capacity(layout.num_tokens());
        for row in layout.rows() {
            let start = match &self.config.long {
                Some(long) if row.len() > long.above_tokens => self.positions,
                _ => 0,
            };
            rows.extend(word(start)?..word(start + row.len())?);
        }
        Ok(RopeTable {
            cos: self.cos.clone(),
            sin: self.sin.clone(),
            token_rows: Some(driver.upload(&rows)?),
        })
    }
}
