//! remit-inspect model: what it says of the models in fixtures/models.

use std::fs;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::{INSPECT, Workspace, fixtures, model};

fn report(args: &[&str]) -> Value {
    let workspace = Workspace::new();
    let mut run = workspace.command(INSPECT).arg("model").arg("--json");
    for arg in args {
        run = run.arg(arg);
    }
    serde_json::from_slice(run.ok().stdout.as_bytes()).unwrap()
}

/// Elements of all tensors but a tied head's second copy, by the headers of the files themselves.
fn elements(name: &str, is_tied: bool) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                if !(is_tied && name == "lm_head.weight") {
                    sum += view.shape().iter().product::<usize>() as u64;
                }
            }
        }
    }
    sum
}

#[test]
fn parameters_are_those_of_the_files() {
    let mut count = 0;
    for entry in fs::read_dir(fixtures().join("models")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let report = report(&[path.to_str().unwrap()]);
        let config: Value =
            serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
        let is_tied = config["tie_word_embeddings"] == true;
        assert_eq!(report["parameters"], elements(name, is_tied), "{name}");
        assert_eq!(report["model_type"], config["model_type"], "{name}");
        count += 1;
    }
    assert!(count > 20);
}

#[test]
fn flops_are_two_a_multiply_add_of_matrices_scores_and_values() {
    // 2 layers, hidden 48, q 48, k and v 24 each, o 48, mlp 3 x 96, vocabulary 1056, untied; 4 heads
    // of 12 features; in a row of 7 tokens a token sees 4 on average.
    let path = model("tiny-llama");
    let report = report(&[path.to_str().unwrap(), "--seq-len", "7"]);
    let matrices = 2 * (48 * (48 + 24 + 24 + 48) + 3 * 48 * 96) + 48 * 1056;
    let attention = 2 * 4 * (12 + 12) * 4;
    let forward = f64::from(2 * (matrices + attention));
    assert_eq!(report["forward_flops_per_token"], forward);
    assert_eq!(report["training_flops_per_token"], 3.0 * forward);
}

#[test]
fn values_are_read_when_asked_for_and_the_first_bad_one_is_named() {
    let workspace = Workspace::new();
    workspace.copy_model("tiny-mistral", "m");
    let ended = workspace
        .command(INSPECT)
        .args("model m --check-values")
        .ok();
    ended.check(ended.stdout.contains("every value is finite"), "it says so");
    workspace.damage("m/model.safetensors", |bytes| {
        let last = bytes.len() - 2;
        // NaN in bf16.
        bytes[last..].copy_from_slice(&[0xc0, 0x7f]);
    });
    let ended = workspace.command(INSPECT).args("model m").ok();
    ended.check(
        ended.stdout.contains("--check-values"),
        "headers alone are fine",
    );
    let ended = workspace
        .command(INSPECT)
        .args("model m --check-values")
        .run();
    ended.check(ended.status.code() == Some(65), "bad data");
    ended.check(ended.stderr.contains("holds NaN at element"), "it is named");
}

#[test]
fn the_table_tells_layers_apart() {
    let workspace = Workspace::new();
    let path = model("tiny-gemma3");
    let ended = workspace.command(INSPECT).arg("model").arg(path).ok();
    ended.check(
        ended
            .stdout
            .contains("window        20 tokens in 0-1, 3; none in 2\n"),
        "windows by layer",
    );
}
