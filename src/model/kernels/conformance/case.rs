//! What a case of an operation is, and how its numbers are drawn.

use std::ops::Deref;

use candle_core::{DType, Tensor};
use half::bf16;

use crate::model::kernels::Kernels;
use crate::model::kernels::cpu::simd::Noise;
use crate::model::kernels::tensor::{tensor, to_host};

/// A named array: shape and elements, row-major.
pub type Array = (&'static str, Vec<usize>, Vec<f32>);

/// What is summed to one number, of inputs in f64.
pub type Loss = Box<dyn Fn(&[Vec<f64>]) -> f64>;

/// A backend, and the dtype of token tensors and matrices that it is run in.
pub(crate) struct Subject<'a> {
    pub kernels: &'a dyn Kernels,
    pub dtype: DType,
    /// The dtype that inputs are rounded to, so that another dtype can be given the same.
    pub drawn_as: DType,
}

impl<'a> Deref for Subject<'a> {
    type Target = dyn Kernels + 'a;

    fn deref(&self) -> &Self::Target {
        self.kernels
    }
}

/// One operation on one set of inputs, computed by one backend.
pub struct Case {
    pub op: &'static str,
    pub settings: Vec<(&'static str, String)>,
    /// Inputs that gradients are taken of.
    pub inputs: Vec<Array>,
    /// The backend's gradient of each input, and the name of it.
    pub gradients: Vec<Array>,
    /// The backend's outputs.
    pub outputs: Vec<Array>,
    /// Upstream gradients and constants.
    pub constants: Vec<Array>,
    /// Token ids, where there are any.
    pub ids: Option<Vec<u32>>,
    /// The outputs, each times its upstream gradient, summed: by definition, in f64.
    pub loss: Loss,
    /// The same of the backend's outputs.
    pub found_loss: f64,
}

/// Numbers for the shape of a case.
pub struct Shapes {
    noise: Noise,
    dtype: DType,
}

impl Shapes {
    pub fn new(seed: u64, dtype: DType) -> Self {
        Self {
            noise: Noise::new(seed),
            dtype,
        }
    }

    /// One of `low..=high`.
    pub fn pick(&mut self, low: usize, high: usize) -> usize {
        let draw = self.noise.normal().to_bits() as usize >> 3;
        low + draw % (high - low + 1)
    }

    pub fn coin(&mut self) -> bool {
        self.pick(0, 1) == 1
    }

    /// Features of a token: a few, now and then so many that kernels take them in another way, and widths that
    /// 16 bytes divide.
    pub fn width(&mut self) -> usize {
        match self.pick(0, 9) {
            0 => self.pick(500, 700),
            1..=3 => 8 * self.pick(1, 9),
            _ => self.pick(1, 40),
        }
    }

    /// Features of a head, as [`Shapes::width`].
    pub fn head_dim(&mut self) -> usize {
        match self.pick(0, 9) {
            0 => [32, 64, 65, 96, 128, 160, 192, 256][self.pick(0, 7)],
            1..=3 => 8 * self.pick(1, 4),
            _ => self.pick(1, 20),
        }
    }

    pub fn array(&mut self, name: &'static str, shape: &[usize]) -> Array {
        let mut values = self.noise.vector(shape.iter().product());
        if self.dtype == DType::BF16 {
            for value in &mut values {
                *value = bf16::from_f32(*value).to_f32();
            }
        }
        (name, shape.to_vec(), values)
    }

    /// Lengths of 1 to 4 rows, short ones and now and then one of more than a tile.
    pub fn row_lengths(&mut self) -> Vec<usize> {
        (0..self.pick(1, 4))
            .map(|_| match self.pick(0, 7) {
                0 => self.pick(65, 140),
                _ => self.pick(2, 20),
            })
            .collect()
    }
}

pub fn joined(lengths: &[usize]) -> String {
    let words: Vec<String> = lengths.iter().map(usize::to_string).collect();
    words.join(",")
}

/// The array on a device; vectors are f32 whatever the dtype.
pub(crate) fn taken(array: &Array, kernels: &Subject<'_>) -> Tensor {
    let values = tensor(array.2.clone(), array.1.clone()).unwrap();
    let dtype = match array.1.len() {
        1 => DType::F32,
        _ => kernels.dtype,
    };
    let values = values.to_dtype(dtype).unwrap();
    values.to_device(kernels.device()).unwrap()
}

pub fn named(name: &'static str, tensor: &Tensor) -> Array {
    (name, tensor.dims().to_vec(), to_host(tensor).unwrap())
}

pub fn wide(array: &Array) -> Vec<f64> {
    array.2.iter().map(|v| f64::from(*v)).collect()
}

pub fn dot(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| a * b).sum()
}
