//! The driver of a real GPU. This file and `cublaslt.rs` are all that runs on a GPU only.
//!
//! What it relies on, call by call:
//!
//! - `CudaDevice::new_with_stream` makes one stream, of this device alone. All work is put into it: candle's
//!   operations, our launches, products, copies, and allocations, which `cuMemAllocAsync` and `cuMemFreeAsync`
//!   order with the rest. So memory that is freed is given out again to work that comes later, and no two
//!   operations overlap. Candle's default, the stream of each thread, would order nothing between threads.
//! - With one stream the events that cudarc keeps for each allocation order nothing either:
//!   `disable_event_tracking`, before the first tensor.
//! - `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`: by default the pool returns all free memory to the system at each
//!   synchronization, and every batch would map it again.
//! - Copies to the device go through page-locked memory: `cuMemcpyHtoDAsync` from it returns at once. A part of
//!   it is written again only when the event after its copy has passed.
//! - A copy to the host waits for the event after it, which is what a batch waits for.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc;
use candle_core::{DType, Device, Tensor};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, PinnedHostSlice,
};
use cudarc::driver::{result, sys};
use cudarc::nvrtc;

use super::cublaslt::CublasLt;
use super::driver::{Driver, LaunchShape, Param, Product};
use super::images::{Image, KERNEL_FILES};
use super::place::place;
use crate::guard::guarded;
use crate::model::Error;
use crate::model::no_gpu::{NoGpu, Probe, cuda_of_ptx};

/// Dynamic shared memory that a kernel may have without being allowed more.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// Buffers that copies to the device go through in turn.
const STAGING_BUFFERS: usize = 8;

/// Page-locked memory, and the last copy from it.
#[derive(Debug)]
struct Staging {
    words: PinnedHostSlice<u32>,
    copied: CudaEvent,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory is freed after this. If waiting fails, so did the GPU, and nothing is copied any more.
        let _ = self.copied.synchronize();
    }
}

/// The buffers, and the number of the next.
#[derive(Debug, Default)]
struct StagingRing {
    buffers: Vec<Staging>,
    next: usize,
}

/// A kernel, and the dynamic shared memory that it is allowed.
#[derive(Debug, Clone)]
struct Function {
    function: CudaFunction,
    shared_bytes: u32,
}

/// The driver of a GPU.
#[derive(Debug)]
pub(super) struct Gpu {
    device: Device,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    functions: Mutex<HashMap<String, Function>>,
    products: CublasLt,
    staging: Mutex<StagingRing>,
    name: String,
    description: String,
}

fn failed(error: impl fmt::Display) -> Error {
    Error::Compute(candle_core::Error::Msg(format!("CUDA: {error}")))
}

impl Gpu {
    /// Opens the GPU of a number; an error says why that is impossible.
    pub fn open(number: usize) -> Result<Self, NoGpu> {
        let mut probe = Probe {
            number,
            needed: KERNEL_FILES
                .first()
                .map_or((12, 0), |file| cuda_of_ptx(file.sm_80.ptx)),
            ..Probe::default()
        };
        // The loader of CUDA's libraries panics where one is missing, and says which.
        let opened = match guarded(|| Self::opened(number, &mut probe)) {
            Ok(Ok(Some(opened))) => return Ok(opened),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => {
                probe.panic = Some(panic);
                None
            }
        };
        probe.error = opened;
        Err(probe.problem().unwrap_or(NoGpu::Other {
            reported: "nothing that would be known".to_owned(),
        }))
    }

    /// Returns the number of GPUs, of which there is one at least.
    pub fn count() -> Result<usize, NoGpu> {
        let mut probe = Probe::default();
        match guarded(count_of_gpus) {
            Ok(Ok(count)) => probe.count = Some(count),
            Ok(Err(error)) => probe.error = Some(error.to_string()),
            Err(panic) => probe.panic = Some(panic),
        }
        match probe.problem() {
            Some(problem) => Err(problem),
            None => Ok(probe.count.unwrap_or(0)),
        }
    }

