//! The memory of an emulated GPU: a number of bytes, of which every tensor takes its own for as long as it lives.
//!
//! Candle says nothing when a tensor's memory is freed. It does keep the operation that a tensor came from, for
//! gradients, as long as that tensor or a view of it lives, if one of the operation's inputs is a variable. So a
//! tensor here comes from an operation on a variable without elements, and gives its bytes back when that is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, Var};
use half::bf16;

use crate::model::Error;

/// Memory of so many bytes.
#[derive(Debug)]
pub(super) struct Memory {
    limit_bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

/// The bytes of one tensor, and the operation that makes it.
struct Allocation {
    shape: Shape,
    dtype: DType,
    bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl CustomOp1 for Allocation {
    fn name(&self) -> &'static str {
        "allocate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let n = self.shape.elem_count();
        let storage = match self.dtype {
            DType::F32 => CpuStorage::F32(vec![f32::NAN; n]),
            DType::BF16 => CpuStorage::BF16(vec![bf16::NAN; n]),
            DType::F64 => CpuStorage::F64(vec![f64::NAN; n]),
            DType::U32 => CpuStorage::U32(vec![u32::MAX; n]),
            other => candle_core::bail!("an emulated GPU has no tensors of {other:?}"),
        };
        Ok((storage, self.shape.clone()))
    }
}

impl Memory {
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            used_bytes: Arc::default(),
        }
    }

    /// Returns the bytes that no tensor takes.
    pub fn free_bytes(&self) -> u64 {
        let used = self.used_bytes.load(Ordering::Relaxed);
        self.limit_bytes.saturating_sub(used)
    }

    /// Allocates a tensor of NaN.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        let shape = Shape::from(shape);
        let bytes = (shape.elem_count() * dtype.size_in_bytes()) as u64;
        let free_bytes = self.free_bytes();
        if bytes > free_bytes {
            return Err(Error::OutOfMemory {
                wanted_bytes: bytes,
                free_bytes,
            });
        }
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        let nothing = Var::zeros(0, DType::F32, &Device::Cpu)?;
        Ok(nothing.apply_op1(Allocation {
            shape,
            dtype,
            bytes,
            used_bytes: Arc::clone(&self.used_bytes),
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_takes_its_bytes_until_its_last_view_is_gone() {
        let memory = Memory::new(1000);
        let tensor = memory.allocate(&[10, 10], DType::BF16).unwrap();
        assert_eq!(memory.free_bytes(), 800);
        let view = tensor.narrow(0, 3, 2).unwrap().reshape(20).unwrap();
        drop(tensor);
        assert_eq!(memory.free_bytes(), 800);
        let error = memory.allocate(&[201], DType::F32).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        drop(view);
        assert_eq!(memory.free_bytes(), 1000);
        assert!(memory.allocate(&[125], DType::F64).is_ok());
    }
}
