//! The sums of a model's gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Error;
use super::kernels::Kernels;
use super::kernels::tensor::{on_host, tensor, to_host, zeros_f32};
use super::parameters::{ParamId, Parameters};

/// Rows of a tied embedding that are added to its sum at a time.
const ROWS_AT_A_TIME: usize = 1024;

/// Sums of gradients, one per parameter; `None` until something was added.
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

impl Gradients {
    /// Makes room for the gradients of `num_parameters` parameters.
    pub fn new(num_parameters: usize) -> Self {
        Self {
            sums: vec![None; num_parameters],
            lookups: None,
        }
    }

    /// Returns the sum for the parameter at `index`, row-major; `None` if nothing was added to it.
    ///
    /// # Errors
    ///
    /// When it can't be copied from the model's device.
    pub fn get(&self, index: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(Some(sum)) = self.sums.get(index) else {
            return Ok(None);
        };
        let mut sum = to_host(sum)?;
        if let Some(lookups) = self.lookups.as_ref().filter(|l| l.parameter == index) {
            for (&id, row) in &lookups.rows {
                let at = id as usize * row.len();
                for (sum, row) in sum[at..at + row.len()].iter_mut().zip(row) {
                    *sum += row;
                }
            }
        }
        Ok(Some(sum))
    }

    /// Returns the sum to add to, f32, zero at first.
    pub(super) fn sum(&mut self, index: ParamId, like: &Tensor) -> Result<Tensor, Error> {
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

    /// Adds `scale * dx` `[T, H]` to the rows of a tied embedding that `ids` name.
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
        let (_, width) = dx.dims2()?;
        let dx: &[f32] = &on_host(dx)?;
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            let row = lookups.rows.entry(id).or_insert_with(|| vec![0.0; width]);
            for (sum, dx) in row.iter_mut().zip(dx) {
                *sum += dx * scale;
            }
        }
        Ok(())
    }

    /// Adds all parts together: the step is complete.
    fn complete(&mut self, kernels: &dyn Kernels) -> Result<(), Error> {
        let Some(Lookups {
            parameter,
            mut rows,
        }) = self.lookups.take()
        else {
            return Ok(());
        };
        let Some(Some(sum)) = self.sums.get(parameter) else {
            return Err(Error::Internal(
                "a tied embedding without a head's gradient",
            ));
        };
        let (_, width) = sum.dims2()?;
        while !rows.is_empty() {
            let count = rows.len().min(ROWS_AT_A_TIME);
            let mut ids = Vec::with_capacity(count);
            let mut values = Vec::with_capacity(count * width);
            while ids.len() < count
                && let Some((id, row)) = rows.pop_first()
            {
                ids.push(id);
                values.extend(row);
            }
            let values = tensor(values, (ids.len(), width))?.to_device(kernels.device())?;
            kernels.embedding_backward(sum, &ids, &values, 1.0)?;
        }
        Ok(())
    }

    /// Returns the norm of all sums together, as one vector. The step is complete with it: nothing more is to
    /// be added until [`Gradients::clear`].
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when a parameter of the model has none.
    pub fn norm(&mut self, parameters: &Parameters) -> Result<f64, Error> {
        self.complete(parameters.kernels())?;
        let sums = (0..parameters.len())
            .map(|index| self.complete_sum(index, parameters))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(parameters.kernels().sum_of_squares(&sums)?.sqrt())
    }

    /// Returns the sum of a step that is complete.
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when there is none.
    pub(crate) fn complete_sum(
        &self,
        index: ParamId,
        parameters: &Parameters,
    ) -> Result<&Tensor, Error> {
        if self.lookups.is_some() {
            return Err(Error::Internal("gradients of a step that is not complete"));
        }
        self.sums
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::NoGradient {
                parameter: parameters
                    .get(index)
                    .map_or_else(|| index.to_string(), |parameter| parameter.name.clone()),
            })
    }

    /// Sets every sum back to zero and keeps the memory.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn clear(&mut self, parameters: &Parameters) -> Result<(), Error> {
        self.lookups = None;
        for sum in self.sums.iter().flatten() {
            parameters.kernels().zero(sum)?;
        }
        Ok(())
    }
}
