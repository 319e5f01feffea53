//! What the conformance suite's small cases do not reach: every size of heads that a kernel is compiled for, several
//! tiles of logits, and tables that are kept between batches. On the emulated GPU, and on a real one where
//! REMIT_TEST_GPU is set, as in the suite.

use candle_core::{DType, Tensor};

use super::Cuda;
use super::context::LogitsTiles;
use crate::model::architecture::{LongRopeConfig, RopeConfig};
use crate::model::kernels::cpu::simd::Noise;
use crate::model::kernels::tensor::{tensor, to_host, zeros_f32};
use crate::model::kernels::{
    AttentionShape, Cpu, Kernels, LmHead, LmLoss, Qkv, Rope, RopeDirection, RopeLayout, RowOutputs,
};
use crate::model::row_layout::RowLayout;

/// The GPUs that there are here.
fn gpus() -> Vec<Cuda> {
    let mut found = vec![
        #[cfg(feature = "cuda-emulator")]
        Cuda::emulated(),
    ];
    found.extend(Cuda::of_tests());
    found
}

/// A tensor of noise that bf16 holds exactly.
fn drawn(noise: &mut Noise, shape: [usize; 2]) -> Tensor {
    let mut values = noise.vector(shape[0] * shape[1]);
    for value in &mut values {
        *value = half::bf16::from_f32(*value).to_f32();
    }
    tensor(values, &shape[..]).unwrap()
}

/// The distance of two tensors, of the length of the second.
fn apart(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (to_host(found).unwrap(), to_host(expected).unwrap());
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let differences = squares(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    (differences / squares(&mut expected.iter().copied())).sqrt()
}

#[test]
fn every_compiled_size_of_heads_attends_as_the_cpu_does() {
    let mut noise = Noise::new(3);
    let sizes = [
        (32, 32),
        (64, 64),
        (80, 96),
        (128, 128),
        (192, 128),
        (160, 160),
        (256, 256),
    ];
    for (i, (head_dim, v_head_dim)) in sizes.into_iter().enumerate() {
        let layout = RowLayout::new([[1, 150, 20], [2, 63, 64], [130, 3, 1]][i % 3]);
        let shape = AttentionShape {
            num_heads: 2,
            num_kv_heads: 1 + i % 2,
            head_dim,
            v_head_dim,
            scale: 0.1,
            soft_cap: (i % 3 == 1).then_some(2.0),
            window: (i % 3 == 2).then_some(40),
        };
        let tokens = layout.num_tokens();
        let mut of = |width| drawn(&mut noise, [tokens, width]);
        let (q, k) = (of(shape.query_width()), of(shape.key_width()));
        let (v, d) = (of(shape.value_width()), of(shape.out_width()));
        let run = |kernels: &dyn Kernels, dtype: DType| {
            let there = |x: &Tensor| x.to_dtype(dtype).unwrap().to_device(kernels.device());
            let [q, k, v, d] = [&q, &k, &v, &d].map(|x| there(x).unwrap());
            let qkv = Qkv {
                q: &q,
                k: &k,
                v: &v,
            };
            let attended = kernels.attention(qkv, &layout, shape).unwrap();
            let (dq, dk, dv) = kernels
                .attention_backward(&d, qkv, &attended, &layout, shape)
                .unwrap();
            [attended.out, dq, dk, dv]
        };
        let expected = run(&Cpu::default(), DType::F32);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            for gpu in gpus() {
                let found = run(&gpu, dtype);
                for (what, (found, expected)) in ["out", "dq", "dk", "dv"]
                    .into_iter()
                    .zip(found.iter().zip(&expected))
                {
                    let apart = apart(found, expected);
                    assert!(
                        apart < tolerance,
                        "{} {dtype:?} {head_dim} {v_head_dim}: {what} is {apart} off",
                        gpu.name()
                    );
                }
            }
        }
    }
}

#[test]
fn logits_in_several_tiles_give_what_the_cpu_gives() {
    let (width, vocab) = (16, 40);
    let layout = RowLayout::new([300, 1, 420, 2]);
    let tokens = layout.num_tokens();
    let mut noise = Noise::new(5);
    let hidden = drawn(&mut noise, [tokens, width]);
    let weight = drawn(&mut noise, [vocab, width]);
    let ids: Vec<u32> = (0..tokens)
        .map(|i| ((i * 7 + i * i) % vocab) as u32)
        .collect();
    let mut given = |outputs: RowOutputs<'_>, weights: &mut [f32]| {
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = 0.5 + (i % 3) as f32 + outputs.log_probs[i].exp();
        }
        Ok(())
    };
    let exact = LmHead {
        weight: &weight,
        soft_cap: Some(3.0),
    };
    let expected = Cpu::default()
        .lm_head_log_probs(&hidden, exact, &ids, &layout)
        .unwrap();
    let expected_dw = zeros_f32(&weight).unwrap();
    let loss = LmLoss {
        z_loss: Some(0.1),
        token_weights: &mut given,
        soft: None,
    };
    let expected_dx = Cpu::default()
        .lm_head_backward(&hidden, exact, &expected_dw, &ids, &layout, loss)
        .unwrap();
    for mut gpu in gpus() {
        gpu.context.logits = LogitsTiles {
            tokens: 256,
            entries: 16,
            gradient_tokens: 512,
        };
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            let there = |x: &Tensor| x.to_dtype(dtype).unwrap().to_device(gpu.device());
            let (weight, hidden) = (there(&weight).unwrap(), there(&hidden).unwrap());
            let dw = zeros_f32(&weight).unwrap();
            let rounded = LmHead {
                weight: &weight,
                soft_cap: Some(3.0),
            };
            let found = gpu
                .lm_head_log_probs(&hidden, rounded, &ids, &layout)
                .unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                // The inputs are the same, and logits are f32 in either dtype.
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
            let loss = LmLoss {
                z_loss: Some(0.1),
                token_weights: &mut given,
                soft: None,
            };
            let dx = gpu
                .lm_head_backward(&hidden, rounded, &dw, &ids, &layout, loss)
                .unwrap();
            assert_eq!(dx.dtype(), dtype);
            assert!(apart(&dx, &expected_dx) < tolerance);
            assert!(apart(&dw, &expected_dw) < tolerance);
        }
    }
}

#[test]
fn a_rope_table_grows_with_the_rows_and_knows_long_ones() {
    let config = RopeConfig {
        frequencies: vec![0.7, 0.2],
        long: Some(LongRopeConfig {
            above_tokens: 70,
            frequencies: vec![0.5, 0.1],
        }),
        scale: 1.2,
    };
    let features = RopeLayout {
        head_dim: 4,
        first: 0,
        interleaved: false,
    };
    for gpu in gpus() {
        // One after the other: each batch finds the table that the one before it left.
        for lengths in [[10, 3], [90, 71], [70, 200], [5, 300]] {
            let layout = RowLayout::new(lengths);
            let x = drawn(&mut Noise::new(9), [layout.num_tokens(), 8]);
            let rotated = |kernels: &dyn Kernels| {
                let table = kernels.rope_table(&layout, &config).unwrap();
                let rope = Rope {
                    table: &table,
                    layout: features,
                };
                let copy = x.to_device(kernels.device()).unwrap().copy().unwrap();
                kernels.rope(copy, rope, RopeDirection::Forward).unwrap()
            };
            assert!(
                apart(&rotated(&gpu), &rotated(&Cpu::default())) < 1e-6,
                "{lengths:?}"
            );
        }
    }
}
