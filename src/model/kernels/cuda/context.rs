//! What every operation of the backend uses: new memory, launches, products, and what is kept between them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::batch_rows::{AttentionTiles, RopeCache};
use super::driver::{Driver, Operand, Product, ROW_TILE};
use super::launch::Launch;
use super::place::{Place, place};
use crate::model::Error;
use crate::model::architecture::RopeConfig;
use crate::model::kernels::rope_table::RopeTable;
use crate::model::row_layout::RowLayout;

/// How large a part of the logits is computed at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitsTiles {
    /// Tokens of a tile of logits, a multiple of [`ROW_TILE`].
    pub tokens: usize,
    /// Vocabulary entries of a tile of logits.
    pub entries: usize,
    /// Tokens whose gradients of logits are held at a time, a multiple of `tokens`: the sum of the head's
    /// gradients is read and written once for each.
    pub gradient_tokens: usize,
}

/// Logits of 32 MiB, which the cache of a GPU holds; their gradients of 128 MiB in bf16.
const LOGITS_TILES: LogitsTiles = LogitsTiles {
    tokens: 1024,
    entries: 8192,
    gradient_tokens: 8192,
};

/// A matrix that a product takes, `[rows, columns]` as it is or transposed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Factor<'a> {
    /// The matrix itself.
    pub fn plain(tensor: &'a Tensor) -> Self {
        Self {
            tensor,
            transposed: false,
        }
    }

    /// Its transpose.
    pub fn transposed(tensor: &'a Tensor) -> Self {
        Self {
            tensor,
            transposed: true,
        }
    }

    fn dims(self) -> Result<(usize, usize), Error> {
        let (rows, columns) = self.tensor.dims2()?;
        Ok(match self.transposed {
            true => (columns, rows),
            false => (rows, columns),
        })
    }

    fn operand(self, place: Place) -> Result<Operand, Error> {
        Ok(Operand {
            address: place.address,
            dtype: self.tensor.dtype(),
            transposed: self.transposed,
            stride: self.tensor.dim(1)?,
        })
    }
}

/// What a product does with what its output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Overwrites it.
    Replace,
    /// Adds to it.
    Accumulate,
}

/// The device, and what is kept there between operations.
#[derive(Debug)]
pub(super) struct Context {
    driver: Box<dyn Driver>,
    /// The tiles of the output head.
    pub logits: LogitsTiles,
    /// Of the batch that was last asked about: every layer asks again.
    tiles: Mutex<Option<(RowLayout, Arc<AttentionTiles>)>>,
    /// One for each kind of rotation that was asked for.
    ropes: Mutex<Vec<RopeCache>>,
}

