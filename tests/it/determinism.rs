//! The same inputs give the same bytes: in whatever batches, on however many threads, by however
//! many workers.

use safetensors::SafeTensors;

use crate::harness::{ANNEAL, Run, SCORE, Workspace, assert_same};

/// Adds the models to a scoring command; the demo pair is what no option gives.
type AddModels = for<'a> fn(Run<'a>) -> Run<'a>;

const MODELS: [(&str, AddModels); 2] = [
    ("demo", |run| run),
    ("tiny-llama", |run| {
        run.models("tiny-llama", "tiny-llama-base")
    }),
];

/// About 2,000 tokens: short documents, and a long one that is split at 256 tokens.
fn corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 30);
    let visit = std::fs::read(crate::harness::fixtures().join("corpus/prose/visit.txt")).unwrap();
    workspace.write("corpus/b.txt", visit);
    workspace
}

#[test]
fn batch_size_and_threads_change_no_byte_of_a_set() {
    let workspace = corpus();
    for (name, models) in MODELS {
        for packing in ["document", "window"] {
            let mut first = None;
            for variant in [
                "--batch-tokens 16384",
                "--batch-tokens 512",
                "--threads 1",
                "--threads 2 --batch-tokens 300",
            ] {
                models(workspace.command(SCORE))
                    .args("corpus -o out --seq-len 256 --part-bytes 3000")
                    .args(variant)
                    .args("--packing")
                    .arg(packing)
                    .ok();
                let set = workspace.snapshot("out");
                workspace.remove("out");
                let first = first.get_or_insert_with(|| set.clone());
                assert_same(first, &set, &format!("{name}, {packing}, {variant}"));
            }
        }
    }
}

#[test]
fn workers_in_any_order_make_the_set_that_one_worker_makes() {
    let workspace = corpus();
    for (name, models) in MODELS {
        let score = |output: &str, more: &str| {
            models(workspace.command(SCORE))
                .args("corpus --seq-len 256 --part-bytes 1000 -o")
                .arg(output)
                .args(more)
                .ok()
        };
        score("alone", "");
        for (output, order) in [("forwards", [0, 1, 1, 2]), ("backwards", [2, 0, 2, 1])] {
            for (i, worker) in order.into_iter().enumerate() {
                let ended = score(output, &format!("--num-workers 3 --worker-index {worker}"));
                let again = order[..i].contains(&worker);
                ended.check(
                    again == ended.stdout.contains("nothing to score"),
                    "a worker computes its parts once",
                );
            }
            score(output, "");
            assert_same(
                &workspace.snapshot("alone"),
                &workspace.snapshot(output),
                &format!("{name}, {output}"),
            );
        }
        workspace.remove("alone");
        workspace.remove("forwards");
        workspace.remove("backwards");
    }
}

#[test]
fn annealing_gives_the_same_numbers_and_the_same_model_on_any_number_of_threads() {
    for (name, models) in MODELS {
        let workspace = corpus();
        models(workspace.command(SCORE))
            .args("corpus -o set --seq-len 256 --part-bytes 3000")
            .ok();
        for (output, threads) in [
            ("a", ""),
            ("b", ""),
            ("c", "--threads 1"),
            ("d", "--threads 2"),
        ] {
            workspace
                .command(ANNEAL)
                .args("--weights set --steps 3 --batch-tokens 700 --lr 1e-3 -o")
                .arg(output)
                .args(threads)
                .ok();
            assert_eq!(workspace.metrics(output).len(), 3);
            let what = format!("{name}, {output} {threads}");
            assert_eq!(workspace.metrics("a"), workspace.metrics(output), "{what}");
            let model = |dir| workspace.read(&format!("{dir}/model.safetensors"));
            assert!(model("a") == model(output), "{what}: other weights");
        }
    }
}

#[test]
fn micro_batches_change_a_step_by_rounding_alone() {
    let workspace = corpus();
    workspace
        .command(SCORE)
        .models("tiny-llama", "tiny-llama-base")
        .args("corpus -o set --seq-len 256")
        .ok();
    for (output, tokens) in [("whole", "4096"), ("split", "300"), ("single", "1")] {
        workspace
            .command(ANNEAL)
            .args("--weights set --steps 3 --batch-tokens 1000 --micro-batch-tokens")
            .arg(tokens)
            .arg("-o")
            .arg(output)
            .ok();
    }
    let whole_metrics = workspace.metrics("whole");
    let whole = workspace.read("whole/model.safetensors");
    let whole = SafeTensors::deserialize(&whole).unwrap();
    for output in ["split", "single"] {
        for (a, b) in whole_metrics.iter().zip(workspace.metrics(output)) {
            for key in ["loss", "ntp_loss", "weight_mean"] {
                let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
                assert!((a - b).abs() < 1e-6, "{output}, {key}: {a} and {b}");
            }
        }
        let other = workspace.read(&format!("{output}/model.safetensors"));
        let other = SafeTensors::deserialize(&other).unwrap();
        for (name, tensor) in whole.iter() {
            let a = floats(tensor.data());
            let b = floats(other.tensor(name).unwrap().data());
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let difference = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            let relative = difference / norm(&mut a.iter().copied());
            assert!(relative < 1e-5, "{output}, {name}: {relative:.1e}");
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    chunks
        .iter()
        .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
        .collect()
}
