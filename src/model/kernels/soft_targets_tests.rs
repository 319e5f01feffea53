//! The gradient of divergences from distributions, by finite differences of their definition in f64.

use candle_core::{DType, Device, Tensor};

use super::cpu::simd::Noise;
use super::tensor::to_host;
use super::{Cpu, Kernels, LmHead, LmLoss, Portable, SoftLoss, SoftTargets};
use crate::model::row_layout::RowLayout;
use crate::types::Divergence;

const LENGTHS: [usize; 3] = [5, 2, 7];
const WIDTH: usize = 6;
const VOCAB: usize = 40;
const K: usize = 3;

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    max + values.map(|v| (v - max).exp()).sum::<f64>().ln()
}

struct Problem {
    hidden: Vec<f32>,
    head: Vec<f32>,
    ids: Vec<u32>,
    /// One per target.
    weights: Vec<f32>,
    soft: SoftTargets,
    z_loss: f32,
    cap: Option<f32>,
}

impl Problem {
    fn new(divergence: Divergence, temperature: f64, cap: Option<f32>, seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let tokens: usize = LENGTHS.iter().sum();
        let num_targets = tokens - LENGTHS.len();
        let targets: Vec<usize> = (0..num_targets).filter(|t| t % 3 != 1).collect();
        let mut soft = SoftTargets {
            divergence,
            temperature,
            coefficient: 1.7,
            k: K,
            targets,
            ids: Vec::new(),
            log_probs: Vec::new(),
            tail_log_probs: Vec::new(),
        };
        for &target in &soft.targets {
            // A tail from much to nearly nothing.
            let tail = [0.4_f64, 1e-3, 1e-9][target % 3];
            let shares = [0.5, 0.3, 0.2].map(|share| share * (1.0 - tail));
            let first = (target * 7) % (VOCAB - 9);
            soft.ids
                .extend([first as u32 + 8, first as u32, first as u32 + 3]);
            soft.log_probs
                .extend(shares.map(|share: f64| share.ln() as f32));
            soft.tail_log_probs.push(tail.ln() as f32);
        }
        Self {
            hidden: noise.vector(tokens * WIDTH),
            head: noise
                .vector(VOCAB * WIDTH)
                .iter()
                .map(|v| v * 3.0)
                .collect(),
            ids: (0..tokens).map(|t| (t * 11 % VOCAB) as u32).collect(),
            weights: (0..num_targets).map(|t| (t % 4) as f32 * 0.5).collect(),
            soft,
            z_loss: 0.01,
            cap,
        }
    }