impl Context {
    pub fn new(driver: Box<dyn Driver>) -> Self {
        Self {
            driver,
            logits: LOGITS_TILES,
            tiles: Mutex::new(None),
            ropes: Mutex::new(Vec::new()),
        }
    }

    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Begins the parameters of the kernel `{name}_{dtype}`.
    pub fn kernel<'a>(&'a self, name: &str, dtype: DType) -> Launch<'a> {
        Launch::new(&*self.driver, name, dtype)
    }

    /// Begins the parameters of the kernel `{name}_{dtype}_{size}`.
    pub fn kernel_of_size<'a>(&'a self, name: &str, dtype: DType, size: &str) -> Launch<'a> {
        Launch::of_size(&*self.driver, name, dtype, size)
    }

    /// Begins the parameters of a kernel that there is one of.
    pub fn only_kernel<'a>(&'a self, name: &str) -> Launch<'a> {
        Launch::only(&*self.driver, name)
    }

    /// Allocates an f32 tensor, to be written before it is read.
    pub fn empty(&self, shape: &[usize]) -> Result<Tensor, Error> {
        self.driver.empty(shape, DType::F32)
    }

    /// Allocates a token tensor `[tokens, width]` with room for whole tiles of rows, to be written before it is
    /// read.
    pub fn tokens(&self, tokens: usize, width: usize, dtype: DType) -> Result<Tensor, Error> {
        let shape = [tokens.next_multiple_of(ROW_TILE), width];
        Ok(self.driver.empty(&shape, dtype)?.narrow(0, 0, tokens)?)
    }

    /// Allocates a token tensor of the shape and dtype of another.
    pub fn like(&self, x: &Tensor) -> Result<Tensor, Error> {
        let (tokens, width) = x.dims2()?;
        self.tokens(tokens, width, x.dtype())
    }

    /// Copies f32 to the device, as their bits.
    pub fn upload_f32(&self, values: &[f32]) -> Result<Tensor, Error> {
        let words: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        self.driver.upload(&words)
    }

    /// Returns the tiles of attention of a batch.
    pub fn tiles(&self, layout: &RowLayout) -> Result<Arc<AttentionTiles>, Error> {
        let mut last = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, tiles)) = &*last
            && of == layout
        {
            return Ok(Arc::clone(tiles));
        }
        let tiles = Arc::new(AttentionTiles::new(&*self.driver, layout)?);
        *last = Some((layout.clone(), Arc::clone(&tiles)));
        Ok(tiles)
    }

    /// See [`Kernels::rope_table`](crate::model::kernels::Kernels::rope_table).
    pub fn rope_table(&self, layout: &RowLayout, rope: &RopeConfig) -> Result<RopeTable, Error> {
        let longest = layout.rows().map(|row| row.len()).max().unwrap_or(0);
        let mut ropes = self.ropes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ropes.iter().position(|cache| cache.config == *rope);
        if let Some(cache) = known.and_then(|known| ropes.get(known))
            && cache.reaches(longest)
        {
            return cache.table(&*self.driver, layout);
        }
        let cache = RopeCache::new(&*self.driver, rope, longest)?;
        let table = cache.table(&*self.driver, layout);
        ropes.retain(|cache| cache.config != *rope);
        ropes.push(cache);
        table
    }

    /// Computes `out = a b`, or adds it. The rows of `a` and `out` are no tokens.
    pub fn multiply(
        &self,
        out: &Tensor,
        write: Write,
        a: Factor<'_>,
        b: Factor<'_>,
    ) -> Result<(), Error> {
        let (m, _) = a.dims()?;
        self.product(out, write, a, b, m, false)
    }

    /// Computes `out = a b`, or adds it, where the rows of `a` and `out` are tokens: a token's bits do not depend
    /// on the others.
    pub fn multiply_tokens(
        &self,
        out: &Tensor,
        write: Write,
        a: &Tensor,
        b: Factor<'_>,
    ) -> Result<(), Error> {
        let tokens = out.dim(0)?;
        let m = tokens.next_multiple_of(ROW_TILE);
        let a = self.with_room(a, m)?;
        let roomy = self.with_room(out, m)?;
        self.product(&roomy, write, Factor::plain(&a), b, m, true)?;
        if place(&roomy)?.address != place(out)?.address {
            out.slice_set(&roomy, 0, 0)?;
        }
        Ok(())
    }

    /// Returns a token tensor that has memory for `rows` rows: `x` itself, or a copy where it has not.
    fn with_room(&self, x: &Tensor, rows: usize) -> Result<Tensor, Error> {
        let (tokens, width) = x.dims2()?;
        if place(x)?.room >= rows * width {
            return Ok(x.clone());
        }
        let copy = self.tokens(tokens, width, x.dtype())?;
        copy.slice_set(x, 0, 0)?;
        Ok(copy)
    }

    fn product(
        &self,
        out: &Tensor,
        write: Write,
        a: Factor<'_>,
        b: Factor<'_>,
        m: usize,
        rows_are_tokens: bool,
    ) -> Result<(), Error> {
        let ((valid_m, k), (other_k, n)) = (a.dims()?, b.dims()?);
        if other_k != k || out.dims2()? != (valid_m, n) || a.tensor.dtype() != b.tensor.dtype() {
            return Err(Error::Internal("a product of matrices that do not fit"));
        }
        if m == 0 || n == 0 || (k == 0 && write == Write::Accumulate) {
            return Ok(());
        }
        let [a_place, b_place, out_place] = [place(a.tensor)?, place(b.tensor)?, place(out)?];
        if a_place.room < m * k || out_place.room < m * n {
            return Err(Error::Internal(
                "a product without room for all of its rows",
            ));
        }
        let product = Product {
            a: a.operand(a_place)?,
            b: b.operand(b_place)?,
            out: Factor::plain(out).operand(out_place)?,
            m,
            valid_m,
            n,
            k,
            accumulate: write == Write::Accumulate,
            rows_are_tokens,
        };
        // SAFETY: the matrices are in the memory of tensors that are borrowed here, of these sizes, as was
        // checked; `out` is another tensor than the factors.
        unsafe { self.driver.multiply(&product) }
    }
}
