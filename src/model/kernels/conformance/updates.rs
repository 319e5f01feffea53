//! Operations that change tensors in place and have no gradient: sums, zeroing, the optimizer's step.

use candle_core::{DType, Tensor};

use super::backends;
use crate::model::kernels::cpu::simd::Noise;
use crate::model::kernels::tensor::{tensor, to_host};
use crate::model::kernels::{AdamWState, AdamWStep, Kernels};

/// Sizes on both sides of what one task of a parallel loop handles.
const SIZES: [usize; 4] = [1, 17, 16_384, 40_000];

fn on(kernels: &dyn Kernels, values: &[f32]) -> Tensor {
    let values = tensor(values.to_vec(), values.len()).unwrap();
    values.to_device(kernels.device()).unwrap()
}

#[test]
fn sums_and_zeros_are_seen_by_every_clone() {
    for (name, kernels) in backends() {
        for size in SIZES {
            let mut noise = Noise::new(size as u64);
            let (a, b) = (noise.vector(size), noise.vector(size));
            let sum = on(&*kernels, &a);
            let clone = sum.clone();
            kernels.add_assign(&sum, &on(&*kernels, &b)).unwrap();
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(to_host(&clone).unwrap(), expected, "{name}, {size}");
            let squares: f64 = expected.iter().map(|v| f64::from(*v).powi(2)).sum();
            let found = kernels.sum_of_squares(&[&sum]).unwrap();
            assert!((found - squares).abs() < 1e-5 * squares, "{name}, {size}");
            kernels.zero(&sum).unwrap();
            assert!(to_host(&clone).unwrap().iter().all(|v| *v == 0.0), "{name}");
        }
    }
}

#[test]
fn steps_of_adamw_follow_the_formula_in_f64() {
    for (name, kernels) in backends() {
        for size in SIZES {
            let mut noise = Noise::new(31 + size as u64);
            let start = noise.vector(size);
            let parameter = on(&*kernels, &start);
            let rounded = parameter.to_dtype(DType::BF16).unwrap();
            let zeros = vec![0.0; size];
            let (first, second) = (on(&*kernels, &zeros), on(&*kernels, &zeros));
            let mut p: Vec<f64> = start.iter().map(|v| f64::from(*v)).collect();
            let (mut m, mut v) = (vec![0.0_f64; size], vec![0.0_f64; size]);
            let (beta1, beta2, eps, lr, decay, scale) = (0.9, 0.95, 1e-8, 0.01, 0.1, 0.5);
            for t in 1..=3 {
                let values = noise.vector(size);
                let gradient = on(&*kernels, &values);
                let corrections = (1.0 - f64::powi(beta1, t), 1.0 - f64::powi(beta2, t));
                let step = AdamWStep {
                    gradient_scale: scale as f32,
                    keep: (1.0 - lr * decay) as f32,
                    step_size: (lr / corrections.0) as f32,
                    root_correction: corrections.1.sqrt() as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    eps: eps as f32,
                };
                let state = AdamWState {
                    parameter: &parameter,
                    rounded: Some(&rounded),
                    gradient: &gradient,
                    first_moment: &first,
                    second_moment: &second,
                };
                kernels.adamw(state, step).unwrap();
                assert!(to_host(&gradient).unwrap().iter().all(|g| *g == 0.0));
                for i in 0..size {
                    let g = f64::from(values[i]) * scale;
                    m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                    p[i] *= 1.0 - lr * decay;
                    p[i] -= lr * (m[i] / corrections.0) / ((v[i] / corrections.1).sqrt() + eps);
                }
            }
            for (tensor, expected) in [(&parameter, &p), (&first, &m), (&second, &v)] {
                for (found, expected) in to_host(tensor).unwrap().iter().zip(expected) {
                    let apart = (f64::from(*found) - expected).abs();
                    assert!(apart < 2e-6, "{name}, {size}: {found} {expected}");
                }
            }
            let expected = parameter.to_dtype(DType::BF16).unwrap();
            assert_eq!(to_host(&rounded).unwrap(), to_host(&expected).unwrap());
        }
    }
}
