//! Runs every operation of every backend, forward and backward: against its definition in f64, with finite
//! differences for the gradients; and against the portable backend. The CPU's results are written to files
//! for PyTorch: tests/oracle/test_ops.py.

mod attention_cases;
mod case;
mod rope_cases;
mod token_cases;
mod updates;

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use proptest::prelude::*;
use safetensors::Dtype;

use self::attention_cases::{attention_case, lm_head_case, mla_case};
use self::case::{Array, Case, Subject, dot, wide};
use self::rope_cases::{norm_rope_case, rope_case};
use self::token_cases::{add_norm_case, embedding_case, glu_case, linear_case, norm_case};
use super::cpu::simd::Noise;
use super::{Cpu, Kernels, Portable};

/// Makes a random case of every differentiable operation.
const CASES: [fn(&Subject<'_>, u64) -> Case; 10] = [
    norm_case,
    add_norm_case,
    linear_case,
    glu_case,
    rope_case,
    norm_rope_case,
    attention_case,
    mla_case,
    embedding_case,
    lm_head_case,
];

/// The backend that others are compared with.
fn portable() -> Portable {
    Portable {
        device: Device::Cpu,
    }
}

/// Every backend that can be run here, by name.
fn backends() -> Vec<(&'static str, Box<dyn Kernels>)> {
    let mut found: Vec<(&'static str, Box<dyn Kernels>)> = vec![
        ("portable", Box::new(portable())),
        ("cpu", Box::new(Cpu::default())),
        #[cfg(feature = "cuda-emulator")]
        ("cuda-emulated", Box::new(super::cuda::Cuda::emulated())),
    ];
    found.extend(gpu());
    found
}

/// A real GPU, if it is to be tested.
#[cfg(feature = "cuda")]
fn gpu() -> Option<(&'static str, Box<dyn Kernels>)> {
    Some(("cuda", Box::new(super::Cuda::of_tests()?)))
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Option<(&'static str, Box<dyn Kernels>)> {
    let asked_for = std::env::var_os("REMIT_TEST_GPU").is_some();
    assert!(
        !asked_for,
        "REMIT_TEST_GPU is set, and this program was built without CUDA"
    );
    None
}

/// The dtypes that a backend is run in. The CPU's token tensors are always f32; the portable one rounds scores and
/// sums to bf16 too, which no bound on its results would be of use for.
fn dtypes(backend: &str) -> &'static [DType] {
    match backend {
        "cpu" | "portable" => &[DType::F32],
        _ => &[DType::F32, DType::BF16],
    }
}

/// How far results may be from what they are by definition, of their size: a few roundings in f32, and of
/// outputs and probabilities in bf16.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2e-2,
        _ => 1e-4,
    }
}

