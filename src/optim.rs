//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with its state in f32, gradient clipping, and the
//! learning-rate schedule.

use crate::model::{AdamWStep, Decoder, Error, Gradients, Moments};

/// Default peak learning rate: stage 2 of OLMo-2-0425-1B.
pub const DEFAULT_LEARNING_RATE: f64 = 7.4487e-5;
/// Default coefficient of decoupled weight decay, from the same recipe.
pub const DEFAULT_WEIGHT_DECAY: f64 = 0.1;
/// Default largest norm of the gradient.
pub const DEFAULT_CLIP: f64 = 1.0;
/// Decay rates of the two moments.
pub const DEFAULT_BETAS: (f64, f64) = (0.9, 0.95);
/// Added to the root of the second moment.
pub const DEFAULT_ADAM_EPS: f64 = 1e-8;

/// Added to the norm before it divides, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// What an optimizer is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay rates of the first and the second moment, in [0, 1).
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay; matrices only: none on norms, biases and the embedding (also when it is
    /// the output head as well).
    pub weight_decay: f64,
    /// Largest global norm of the gradient; `None` leaves it as it is.
    pub clip: Option<f64>,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            betas: DEFAULT_BETAS,
            eps: DEFAULT_ADAM_EPS,
            weight_decay: DEFAULT_WEIGHT_DECAY,
            clip: Some(DEFAULT_CLIP),
        }
    }
}

/// The optimizer: two moments a parameter and the number of steps taken.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    /// One pair a parameter, and whether the parameter decays.
    moments: Vec<(Moments, bool)>,
    num_steps: u64,
}

impl AdamW {
    /// Zero moments for every parameter of a model.
    ///
    /// # Errors
    ///
    /// When the model's device has not enough memory for them.
    pub fn new(model: &Decoder, options: AdamWOptions) -> Result<Self, Error> {
        let moments = model
            .parameters()
            .iter()
            .enumerate()
            .map(|(index, parameter)| {
                let decayed = parameter.shape().len() >= 2 && !parameter.is_embedding();
                Ok((model.zero_moments(index)?, decayed))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            options,
            moments,
            num_steps: 0,
        })
    }

    /// Number of steps taken.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// Changes the model's parameters by one step and sets the gradients to zero. Returns the norm
    /// of the gradient before clipping.
    ///
    /// `gradients` are sums; they are divided by `normalizer`, once, here.
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`] when a parameter has no gradient: it would silently stay as it is.
    /// [`Error::Diverged`] when the norm of the gradient is not finite; no parameter is changed then.
    pub fn step(
        &mut self,
        model: &Decoder,
        gradients: &mut Gradients,
        normalizer: f64,
        learning_rate: f64,
    ) -> Result<f64, Error> {
        let norm = gradients.norm(model)? / normalizer;
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
        let kept = (1.0 - learning_rate * self.options.weight_decay) as f32;
        for (index, (moments, decayed)) in self.moments.iter_mut().enumerate() {
            let step = AdamWStep {
                gradient_scale: (clip / normalizer) as f32,
                keep: if *decayed { kept } else { 1.0 },
                step_size: (learning_rate / (1.0 - beta1.powi(t))) as f32,
                root_correction: ((1.0 - beta2.powi(t)).sqrt()) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                eps: self.options.eps as f32,
            };
            model.adamw_step(index, gradients, moments, step)?;
        }
        gradients.clear()?;
        Ok(norm)
    }
}

/// The learning rate as a function of the step: warm-up, then linearly to zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearSchedule {
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Steps of linear warm-up; the first step of a warm-up of `n` steps has `peak / n`.
    pub warmup_steps: u64,
    /// Steps in all; the step after the last would have a rate of 0.
    pub num_steps: u64,
}

impl LinearSchedule {
    /// The rate of a step, counted from 0.
    ///
    /// # Examples
    ///
    /// ```
    /// let schedule = remit::optim::LinearSchedule { peak: 1.0, warmup_steps: 0, num_steps: 4 };
    /// let rates: Vec<f64> = (0..5).map(|step| schedule.rate(step)).collect();
    /// assert_eq!(rates, [1.0, 0.75, 0.5, 0.25, 0.0]);
    /// ```
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let left = self.num_steps.saturating_sub(step) as f64;
        let all = self.num_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        self.peak * left / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_reaches_the_peak_and_the_end_reaches_zero() {
        let schedule = LinearSchedule {
            peak: 2.0,
            warmup_steps: 2,
            num_steps: 6,
        };
        let rates: Vec<f64> = (0..7).map(|step| schedule.rate(step)).collect();
        assert_eq!(rates, [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
    }
}
