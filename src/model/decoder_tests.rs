//! Whole models on every backend: every model of fixtures/models, forward and backward.

use std::path::{Path, PathBuf};

use candle_core::Device;

#[cfg(feature = "cuda-emulator")]
use super::kernels::Cuda;
use super::kernels::tensor::to_host;
use super::kernels::{Cpu, Kernels, Portable};
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

/// f32 on a backend.
fn on(kernels: impl Kernels + 'static) -> Compute {
    Compute {
        device: ComputeDevice::with_kernels(kernels),
        ..Compute::default()
    }
}

fn portable() -> Portable {
    Portable {
        device: Device::Cpu,
    }
}

/// Backends to compare with the portable one.
fn backends() -> Vec<(&'static str, Compute)> {
    vec![
        ("cpu", on(Cpu::default())),
        #[cfg(feature = "cuda-emulator")]
        ("cuda-emulated", on(Cuda::emulated())),
    ]
}

fn load_on(path: &Path, compute: &Compute) -> Decoder {
    Decoder::load_on(&ModelSource::Directory(path.to_owned()), compute).unwrap()
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
fn every_backend_agrees_with_the_portable_one() {
    for path in models() {
        let expected = load_on(&path, &on(portable()));
        let rows = rows(expected.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let how = Backward {
            z_loss: Some(1e-3),
            ..Backward::default()
        };
        let (expected_log_probs, expected_gradients) = run(&expected, &rows, &how);
        let expected_scores = expected.target_log_probs(&rows).unwrap().concat();
        for (backend, compute) in backends() {
            let what = format!("{backend}: {}", path.display());
            let model = load_on(&path, &compute);
            let (log_probs, gradients) = run(&model, &rows, &how);
            let scores = model.target_log_probs(&rows).unwrap().concat();
            for (found, expected) in [
                (&log_probs, &expected_log_probs),
                (&scores, &expected_scores),
                (&log_probs, &expected_scores),
            ] {
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{what}: {found} {expected}"
                    );
                }
            }
            let total = norm(gradients.iter().flatten().copied());
            for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
                let difference = norm(found.iter().zip(expected).map(|(a, b)| a - b));
                let relative = difference / norm(found.iter().copied()).max(1e-3 * total);
                let name = &model.parameters()[i].name;
                assert!(relative < 1e-4, "{what} {name}: {relative}");
            }
        }
    }
}

#[test]
fn steps_of_the_optimizer_agree_with_the_portable_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/odd-phi3");
    let train = |compute: &Compute| {
        let mut model = load_on(&path, compute);
        let rows = rows(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let mut optimizer = AdamW::new(model.parameters(), AdamWOptions::default()).unwrap();
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
                optimizer
                    .step(model.parameters_mut(), &mut gradients, 120.0, 1e-2)
                    .unwrap()
            })
            .collect();
        let parameters: Vec<Vec<f32>> = model
            .parameters()
            .iter()
            .map(|parameter| parameter.to_vec().unwrap())
            .collect();
        (norms, parameters)
    };
    let (expected_norms, expected_parameters) = train(&on(portable()));
    for (backend, compute) in backends() {
        let (norms, parameters) = train(&compute);
        for (found, expected) in norms.iter().zip(&expected_norms) {
            assert!(
                (found - expected).abs() < 1e-4 * found,
                "{backend}: {found} {expected}"
            );
        }
        for (found, expected) in parameters.iter().zip(&expected_parameters) {
            let difference = norm(found.iter().zip(expected).map(|(a, b)| a - b));
            assert!(difference < 1e-3 * norm(found.iter().copied()), "{backend}");
        }
    }
}

/// Log-probs of all rows, one after the other, and their bits.
fn scores(model: &Decoder, rows: &[Vec<u32>]) -> (Vec<f32>, Vec<u32>) {
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let scores = model.target_log_probs(&rows).unwrap().concat();
    let bits = scores.iter().map(|v| v.to_bits()).collect();
    (scores, bits)
}

/// Checkpoints that are stored in bf16.
const STORED_IN_BF16: [&str; 4] = ["tiny-gemma3", "tiny-olmo2", "tiny-phi3", "tiny-youtu"];

#[test]
fn a_learner_with_matrices_in_bf16_gives_the_bits_of_f32_when_they_were_stored_in_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in STORED_IN_BF16 {
        let wide = load(&folder.join(name));
        let narrow = Compute {
            dtype: ComputeDtype::Bf16,
            trained: true,
            ..Compute::default()
        };
        let narrow = load_on(&folder.join(name), &narrow);
        let rows = rows(wide.architecture().vocab_size);
        assert_eq!(scores(&narrow, &rows).1, scores(&wide, &rows).1, "{name}");
    }
}

