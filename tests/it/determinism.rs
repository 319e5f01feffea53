//! The same inputs give the same bytes: in whatever batches, on however many threads, by however
//! many workers.

use remit::shard::layout::Description;
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
        for how in [
            "--packing document",
            "--packing window",
            "--packing document --dtype bf16",
            "--packing document --dtype bf16-split",
        ] {
            let mut first = None;
            for variant in [
                "--batch-tokens 16384",
                "--batch-tokens 512",
                "--stream-weights",
                "--stream-weights --batch-tokens 700",
                "--threads 1",
                "--threads 2 --batch-tokens 300",
            ] {
                models(workspace.command(SCORE))
                    .args("corpus -o out --seq-len 256 --part-bytes 3000")
                    .args(variant)
                    .args(how)
                    .ok();
                let set = workspace.snapshot("out");
                workspace.remove("out");
                let first = first.get_or_insert_with(|| set.clone());
                assert_same(first, &set, &format!("{name}, {how}, {variant}"));
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

/// Plain and compressed files, ids, and lines that can't be read: about 25 parts of 1,000 bytes.
fn awkward_corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 30);
    let text = String::from_utf8(workspace.read("corpus/a.jsonl")).unwrap();
    let bad = text.replacen("\n", "\n{\"text\": 3}\n", 20);
    workspace.write("corpus/b.jsonl", &bad);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, bad.as_bytes()).unwrap();
    workspace.write("corpus/c.jsonl.gz", gzip.finish().unwrap());
    workspace.write(
        "corpus/d.jsonl.zst",
        zstd::encode_all(text.as_bytes(), 1).unwrap(),
    );
    workspace.write(
        "corpus/e.jsonl",
        "{\"input_ids\": [5, 6, 7]}\n{\"input_ids\": [99999]}\n",
    );
    workspace
}

#[test]
fn any_number_of_workers_in_any_order_and_parts_done_twice_make_the_same_set() {
    let workspace = awkward_corpus();
    let score = |output: &str, more: &str| {
        workspace
            .command(SCORE)
            .args("corpus --part-bytes 1000 --threads 1 --on-bad-record skip -o")
            .arg(output)
            .args(more)
    };
    score("alone", "").ok();
    let alone = workspace.snapshot("alone");
    assert!(alone.len() > 20, "{} files", alone.len());
    let rejects = workspace.description("alone", Description::Rejects);
    assert_eq!(rejects.as_array().unwrap().len(), 41);

    // The high bits of a linear congruential generator: a fixed, odd order.
    let mut state = 20_261_124_u64;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for num_workers in [1, 2, 3, 7] {
        let mut order: Vec<usize> = (0..num_workers).chain([below(num_workers)]).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, below(i + 1));
        }
        // All at a time: a number that comes twice does its parts twice, and one of them loses.
        let workers: Vec<_> = order
            .iter()
            .map(|index| {
                let worker = format!("--num-workers {num_workers} --worker-index {index}");
                score("shared", &worker).spawn()
            })
            .collect();
        for worker in workers {
            let ended = worker.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&ended.stderr);
            assert!(
                ended.status.success(),
                "of {num_workers}, {order:?}: {stderr}"
            );
        }
        let what = format!("{num_workers} workers, {order:?}");
        score("shared", "").ok();
        assert_same(&alone, &workspace.snapshot("shared"), &what);

        // Some shards are lost, and the manifest with them; whoever comes first makes them again.
        workspace.remove("shared/_remit/manifest.parquet");
        for _ in 0..5 {
            let name = format!("shared/part-{:06}.parquet", below(20));
            let _ = std::fs::remove_file(workspace.path(&name));
        }
        for index in &order {
            score(
                "shared",
                &format!("--num-workers {num_workers} --worker-index {index}"),
            )
            .ok();
        }
        assert_same(
            &alone,
            &workspace.snapshot("shared"),
            &format!("{what}, again"),
        );
        workspace.remove("shared");
    }
}

#[test]
fn a_worker_that_is_alone_says_which_parts_are_missing_and_how_to_run_them() {
    let workspace = awkward_corpus();
    let ended = workspace
        .command(SCORE)
        .args(
            "corpus --part-bytes 1000 -o out --on-bad-record skip --num-workers 3 --worker-index 1",
        )
        .ok();
    for part in [" 0, ", " 2, ", " 3, "] {
        ended.check(
            ended.stdout.contains(part),
            "the parts of others are listed",
        );
    }
    ended.check(
        ended.stdout.contains("--worker-index"),
        "it says how to run them",
    );
    assert!(!workspace.has_manifest("out"));
}

