//! The operations of a decoder, each with the gradient that belongs to it.
//!
//! Every operation is a pair of functions, forward and backward, on contiguous f32 tensors; the
//! decoder calls both by hand, so no gradient can go missing behind an operation that does not
//! record one. Token tensors are `[tokens, features]`, where the tokens of all rows of a batch stand
//! one after another without padding (see [`RowLayout`]).
//!
//! On the CPU, a token's results depend on its own row alone, bit for bit.

pub(crate) mod attention;
pub(crate) mod latent;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, InplaceOp1, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::Error;

/// Where the rows of a batch lie among its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLayout {
    ends: Vec<usize>,
}

impl RowLayout {
    /// Rows of these lengths, side by side.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut total = 0;
        let ends = lengths
            .into_iter()
            .map(|len| {
                total += len;
                total
            })
            .collect();
        Self { ends }
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

/// A tensor that owns `values`; nothing is copied.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor, Error> {
    Ok(Tensor::from_vec(
        values,
        shape.into(),
        &candle_core::Device::Cpu,
    )?)
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
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    let chunks: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut lanes = [0.0_f64; 8];
            for (i, value) in chunk.iter().enumerate() {
                lanes[i % 8] += f64::from(*value) * f64::from(*value);
            }
            lanes.iter().sum()
        })
        .collect();
    chunks.iter().sum()
}