#[test]
fn activations_in_bf16_are_off_by_what_was_rounded_and_a_row_depends_on_itself_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in STORED_IN_BF16 {
        let wide = load(&folder.join(name));
        let rows = rows(wide.architecture().vocab_size);
        let (exact, _) = scores(&wide, &rows);
        let mean = |compute: &Compute| {
            let model = load_on(&folder.join(name), compute);
            let (together, bits) = scores(&model, &rows);
            let alone: Vec<u32> = rows
                .iter()
                .rev()
                .map(|row| scores(&model, std::slice::from_ref(row)).1)
                .rev()
                .flatten()
                .collect();
            assert!(
                alone == bits || compute.device.kind() != Cpu::NAME,
                "{name} {}",
                compute.dtype
            );
            let differences = together.iter().zip(&exact).map(|(a, b)| a - b);
            norm(differences) / (exact.len() as f64).sqrt()
        };
        let of = |dtype, compute: Compute| mean(&Compute { dtype, ..compute });
        let split = of(ComputeDtype::Bf16Split, Compute::default());
        let rounded = of(ComputeDtype::Bf16, Compute::default());
        // The portable operations run in bf16 throughout.
        let throughout = of(ComputeDtype::Bf16, on(portable()));
        assert!(split < 5e-5, "{name}: {split}");
        assert!(
            rounded > 1e-4 && rounded < throughout,
            "{name}: {rounded} {throughout}"
        );
        assert!(throughout < 0.3, "{name}: {throughout}");
    }
}

