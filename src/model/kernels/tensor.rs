//! Access to the elements of tensors, and conversions between memory and devices.
//!
//! Nothing is computed here. Tensors that operations are given are contiguous and row-major.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::model::Error;

/// Elements handled by one task of a parallel loop over elements; a constant, so that the division
/// of work does not depend on the number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// Returns a tensor on the CPU that owns `values`; nothing is copied.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor, Error> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// Returns f32 elements as a bf16 tensor on the CPU, rounded to nearest even.
pub(crate) fn rounded_to_bf16(values: &[f32], shape: impl Into<Shape>) -> Result<Tensor, Error> {
    bf16_tensor(rounded(values), shape)
}

/// Rounds f32 elements to bf16, to nearest even.
pub(crate) fn rounded(values: &[f32]) -> Vec<bf16> {
    let mut narrow = vec![bf16::ZERO; values.len()];
    narrow
        .par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(narrow, values)| {
            for (narrow, value) in narrow.iter_mut().zip(values) {
                // As `bf16::from_f32`, without its branch.
                let bits = value.to_bits();
                let near = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
                let kept = if value.is_nan() {
                    bits | 0x0040_0000
                } else {
                    near
                };
                *narrow = bf16::from_bits((kept >> 16) as u16);
            }
        });
    narrow
}

/// Returns a bf16 tensor on the CPU that owns `values`; nothing is copied.
pub(crate) fn bf16_tensor(values: Vec<bf16>, shape: impl Into<Shape>) -> Result<Tensor, Error> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// Copies values to a device.
pub(crate) fn upload(values: &[f32], shape: &[usize], device: &Device) -> Result<Tensor, Error> {
    Ok(Tensor::from_slice(values, shape, device)?)
}

/// Copies indices to a device, `[n]`.
pub(crate) fn indices(values: &[u32], device: &Device) -> Result<Tensor, Error> {
    Ok(Tensor::from_slice(values, values.len(), device)?)
}

/// Returns zeros in f32, of the shape of a tensor and where it is.
pub(crate) fn zeros_f32(like: &Tensor) -> Result<Tensor, Error> {
    Ok(Tensor::zeros(like.shape(), DType::F32, like.device())?)
}

/// Overwrites the elements of a tensor, rounding to its dtype; every clone of it sees the change.
pub(crate) fn assign(to: &Tensor, from: &Tensor) -> Result<(), Error> {
    Ok(to.slice_set(&from.to_dtype(to.dtype())?.contiguous()?, 0, 0)?)
}

/// [`assign`] of f32 to bf16 on the CPU, by all threads of the pool.
pub(crate) fn assign_rounded(to: &Tensor, from: &Tensor) -> Result<(), Error> {
    let narrow = rounded_to_bf16(&view(from)?, from.shape())?;
    Ok(to.slice_set(&narrow, 0, 0)?)
}

/// Sets all elements, row-major.
pub(crate) fn set_values(to: &Tensor, values: Vec<f32>) -> Result<(), Error> {
    assign(to, &tensor(values, to.shape())?.to_device(to.device())?)
}

/// Copies the elements to memory as f32, row-major, from wherever they are.
pub(crate) fn to_host(x: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Returns the elements as f32, row-major, from wherever they are: a view where that is enough.
pub(crate) fn on_host(x: &Tensor) -> Result<Widened<'_>, Error> {
    match x.device().is_cpu() {
        true => widened(x),
        false => Ok(Widened::Owned(to_host(x)?)),
    }
}

/// Read access to the elements of an f32 tensor on the CPU.
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

/// Returns the elements of an f32 tensor on the CPU. Bind it as `let x: &[f32] = &view(x)?`; the guard
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

/// Read access to the elements of a bf16 tensor on the CPU.
pub(crate) struct Bf16View<'a> {
    guard: Box<dyn Deref<Target = Storage> + 'a>,
    range: Range<usize>,
}

impl Deref for Bf16View<'_> {
    type Target = [bf16];

    fn deref(&self) -> &[bf16] {
        match &**self.guard {
            Storage::Cpu(CpuStorage::BF16(values)) => &values[self.range.clone()],
            _ => unreachable!("`bf16_view` admits bf16 storage on the CPU only"),
        }
    }
}

/// Returns the elements of a bf16 tensor on the CPU, to bind as those of [`view`].
pub(crate) fn bf16_view(tensor: &Tensor) -> Result<Bf16View<'_>, Error> {
    let (guard, layout) = tensor.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::BF16(_)), Some((start, end))) => Ok(Bf16View {
            guard: Box::new(guard),
            range: start..end,
        }),
        _ => Err(Error::Internal(
            "an operation was given a tensor that is not contiguous bf16 on the CPU",
        )),
    }
}

/// The elements of a tensor as f32: a view, or widened.
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

/// Returns the elements of an f32 or bf16 tensor on the CPU as f32.
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

/// Changes the elements of an f32 tensor on the CPU in place; every clone of the tensor sees the change.
pub(crate) fn update(tensor: &Tensor, f: impl FnMut(&mut [f32])) -> Result<(), Error> {
    Ok(tensor.inplace_op1(&Update(std::cell::RefCell::new(f)))?)
}

/// [`update`] for four tensors at once, none of which shares its elements with another.
pub(crate) fn update4(
    [a, b, c, d]: [&Tensor; 4],
    mut f: impl FnMut([&mut [f32]; 4]),
) -> Result<(), Error> {
    let mut outcome = Ok(());
    update(a, |a| {
        outcome = update(b, |b| {
            outcome = update(c, |c| {
                outcome = update(d, |d| f([&mut *a, &mut *b, &mut *c, d]));
            });
        });
    })?;
    outcome
}
