//! What the offline form must keep: at step 1, with the base as the learner, static and dynamic
//! weights are the same numbers.

use serde_json::Value;

use crate::harness::{ANNEAL, SCORE, Workspace};

/// Metrics of the first of two steps. The second step differs, since the learner has moved.
fn steps(workspace: &Workspace, weighting: &str, more: &str) -> Vec<Value> {
    workspace
        .command(ANNEAL)
        .args("--weights set --steps 2 --batch-tokens 800 --lr 1e-3 --weighting")
        .arg(weighting)
        .arg("-o")
        .arg(weighting)
        .args(more)
        .ok();
    let text = workspace.read(&format!("{weighting}/metrics.jsonl"));
    workspace.remove(weighting);
    std::str::from_utf8(&text)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn bits(step: &Value, key: &str) -> u64 {
    step[key].as_f64().unwrap().to_bits()
}

fn exact_set() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 40);
    workspace
        .command(SCORE)
        .models("tiny-llama", "tiny-llama-base")
        .args("corpus -o set --exact --batch-tokens 512")
        .ok();
    workspace
}

#[test]
fn static_weights_are_what_dynamic_ones_begin_with_bit_for_bit() {
    let workspace = exact_set();
    for more in ["", "--micro-batch-tokens 100", "--seed 3"] {
        let dynamic = steps(&workspace, "dynamic", more);
        let fixed = steps(&workspace, "static", more);
        for key in [
            "loss",
            "ntp_loss",
            "weight_mean",
            "weight_at_bounds",
            "grad_norm",
        ] {
            assert_eq!(
                bits(&dynamic[0], key),
                bits(&fixed[0], key),
                "{key} {more}: {} and {}",
                dynamic[0],
                fixed[0]
            );
        }
        // The pair differs, so that the agreement above says something.
        assert!(fixed[0]["weight_at_bounds"].as_f64().unwrap() > 0.1);
        assert_ne!(
            bits(&dynamic[1], "weight_mean"),
            bits(&fixed[1], "weight_mean")
        );
    }
}

#[test]
fn uniform_weights_give_the_plain_loss_exactly() {
    let workspace = exact_set();
    for step in steps(&workspace, "uniform", "") {
        assert_eq!(bits(&step, "loss"), bits(&step, "ntp_loss"));
        assert_eq!(bits(&step, "weight_mean"), 1.0_f64.to_bits());
        assert_eq!(bits(&step, "weight_at_bounds"), 0.0_f64.to_bits());
    }
}

#[test]
fn the_plain_loss_of_step_one_does_not_depend_on_the_weighting() {
    let workspace = exact_set();
    let plain = ["dynamic", "static", "uniform"]
        .map(|weighting| bits(&steps(&workspace, weighting, "")[0], "ntp_loss"));
    assert_eq!(plain[0], plain[1]);
    assert_eq!(plain[0], plain[2]);
}
