//! Parameters of a model, and the sums of their gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;
use safetensors::Dtype;

use super::Error;
use super::architecture::EMBEDDING;
use super::decoder::Decoder;
use super::files::Values;
use super::ops::{RowLayout, clear, dims, sum_of_squares, to_host, update, view, zeros_f32};

/// Index of a parameter in the order of [`Architecture::tensors`].
pub(crate) type ParamId = usize;

/// A parameter of a model.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its dtype in the checkpoint; exports return to it.
    pub stored_dtype: Dtype,
    /// What the model computes with.
    pub(crate) tensor: Tensor,
    /// The f32 original of a tensor that is kept in another dtype, for the optimizer.
    pub(crate) master: Option<Tensor>,
}

impl Parameter {
    /// The most exact value that there is.
    pub(crate) fn value(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.tensor)
    }

    /// Whether this is the embedding, be it the output head as well or not.
    pub fn is_embedding(&self) -> bool {
        self.name == EMBEDDING
    }

    /// Shape, as stored.
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// The elements, for a file.
    pub(crate) fn values(&self) -> Values<'_> {
        Values::Of(self.value())
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.tensor.elem_count()
    }

    /// A copy of the elements, row-major.
    pub fn to_vec(&self) -> Result<Vec<f32>, Error> {
        to_host(self.value())
    }
}

/// Sums of gradients, one a parameter; `None` until something was added.
#[derive(Debug, Default)]
pub struct Gradients {
    sums: Vec<Option<Tensor>>,
    lookups: Option<Lookups>,
}

/// The part of a tied embedding's gradient that comes from looking its rows up, by row.
///
/// It is kept apart from the part that comes from the output head until a step is complete: micro-batches
/// bring both parts in turn, and what is added first would depend on how a step is cut into them.
#[derive(Debug)]
struct Lookups {
    parameter: ParamId,
    rows: BTreeMap<u32, Vec<f32>>,
}

impl Lookups {
    fn add_to(&self, sum: &mut [f32]) {
        for (&id, row) in &self.rows {
            let at = id as usize * row.len();
            for (sum, row) in sum[at..at + row.len()].iter_mut().zip(row) {
                *sum += row;
            }
        }
    }
}

impl Gradients {
    /// No gradient for any of `num_parameters` parameters.
    pub fn new(num_parameters: usize) -> Self {
        Self {
            sums: vec![None; num_parameters],
            lookups: None,
        }
    }

    /// The sum for the parameter at `index` of [`Decoder::parameters`], row-major.
    pub fn get(&self, index: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(Some(sum)) = self.sums.get(index) else {
            return Ok(None);
        };
        let mut sum = to_host(sum)?;
        if let Some(lookups) = self.lookups.as_ref().filter(|l| l.parameter == index) {
            lookups.add_to(&mut sum);
        }
        Ok(Some(sum))
    }

    /// Adds `scale * dx` `[ids, width]` to the rows of a tied embedding that `ids` name.
    pub(super) fn add_lookups(
        &mut self,
        parameter: ParamId,
        ids: &[u32],
        dx: &Tensor,
        scale: f32,
    ) -> Result<(), Error> {
        let lookups = self.lookups.get_or_insert_with(|| Lookups {
            parameter,
            rows: BTreeMap::new(),
        });
        let (_, width) = dims(dx)?;
        let dx: &[f32] = &view(dx)?;
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let row = lookups.rows.entry(id).or_insert_with(|| vec![0.0; width]);
            for (sum, dx) in row.iter_mut().zip(dx) {
                *sum += dx * scale;
            }
        }
        Ok(())
    }

    /// Takes all parts together: the step is complete.
    fn complete(&mut self) -> Result<(), Error> {
        let Some(lookups) = self.lookups.take() else {
            return Ok(());
        };
        match self.sums.get(lookups.parameter) {
            Some(Some(sum)) => update(sum, |sum| lookups.add_to(sum)),
            _ => Err(Error::Internal(
                "a tied embedding without a head's gradient",
            )),
        }
    }

    pub(super) fn sum_of(&self, index: ParamId, model: &Decoder) -> Result<&Tensor, Error> {
        if self.lookups.is_some() {
            return Err(Error::Internal("gradients of a step that is not complete"));
        }
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

    /// Norm of all sums together, as one vector. The step is complete with it: nothing more is to be added
    /// until [`Gradients::clear`].
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when a parameter of the model has none.
    pub fn norm(&mut self, model: &Decoder) -> Result<f64, Error> {
        self.complete()?;
        let mut squares = 0.0;
        for index in 0..model.parameters().len() {
            squares += sum_of_squares(self.sum_of(index, model)?)?;
        }
        Ok(squares.sqrt())
    }

    /// The sum to add to, f32, zero at first.
    pub(crate) fn sum(&mut self, index: ParamId, like: &Tensor) -> Result<Tensor, Error> {
        let slot = self.sums.get_mut(index).ok_or(Error::Internal(
            "a gradient for a parameter that does not exist",
        ))?;
        match slot {
            Some(sum) => Ok(sum.clone()),
            None => {
                let sum = zeros_f32(like)?;
                *slot = Some(sum.clone());
                Ok(sum)
            }
        }
    }

    /// Sets every sum back to zero and keeps the memory.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.lookups = None;
        for sum in self.sums.iter().flatten() {
            clear(sum)?;
        }
        Ok(())
    }
}

/// The sums of all parameters, and the layout of the batch whose gradients are added to them.
pub(crate) struct BatchGradients<'a> {
    /// The sums.
    pub sums: &'a mut Gradients,
    /// The batch's rows.
    pub layout: &'a RowLayout,
}

impl BatchGradients<'_> {
    /// As [`Gradients::sum`].
    pub fn sum(&mut self, index: ParamId, like: &Tensor) -> Result<Tensor, Error> {
        self.sums.sum(index, like)
    }
}