#[test]
fn a_dry_run_estimates_and_writes_nothing() {
    let workspace = corpus();
    let ended = workspace
        .command(SCORE)
        .args("corpus -o out --seq-len 256 --dry-run --json")
        .ok();
    assert!(!workspace.path("out").exists());
    let estimate: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    workspace
        .command(SCORE)
        .args("corpus -o out --seq-len 256")
        .ok();
    let manifest = workspace.description("out", Description::Manifest);
    // So small a corpus is sampled whole.
    assert_eq!(estimate["tokens"], manifest["totals"]["tokens"]);
    assert_eq!(estimate["rows"], manifest["totals"]["rows"]);
    assert_eq!(estimate["parts"], manifest["plan"]["num_parts"]);
    assert_eq!(estimate["files"], 2);
    assert!(estimate["tokens_per_second"].as_f64().unwrap() > 0.0);
    let shards = workspace.snapshot("out");
    let shards: usize = shards
        .iter()
        .filter(|(name, _)| name.to_string_lossy().starts_with("part-"))
        .map(|(_, bytes)| bytes.len())
        .sum();
    let ratio = estimate["output_bytes"].as_f64().unwrap() / shards as f64;
    assert!(
        (0.7..1.4).contains(&ratio),
        "estimated {ratio} times the shards' bytes"
    );
    // Over a set that is there, it says so, and changes nothing.
    let before = workspace.snapshot("out");
    let again = workspace
        .command(SCORE)
        .args("corpus -o out --seq-len 256 --dry-run --json")
        .ok();
    assert_same(&before, &workspace.snapshot("out"), "dry run");
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["finished_parts"], again["parts"]);
    assert_eq!(again["parts_of_this_worker"], 0);
}

#[test]
fn limits_leave_out_documents_and_are_counted() {
    let workspace = corpus();
    let totals = |output: &str| -> (u64, u64, u64) {
        let manifest = workspace.description(output, Description::Manifest);
        let count = |key: &str| manifest["documents"][key].as_u64().unwrap();
        (count("documents"), count("rows"), count("short_documents"))
    };
    let score = |output: &str, more: &str| {
        workspace
            .command(SCORE)
            .args("corpus/a.jsonl --part-bytes 700 -o")
            .arg(output)
            .args(more)
            .ok();
        totals(output)
    };
    assert_eq!(score("all", ""), (30, 30, 0));
    assert_eq!(score("first", "--limit-docs 7"), (7, 7, 0));
    assert_eq!(score("more-than-all", "--limit-docs 1000"), (30, 30, 0));
    let (documents, rows, short) = score("long", "--min-tokens 55");
    assert_eq!((documents, rows + short), (30, 30));
    assert!(short > 0 && rows > 0, "{short} short, {rows} rows");
}

#[test]
fn annealing_gives_the_same_numbers_and_the_same_model_on_any_number_of_threads() {
    for (name, models) in MODELS {
        let workspace = corpus();
        models(workspace.command(SCORE))
            .args("corpus -o set --seq-len 256 --part-bytes 3000")
            .ok();
        for dtype in ["f32", "bf16"] {
            let first = format!("{dtype}-a");
            for (output, threads) in [
                ("a", ""),
                ("b", ""),
                ("c", "--threads 1"),
                ("d", "--threads 2"),
            ] {
                let output = format!("{dtype}-{output}");
                workspace
                    .command(ANNEAL)
                    .args("--weights set --steps 3 --batch-tokens 700 --lr 1e-3 --dtype")
                    .arg(dtype)
                    .args(threads)
                    .arg("-o")
                    .arg(&output)
                    .ok();
                assert_eq!(workspace.metrics(&output).len(), 3);
                let what = format!("{name}, {output} {threads}");
                let metrics = [&first, &output].map(|dir| workspace.metrics(dir));
                assert_eq!(metrics[0], metrics[1], "{what}");
                let model = |dir: &str| workspace.read(&format!("{dir}/model.safetensors"));
                assert!(model(&first) == model(&output), "{what}: other weights");
            }
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
