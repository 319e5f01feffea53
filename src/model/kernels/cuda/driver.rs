//! The interface between the backend and what it runs on: a GPU, or its emulation on the CPU.

use std::fmt::Debug;

use candle_core::{DType, Device, Tensor};

use crate::model::Error;

/// Token tensors have room for a multiple of this many rows, and products are computed for all of them, so that
/// a product's number of rows is one that each of its kernel's tiles fits: a token is then always computed in the
/// same way, whatever is beside it.
pub(super) const ROW_TILE: usize = 256;

/// How many blocks of how many threads a kernel runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaunchShape {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Param {
    /// A pointer; 0 is null.
    Pointer(u64),
    /// An `int`.
    Int(i32),
    /// A `long long`.
    Long(i64),
    /// A `float`.
    Float(f32),
}

impl Param {
    /// Returns the parameter in the low bytes of a word, the order of bytes being that of x86 and of GPUs.
    pub fn word(self) -> u64 {
        match self {
            Self::Pointer(address) => address,
            Self::Int(value) => u64::from(value.cast_unsigned()),
            Self::Long(value) => value.cast_unsigned(),
            Self::Float(value) => u64::from(value.to_bits()),
        }
    }
}

/// One matrix of a product, row-major in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    /// Address of the first element.
    pub address: u64,
    /// F32 or BF16.
    pub dtype: DType,
    /// Whether the product takes the transpose of what is in memory.
    pub transposed: bool,
    /// Elements from the start of a row in memory to that of the next.
    pub stride: usize,
}

/// A matrix product, `out = a b` or `out += a b`, with sums in f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// `[m, k]`.
    pub a: Operand,
    /// `[k, n]`, of the dtype of `a`.
    pub b: Operand,
    /// `[m, n]`.
    pub out: Operand,
    /// Rows of `a` and `out`. Where they are tokens, memory has room for `m` rows, of which those from `valid_m`
    /// on hold nothing that is read later.
    pub m: usize,
    /// Rows whose values count.
    pub valid_m: usize,
    /// Columns of `b` and `out`.
    pub n: usize,
    /// Elements that are multiplied and summed for each of `out`.
    pub k: usize,
    /// Whether the product is added to what is in `out`.
    pub accumulate: bool,
    /// Whether rows are tokens: each row's bits then have to be the same whatever the number of rows.
    pub rows_are_tokens: bool,
}

/// Memory, kernels, products and copies of one device. All of it happens in the order of the calls.
pub(super) trait Driver: Debug + Send + Sync {
    /// Returns the backend's name, which a set records: with the card and the library that its bits depend on.
    fn name(&self) -> &str;

    /// Returns the device that tensors are on.
    fn device(&self) -> &Device;

    /// Returns the card and the versions of what drives it, for people.
    fn description(&self) -> Option<&str> {
        None
    }

    /// Returns how many bytes can be allocated; `None` where nothing but the machine's memory is a limit.
    fn free_bytes(&self) -> Result<Option<u64>, Error>;

    /// Allocates a tensor of elements that nothing may read before they are written.
    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error>;

    /// Copies words to the device, `[n]`, U32; does not wait.
    fn upload(&self, words: &[u32]) -> Result<Tensor, Error>;

    /// Copies the elements of a contiguous f32 tensor to the host, once all that was asked for before is done.
    fn download(&self, x: &Tensor) -> Result<Vec<f32>, Error>;

    /// [`Driver::download`] for f64.
    fn download_f64(&self, x: &Tensor) -> Result<Vec<f64>, Error>;

    /// Runs a kernel with its parameters, in order.
    ///
    /// # Safety
    ///
    /// The parameters have to be those that the kernel takes, and addresses among them those of memory that is
    /// large enough for what the kernel does in this shape, and in use by nothing else.
    unsafe fn launch(
        &self,
        kernel: &str,
        shape: LaunchShape,
        params: &[Param],
    ) -> Result<(), Error>;

    /// Computes a matrix product.
    ///
    /// # Safety
    ///
    /// The addresses have to be those of memory that holds matrices of these sizes; that of `out` is in use
    /// by nothing else.
    unsafe fn multiply(&self, product: &Product) -> Result<(), Error>;
}
