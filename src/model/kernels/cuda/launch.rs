//! The parameters of a kernel, put together one by one in its order.

use candle_core::{DType, Tensor};

use super::driver::{Driver, LaunchShape, Param};
use super::place::place;
use crate::model::Error;

/// Blocks along x; y and z reach to 65,535 only, and a kernel that needs more loops.
pub(super) const MAX_GRID_X: usize = (1 << 31) - 1;

/// A kernel and the parameters that it was given so far. The borrows keep the memory alive.
pub(super) struct Launch<'a> {
    driver: &'a dyn Driver,
    kernel: String,
    /// The dtype of the token tensors, which is in the kernel's name.
    dtype: DType,
    params: Vec<Param>,
    problem: Option<Error>,
    tensors: Vec<&'a Tensor>,
}

/// Returns the ending of a kernel's name for a dtype of token tensors.
fn suffix(dtype: DType) -> Result<&'static str, Error> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        _ => Err(Error::Internal("a kernel for a dtype that none takes")),
    }
}

impl<'a> Launch<'a> {
    /// Begins the parameters of the kernel `{name}_{dtype}`.
    pub fn new(driver: &'a dyn Driver, name: &str, dtype: DType) -> Self {
        let (suffix, problem) = match suffix(dtype) {
            Ok(suffix) => (suffix, None),
            Err(error) => ("", Some(error)),
        };
        Self {
            driver,
            kernel: format!("{name}_{suffix}"),
            dtype,
            params: Vec::new(),
            problem,
            tensors: Vec::new(),
        }
    }

    /// Begins the parameters of the kernel `{name}_{dtype}_{size}`.
    pub fn of_size(driver: &'a dyn Driver, name: &str, dtype: DType, size: &str) -> Self {
        let mut launch = Self::new(driver, name, dtype);
        launch.kernel.push('_');
        launch.kernel.push_str(size);
        launch
    }

    /// Begins the parameters of a kernel that there is one of.
    pub fn only(driver: &'a dyn Driver, name: &str) -> Self {
        let mut launch = Self::new(driver, name, DType::F32);
        launch.kernel = name.to_owned();
        launch
    }

    fn push(mut self, x: &'a Tensor, dtype: DType) -> Self {
        let found = match x.dtype() == dtype {
            true => place(x),
            false => Err(Error::Internal(
                "a kernel was given a tensor of another dtype",
            )),
        };
        match found {
            Ok(place) => self.params.push(Param::Pointer(place.address)),
            Err(error) => self.problem = self.problem.or(Some(error)),
        }
        self.tensors.push(x);
        self
    }

    /// Adds a pointer to elements of the dtype that is in the kernel's name.
    pub fn tokens(self, x: &'a Tensor) -> Self {
        let dtype = self.dtype;
        self.push(x, dtype)
    }

    /// Adds a pointer to f32.
    pub fn f32s(self, x: &'a Tensor) -> Self {
        self.push(x, DType::F32)
    }

    /// Adds a pointer to bf16.
    pub fn bf16s(self, x: &'a Tensor) -> Self {
        self.push(x, DType::BF16)
    }

    /// Adds a pointer to f64.
    pub fn f64s(self, x: &'a Tensor) -> Self {
        self.push(x, DType::F64)
    }

    /// Adds a pointer to 32-bit words: ids, positions, or the bits of f32 that came from the host.
    pub fn words(self, x: &'a Tensor) -> Self {
        self.push(x, DType::U32)
    }

    /// Adds a pointer that is null.
    pub fn null(mut self) -> Self {
        self.params.push(Param::Pointer(0));
        self
    }

    /// Adds an `int`.
    pub fn int(mut self, value: usize) -> Self {
        match i32::try_from(value) {
            Ok(value) => self.params.push(Param::Int(value)),
            Err(_) => {
                let too_large = Error::TooLarge {
                    rows: value,
                    cols: 1,
                };
                self.problem = self.problem.or(Some(too_large));
            }
        }
        self
    }

    /// Adds a `long long`.
    pub fn long(mut self, value: usize) -> Self {
        self.params.push(Param::Long(value as i64));
        self
    }

    /// Adds a `float`.
    pub fn float(mut self, value: f32) -> Self {
        self.params.push(Param::Float(value));
        self
    }

    /// Runs the kernel; nothing is done where the grid is empty.
    pub fn run(self, shape: LaunchShape) -> Result<(), Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if shape.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: every address is that of a tensor that `self` borrows, so its memory lives at least until the
        // kernel is in the device's queue, where memory is freed in turn. That the parameters are those that the
        // kernel takes, and its tensors large enough, is what the functions of this folder see to, and what
        // their tests show, on the CPU under an address sanitizer too.
        let done = unsafe { self.driver.launch(&self.kernel, shape, &self.params) };
        drop(self.tensors);
        done
    }
}

/// Returns a grid of two dimensions.
pub(super) fn blocks_2d(x: usize, y: usize, threads: u32) -> Result<LaunchShape, Error> {
    let shape = blocks(x, threads)?;
    match u16::try_from(y) {
        Ok(y) => Ok(LaunchShape {
            grid: [shape.grid[0], u32::from(y), 1],
            ..shape
        }),
        Err(_) => Err(Error::TooLarge { rows: x, cols: y }),
    }
}

/// Returns a grid of one dimension, of blocks of `threads` threads without dynamic shared memory.
pub(super) fn blocks(blocks: usize, threads: u32) -> Result<LaunchShape, Error> {
    let too_large = Error::TooLarge {
        rows: blocks,
        cols: 1,
    };
    match u32::try_from(blocks) {
        Ok(x) if blocks <= MAX_GRID_X => Ok(LaunchShape {
            grid: [x, 1, 1],
            threads,
            shared_bytes: 0,
        }),
        _ => Err(too_large),
    }
}
