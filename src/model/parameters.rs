//! The parameters of a model: its tensors, and their f32 originals where it computes with less.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use safetensors::Dtype;

use super::Error;
use super::architecture::EMBEDDING;
use super::device::{Compute, ComputeDtype};
use super::files::ModelWeights;
use super::kernels::Kernels;
use super::kernels::tensor::{assign, bf16_tensor, rounded_to_bf16, set_values, tensor, to_host};

/// Index of a parameter in the order of [`Architecture::tensors`](super::Architecture::tensors).
pub(crate) type ParamId = usize;

/// A parameter of a model.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its dtype in the checkpoint; exports return to it.
    pub stored_dtype: Dtype,
    /// The tensor that the model computes with.
    pub(crate) tensor: Tensor,
    /// The f32 original of a tensor that is kept in another dtype, for the optimizer.
    pub(crate) master: Option<Tensor>,
}

impl Parameter {
    /// Returns the most exact value that there is.
    pub(crate) fn value(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.tensor)
    }

    /// Returns the tensor that follows the f32 original, rounded, where there is such a pair.
    pub(crate) fn rounded(&self) -> Option<&Tensor> {
        self.master.as_ref().map(|_| &self.tensor)
    }

    /// Returns whether this is the embedding, be it the output head as well or not.
    pub fn is_embedding(&self) -> bool {
        self.name == EMBEDDING
    }

    /// Returns the shape, as stored.
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Copies the elements, row-major.
    ///
    /// # Errors
    ///
    /// When they can't be copied from the model's device.
    pub fn to_vec(&self) -> Result<Vec<f32>, Error> {
        to_host(self.value())
    }
}

/// All parameters of a model, in the order of the forward pass, on one device.
#[derive(Debug)]
pub struct Parameters {
    kernels: Arc<dyn Kernels>,
    all: Vec<Parameter>,
}

impl Deref for Parameters {
    type Target = [Parameter];

    fn deref(&self) -> &[Parameter] {
        &self.all
    }
}

impl Parameter {
    /// Loads a tensor into the machine's own memory.
    pub(super) fn load(
        name: &str,
        shape: &[usize],
        weights: &ModelWeights,
        compute: &Compute,
    ) -> Result<Self, Error> {
        // Vectors stay f32: they are small, and enter where the computation is f32 anyway.
        let is_narrow = compute.dtype != ComputeDtype::F32 && shape.len() > 1;
        let (tensor, master) = match (is_narrow, compute.trained) {
            (true, true) => {
                let values = weights.load(name)?;
                (
                    rounded_to_bf16(&values, shape)?,
                    Some(tensor(values, shape)?),
                )
            }
            (true, false) => (bf16_tensor(weights.load_bf16(name)?, shape)?, None),
            (false, _) => (tensor(weights.load(name)?, shape)?, None),
        };
        Ok(Self {
            name: name.to_owned(),
            stored_dtype: weights.dtype(name).unwrap_or(Dtype::F32),
            tensor,
            master,
        })
    }

    fn on_device(self, device: &Device) -> Result<Self, Error> {
        let master = self.master.map(|master| master.to_device(device));
        Ok(Self {
            tensor: self.tensor.to_device(device)?,
            master: master.transpose()?,
            ..self
        })
    }
}

impl Parameters {
    /// Loads tensors of these names and shapes onto a device.
    pub(super) fn load(
        tensors: &[(String, Vec<usize>)],
        weights: &ModelWeights,
        compute: &Compute,
    ) -> Result<Self, Error> {
        let kernels = compute.kernels();
        let device = kernels.device();
        kernels.prepare_for_passes();
        let load = |(name, shape): &(String, Vec<usize>)| {
            Parameter::load(name, shape, weights, compute)?.on_device(device)
        };
        let all = tensors.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { kernels, all })
    }

    /// Puts some parameters, the first of which has the index `first`, onto a device. Those before it are there in name
    /// only, those behind them not at all.
    pub(super) fn some(
        kernels: Arc<dyn Kernels>,
        first: ParamId,
        loaded: Vec<Parameter>,
    ) -> Result<Self, Error> {
        let absent = Parameter {
            name: String::new(),
            stored_dtype: Dtype::F32,
            tensor: tensor(Vec::new(), 0)?,
            master: None,
        };
        let mut all = vec![absent; first];
        for parameter in loaded {
            all.push(parameter.on_device(kernels.device())?);
        }
        Ok(Self { kernels, all })
    }

    /// Returns the backend of the device that the parameters are on.
    pub(crate) fn kernels(&self) -> &dyn Kernels {
        &*self.kernels
    }

    /// Returns what the model computes with.
    pub(super) fn tensor(&self, id: ParamId) -> &Tensor {
        &self.all[id].tensor
    }

    /// Sets the elements of the parameter at `index`, row-major, f32.
    ///
    /// # Errors
    ///
    /// When they are not as many as the parameter has.
    pub(crate) fn set(&mut self, index: ParamId, values: Vec<f32>) -> Result<(), Error> {
        let parameter = &self.all[index];
        let value = parameter.value();
        set_values(value, values)?;
        match parameter.rounded() {
            Some(rounded) => assign(rounded, value),
            None => Ok(()),
        }
    }
}
