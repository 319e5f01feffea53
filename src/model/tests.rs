//! The composed operations against the kernels: every model of fixtures/models, forward and backward.

use std::path::{Path, PathBuf};

use super::ops::COMPOSED;
use super::*;
use crate::optim::{AdamW, AdamWOptions};

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let names = crate::fs::list(&folder).unwrap().into_iter();
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

fn run(model: &Decoder, rows: &[&[u32]]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut gradients = Gradients::new(model.parameters().len());
    let mut all = Vec::new();
    model
        .accumulate_gradients(rows, &mut gradients, &mut |_, log_probs, weights| {
            all.extend_from_slice(log_probs);
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
        let (log_probs, gradients) = run(&model, &rows);
        let (other_log_probs, other_gradients) = composed(|| run(&model, &rows));
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
                    .accumulate_gradients(&rows, &mut gradients, &mut |_, _, weights| {
                        weights.fill(1.0);
                        Ok(())
                    })
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