    /// Opens the GPU, and notes in the probe what is known by then. `None` if that speaks against it.
    fn opened(number: usize, probe: &mut Probe) -> Result<Option<Self>, String> {
        let reported = |error: &dyn fmt::Display| error.to_string();
        let mut driver = 0;
        // SAFETY: the pointer is that of an i32.
        unsafe { sys::cuDriverGetVersion(&mut driver) }
            .result()
            .map_err(|error| reported(&error))?;
        probe.driver_version = Some(driver);
        if probe.problem().is_some() {
            return Ok(None);
        }
        probe.count = Some(count_of_gpus().map_err(|error| reported(&error))?);
        if probe.problem().is_some() {
            return Ok(None);
        }
        let context = CudaContext::new(number).map_err(|error| reported(&error))?;
        let name = context.name().map_err(|error| reported(&error))?;
        let capability = context
            .compute_capability()
            .map_err(|error| reported(&error))?;
        let (free, total) = context.mem_get_info().map_err(|error| reported(&error))?;
        probe.name.clone_from(&name);
        probe.capability = Some(capability);
        probe.memory = Some((free as u64, total as u64));
        if probe.problem().is_some() {
            return Ok(None);
        }
        let device = Device::new_cuda_with_stream(number).map_err(|error| reported(&error))?;
        let Device::Cuda(cuda) = &device else {
            return Err("candle opened another device".to_owned());
        };
        // SAFETY: every tensor of this device is made, used and freed on its one stream.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.cuda_stream();
        let context = stream.context();
        keep_freed_memory(&stream).map_err(|error| reported(&error))?;
        let load = |image: Image| {
            context.load_module(match image {
                Image::MachineCode(cubin) => nvrtc::Ptx::from_binary(cubin.to_vec()),
                Image::Ptx(text) => nvrtc::Ptx::from_src(text),
            })
        };
        let modules = KERNEL_FILES
            .iter()
            .map(|file| file.load(capability, load))
            .collect::<Result<_, _>>()
            .map_err(|error| reported(&error))?;
        let products = CublasLt::new(&stream)?;
        let library = products.version();
        let description = format!(
            "{name}, a driver for CUDA {}.{}, {library}",
            driver / 1000,
            driver % 1000 / 10,
        );
        Ok(Some(Self {
            device,
            modules,
            functions: Mutex::new(HashMap::new()),
            products,
            staging: Mutex::new(StagingRing::default()),
            name: format!("cuda ({name}, {library})"),
            description,
            stream,
        }))
    }

    /// Returns a kernel that may have so much dynamic shared memory.
    fn function(&self, name: &str, shared_bytes: u32) -> Result<CudaFunction, Error> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = match functions.get(name) {
            Some(known) => known.clone(),
            None => {
                let loaded = self
                    .modules
                    .iter()
                    .find_map(|module| module.load_function(name).ok());
                let function =
                    loaded.ok_or_else(|| failed(format!("there is no kernel {name}")))?;
                Function {
                    function,
                    shared_bytes: USUAL_SHARED_BYTES,
                }
            }
        };
        let allowed = known.shared_bytes.max(shared_bytes);
        if allowed > known.shared_bytes {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            known
                .function
                .set_attribute(attribute, allowed as i32)
                .map_err(failed)?;
        }
        let function = known.function.clone();
        let known = Function {
            shared_bytes: allowed,
            ..known
        };
        functions.insert(name.to_owned(), known);
        Ok(function)
    }

    /// Calls `copy` with page-locked memory of `n` words that no copy uses any more, and notes the event after it.
    /// `wait`: returns only once that has passed, with the words.
    fn staged(
        &self,
        n: usize,
        fill: impl FnOnce(&mut [u32]),
        copy: impl FnOnce(&mut [u32]) -> Result<(), result::DriverError>,
        wait: bool,
    ) -> Result<Vec<u32>, Error> {
        let mut ring = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let number = ring.next % STAGING_BUFFERS;
        ring.next += 1;
        let grown = match ring.buffers.get(number) {
            Some(buffer) if buffer.words.len() >= n => None,
            _ => {
                let context = self.stream.context();
                // SAFETY: words are written before they are read: by `fill`, or by a copy that is waited for.
                let words = unsafe {
                    context.alloc_pinned_with_flags(n.next_power_of_two().max(1 << 16), 0)
                };
                Some(Staging {
                    words: words.map_err(failed)?,
                    copied: context.new_event(None).map_err(failed)?,
                })
            }
        };
        match (grown, ring.buffers.get_mut(number)) {
            (Some(grown), Some(buffer)) => *buffer = grown,
            (Some(grown), None) => ring.buffers.push(grown),
            (None, _) => {}
        }
        let Some(buffer) = ring.buffers.get_mut(number) else {
            return Err(Error::Internal("staging buffers are made in turn"));
        };
        buffer.copied.synchronize().map_err(failed)?;
        let words = buffer.words.as_mut_slice().map_err(failed)?;
        let words = words
            .get_mut(..n)
            .ok_or(Error::Internal("a staging buffer that is too small"))?;
        fill(words);
        copy(words).map_err(failed)?;
        buffer.copied.record(&self.stream).map_err(failed)?;
        if !wait {
            return Ok(Vec::new());
        }
        buffer.copied.synchronize().map_err(failed)?;
        let words = buffer.words.as_slice().map_err(failed)?;
        Ok(words.get(..n).unwrap_or_default().to_vec())
    }

    /// Copies words from the device and waits for them.
    fn download_words(&self, x: &Tensor, n: usize) -> Result<Vec<u32>, Error> {
        let from = place(x)?.address;
        // SAFETY: the tensor's memory holds so many words, and lives until the copy was waited for.
        let copy = |words: &mut [u32]| unsafe {
            result::memcpy_dtoh_async(words, from, self.stream.cu_stream())
        };
        self.staged(n, |_| (), copy, true)
    }
}

