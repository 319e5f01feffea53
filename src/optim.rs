//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with its state in f32, and gradient clipping.

use serde::{Deserialize, Serialize};

use candle_core::Tensor;

use crate::model::{
    AdamWState, AdamWStep, Error, Gradients, Parameter, Parameters, set_values, zeros_f32,
};

/// Default peak learning rate: stage 2 of OLMo-2-0425-1B.
pub const DEFAULT_LR: f64 = 7.4487e-5;
/// Default coefficient of decoupled weight decay, from the same recipe.
pub const DEFAULT_WEIGHT_DECAY: f64 = 0.1;
/// Default largest norm of the gradient.
pub const DEFAULT_CLIP: f64 = 1.0;
/// Decay rates of the two moments.
pub const DEFAULT_BETAS: (f64, f64) = (0.9, 0.95);
/// Added to the root of the second moment.
pub const DEFAULT_ADAM_EPS: f64 = 1e-8;

const NO_SUCH_PARAMETER: Error = Error::Internal("moments of a parameter that does not exist");

/// Added to the norm before it divides, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DecayOn {
    /// Matrices other than the embedding (also when it is the output head as well); no norm, no bias.
    #[default]
    Matrices,
    /// All matrices.
    Embeddings,
    /// Everything, norms and biases too.
    All,
}

impl DecayOn {
    fn includes(self, parameter: &Parameter) -> bool {
        match self {
            Self::Matrices => parameter.shape().len() >= 2 && !parameter.is_embedding(),
            Self::Embeddings => parameter.shape().len() >= 2,
            Self::All => true,
        }
    }
}

/// The constants of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWOptions {
    /// Decay rates of the first and the second moment, in [0, 1).
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Coefficient of decoupled decay.
    pub weight_decay: f64,
    /// The parameters that decay.
    pub decay_on: DecayOn,
    /// Largest global norm of the gradient; `None` leaves it as it is.
    pub clip: Option<f64>,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            betas: DEFAULT_BETAS,
            eps: DEFAULT_ADAM_EPS,
            weight_decay: DEFAULT_WEIGHT_DECAY,
            decay_on: DecayOn::default(),
            clip: Some(DEFAULT_CLIP),
        }
    }
}

/// The optimizer: two moments per parameter and the number of steps taken.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    moments: Vec<Moments>,
    num_steps: u64,
}

/// The moments of one parameter, f32, on its device.
#[derive(Debug)]
struct Moments {
    /// Running mean of the gradient.
    first: Tensor,
    /// Running mean of its square.
    second: Tensor,
    /// Whether the parameter decays.
    decays: bool,
}

impl AdamW {
    /// Makes an optimizer with zero moments for every parameter.
    ///
    /// # Errors
    ///
    /// When the parameters' device has not enough memory for them.
    pub fn new(parameters: &Parameters, options: AdamWOptions) -> Result<Self, Error> {
        let moments = parameters
            .iter()
            .map(|parameter| {
                Ok(Moments {
                    first: zeros_f32(parameter.value())?,
                    second: zeros_f32(parameter.value())?,
                    decays: options.decay_on.includes(parameter),
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            options,
            moments,
            num_steps: 0,
        })
    }

    /// Returns the number of steps taken.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// Returns the first and the second moment of the parameter at `index`, f32.
    ///
    /// # Errors
    ///
    /// When there is no such parameter.
    pub(crate) fn moments(&self, index: usize) -> Result<[&Tensor; 2], Error> {
        let moments = self.moments.get(index).ok_or(NO_SUCH_PARAMETER)?;
        Ok([&moments.first, &moments.second])
    }

    /// Resumes from an earlier state: moments of every parameter, in order, row-major, and the number of steps
    /// taken.
    ///
    /// # Errors
    ///
    /// When the moments are not as many as the parameters, or of other sizes.
    pub(crate) fn restore(
        &mut self,
        num_steps: u64,
        moments: impl IntoIterator<Item = [Vec<f32>; 2]>,
    ) -> Result<(), Error> {
        let mut given = moments.into_iter();
        for moments in &self.moments {
            let values = given.next().ok_or(NO_SUCH_PARAMETER)?;
            for (moment, values) in [&moments.first, &moments.second].into_iter().zip(values) {
                set_values(moment, values)?;
            }
        }
        self.num_steps = num_steps;
        Ok(())
    }

    /// Changes the parameters by one step and sets the gradients to zero. Returns the norm of the gradient
    /// before clipping.
    ///
    /// `gradients` are sums; they are divided by `normalizer`, once, here.
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when a parameter has no gradient: it would silently stay as it is.
    /// [`Error::Diverged`] when the norm of the gradient is not finite; no parameter is changed then.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        normalizer: f64,
        lr: f64,
    ) -> Result<f64, Error> {
        let norm = gradients.norm(parameters)? / normalizer;
        if !norm.is_finite() {
            return Err(Error::Diverged { norm });
        }
        let clip = match self.options.clip {
            Some(limit) => (limit / (norm + CLIP_EPS)).min(1.0),
            None => 1.0,
        };
        self.num_steps += 1;
        let t = i32::try_from(self.num_steps).unwrap_or(i32::MAX);
        let (beta1, beta2) = self.options.betas;
        let kept = (1.0 - lr * self.options.weight_decay) as f32;
        for (index, moments) in self.moments.iter().enumerate() {
            let parameter = parameters.get(index).ok_or(NO_SUCH_PARAMETER)?;
            let state = AdamWState {
                parameter: parameter.value(),
                rounded: parameter.rounded(),
                gradient: gradients.complete_sum(index, parameters)?,
                first_moment: &moments.first,
                second_moment: &moments.second,
            };
            let step = AdamWStep {
                gradient_scale: (clip / normalizer) as f32,
                keep: if moments.decays { kept } else { 1.0 },
                step_size: (lr / (1.0 - beta1.powi(t))) as f32,
                root_correction: ((1.0 - beta2.powi(t)).sqrt()) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                eps: self.options.eps as f32,
            };
            parameters.kernels().adamw(state, step)?;
        }
        Ok(norm)
    }
}
