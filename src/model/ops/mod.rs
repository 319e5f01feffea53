//! The operations of a decoder, each with the gradient that belongs to it.
//!
//! Every operation is a pair of functions, forward and backward, on contiguous tensors; the decoder
//! calls both by hand, so no gradient can go missing behind an operation that does not
//! record one. Token tensors are `[tokens, features]`, where the tokens of all rows of a batch stand
//! one after another without padding (see [`RowLayout`]).
//!
//! On the CPU, a token's results depend on its own row alone, bit for bit. There, everything is f32 but
//! the matrices, which may be kept in bf16 and are widened where they are used. On other devices
//! the operations are put together from the tensor library's own ([`composed`]).

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod composed;
pub(crate) mod latent;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Shape, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::Error;
use super::simd::vectorized;

/// Most tokens whose gradients are summed in one go, unless a single row has more.
///
/// See [`RowLayout::units`].
pub const UNIT_TOKENS: usize = 1024;

/// Where the rows of a batch lie among its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLayout {
    ends: Vec<usize>,
    /// Numbers of the rows that follow a unit's last.
    unit_ends: Vec<usize>,
}

impl RowLayout {
    /// Rows of these lengths, side by side.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let (mut total, mut unit_start) = (0, 0);
        let (mut ends, mut unit_ends) = (Vec::new(), Vec::new());
        for (row, len) in lengths.into_iter().enumerate() {
            if total > unit_start && total + len - unit_start > UNIT_TOKENS {
                unit_ends.push(row);
                unit_start = total;
            }
            total += len;
            ends.push(total);
        }
        if !ends.is_empty() {
            unit_ends.push(ends.len());
        }
        Self { ends, unit_ends }
    }

    /// The rows of each unit: consecutive rows of at most [`UNIT_TOKENS`] in all, or one longer row.
    ///
    /// On the CPU a parameter's gradient is the sum over units, in order, of the unit's gradient. As units
    /// are formed from the first row on, a batch that is cut between units has the units of its
    /// pieces, and the sum is the same, bit for bit, however a step is cut into micro-batches.
    pub fn units(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.unit_ends.iter().copied());
        starts
            .zip(self.unit_ends.iter().copied())
            .map(|(start, end)| start..end)
    }

    /// The tokens of each unit.
    pub fn unit_tokens(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.units().map(|rows| {
            let start = rows.start.checked_sub(1).map_or(0, |last| self.ends[last]);
            start..self.ends[rows.end - 1]
        })
    }

    /// Number of tokens in all rows.
    pub fn num_tokens(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.ends.len()
    }

    /// The token range of each row.
    pub fn rows(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(self.ends.iter().copied())
            .map(|(start, end)| start..end)
    }
}

/// Read access to the elements of a contiguous f32 tensor on the CPU.
pub(crate) struct View<'a> {
    guard: Box<dyn Deref<Target = Storage> + 'a>,
    range: Range<usize>,
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("`view` admits f32 storage on the CPU only"),
        }
    }
}

/// The elements of a tensor in row-major order. Bind it as `let x: &[f32] = &view(x)?`; the guard
/// itself can't be shared with other threads.
pub(crate) fn view(tensor: &Tensor) -> Result<View<'_>, Error> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Internal(
            "an operation was given a tensor that is not contiguous",
        ));
    };
    if !matches!(&*guard, Storage::Cpu(CpuStorage::F32(_))) {
        return Err(Error::Internal(
            "an operation was given a tensor that is not f32 on the CPU",
        ));
    }
    Ok(View {
        guard: Box::new(guard),
        range: start..end,
    })
}

/// Zeros, written by all threads of the pool where they are many.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    if len < CHUNK {
        return vec![0.0; len];
    }
    rayon::iter::repeat_n(0.0, len).collect()
}

/// A copy, made by all threads of the pool where there is much to copy.
pub(crate) fn copied(values: &[f32]) -> Vec<f32> {
    if values.len() < CHUNK {
        return values.to_vec();
    }
    values.par_iter().copied().collect()
}

/// A tensor that owns `values`; nothing is copied.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor, Error> {
    Ok(Tensor::from_vec(
        values,
        shape.into(),
        &candle_core::Device::Cpu,
    )?)
}

#[cfg(test)]
thread_local! {
    /// Makes this thread take the composed operations on the CPU too.
    pub(crate) static COMPOSED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the kernels of this crate can work on a tensor: it is on the CPU.
pub(crate) fn is_ours(x: &Tensor) -> bool {
    #[cfg(test)]
    if COMPOSED.get() {
        return false;
    }
    x.device().is_cpu()
}

/// The elements of a matrix as f32: a view, or widened.
pub(crate) enum Widened<'a> {
    View(View<'a>),
    Owned(Vec<f32>),
}

impl Deref for Widened<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::View(view) => view,
            Self::Owned(values) => values,
        }
    }
}

/// The elements of a contiguous f32 or bf16 tensor on the CPU as f32, row-major.
pub(crate) fn widened(x: &Tensor) -> Result<Widened<'_>, Error> {
    if x.dtype() != DType::BF16 {
        return Ok(Widened::View(view(x)?));
    }
    let (guard, layout) = x.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::BF16(values)), Some((start, end))) => {
            let values = &values[start..end];
            let mut wide = vec![0.0; values.len()];
            wide.par_chunks_mut(CHUNK)
                .zip(values.par_chunks(CHUNK))
                .for_each(|(wide, values)| {
                    for (wide, value) in wide.iter_mut().zip(values) {
                        *wide = value.to_f32();
                    }
                });
            Ok(Widened::Owned(wide))
        }
        _ => Err(Error::Internal(
            "an operation was given a bf16 tensor that is not contiguous on the CPU",
        )),
    }
}