/// Compares outputs with their definition, and the gradient of every input with a central difference along
/// a random direction, and along single elements.
fn check(backend: &str, dtype: DType, case: &Case, seed: u64) -> Result<(), TestCaseError> {
    const STEP: f64 = 1e-6;
    let tolerance = tolerance(dtype);
    let inputs: Vec<Vec<f64>> = case.inputs.iter().map(wide).collect();
    let expected = (case.loss)(&inputs);
    let size: f64 = case.outputs.iter().map(norm).sum();
    prop_assert!(
        (case.found_loss - expected).abs() < tolerance * size.max(1.0),
        "{backend} {dtype:?}: {} {:?}: {} instead of {expected}",
        case.op,
        case.settings,
        case.found_loss
    );
    let mut noise = Noise::new(seed ^ 0x5eed);
    for (i, gradient) in case.gradients.iter().enumerate() {
        let gradient_values = wide(gradient);
        let size = norm(gradient);
        let mut directions = vec![noise.vector(inputs[i].len())];
        for element in [0, inputs[i].len() / 2, inputs[i].len() - 1] {
            let mut one = vec![0.0; inputs[i].len()];
            one[element] = 1.0;
            directions.push(one);
        }
        for direction in directions {
            let direction: Vec<f64> = direction.into_iter().map(f64::from).collect();
            let at = |step: f64| {
                let mut moved = inputs.clone();
                for (x, d) in moved[i].iter_mut().zip(&direction) {
                    *x += step * d;
                }
                (case.loss)(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let found = dot(gradient_values.iter().copied(), &direction);
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            prop_assert!(
                (found - slope).abs() < tolerance * (size * length).max(1e-1 * length),
                "{backend} {dtype:?}: {} {} {:?}: {found} instead of {slope}",
                case.op,
                gradient.0,
                case.settings
            );
        }
    }
    Ok(())
}

fn norm(array: &Array) -> f64 {
    wide(array).iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Compares every output and gradient with those of another backend, norm by norm. In bf16 the gradients of attention
/// are what is left of terms of the size of the upstream gradient, each rounded, so that counts as well.
fn compare(backend: &str, dtype: DType, case: &Case, other: &Case) -> Result<(), TestCaseError> {
    let arrays = |case: &Case| -> Vec<Array> {
        let all = case.outputs.iter().chain(&case.gradients);
        all.cloned().collect()
    };
    let tolerance = match dtype {
        DType::BF16 => 3e-2,
        _ => 2e-5,
    };
    let upstream = match dtype {
        DType::BF16 => case.constants.iter().map(norm).fold(1.0, f64::max),
        _ => 1.0,
    };
    for (found, expected) in arrays(case).into_iter().zip(arrays(other)) {
        let difference: Vec<f32> = found
            .2
            .iter()
            .zip(&expected.2)
            .map(|(a, b)| a - b)
            .collect();
        let apart = norm(&(found.0, found.1.clone(), difference));
        prop_assert!(
            found.1 == expected.1 && apart < tolerance * norm(&expected).max(upstream),
            "{backend} {dtype:?}: {} {} {:?} is {apart} from the portable one",
            case.op,
            found.0,
            case.settings
        );
    }
    Ok(())
}

/// How many random cases of each operation are run: PROPTEST_CASES, else 48.
fn num_cases() -> u32 {
    let given = std::env::var("PROPTEST_CASES").ok();
    given.and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(num_cases()))]

    #[test]
    fn operations_and_gradients_are_what_they_are_by_definition(seed in any::<u64>()) {
        let backends = backends();
        for make in CASES {
            for (name, backend) in &backends {
                for &dtype in dtypes(name) {
                    let subject = Subject { kernels: &**backend, dtype, drawn_as: dtype };
                    let case = make(&subject, seed);
                    check(name, dtype, &case, seed)?;
                    let exact = Subject { kernels: &portable(), dtype: DType::F32, drawn_as: dtype };
                    compare(name, dtype, &case, &make(&exact, seed))?;
                }
            }
        }
    }
}

/// Writes cases to the folder that REMIT_OPS_CASES names.
#[test]
#[ignore = "writes files for tests/oracle/test_ops.py, which runs it"]
fn ops_cases() {
    let folder = std::env::var_os("REMIT_OPS_CASES").expect("REMIT_OPS_CASES names a folder");
    let mut number = 0;
    for seed in 0..24_u64 {
        for make in CASES {
            let subject = Subject {
                kernels: &Cpu::default(),
                dtype: DType::F32,
                drawn_as: DType::F32,
            };
            let case = make(&subject, seed);
            let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let mut arrays: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
            let results = case.outputs.iter().chain(&case.gradients);
            let given = case.inputs.iter().chain(&case.constants);
            for (name, shape, values) in results.chain(given) {
                arrays.push((name, Dtype::F32, shape.clone(), bytes(values)));
            }
            if let Some(ids) = &case.ids {
                let ids_bytes = ids
                    .iter()
                    .flat_map(|id| i64::from(*id).to_le_bytes())
                    .collect();
                arrays.push(("ids", Dtype::I64, vec![ids.len()], ids_bytes));
            }
            let views: BTreeMap<&str, safetensors::tensor::TensorView<'_>> = arrays
                .iter()
                .map(|(name, dtype, shape, bytes)| {
                    let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
                    (*name, view.unwrap())
                })
                .collect();
            let op = [("op", case.op.to_owned())];
            let settings = op.into_iter().chain(case.settings);
            let metadata = settings
                .map(|(key, value)| (key.to_owned(), value))
                .collect();
            let file = safetensors::serialize(views, Some(metadata)).unwrap();
            let name = format!("case-{number:03}.safetensors");
            crate::fs::write_atomic(&std::path::Path::new(&folder).join(name), &file).unwrap();
            number += 1;
        }
    }
}
