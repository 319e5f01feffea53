//! Addresses of tensors' elements, in the machine's memory or a GPU's.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

use crate::model::Error;

/// Where a contiguous tensor's elements are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Address of the first element.
    pub address: u64,
    /// Elements from the first one to the end of the allocation: at least those of the tensor.
    pub room: usize,
}

/// An operation that changes nothing, and notes where it would.
///
/// It goes by the way of operations in place for inputs too, so that the address is one that may be written
/// through: what is an input here is an output elsewhere, through a clone of the same tensor.
struct Locate(Cell<Option<Place>>);

impl Locate {
    fn note(
        &self,
        base: u64,
        elements: usize,
        size: usize,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            candle_core::bail!("a kernel was given a tensor that is not contiguous");
        };
        self.0.set(Some(Place {
            address: base + (start * size) as u64,
            room: elements - start,
        }));
        Ok(())
    }
}

impl InplaceOp1 for Locate {
    fn name(&self) -> &'static str {
        "locate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (base, elements, size) = match storage {
            CpuStorage::F32(values) => (values.as_mut_ptr().expose_provenance(), values.len(), 4),
            CpuStorage::BF16(values) => (values.as_mut_ptr().expose_provenance(), values.len(), 2),
            CpuStorage::F64(values) => (values.as_mut_ptr().expose_provenance(), values.len(), 8),
            CpuStorage::U32(values) => (values.as_mut_ptr().expose_provenance(), values.len(), 4),
            _ => candle_core::bail!("a kernel was given a tensor of a dtype that none takes"),
        };
        self.note(base as u64, elements, size, layout)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &mut candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        use candle_core::cuda_backend::CudaStorageSlice as Slice;
        use candle_core::cuda_backend::cudarc::driver::DevicePtrMut;
        let stream = storage.device.cuda_stream();
        // The guard beside an address would record an event for other streams; there are none.
        let (elements, size) = match &storage.slice {
            Slice::F32(slice) => (slice.len(), 4),
            Slice::BF16(slice) => (slice.len(), 2),
            Slice::F64(slice) => (slice.len(), 8),
            Slice::U32(slice) => (slice.len(), 4),
            _ => candle_core::bail!("a kernel was given a tensor of a dtype that none takes"),
        };
        let base = match &mut storage.slice {
            Slice::F32(slice) => slice.device_ptr_mut(&stream).0,
            Slice::BF16(slice) => slice.device_ptr_mut(&stream).0,
            Slice::F64(slice) => slice.device_ptr_mut(&stream).0,
            Slice::U32(slice) => slice.device_ptr_mut(&stream).0,
            _ => candle_core::bail!("a kernel was given a tensor of a dtype that none takes"),
        };
        self.note(base, elements, size, layout)
    }
}

/// Returns where the elements of a contiguous tensor are. They stay there as long as any clone of it lives.
pub(super) fn place(x: &Tensor) -> Result<Place, Error> {
    let locate = Locate(Cell::new(None));
    x.inplace_op1(&locate)?;
    locate
        .0
        .get()
        .ok_or(Error::Internal("a tensor without a place"))
}
