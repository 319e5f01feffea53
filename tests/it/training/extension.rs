//! Runs that go on from another run's newest checkpoint.

use serde_json::Value;

use super::{anneal, result, scored};
use crate::harness::ANNEAL;

#[test]
fn with_a_constant_rate_more_steps_are_bit_for_bit_those_of_a_longer_run() {
    let workspace = scored();
    let constant = "--schedule constant --holdout 0.1";
    anneal(&workspace, "whole", constant).ok();
    anneal(&workspace, "begun", &format!("{constant} --steps 12")).ok();
    let extend = |output: &str| {
        workspace
            .command(ANNEAL)
            .args("--weights set --lr 1e-3 --batch-tokens 1500 --save-every 3 --resume-from begun --extend-steps 8 -o")
            .arg(output)
            .args(constant)
    };
    let ended = extend("longer").ok();
    ended.check(
        ended.stdout.contains("resumed after step 12; "),
        "where it goes on",
    );
    let (metrics, weights) = result(&workspace, "whole");
    let (more, longer) = result(&workspace, "longer");
    assert_eq!(more, metrics[12..]);
    assert!(longer == weights);

    let run: Value = serde_json::from_slice(&workspace.read("longer/run.json")).unwrap();
    assert_eq!(run["settings"]["extends"]["after_step"], 12);
    assert_eq!(run["settings"]["schedule"]["first_step"], 12);
    assert_eq!(run["extends"]["run"], "begun");
    assert_eq!(
        run["extends"]["changed"],
        serde_json::json!(["the number of steps: it was 12, now it is 20"])
    );
    let sum = String::from_utf8(workspace.read("begun/checkpoints/step-00000012.safetensors.b3"));
    let digest = run["settings"]["extends"]["checkpoint_blake3"]
        .as_str()
        .unwrap();
    assert!(sum.unwrap().starts_with(digest));
    let provenance: Value = serde_json::from_slice(&workspace.read("longer/remit.json")).unwrap();
    assert_eq!(provenance["extends"]["after_step"], 12);

    // It is finished, and resumes by itself when it is not.
    let ended = extend("longer").ok();
    ended.check(
        ended.stdout.contains("was finished already"),
        "the same command again",
    );
    for name in [
        "config.json",
        "model.safetensors",
        "checkpoints/step-00000020.safetensors.b3",
    ] {
        workspace.remove(&format!("longer/{name}"));
    }
    let ended = extend("longer").ok();
    ended.check(
        ended.stderr.contains("resuming after step 18"),
        "from its own checkpoint",
    );
    assert!(result(&workspace, "longer") == (more, weights));
}

#[test]
fn another_schedule_begins_anew_after_the_steps_of_the_run() {
    let workspace = scored();
    anneal(&workspace, "begun", "--steps 5").ok();
    let before = workspace.snapshot("begun");
    let ended = anneal(
        &workspace,
        "other",
        "--steps 5 --resume-from begun --extend-steps 4",
    )
    .run();
    ended.check(ended.status.code() == Some(2), "two lengths");
    let extend = |more: &str| {
        workspace
            .command(ANNEAL)
            .args("--weights set -o longer --batch-tokens 700 --resume-from begun --extend-steps 4")
            .args(more)
    };
    extend("--schedule linear --warmup-steps 1 --lr 4e-4").ok();
    let rates: Vec<(u64, f64)> = workspace
        .metrics("longer")
        .iter()
        .map(|step| (step["step"].as_u64().unwrap(), step["lr"].as_f64().unwrap()))
        .collect();
    assert_eq!(
        rates.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [6, 7, 8, 9]
    );
    for ((_, found), wanted) in rates.iter().zip([4e-4, 4e-4, 4e-4 * 2.0 / 3.0, 4e-4 / 3.0]) {
        assert!((found - wanted).abs() < 1e-12, "{rates:?}");
    }
    let run: Value = serde_json::from_slice(&workspace.read("longer/run.json")).unwrap();
    let changed: Vec<&str> = run["extends"]["changed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    assert!(
        changed.contains(&"--batch-tokens: it was 1500, now it is 700"),
        "{changed:?}"
    );
    assert!(
        workspace.snapshot("begun") == before,
        "the run itself is not touched"
    );

    let ended = extend("--seed 3").run();
    ended.check(
        ended.status.code() == Some(2),
        "other settings in the folder, or another order",
    );
    workspace.remove("longer");
    let ended = extend("--seed 3").run();
    ended.check(
        ended.stderr.contains("can't be gone on with, since its rows or its initial model are others:\n  --seed: it was 0, now it is 3\n"),
        "another order",
    );
    let ended = workspace
        .command(ANNEAL)
        .args("--weights set -o begun --resume-from begun --extend-steps 4")
        .run();
    ended.check(
        ended
            .stderr
            .contains("--resume-from begun is the output folder itself"),
        "in place",
    );
    let ended = anneal(&workspace, "begun", "--steps 9").run();
    ended.check(
        ended
            .stderr
            .contains("--resume-from begun --extend-steps N"),
        "the way is shown",
    );
}
