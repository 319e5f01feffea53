//! Products by cuBLASLt. This file runs on a GPU only.
//!
//! What has to be so for a token's bits not to depend on its batch: the sum over `k` of each element is taken in
//! the same order whatever the number of rows. cuBLASLt promises the same bits for the same call with the same
//! algorithm on the same kind of card and version of the library, not across numbers of rows: its heuristic
//! may choose another kernel for each, and one may cut `k` into parts that are summed at the end ("split-K").
//! So the heuristic is asked once for a matrix, at [`REFERENCE_ROWS`] rows, with reductions masked out; its
//! answer serves every number of rows, which is always a multiple of [`ROW_TILE`], so that no kernel has a
//! partial tile of rows. `cublasLtMatmulAlgoCheck` says whether an algorithm fits a number of rows; one that
//! does not is an error, never another algorithm.
//!
//! The gradient of a weight sums over tokens: `k` is their number, and there is no such promise. The algorithm
//! follows from the shape, without reductions, so that two runs of the same batches have the same bits.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use candle_core::cuda_backend::cudarc;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::driver::{Operand, Product, ROW_TILE};
use crate::model::Error;

/// The number of rows that an algorithm is chosen at.
const REFERENCE_ROWS: usize = 16 * ROW_TILE;

/// What NVIDIA recommends for Hopper, and more than enough before it.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The alignment that 16-byte accesses need.
const ALIGNMENT: u64 = 16;

/// What an algorithm is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// `None` where rows are tokens, and their number must not decide.
    m: Option<usize>,
    n: usize,
    k: usize,
    /// Dtype, transposition and stride of each matrix. Where rows are tokens their number is in none of these.
    operands: [(DType, bool, usize); 3],
    accumulate: bool,
    /// Bytes that every address is a multiple of.
    alignment: u64,
}

/// The library, and the algorithms that were chosen.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    chosen: Mutex<HashMap<Key, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: NVIDIA's manual says of a handle that several host threads may use it at once; the stream and the
// memory are of types that may be sent.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CublasLt")
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: the handle was created in `new` and is not used again. There is no one to tell of an error.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(error: impl fmt::Display) -> Error {
    Error::Compute(candle_core::Error::Msg(format!("cuBLASLt: {error}")))
}

/// A descriptor of cuBLASLt's, which is destroyed with this.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), result::CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created for this and is not used again.
        let _ = unsafe { (self.1)(self.0) };
    }
}

/// The descriptors of one product. cuBLASLt's matrices are column-major, so that a row-major matrix is given as
/// its transpose: `out^T = b^T a^T`.
struct Descriptors {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    /// Of `b`, `a` and `out`.
    layouts: [Owned<sys::cublasLtMatrixLayout_t>; 3],
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType, Error> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        _ => Err(Error::Internal(
            "a product in a dtype that is not f32 or bf16",
        )),
    }
}

impl Descriptors {
    fn new(product: &Product, m: usize) -> Result<Self, Error> {
        // CUBLAS_COMPUTE_32F: sums in f32; f32 factors are not rounded to TF32.
        let operation = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )
        .map_err(failed)?;
        let operation = Owned(operation, result::destroy_matmul_desc);
        for (operand, attribute) in [
            (
                product.b,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            ),
            (
                product.a,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
            ),
        ] {
            let transposition: i32 = match operand.transposed {
                true => 1,
                false => 0,
            };
            // SAFETY: the descriptor lives, and the attribute is an i32: CUBLAS_OP_N or CUBLAS_OP_T.
            unsafe {
                result::set_matmul_desc_attribute(
                    operation.0,
                    attribute,
                    std::ptr::from_ref(&transposition).cast(),
                    size_of::<i32>(),
                )
            }
            .map_err(failed)?;
        }
        let layout = |operand: Operand, rows: usize, columns: usize| {
            let (rows, columns) = match operand.transposed {
                true => (columns, rows),
                false => (rows, columns),
            };
            let layout = result::create_matrix_layout(
                data_type(operand.dtype)?,
                columns as u64,
                rows as u64,
                operand.stride as i64,
            );
            Ok::<_, Error>(Owned(
                layout.map_err(failed)?,
                result::destroy_matrix_layout as unsafe fn(_) -> _,
            ))
        };
        Ok(Self {
            layouts: [
                layout(product.b, product.k, product.n)?,
                layout(product.a, m, product.k)?,
                layout(product.out, m, product.n)?,
            ],
            operation,
        })
    }

    /// Returns whether an algorithm can compute this product.
    fn admit(&self, handle: sys::cublasLtHandle_t, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let [b, a, out] = &self.layouts;
        let mut found = std::mem::MaybeUninit::uninit();
        // SAFETY: all descriptors live; the result is written before it is read, if the call succeeds.
        unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                self.operation.0,
                b.0,
                a.0,
                out.0,
                out.0,
                algorithm,
                found.as_mut_ptr(),
            )
            .result()
            .is_ok_and(|()| {
                let found: sys::cublasLtMatmulHeuristicResult_t = found.assume_init();
                found.workspaceSize <= WORKSPACE_BYTES
            })
        }
    }

    /// Asks the heuristic, without reductions.
    fn best(
        &self,
        handle: sys::cublasLtHandle_t,
        alignment: u64,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map_err(failed)?;
        let preference = Owned(preference, result::destroy_matmul_pref);
        let none = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        let words = [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, none),
            (
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                alignment as u32,
            ),
            (
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                alignment as u32,
            ),
            (
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                alignment as u32,
            ),
            (
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                alignment as u32,
            ),
        ];
        // SAFETY: the preference lives, and these attributes are of the types that are given: u32, and for the
        // workspace a size_t.
        unsafe {
            for (attribute, word) in words {
                let word = std::ptr::from_ref(&word).cast::<c_void>();
                result::set_matmul_pref_attribute(preference.0, attribute, word, size_of::<u32>())
                    .map_err(failed)?;
            }
            result::set_matmul_pref_attribute(
                preference.0,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&WORKSPACE_BYTES).cast(),
                size_of::<usize>(),
            )
            .map_err(failed)?;
        }
        let [b, a, out] = &self.layouts;
        // SAFETY: all descriptors live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                self.operation.0,
                b.0,
                a.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        Ok(found.map_err(failed)?.algo)
    }
}