/// f32 elements as a bf16 tensor on the CPU, rounded to nearest even.
pub(crate) fn narrowed(values: &[f32], shape: impl Into<Shape>) -> Result<Tensor, Error> {
    let narrow: Vec<bf16> = values.par_iter().map(|v| bf16::from_f32(*v)).collect();
    Ok(Tensor::from_vec(
        narrow,
        shape.into(),
        &candle_core::Device::Cpu,
    )?)
}

/// The elements as f32, row-major, wherever they are: a view where that is enough.
pub(crate) fn on_host(x: &Tensor) -> Result<Widened<'_>, Error> {
    match x.device().is_cpu() {
        true => widened(x),
        false => Ok(Widened::Owned(to_host(x)?)),
    }
}

/// A copy of the elements in memory, row-major, wherever they are.
pub(crate) fn to_host(x: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Rows of a table `[entries, width]`, each multiplied by `scale`: `[ids, width]`.
pub(crate) fn lookup(table: &Tensor, ids: &[u32], scale: f32) -> Result<Tensor, Error> {
    let mut rows = table.index_select(&composed::indices(ids, table.device())?, 0)?;
    if is_ours(table) {
        rows = rows.to_dtype(DType::F32)?;
    }
    match scale {
        1.0 => Ok(rows),
        _ => Ok((rows * f64::from(scale))?),
    }
}

/// Adds `scale * dx` `[ids, width]` to the rows of `sum` `[entries, width]` that `ids` name.
pub(crate) fn lookup_backward(
    sum: &Tensor,
    ids: &[u32],
    dx: &Tensor,
    scale: f32,
) -> Result<(), Error> {
    if !is_ours(sum) {
        let ids = composed::indices(ids, sum.device())?;
        let dx = (dx.to_dtype(sum.dtype())? * f64::from(scale))?;
        return assign(sum, &sum.index_add(&ids, &dx, 0)?);
    }
    let (_, width) = dims(sum)?;
    let dx: &[f32] = &view(dx)?;
    update(sum, |sum| {
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let at = id as usize * width;
            for (sum, dx) in sum[at..at + width].iter_mut().zip(dx) {
                *sum += dx * scale;
            }
        }
    })
}

/// Overwrites the elements of a contiguous tensor, rounding to its dtype; every clone of it sees it.
pub(crate) fn assign(to: &Tensor, from: &Tensor) -> Result<(), Error> {
    Ok(to.slice_set(&from.to_dtype(to.dtype())?.contiguous()?, 0, 0)?)
}

/// Sets every element to zero; every clone of the tensor sees it.
pub(crate) fn clear(x: &Tensor) -> Result<(), Error> {
    if !is_ours(x) {
        return Ok(x.zero_set()?);
    }
    update(x, |x| {
        x.par_chunks_mut(CHUNK).for_each(|x| x.fill(0.0));
    })
}

/// Zeros in f32, of the shape of a tensor and where it is.
pub(crate) fn zeros_f32(like: &Tensor) -> Result<Tensor, Error> {
    Ok(Tensor::zeros(like.shape(), DType::F32, like.device())?)
}

/// Number of rows and of features of a `[tokens, features]` tensor.
pub(crate) fn dims(x: &Tensor) -> Result<(usize, usize), Error> {
    Ok(x.dims2()?)
}

/// Elements handled by one task of a parallel loop over elements; a constant, so that the division
/// of work does not depend on the number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// Token rows handled by one task of a parallel loop over rows of `features` elements.
pub(crate) fn rows_per_task(features: usize) -> usize {
    (CHUNK / features.max(1)).max(1)
}

struct Update<F>(std::cell::RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("an in-place update needs f32 storage");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("an in-place update needs a contiguous tensor");
        };
        (self.0.borrow_mut())(&mut values[start..end]);
        Ok(())
    }
}

/// Changes the elements of a tensor in place; every clone of the tensor sees it.
pub(crate) fn update(tensor: &Tensor, f: impl FnMut(&mut [f32])) -> Result<(), Error> {
    Ok(tensor.inplace_op1(&Update(std::cell::RefCell::new(f)))?)
}

/// `sum += addend`, in place.
pub(crate) fn add_assign(sum: &Tensor, addend: &Tensor) -> Result<(), Error> {
    if !is_ours(sum) {
        return composed::add_assign(sum, addend);
    }
    let addend: &[f32] = &view(addend)?;
    update(sum, |sum| {
        sum.par_chunks_mut(CHUNK)
            .zip(addend.par_chunks(CHUNK))
            .for_each(|(sum, addend)| {
                for (sum, addend) in sum.iter_mut().zip(addend) {
                    *sum += addend;
                }
            });
    })
}

/// Sum of squares, in chunks of a fixed size that are added in order.
pub(crate) fn sum_of_squares(x: &Tensor) -> Result<f64, Error> {
    if !is_ours(x) {
        return Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let values: &[f32] = &view(x)?;
    let chunks: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut lanes = [0.0_f64; 8];
            vectorized(
                #[inline(always)]
                || {
                    let (whole, rest) = chunk.as_chunks::<8>();
                    for values in whole {
                        for (lane, value) in lanes.iter_mut().zip(values) {
                            *lane += f64::from(*value) * f64::from(*value);
                        }
                    }
                    for (lane, value) in lanes.iter_mut().zip(rest) {
                        *lane += f64::from(*value) * f64::from(*value);
                    }
                },
            );
            lanes.iter().sum()
        })
        .collect();
    Ok(chunks.iter().sum())
}
