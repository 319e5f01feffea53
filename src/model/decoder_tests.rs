//! The composed operations against the kernels: every model of fixtures/models, forward and backward.

use std::path::{Path, PathBuf};

use super::ops::COMPOSED;
use super::*;
use crate::fs;
use crate::optim::{AdamW, AdamWOptions};

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let names = fs::list(&folder).unwrap().into_iter();
    let models: Vec<PathBuf> = names
        .map(|name| folder.join(name))
        .filter(|path| path.is_dir())
        .collect();
    assert!(models.len() > 20);
    models
}

fn load(path: &Path) -> Decoder {
    Decoder::load(&ModelSource::Directory(path.to_owned())).unwrap()
}

/// Runs `f` with every operation taken from the tensor library.
fn composed<R>(f: impl FnOnce() -> R) -> R {
    COMPOSED.set(true);
    let result = f();
    COMPOSED.set(false);
    result
}

/// Rows that reach over windows and over the first context of LongRoPE.
fn rows(vocab_size: usize) -> Vec<Vec<u32>> {
    let id = |i: usize| u32::try_from((i * 7919 + i * i * 31) % vocab_size).unwrap();
    [2, 90, 31].map(|len| (0..len).map(id).collect()).to_vec()
}

fn run(model: &Decoder, rows: &[&[u32]], how: &Backward) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut gradients = Gradients::new(model.parameters().len());
    let mut all = Vec::new();
    model
        .accumulate_gradients(rows, &mut gradients, how, &mut |outputs, weights| {
            all.extend_from_slice(outputs.log_probs);
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = 0.8 + 0.1 * (i % 5) as f32;
            }
            Ok(())
        })
        .unwrap();
    let gradients = (0..model.parameters().len())
        .map(|i| gradients.get(i).unwrap().unwrap())
        .collect();
    (all, gradients)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn composed_operations_agree_with_the_kernels() {
    for path in models() {
        let model = load(&path);
        let rows = rows(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let how = Backward {
            z_loss: 1e-3,
            ..Backward::default()
        };
        let (log_probs, gradients) = run(&model, &rows, &how);
        let (other_log_probs, other_gradients) = composed(|| run(&model, &rows, &how));
        let scored = composed(|| model.target_log_probs(&rows).unwrap());
        for ((ours, other), scored) in log_probs.iter().zip(&other_log_probs).zip(scored.concat()) {
            assert!(
                (ours - other).abs() < 1e-4,
                "{}: {ours} {other}",
                path.display()
            );
            assert!(
                (ours - scored).abs() < 1e-4,
                "{}: {ours} {scored}",
                path.display()
            );
        }
        let total = norm(gradients.iter().flatten().copied());
        for (i, (ours, other)) in gradients.iter().zip(&other_gradients).enumerate() {
            let difference = norm(ours.iter().zip(other).map(|(a, b)| a - b));
            let relative = difference / norm(ours.iter().copied()).max(1e-3 * total);
            let name = &model.parameters()[i].name;
            assert!(relative < 1e-4, "{} {name}: {relative}", path.display());
        }
    }
}

#[test]
fn a_composed_step_of_the_optimizer_agrees_with_the_kernel() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/odd-phi3");
    let train = || {
        let model = load(&path);
        let rows = rows(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let mut optimizer = AdamW::new(&model, AdamWOptions::default()).unwrap();
        let mut gradients = Gradients::new(model.parameters().len());
        let norms: Vec<f64> = (0..3)
            .map(|_| {
                model
                    .accumulate_gradients(
                        &rows,
                        &mut gradients,
                        &Backward::default(),
                        &mut |_, weights| {
                            weights.fill(1.0);
                            Ok(())
                        },
                    )
                    .unwrap();
                optimizer.step(&model, &mut gradients, 120.0, 1e-2).unwrap()
            })
            .collect();
        let parameters: Vec<Vec<f32>> = model
            .parameters()
            .iter()
            .map(|parameter| parameter.to_vec().unwrap())
            .collect();
        (norms, parameters)
    };
    let (norms, parameters) = train();
    let (other_norms, other_parameters) = composed(train);
    for (ours, other) in norms.iter().zip(&other_norms) {
        assert!((ours - other).abs() < 1e-4 * ours, "{ours} {other}");
    }
    for (ours, other) in parameters.iter().zip(&other_parameters) {
        let difference = norm(ours.iter().zip(other).map(|(a, b)| a - b));
        assert!(difference < 1e-3 * norm(ours.iter().copied()));
    }
}

#[test]
fn matrices_kept_in_bf16_give_the_same_bits_when_they_were_stored_in_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in ["tiny-gemma3", "tiny-olmo2", "tiny-phi3", "tiny-youtu"] {
        let source = ModelSource::Directory(folder.join(name));
        let narrow = Compute {
            dtype: ComputeDtype::Bf16,
            ..Compute::default()
        };
        let model = Decoder::load_on(&source, &narrow).unwrap();
        let rows = rows(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let bits =
            |all: Vec<Vec<f32>>| all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let want = Decoder::load(&source).unwrap().target_log_probs(&rows);
        let got = model.target_log_probs(&rows);
        assert_eq!(bits(got.unwrap()), bits(want.unwrap()), "{name}");
        // The composed operations run in bf16 throughout, and are off by that much.
        let rounded = composed(|| model.target_log_probs(&rows)).unwrap().concat();
        let exact = model.target_log_probs(&rows).unwrap().concat();
        let mean =
            norm(rounded.iter().zip(&exact).map(|(a, b)| a - b)) / (exact.len() as f64).sqrt();
        assert!(mean > 1e-4 && mean < 0.3, "{name}: {mean}");
    }
}

/// Bits of all gradients of a pass over `rows` in pieces that end after the given numbers of rows.
fn gradient_bits(model: &Decoder, rows: &[&[u32]], ends: &[usize], how: &Backward) -> Vec<u32> {
    let mut gradients = Gradients::new(model.parameters().len());
    let mut start = 0;
    for &end in ends {
        model
            .accumulate_gradients(
                &rows[start..end],
                &mut gradients,
                how,
                &mut |outputs, weights| {
                    for (weight, log_prob) in weights.iter_mut().zip(outputs.log_probs) {
                        *weight = 1.0 + 0.1 * log_prob.sin();
                    }
                    Ok(())
                },
            )
            .unwrap();
        start = end;
    }
    (0..model.parameters().len())
        .flat_map(|i| gradients.get(i).unwrap().unwrap())
        .map(f32::to_bits)
        .collect()
}

/// Rows whose units end after these numbers of rows.
fn rows_of_units(vocab_size: usize) -> (Vec<Vec<u32>>, Vec<usize>) {
    let id = |i: usize| u32::try_from((i * 7919 + i * i * 31) % vocab_size).unwrap();
    let lengths = [400, 600, 9, 16, 500, 260, 260, 1200, 2, 3];
    let rows: Vec<Vec<u32>> = lengths.map(|len| (0..len).map(id).collect()).to_vec();
    let layout = RowLayout::new(lengths);
    let ends: Vec<usize> = layout.units().map(|unit| unit.end).collect();
    assert_eq!(ends, [3, 6, 7, 8, 10]);
    (rows, ends)
}

#[test]
fn gradients_are_the_same_bits_however_a_step_is_cut_between_units() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in [
        "tiny-qwen3",
        "odd-gemma2",
        "odd-youtu",
        "odd-qwen2",
        "tiny-phi3",
    ] {
        let model = load(&folder.join(name));
        let (rows, ends) = rows_of_units(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let how = Backward {
            z_loss: 1e-4,
            ..Backward::default()
        };
        let whole = gradient_bits(&model, &rows, &[10], &how);
        for cuts in [ends.clone(), vec![7, 10], vec![3, 8, 10]] {
            let cut = gradient_bits(&model, &rows, &cuts, &how);
            assert!(cut == whole, "{name} cut at {cuts:?}");
        }
        // The comparison can tell: within a unit the sums are added otherwise.
        assert!(
            gradient_bits(&model, &rows, &[1, 10], &how) != whole,
            "{name}"
        );
    }
}

#[test]
fn activation_checkpointing_changes_no_bit_of_any_gradient() {
    for path in models() {
        let model = load(&path);
        let rows = rows(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let checkpointed = Backward {
            activation_checkpointing: true,
            ..Backward::default()
        };
        assert!(
            gradient_bits(&model, &rows, &[3], &checkpointed)
                == gradient_bits(&model, &rows, &[3], &Backward::default()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn threads_change_no_bit_of_any_gradient() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let model = load(&folder.join("odd-gemma3"));
    let (rows, _) = rows_of_units(model.architecture().vocab_size);
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build()
            .unwrap()
            .install(|| gradient_bits(&model, &rows, &[10], &Backward::default()))
    };
    let one = bits(1);
    assert!([2, 3].into_iter().all(|threads| bits(threads) == one));
}

#[test]
fn training_in_bf16_keeps_an_f32_original_that_the_rounded_tensor_follows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in ["odd-llama", "odd-gemma2", "tiny-youtu"] {
        let source = ModelSource::Directory(folder.join(name));
        let narrow = Compute {
            dtype: ComputeDtype::Bf16,
            trained: true,
            ..Compute::default()
        };
        let train = |on_kernels: bool, compute: &Compute| {
            COMPOSED.set(!on_kernels);
            let model = Decoder::load_on(&source, compute).unwrap();
            let rows = rows(model.architecture().vocab_size);
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let mut optimizer = AdamW::new(&model, AdamWOptions::default()).unwrap();
            let mut losses = Vec::new();
            for _ in 0..5 {
                let mut gradients = Gradients::new(model.parameters().len());
                let mut sum = 0.0;
                let how = Backward::default();
                model
                    .accumulate_gradients(&rows, &mut gradients, &how, &mut |outputs, weights| {
                        sum -= outputs.log_probs.iter().sum::<f32>();
                        weights.fill(1.0);
                        Ok(())
                    })
                    .unwrap();
                losses.push(sum / 120.0);
                optimizer.step(&model, &mut gradients, 120.0, 1e-3).unwrap();
            }
            COMPOSED.set(false);
            for parameter in model.parameters() {
                let value = parameter.to_vec().unwrap();
                let computed = ops::to_host(&parameter.tensor).unwrap();
                let is_matrix = parameter.shape().len() > 1 && compute.dtype == ComputeDtype::Bf16;
                assert_eq!(parameter.master.is_some(), is_matrix);
                for (value, computed) in value.iter().zip(computed) {
                    let rounded = half::bf16::from_f32(*value).to_f32();
                    assert_eq!(if is_matrix { rounded } else { *value }, computed);
                }
            }
            losses
        };
        let exact = train(true, &Compute::default());
        for on_kernels in [true, false] {
            let losses = train(on_kernels, &narrow);
            assert!(losses[4] < losses[0], "{name}: {losses:?}");
            for (loss, exact) in losses.iter().zip(&exact) {
                assert!(
                    (loss - exact).abs() < 0.02 * exact,
                    "{name}: {losses:?} {exact:?}"
                );
            }
        }
    }
}