#[test]
fn a_model_whose_weights_stay_on_disk_gives_the_same_bits_in_every_family_and_dtype() {
    for path in models() {
        let source = ModelSource::Directory(path.clone());
        let open = OpenModel::open(&source).unwrap();
        for dtype in [
            ComputeDtype::F32,
            ComputeDtype::Bf16,
            ComputeDtype::Bf16Split,
        ] {
            let compute = Compute {
                dtype,
                ..Compute::default()
            };
            let resident = Decoder::from_open(&open, &compute).unwrap();
            let streamed = StreamedDecoder::from_open(&open, &compute);
            let rows = rows(resident.architecture().vocab_size);
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let bits = |all: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
                let bits = |row: Vec<f32>| row.iter().map(|v| v.to_bits()).collect();
                all.into_iter().map(bits).collect()
            };
            let wanted = bits(resident.target_log_probs(&rows).unwrap());
            let found = bits(streamed.target_log_probs(&rows).unwrap());
            assert_eq!(found, wanted, "{} in {dtype}", path.display());
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_found_when_its_block_is_read() {
    let path = models().pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in fs::list(&path).unwrap() {
        let mut bytes = fs::read(&path.join(&name)).unwrap();
        if name == "model.safetensors" {
            // All elements of the last tensors of the file.
            let end = bytes.len();
            bytes[end - 4096..].fill(0xff);
        }
        fs::write_atomic(&folder.path().join(&name), &bytes).unwrap();
    }
    let open = OpenModel::open(&ModelSource::Directory(folder.path().to_owned())).unwrap();
    let streamed = StreamedDecoder::from_open(&open, &Compute::default());
    let error = streamed.target_log_probs(&[&[1, 2, 3]]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn bf16_throughout_is_nearer_to_f32_than_the_portable_operations_are() {
    let (mut all_found, mut all_portable) = (0.0, 0.0);
    for path in models() {
        let source = ModelSource::Directory(path.clone());
        let narrow = |compute: Compute| {
            let compute = Compute {
                dtype: ComputeDtype::Bf16,
                ..compute
            };
            Decoder::load_on(&source, &compute).unwrap()
        };
        // A learner's matrices are rounded, nothing else is.
        let exact = narrow(Compute {
            trained: true,
            ..Compute::default()
        });
        let rows = rows(exact.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let exact = exact.target_log_probs(&rows).unwrap().concat();
        let off = |model: Decoder| {
            let found = model.target_log_probs(&rows).unwrap().concat();
            let size = norm(found.iter().zip(&exact).map(|(a, b)| a - b));
            (size / (exact.len() as f64).sqrt(), found)
        };
        let (found, log_probs) = off(narrow(on(Cuda::emulated())));
        let (portable, _) = off(narrow(on(portable())));
        assert!(log_probs.iter().all(|log_prob| *log_prob <= 0.0));
        let what = path.display();
        // Rounding falls out one way or the other for a single model.
        assert!(found < 1.5 * portable, "{what}: {found} {portable}");
        all_found += found;
        all_portable += portable;
    }
    assert!(all_found < all_portable, "{all_found} {all_portable}");
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn a_batch_fits_into_the_memory_that_was_estimated_for_it_and_not_into_a_quarter() {
    for path in models() {
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let score = |free_bytes: u64| {
                let compute = Compute {
                    dtype,
                    ..on(Cuda::emulated_with(Some(free_bytes)))
                };
                let model = load_on(&path, &compute);
                let rows = rows(model.architecture().vocab_size);
                let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
                model.target_log_probs(&rows).map(drop)
            };
            let open = OpenModel::open(&ModelSource::Directory(path.clone())).unwrap();
            let needs = open.architecture().gpu_scoring_memory(dtype);
            let what = format!("{} in {dtype}", path.display());
            // Of 123 tokens, which take the memory of 256.
            let bytes = needs.batch_bytes(123);
            assert_eq!(needs.tokens_within(bytes), 256, "{what}");
            // The logits of so few tokens take a quarter of the tile.
            let bytes = bytes - needs.fixed_bytes * 3 / 4;
            score(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
            let Err(error) = score(bytes / 4) else {
                panic!("{what} fits into a quarter of the estimate")
            };
            assert!(error.is_out_of_memory(), "{what}: {error}");
        }
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn a_row_has_the_same_bits_on_an_emulated_gpu_alone_and_in_every_batch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let dtypes = [ComputeDtype::F32, ComputeDtype::Bf16];
    let names = [
        "tiny-olmo2",
        "odd-gemma3",
        "odd-youtu",
        "odd-qwen2",
        "tiny-phi3",
    ];
    for (name, dtype) in names
        .into_iter()
        .flat_map(|name| dtypes.map(|dtype| (name, dtype)))
    {
        let compute = Compute {
            dtype,
            ..on(Cuda::emulated())
        };
        let model = load_on(&folder.join(name), &compute);
        let vocab_size = model.architecture().vocab_size;
        let id = |i: usize| u32::try_from((i * 7919 + i * i * 31) % vocab_size).unwrap();
        let rows: Vec<Vec<u32>> = (0..64)
            .map(|row| (0..2 + row * 37 % 23).map(|i| id(row * 100 + i)).collect())
            .collect();
        let mut order: Vec<usize> = (0..64).collect();
        let bits = |order: &[usize], batch: usize| -> Vec<(usize, Vec<u32>)> {
            let mut all = Vec::new();
            for batch in order.chunks(batch) {
                let rows: Vec<&[u32]> = batch.iter().map(|&row| rows[row].as_slice()).collect();
                let log_probs = model.target_log_probs(&rows).unwrap();
                all.extend(
                    batch.iter().copied().zip(
                        log_probs
                            .into_iter()
                            .map(|row| row.into_iter().map(f32::to_bits).collect::<Vec<_>>()),
                    ),
                );
            }
            all.sort();
            all
        };
        let together = bits(&order, 64);
        assert!(together == bits(&order, 1), "{name} {dtype}: alone");
        order.sort_by_key(|row| row * 29 % 64);
        for batch in [64, 17, 5] {
            assert!(
                together == bits(&order, batch),
                "{name} {dtype}: {batch} at a time"
            );
        }
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

/// Rows whose chunks end after these numbers of rows.
fn rows_of_chunks(vocab_size: usize) -> (Vec<Vec<u32>>, Vec<usize>) {
    let id = |i: usize| u32::try_from((i * 7919 + i * i * 31) % vocab_size).unwrap();
    let lengths = [400, 600, 9, 16, 500, 260, 260, 1200, 2, 3];
    let rows: Vec<Vec<u32>> = lengths.map(|len| (0..len).map(id).collect()).to_vec();
    let layout = RowLayout::new(lengths);
    let ends: Vec<usize> = layout.grad_chunks().map(|chunk| chunk.end).collect();
    assert_eq!(ends, [3, 6, 7, 8, 10]);
    (rows, ends)
}

#[test]
fn gradients_are_the_same_bits_however_a_step_is_cut_between_chunks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    for name in [
        "tiny-qwen3",
        "odd-gemma2",
        "odd-youtu",
        "odd-qwen2",
        "tiny-phi3",
    ] {
        let model = load(&folder.join(name));
        let (rows, ends) = rows_of_chunks(model.architecture().vocab_size);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let how = Backward {
            z_loss: Some(1e-4),
            ..Backward::default()
        };
        let whole = gradient_bits(&model, &rows, &[10], &how);
        for cuts in [ends.clone(), vec![7, 10], vec![3, 8, 10]] {
            let cut = gradient_bits(&model, &rows, &cuts, &how);
            assert!(cut == whole, "{name} cut at {cuts:?}");
        }
        // The comparison can tell: within a chunk the sums are added otherwise.
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
    let (rows, _) = rows_of_chunks(model.architecture().vocab_size);
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
        let narrow = |compute: Compute| Compute {
            dtype: ComputeDtype::Bf16,
            trained: true,
            ..compute
        };
        let train = |compute: &Compute| {
            let mut model = Decoder::load_on(&source, compute).unwrap();
            let rows = rows(model.architecture().vocab_size);
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let mut optimizer = AdamW::new(model.parameters(), AdamWOptions::default()).unwrap();
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
                optimizer
                    .step(model.parameters_mut(), &mut gradients, 120.0, 1e-3)
                    .unwrap();
            }
            for parameter in model.parameters().iter() {
                let value = parameter.to_vec().unwrap();
                let computed = to_host(&parameter.tensor).unwrap();
                let is_matrix = parameter.shape().len() > 1 && compute.dtype == ComputeDtype::Bf16;
                assert_eq!(parameter.master.is_some(), is_matrix);
                for (value, computed) in value.iter().zip(computed) {
                    let rounded = half::bf16::from_f32(*value).to_f32();
                    assert_eq!(if is_matrix { rounded } else { *value }, computed);
                }
            }
            losses
        };
        let exact = train(&Compute::default());
        let portable = ("portable", on(portable()));
        for (_, compute) in backends().into_iter().chain([portable]) {
            let losses = train(&narrow(compute));
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
