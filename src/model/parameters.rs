//! Parameters of a model, and the sums of their gradients.

use candle_core::Tensor;
use safetensors::Dtype;

use super::Error;
use super::architecture::EMBEDDING;
use super::decoder::Decoder;
use super::ops::{clear, sum_of_squares, to_host};

/// Index of a parameter in the order of [`Architecture::tensors`].
pub(crate) type ParamId = usize;

/// A parameter of a model.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its dtype in the checkpoint; exports return to it.
    pub stored_dtype: Dtype,
    pub(crate) tensor: Tensor,
}

impl Parameter {
    /// Whether this is the embedding, be it the output head as well or not.
    pub fn is_embedding(&self) -> bool {
        self.name == EMBEDDING
    }

    /// Shape, as stored.
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// A copy of the elements, row-major.
    pub fn to_vec(&self) -> Result<Vec<f32>, Error> {
        to_host(&self.tensor)
    }
}

/// Sums of gradients, one a parameter; `None` until something was added.
#[derive(Debug, Default)]
pub struct Gradients {
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// No gradient for any of `num_parameters` parameters.
    pub fn new(num_parameters: usize) -> Self {
        Self {
            sums: vec![None; num_parameters],
        }
    }

    /// The sum for the parameter at `index` of [`Decoder::parameters`], row-major.
    pub fn get(&self, index: usize) -> Result<Option<Vec<f32>>, Error> {
        match self.sums.get(index) {
            Some(Some(sum)) => Ok(Some(to_host(sum)?)),
            _ => Ok(None),
        }
    }

    pub(super) fn sum_of(&self, index: ParamId, model: &Decoder) -> Result<&Tensor, Error> {
        self.sums
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::NoGradient {
                parameter: model
                    .parameters()
                    .get(index)
                    .map_or_else(|| index.to_string(), |parameter| parameter.name.clone()),
            })
    }

    /// Norm of all sums together, as one vector.
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when a parameter of the model has none.
    pub fn norm(&self, model: &Decoder) -> Result<f64, Error> {
        let mut squares = 0.0;
        for index in 0..model.parameters().len() {
            squares += sum_of_squares(self.sum_of(index, model)?)?;
        }
        Ok(squares.sqrt())
    }

    /// The sum to add to, zero at first.
    pub(crate) fn sum(&mut self, index: ParamId, like: &Tensor) -> Result<Tensor, Error> {
        let slot = self.sums.get_mut(index).ok_or(Error::Internal(
            "a gradient for a parameter that does not exist",
        ))?;
        match slot {
            Some(sum) => Ok(sum.clone()),
            None => {
                let sum = like.zeros_like()?;
                *slot = Some(sum.clone());
                Ok(sum)
            }
        }
    }

    /// Sets every sum back to zero and keeps the memory.
    pub fn clear(&mut self) -> Result<(), Error> {
        for sum in self.sums.iter().flatten() {
            clear(sum)?;
        }
        Ok(())
    }
}