    /// The loss by its definition, and each divergence.
    fn loss(&self, hidden: &[f64], head: &[f64]) -> (f64, Vec<f64>) {
        let (mut loss, mut divergences) = (0.0, Vec::new());
        let (mut start, mut target) = (0, 0);
        for length in LENGTHS {
            for position in start..start + length - 1 {
                let x = &hidden[position * WIDTH..][..WIDTH];
                let logits: Vec<f64> = head
                    .chunks(WIDTH)
                    .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>())
                    .map(|logit| match self.cap.map(f64::from) {
                        Some(cap) => cap * (logit / cap).tanh(),
                        None => logit,
                    })
                    .collect();
                let normalizer = log_sum_exp(logits.iter().copied());
                let weight = f64::from(self.weights[target]);
                let own = logits[self.ids[position + 1] as usize];
                loss += weight * (normalizer - own) + f64::from(self.z_loss) * normalizer.powi(2);
                if let Ok(i) = self.soft.targets.binary_search(&target) {
                    let scaled: Vec<f64> =
                        logits.iter().map(|l| l / self.soft.temperature).collect();
                    let all = log_sum_exp(scaled.iter().copied());
                    let ids = &self.soft.ids[i * K..][..K];
                    let mut learner: Vec<f64> =
                        ids.iter().map(|id| scaled[*id as usize] - all).collect();
                    let others = scaled.iter().enumerate();
                    let others: Vec<f64> = others
                        .filter(|(id, _)| !ids.contains(&(*id as u32)))
                        .map(|(_, logit)| *logit)
                        .collect();
                    learner.push(log_sum_exp(others.into_iter()) - all);
                    let mut rl: Vec<f64> = self.soft.log_probs[i * K..][..K]
                        .iter()
                        .map(|q| f64::from(*q))
                        .collect();
                    rl.push(f64::from(self.soft.tail_log_probs[i]));
                    let kl = |p: &[f64], q: &[f64]| -> f64 {
                        p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
                    };
                    let divergence = match self.soft.divergence {
                        Divergence::Reverse => kl(&learner, &rl),
                        Divergence::Forward => kl(&rl, &learner),
                    };
                    divergences.push(self.soft.coefficient * divergence);
                    loss += self.soft.coefficient * divergence;
                }
                target += 1;
            }
            start += length;
        }
        (loss, divergences)
    }

    /// A backend's gradients of hidden states and head, and the divergences.
    fn computed(&self, kernels: &dyn Kernels) -> (Vec<f32>, Vec<f32>, Vec<f64>) {
        let device = Device::Cpu;
        let tokens = self.ids.len();
        let hidden = Tensor::from_slice(&self.hidden, (tokens, WIDTH), &device).unwrap();
        let head = Tensor::from_slice(&self.head, (VOCAB, WIDTH), &device).unwrap();
        let d_head = Tensor::zeros((VOCAB, WIDTH), DType::F32, &device).unwrap();
        let mut divergences = vec![f64::NAN; self.soft.targets.len()];
        let mut at = 0;
        let loss = LmLoss {
            z_loss: Some(self.z_loss),
            token_weights: &mut |_, weights| {
                let end = at + weights.len();
                weights.copy_from_slice(&self.weights[at..end]);
                at = end;
                Ok(())
            },
            soft: Some(SoftLoss {
                targets: &self.soft,
                divergences: &mut divergences,
            }),
        };
        let head = LmHead {
            weight: &head,
            soft_cap: self.cap,
        };
        let layout = RowLayout::new(LENGTHS);
        let d_hidden = kernels
            .lm_head_backward(&hidden, head, &d_head, &self.ids, &layout, loss)
            .unwrap();
        let values = |x: &Tensor| to_host(x).unwrap();
        (values(&d_hidden), values(&d_head), divergences)
    }
}

#[test]
fn the_gradient_of_divergences_is_that_of_finite_differences() {
    const STEP: f64 = 1e-6;
    let portable = Portable {
        device: Device::Cpu,
    };
    let backends: [(&str, &dyn Kernels); 2] = [("cpu", &Cpu::default()), ("portable", &portable)];
    for divergence in [Divergence::Reverse, Divergence::Forward] {
        for (temperature, cap) in [(1.0, None), (2.0, None), (0.7, Some(4.0)), (2.0, Some(9.0))] {
            let problem = Problem::new(divergence, temperature, cap, 5);
            let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let inputs = [wide(&problem.hidden), wide(&problem.head)];
            let (_, expected) = problem.loss(&inputs[0], &inputs[1]);
            for (name, kernels) in backends {
                let (d_hidden, d_head, divergences) = problem.computed(kernels);
                let case = format!("{name}, {divergence:?}, {temperature}, {cap:?}");
                for (found, expected) in divergences.iter().zip(&expected) {
                    let error = (found - expected).abs();
                    assert!(
                        error < 1e-5 * expected.abs().max(1.0),
                        "{case}: {found} {expected}"
                    );
                }
                for (which, gradient) in [d_hidden, d_head].iter().enumerate() {
                    for (i, found) in gradient.iter().enumerate() {
                        let at = |step: f64| {
                            let mut moved = inputs.clone();
                            moved[which][i] += step;
                            problem.loss(&moved[0], &moved[1]).0
                        };
                        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                        let error = (f64::from(*found) - slope).abs();
                        assert!(
                            error < 2e-4 * slope.abs().max(1.0),
                            "{case}, input {which}, element {i}: {found} instead of {slope}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn soft_targets_that_the_learner_has_no_tokens_for_are_refused() {
    let soft = Problem::new(Divergence::Reverse, 1.0, None, 5).soft;
    assert!(soft.check(VOCAB).is_ok());
    let error = soft.check(20).unwrap_err().to_string();
    assert!(error.contains("20"), "{error}");
}