/// Returns the number of GPUs that the driver sees.
fn count_of_gpus() -> Result<usize, result::DriverError> {
    result::init()?;
    Ok(usize::try_from(result::device::get_count()?).unwrap_or(0))
}

/// Has the pool of device memory keep what is freed, for the next batch.
fn keep_freed_memory(stream: &Arc<CudaStream>) -> Result<(), result::DriverError> {
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the device is one that cudarc opened, the pool is its own, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_mut(&mut threshold).cast(),
        )
    }
}

/// Returns the bytes that the pool of device memory has kept and that nothing uses.
fn kept_bytes(stream: &Arc<CudaStream>) -> Result<u64, result::DriverError> {
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(0);
    }
    let (mut reserved, mut used) = (0_u64, 0_u64);
    // SAFETY: the device is one that cudarc opened, the pool is its own, and both attributes are u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        for (attribute, value) in [
            (
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
                &mut reserved,
            ),
            (
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                &mut used,
            ),
        ] {
            result::mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(value).cast())?;
        }
    }
    Ok(reserved.saturating_sub(used))
}

impl Driver for Gpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn description(&self) -> Option<&str> {
        Some(&self.description)
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        let context = self.stream.context();
        // What is freed but not yet so far in the stream's order counts as free after this.
        self.stream.synchronize().map_err(failed)?;
        let (free, _) = context.mem_get_info().map_err(failed)?;
        let kept = kept_bytes(&self.stream).map_err(failed)?;
        Ok(Some(free as u64 + kept))
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        // SAFETY: the trait's contract is that elements are written before they are read; on a GPU any bits are
        // valid ones.
        let tensor = unsafe { Tensor::empty(shape, dtype, &self.device) };
        tensor.map_err(|error| {
            let error = Error::from(error);
            match error.is_out_of_memory() {
                true => Error::OutOfMemory {
                    wanted_bytes: (shape.iter().product::<usize>() * dtype.size_in_bytes()) as u64,
                    free_bytes: self.free_bytes().ok().flatten().unwrap_or(0),
                },
                false => error,
            }
        })
    }

    fn upload(&self, words: &[u32]) -> Result<Tensor, Error> {
        let tensor = self.empty(&[words.len()], DType::U32)?;
        if words.is_empty() {
            return Ok(tensor);
        }
        let to = place(&tensor)?.address;
        let fill = |staged: &mut [u32]| staged.copy_from_slice(words);
        // SAFETY: the tensor's memory holds so many words, and is freed, if it is, in the order of the stream; the
        // page-locked memory is written again only after the copy.
        let copy = |staged: &mut [u32]| unsafe {
            result::memcpy_htod_async(to, staged, self.stream.cu_stream())
        };
        self.stream.context().bind_to_thread().map_err(failed)?;
        self.staged(words.len(), fill, copy, false)?;
        Ok(tensor)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>, Error> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        let words = self.download_words(x, x.elem_count())?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    fn download_f64(&self, x: &Tensor) -> Result<Vec<f64>, Error> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        let words = self.download_words(x, 2 * x.elem_count())?;
        let (pairs, _) = words.as_chunks::<2>();
        let bits = pairs
            .iter()
            .map(|[low, high]| u64::from(*low) | u64::from(*high) << 32);
        Ok(bits.map(f64::from_bits).collect())
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: LaunchShape,
        params: &[Param],
    ) -> Result<(), Error> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        let function = self.function(kernel, shape.shared_bytes)?;
        let mut words: Vec<u64> = params.iter().map(|param| param.word()).collect();
        let words = words.iter_mut().map(|word| std::ptr::from_mut(word).cast());
        let mut arguments: Vec<*mut c_void> = words.collect();
        let [x, y, z] = shape.grid;
        // SAFETY: the driver copies the arguments before the call returns, as many bytes of each word as the
        // kernel's parameter has; that they are of the kernel's types is what the caller promises.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (shape.threads, 1, 1),
                shape.shared_bytes,
                self.stream.cu_stream(),
                &mut arguments,
            )
        }
        .map_err(|error| failed(format!("{kernel}: {error}")))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), Error> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { self.products.multiply(product) }
    }
}
