//! Log-probs and gradients against transformers and PyTorch: fixtures/golden, made by
//! scripts/goldens/make.py, whose `--check` compares them with a live transformers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use remit::loss::{Normalize, Objective, Weighting};
use remit::model::{
    Backward, Compute, ComputeDevice, ComputeDtype, Decoder, DeviceChoice, Gradients, ModelSource,
    supported_model_types,
};
use remit::types::ScoredRow;
use remit::weight::{Center, WeightFormula};
use safetensors::SafeTensors;
use serde::Deserialize;

const LOG_PROB_TOLERANCE_NATS: f64 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Fraction of the targets that excess-top-k selects in the golden values.
const TOP_K_FRACTION: f64 = 0.6;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Every model with golden values whose file name ends in `ending`, in byte order.
fn models_with(ending: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures().join("golden"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some(name.strip_suffix(ending)?.to_owned())
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_family_has_two_models_with_golden_log_probs_and_gradients() {
    for ending in [".logprobs.json", ".grads.safetensors"] {
        let types: Vec<String> = models_with(ending)
            .iter()
            .map(|name| model(name).architecture().model_type.clone())
            .collect();
        for family in supported_model_types() {
            let count = types.iter().filter(|found| *found == family).count();
            assert!(count >= 2, "{family} has {count} models with {ending}");
        }
    }
}

fn model(name: &str) -> Decoder {
    model_on(name, DeviceChoice::Cpu)
}

fn model_on(name: &str, device: DeviceChoice) -> Decoder {
    model_in(name, device, ComputeDtype::F32)
}

fn model_in(name: &str, device: DeviceChoice, dtype: ComputeDtype) -> Decoder {
    let source = ModelSource::Directory(fixtures().join("models").join(name));
    let compute = Compute {
        device: ComputeDevice::open(device).unwrap().0,
        dtype,
        ..Compute::default()
    };
    Decoder::load_on(&source, &compute).unwrap()
}

/// Every model with golden values whose file name ends in `ending`, on every device that there is here.
fn models_and_devices(ending: &str) -> Vec<(String, DeviceChoice)> {
    let devices = [
        DeviceChoice::Cpu,
        #[cfg(feature = "cuda-emulator")]
        DeviceChoice::CudaEmulated(Default::default()),
    ];
    let names = models_with(ending).into_iter();
    names
        .flat_map(|name| devices.map(|device| (name.clone(), device)))
        .collect()
}

fn golden<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    let path = fixtures().join("golden").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

#[derive(Deserialize)]
struct LogProbs {
    rows: Vec<LogProbRow>,
}

#[derive(Deserialize)]
struct LogProbRow {
    input_ids: Vec<u32>,
    logprobs: Vec<f64>,
}

#[test]
fn log_probs_are_within_1e_4_nats_of_transformers() {
    let mut failed = Vec::new();
    for (name, device) in models_and_devices(".logprobs.json") {
        let model = model_on(&name, device);
        let golden: LogProbs = golden(&format!("{name}.logprobs.json"));
        let rows: Vec<&[u32]> = golden
            .rows
            .iter()
            .map(|row| row.input_ids.as_slice())
            .collect();
        let ours = model.target_log_probs(&rows).unwrap();
        let mut worst = 0.0_f64;
        for (row, ours) in golden.rows.iter().zip(&ours) {
            assert_eq!(row.logprobs.len(), ours.len());
            for (want, got) in row.logprobs.iter().zip(ours) {
                worst = worst.max((want - f64::from(*got)).abs());
            }
        }
        eprintln!("{name} on {device}: largest difference {worst:.2e} nats");
        if worst.is_nan() || worst >= LOG_PROB_TOLERANCE_NATS {
            failed.push(format!("{name} on {device}: {worst} nats"));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_rows_log_probs_are_the_same_bits_alone_first_last_and_in_the_middle() {
    let names = models_with(".logprobs.json").into_iter();
    let dtypes = [
        ComputeDtype::F32,
        ComputeDtype::Bf16,
        ComputeDtype::Bf16Split,
    ];
    for (golden_name, dtype) in names.flat_map(|name| dtypes.map(|dtype| (name.clone(), dtype))) {
        let model = model_in(&golden_name, DeviceChoice::Cpu, dtype);
        let golden: LogProbs = golden(&format!("{golden_name}.logprobs.json"));
        let name = format!("{golden_name} in {dtype}");
        let rows: Vec<&[u32]> = golden
            .rows
            .iter()
            .map(|row| row.input_ids.as_slice())
            .collect();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let together = model.target_log_probs(&rows).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let alone = model.target_log_probs(&[row]).unwrap();
            assert_eq!(bits(&alone[0]), bits(&together[i]), "{name}, row {i} alone");
            let mut rotated = rows.clone();
            rotated.rotate_left(i);
            let first = model.target_log_probs(&rotated).unwrap();
            assert_eq!(bits(&first[0]), bits(&together[i]), "{name}, row {i} first");
        }
        // Another content of one row changes no bit of the others.
        let vocab = model.architecture().vocab_size as u32;
        let changed: Vec<u32> = rows[3].iter().map(|id| (id + 7) % vocab).collect();
        let mut perturbed = rows.clone();
        perturbed[3] = &changed;
        let after = model.target_log_probs(&perturbed).unwrap();
        assert_ne!(after[3], together[3]);
        for i in (0..rows.len()).filter(|&i| i != 3) {
            assert_eq!(bits(&after[i]), bits(&together[i]), "{name}, row {i}");
        }
    }
}

#[derive(Deserialize)]
struct GradientGolden {
    loss: BTreeMap<String, f64>,
    ntp_loss: f64,
    rows: Vec<GradientRow>,
}

#[derive(Deserialize)]
struct GradientRow {
    input_ids: Vec<u32>,
    rl_logprobs: Vec<f32>,
    base_logprobs: Vec<f32>,
    static_weights: Vec<f32>,
}

fn gradient_rows(golden: &GradientGolden) -> Vec<ScoredRow> {
    golden
        .rows
        .iter()
        .map(|row| ScoredRow {
            source: "golden".into(),
            doc_index: 0,
            doc_starts: vec![0],
            input_ids: row.input_ids.clone(),
            rl_logprobs: row.rl_logprobs.clone(),
            base_logprobs: Some(row.base_logprobs.clone()),
            weights: Some(row.static_weights.clone()),
            target_mask: None,
            distributions: remit::types::Distributions::default(),
        })
        .collect()
}

/// Sums of one pass over `rows`, split into micro-batches after the given row numbers.
fn pass(
    model: &Decoder,
    rows: &[ScoredRow],
    weighting: Weighting,
    splits: &[usize],
) -> (remit::loss::LossSums, Gradients) {
    let objective = Objective {
        weighting,
        formula: WeightFormula::default(),
        center: Center::Row,
        normalize: Normalize::Targets,
        top_k_fraction: TOP_K_FRACTION,
        distillation: None,
        z_loss: None,
    };
    let mut gradients = Gradients::new(model.parameters().len());
    let mut sums = remit::loss::LossSums::default();
    let mut start = 0;
    for end in splits.iter().copied().chain([rows.len()]) {
        let micro_batch = &rows[start..end];
        start = end;
        let ids: Vec<&[u32]> = micro_batch.iter().map(|row| row.ids()).collect();
        let how = Backward::default();
        model
            .accumulate_gradients(&ids, &mut gradients, &how, &mut |outputs, weights| {
                objective
                    .token_weights(&micro_batch[outputs.row], outputs.log_probs, weights)
                    .unwrap();
                sums.add(
                    outputs.log_probs,
                    outputs.log_normalizers,
                    weights,
                    &objective,
                );
                Ok(())
            })
            .unwrap();
    }
    (sums, gradients)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn gradients_agree_with_pytorch_in_all_weightings() {
    let mut failed = Vec::new();
    for (name, device) in models_and_devices(".grads.json") {
        let model = model_on(&name, device);
        let mut worst = 0.0_f64;
        let golden: GradientGolden = golden(&format!("{name}.grads.json"));
        let rows = gradient_rows(&golden);
        let bytes = fs::read(
            fixtures()
                .join("golden")
                .join(format!("{name}.grads.safetensors")),
        )
        .unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for weighting in Weighting::value_variants().iter().copied() {
            let (sums, mut gradients) = pass(&model, &rows, weighting, &[]);
            // The families that differ in the decoder alone have one weighting.
            let Some(&want) = golden.loss.get(&weighting.to_string()) else {
                assert!(!matches!(weighting, Weighting::Dynamic), "{name}");
                continue;
            };
            assert!(
                (sums.loss(Normalize::Targets) - want).abs() < 1e-5 * want,
                "{name} on {device}, {weighting}: {} {want}",
                sums.loss(Normalize::Targets)
            );
            assert!((sums.ntp_loss() - golden.ntp_loss).abs() < 1e-5 * golden.ntp_loss);
            let total =
                gradients.norm(model.parameters()).unwrap() / sums.normalizer(Normalize::Targets);
            for (i, parameter) in model.parameters().iter().enumerate() {
                let key = format!("{weighting}/{}", parameter.name);
                let want: Vec<f64> = tensors
                    .tensor(&key)
                    .unwrap()
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
                    .collect();
                let got = gradients
                    .get(i)
                    .unwrap()
                    .unwrap_or_else(|| panic!("{key} has no gradient"));
                assert_eq!(got.len(), want.len(), "{key}");
                let scale = 1.0 / sums.normalizer(Normalize::Targets);
                let difference = norm(
                    got.iter()
                        .zip(&want)
                        .map(|(g, w)| f64::from(*g) * scale - w),
                );
                // A key bias without RoPE shifts all scores of a query alike, so its gradient is 0 but
                // for rounding, and has no relative error.
                let relative = difference / norm(want.iter().copied()).max(1e-3 * total);
                worst = worst.max(relative);
                if relative.is_nan() || relative >= GRADIENT_TOLERANCE {
                    failed.push(format!("{name} on {device}, {key}: {relative:.2e}"));
                }
            }
        }
        eprintln!(
            "{name} on {device}: largest relative difference of a tensor's gradient {worst:.2e}"
        );
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn weights_of_one_give_the_plain_loss_exactly() {
    let model = model("tiny-qwen3");
    let golden: GradientGolden = golden("tiny-qwen3.grads.json");
    let rows = gradient_rows(&golden);
    let (sums, _) = pass(&model, &rows, Weighting::Uniform, &[]);
    assert_eq!(
        sums.loss(Normalize::Targets).to_bits(),
        sums.ntp_loss().to_bits()
    );

    // An RL model that agrees with the learner everywhere gives the weight 1 everywhere.
    let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids()).collect();
    let learner = model.target_log_probs(&ids).unwrap();
    let agreeing: Vec<ScoredRow> = rows
        .iter()
        .zip(learner)
        .map(|(row, rl_logprobs)| ScoredRow {
            rl_logprobs,
            ..row.clone()
        })
        .collect();
    let (dynamic, _) = pass(&model, &agreeing, Weighting::Dynamic, &[]);
    assert_eq!(
        dynamic.loss(Normalize::Targets).to_bits(),
        sums.ntp_loss().to_bits()
    );
}

#[test]
fn splitting_a_step_into_micro_batches_leaves_the_loss_and_hardly_moves_the_gradient() {
    let model = model("tiny-llama");
    let golden: GradientGolden = golden("tiny-llama.grads.json");
    let rows = gradient_rows(&golden);
    let (whole, gradients) = pass(&model, &rows, Weighting::Dynamic, &[]);
    for splits in [vec![1], vec![2], vec![1, 2]] {
        let (sums, split_gradients) = pass(&model, &rows, Weighting::Dynamic, &splits);
        assert_eq!(sums, whole, "split at {splits:?}");
        for i in 0..model.parameters().len() {
            let a = gradients.get(i).unwrap().unwrap();
            let b = split_gradients.get(i).unwrap().unwrap();
            let difference = norm(a.iter().zip(&b).map(|(a, b)| f64::from(a - b)));
            let size = norm(a.iter().map(|a| f64::from(*a)));
            assert!(difference < 1e-5 * size, "{}", model.parameters()[i].name);
        }
    }
}

#[test]
fn every_parameter_of_every_model_gets_a_gradient() {
    for name in models_with(".logprobs.json") {
        let model = model(&name);
        let mut gradients = Gradients::new(model.parameters().len());
        let row: Vec<u32> = (5..60).collect();
        let how = Backward::default();
        model
            .accumulate_gradients(&[&row], &mut gradients, &how, &mut |_, weights| {
                weights.fill(1.0);
                Ok(())
            })
            .unwrap();
        for (i, parameter) in model.parameters().iter().enumerate() {
            let gradient = gradients.get(i).unwrap();
            let nonzero = gradient.is_some_and(|g| g.iter().any(|v| *v != 0.0));
            assert!(nonzero, "{name}: {}", parameter.name);
        }
    }
}