impl CublasLt {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        // SAFETY: cuBLASLt writes to the workspace before it reads it.
        let workspace = unsafe { stream.alloc(WORKSPACE_BYTES) }.map_err(|error| text(&error))?;
        Ok(Self {
            handle: result::create_handle().map_err(|error| text(&error))?,
            stream: Arc::clone(stream),
            workspace,
            chosen: Mutex::new(HashMap::new()),
        })
    }

    /// Returns the library's name and version: it decides, for a card, which algorithms its heuristic chooses.
    pub fn version(&self) -> String {
        // SAFETY: a function without arguments, of a library that is loaded.
        let version = unsafe { sys::cublasLtGetVersion() };
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        format!("cuBLASLt {major}.{minor}.{patch}")
    }

    fn algorithm(
        &self,
        product: &Product,
        here: &Descriptors,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        let operands = [product.a, product.b, product.out];
        let aligned = operands
            .iter()
            .all(|operand| operand.address % ALIGNMENT == 0);
        let key = Key {
            m: (!product.rows_are_tokens).then_some(product.m),
            n: product.n,
            k: product.k,
            operands: operands.map(|operand| (operand.dtype, operand.transposed, operand.stride)),
            accumulate: product.accumulate,
            alignment: match aligned {
                true => ALIGNMENT,
                false => size_of::<u16>() as u64,
            },
        };
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let algorithm = match chosen.get(&key) {
            Some(algorithm) => *algorithm,
            None => {
                let algorithm = match product.rows_are_tokens {
                    true => Descriptors::new(product, REFERENCE_ROWS)?
                        .best(self.handle, key.alignment)?,
                    false => here.best(self.handle, key.alignment)?,
                };
                chosen.insert(key, algorithm);
                algorithm
            }
        };
        match product.rows_are_tokens && !here.admit(self.handle, &algorithm) {
            true => Err(failed(format!(
                "the algorithm for matrices of {} x {} does not take {} rows; lower --batch-tokens",
                product.n, product.k, product.valid_m
            ))),
            false => Ok(algorithm),
        }
    }

    /// See [`Driver::multiply`](super::driver::Driver::multiply).
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn multiply(&self, product: &Product) -> Result<(), Error> {
        let here = Descriptors::new(product, product.m)?;
        let algorithm = self.algorithm(product, &here)?;
        let [b, a, out] = &here.layouts;
        let alpha = 1.0_f32;
        let beta = match product.accumulate {
            true => 1.0_f32,
            false => 0.0,
        };
        let pointer = |address: u64| address as usize as *mut c_void;
        let (workspace, _) = self.workspace.device_ptr(&self.stream);
        // SAFETY: the caller promises that the matrices are there; the descriptors live, and are those of the
        // matrices; the workspace is used by this stream alone, one product after the other.
        unsafe {
            result::matmul(
                self.handle,
                here.operation.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(product.b.address),
                b.0,
                pointer(product.a.address),
                a.0,
                pointer(product.out.address),
                out.0,
                pointer(product.out.address),
                out.0,
                &algorithm,
                pointer(workspace),
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}
