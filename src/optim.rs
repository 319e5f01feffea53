//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with its state in f32, gradient clipping, and the
//! learning-rate schedule.

use rayon::prelude::*;

use crate::model::{Decoder, Error, Gradients};

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

/// Elements of one task; a constant, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

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

/// Moments of one parameter, in its order of elements.
#[derive(Debug, Clone)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    decayed: bool,
}

/// The optimizer: two moments a parameter and the number of steps taken.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    moments: Vec<Moments>,
    num_steps: u64,
}

impl AdamW {
    /// Zero moments for every parameter of a model.
    pub fn new(model: &Decoder, options: AdamWOptions) -> Self {
        let moments = model
            .parameters()
            .iter()
            .map(|parameter| {
                let elements = parameter.shape().iter().product();
                Moments {
                    first: vec![0.0; elements],
                    second: vec![0.0; elements],
                    decayed: parameter.shape().len() >= 2 && !parameter.is_embedding(),
                }
            })
            .collect();
        Self {
            options,
            moments,
            num_steps: 0,
        }
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
        let scale = (clip / normalizer) as f32;
        self.num_steps += 1;
        let t = i32::try_from(self.num_steps).unwrap_or(i32::MAX);
        let (beta1, beta2) = self.options.betas;
        let step_size = (learning_rate / (1.0 - beta1.powi(t))) as f32;
        let root_correction = ((1.0 - beta2.powi(t)).sqrt()) as f32;
        let (beta1, beta2, eps) = (beta1 as f32, beta2 as f32, self.options.eps as f32);
        for (index, moments) in self.moments.iter_mut().enumerate() {
            let keep = if moments.decayed {
                (1.0 - learning_rate * self.options.weight_decay) as f32
            } else {
                1.0
            };
            model.update_parameter(index, gradients, |parameter, gradient| {
                parameter
                    .par_chunks_mut(CHUNK)
                    .zip(gradient.par_chunks(CHUNK))
                    .zip(moments.first.par_chunks_mut(CHUNK))
                    .zip(moments.second.par_chunks_mut(CHUNK))
                    .for_each(|(((p, g), m), v)| {
                        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                            let g = g * scale;
                            *m += (g - *m) * (1.0 - beta1);
                            *v = *v * beta2 + g * g * (1.0 - beta2);
                            *p = *p * keep - step_size * *m / (v.sqrt() / root_correction + eps);
                        }
                    });
            })?;
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
