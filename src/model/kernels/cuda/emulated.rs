//! The emulated GPU: tensors in the machine's memory, the same kernels compiled for the CPU, and products as a
//! loop that rounds where cuBLASLt does.
//!
//! It is for tests: results are those of a GPU but for the rounding of sums inside of products, and it takes
//! thousands of times as long.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::driver::{Driver, LaunchShape, Operand, Param, Product, ROW_TILE};
use super::emulated_memory::Memory;
use crate::model::Error;
use crate::model::kernels::tensor::to_host;

/// What new memory holds: NaN in either dtype, so that nothing goes unnoticed that reads it before it is written.
const POISON: u8 = 0xff;

/// The driver of the emulated GPU.
#[derive(Debug)]
pub(super) struct Emulated {
    /// Launches so far, from which the order is drawn in which threads run.
    launches: AtomicU64,
    /// Memory, if it has a limit.
    memory: Option<Memory>,
}

impl Emulated {
    /// Returns an emulated GPU, with so many bytes of memory that are free for activations.
    pub fn new(free_bytes: Option<u64>) -> Self {
        Self {
            launches: AtomicU64::new(0),
            memory: free_bytes.map(Memory::new),
        }
    }
}

// See sources/README.md.
unsafe extern "C" {
    fn remit_emulate(
        kernel: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared_bytes: c_uint,
        arguments: *mut *mut c_void,
        seed: c_ulonglong,
    ) -> c_int;
    fn remit_emulated_error() -> *const c_char;
    fn remit_emulated_signature(kernel: *const c_char) -> *const c_char;
}

fn failed(what: String) -> Error {
    Error::Compute(candle_core::Error::Msg(what))
}

/// Returns a letter for each parameter, as the emulator describes what a kernel takes.
fn signature(params: &[Param]) -> String {
    let letter = |param: &Param| match param {
        Param::Pointer(_) => 'p',
        Param::Int(_) => 'i',
        Param::Long(_) => 'q',
        Param::Float(_) => 'f',
    };
    params.iter().map(letter).collect()
}

/// Returns a text of the emulator's; `None` for a null pointer.
///
/// # Safety
///
/// The pointer is null or that of a text that ends with 0.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) });
    text.map(|text| text.to_string_lossy().into_owned())
}

impl Driver for Emulated {
    fn name(&self) -> &str {
        "cuda-emulated"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        Ok(self.memory.as_ref().map(Memory::free_bytes))
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        if let Some(memory) = &self.memory {
            return memory.allocate(shape, dtype);
        }
        let nan = Tensor::full(
            f32::from_bits(u32::from_ne_bytes([POISON; 4])),
            shape,
            &Device::Cpu,
        )?;
        Ok(nan.to_dtype(dtype)?)
    }

    fn upload(&self, words: &[u32]) -> Result<Tensor, Error> {
        Ok(Tensor::from_slice(words, words.len(), &Device::Cpu)?)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>, Error> {
        to_host(x)
    }

    fn download_f64(&self, x: &Tensor) -> Result<Vec<f64>, Error> {
        Ok(x.to_vec1()?)
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: LaunchShape,
        params: &[Param],
    ) -> Result<(), Error> {
        let name =
            CString::new(kernel).map_err(|_| Error::Internal("a kernel's name holds a 0"))?;
        // SAFETY: the name ends with 0, the signature lives as long as the program.
        let expected = unsafe { text(remit_emulated_signature(name.as_ptr())) };
        let expected = expected.ok_or_else(|| failed(format!("there is no kernel {kernel}")))?;
        let found = signature(params);
        if found != expected {
            return Err(failed(format!(
                "{kernel} takes {expected} and was given {found}"
            )));
        }
        let mut words: Vec<u64> = params.iter().map(|param| param.word()).collect();
        let words = words.iter_mut().map(|word| std::ptr::from_mut(word).cast());
        let mut arguments: Vec<*mut c_void> = words.collect();
        let seed = self.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the arguments are of the kernel's types, as was checked, and point to what the caller promises.
        let status = unsafe {
            remit_emulate(
                name.as_ptr(),
                shape.grid.as_ptr(),
                [shape.threads, 1, 1].as_ptr(),
                shape.shared_bytes,
                arguments.as_mut_ptr(),
                seed,
            )
        };
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the text is this thread's, and lives until its next launch.
        let reason = unsafe { text(remit_emulated_error()) }.unwrap_or_default();
        Err(failed(format!(
            "the emulated kernel {kernel} failed: {reason}"
        )))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), Error> {
        if product.rows_are_tokens && product.m.next_multiple_of(ROW_TILE) != product.m {
            return Err(Error::Internal(
                "a product of tokens that are no whole tiles",
            ));
        }
        // SAFETY: the caller promises that the matrices are there.
        let [a, b] = [
            (product.a, product.valid_m, product.k),
            (product.b, product.k, product.n),
        ]
        .map(|(operand, rows, columns)| unsafe { read(operand, rows, columns) });
        let mut sums = vec![0.0_f32; product.valid_m * product.n];
        sums.par_chunks_mut(product.n)
            .zip(a.par_chunks(product.k.max(1)))
            .for_each(|(sums, a)| {
                for (a, b) in a.iter().zip(b.chunks_exact(product.n)) {
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum += a * b;
                    }
                }
            });
        // SAFETY: as above, and `out` is in use by nothing else.
        unsafe { write(product, &sums) };
        Ok(())
    }
}

/// Returns a matrix of a product as it enters: `[rows, columns]`, f32, its transpose taken where asked.
///
/// # Safety
///
/// The address has to be that of such a matrix.
unsafe fn read(operand: Operand, rows: usize, columns: usize) -> Vec<f32> {
    let (from_rows, from_columns) = match operand.transposed {
        true => (columns, rows),
        false => (rows, columns),
    };
    let mut values = vec![0.0; rows * columns];
    for i in 0..from_rows {
        for j in 0..from_columns {
            // SAFETY: inside of the matrix.
            let value = unsafe { element(operand, i * operand.stride + j) };
            match operand.transposed {
                true => values[j * columns + i] = value,
                false => values[i * columns + j] = value,
            }
        }
    }
    values
}

/// # Safety
///
/// The operand's memory has to hold an element of this index.
unsafe fn element(operand: Operand, index: usize) -> f32 {
    // SAFETY: the caller promises that the element is there.
    unsafe {
        match operand.dtype {
            DType::BF16 => pointer::<bf16>(operand).add(index).read().to_f32(),
            _ => pointer::<f32>(operand).add(index).read(),
        }
    }
}

fn pointer<T>(operand: Operand) -> *mut T {
    std::ptr::with_exposed_provenance_mut(operand.address as usize)
}

/// Writes the sums to the output, or adds them, and rounds once.
///
/// # Safety
///
/// The product's output has to be memory of that size that nothing else uses.
unsafe fn write(product: &Product, sums: &[f32]) {
    let out = product.out;
    for (i, row) in sums.chunks_exact(product.n).enumerate() {
        for (j, sum) in row.iter().enumerate() {
            let index = i * out.stride + j;
            // SAFETY: inside of the matrix.
            unsafe {
                let value = match product.accumulate {
                    true => element(out, index) + sum,
                    false => *sum,
                };
                match out.dtype {
                    DType::BF16 => pointer::<bf16>(out).add(index).write(bf16::from_f32(value)),
                    _ => pointer::<f32>(out).add(index).write(value),
                }
            }
        }
    }
}
