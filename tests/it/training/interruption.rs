//! Training that is interrupted and resumed.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{anneal, result, scored};
use crate::harness::{Run, Workspace, assert_same, visit};

const DEADLINE: Duration = Duration::from_secs(60);

/// Steps of the runs below.
const STEPS: u64 = 20;

/// Waits until the checkpoint of a step is complete, then sends a signal.
fn interrupt(run: Run<'_>, workspace: &Workspace, output: &str, step: u64, signal: &str) -> i32 {
    let mut child = run.spawn();
    let path = workspace.path(&format!(
        "{output}/checkpoints/step-{step:08}.safetensors.b3"
    ));
    let started = Instant::now();
    while !path.exists() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < DEADLINE, "no checkpoint {step}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    let status = child.wait().unwrap();
    assert!(sent.unwrap().success() || status.success());
    assert!(
        !status.success(),
        "the run ended before it could be interrupted"
    );
    status.code().unwrap_or(-1)
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let workspace = scored();
    let options = "--holdout 0.1 --eval-every 3";
    anneal(&workspace, "whole", options).ok();
    let expected = result(&workspace, "whole");
    assert_eq!(expected.0.len() as u64, STEPS);
    for step in [2, 3, 7] {
        interrupt(
            anneal(&workspace, "killed", options),
            &workspace,
            "killed",
            step,
            "-KILL",
        );
    }
    let ended = anneal(&workspace, "killed", options).ok();
    ended.check(
        ended.stdout.contains("resumed after step "),
        "it should say so",
    );
    assert!(result(&workspace, "killed") == expected);
    let evaluations = |output: &str| -> Vec<Value> {
        let text = workspace.read(&format!("{output}/eval.jsonl"));
        let lines = std::str::from_utf8(&text).unwrap().lines();
        lines
            .map(|line| {
                let mut line: Value = serde_json::from_str(line).unwrap();
                line.as_object_mut().unwrap().remove("seconds");
                line
            })
            .collect()
    };
    assert_eq!(evaluations("killed"), evaluations("whole"));
    let steps: Vec<u64> = evaluations("whole")
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 3, 6, 9, 12, 15, 18, 20]);
}

#[test]
fn a_signal_saves_the_last_step_and_exits_with_75() {
    let workspace = scored();
    anneal(&workspace, "whole", "").ok();
    let rare = "--save-every 1000";
    for signal in ["-TERM", "-INT"] {
        // Until the first step is logged there is nothing to save.
        let run = anneal(&workspace, "stopped", rare);
        let mut child = run.spawn();
        let started = Instant::now();
        let path = workspace.path("stopped/metrics.jsonl");
        while fs::metadata(&path).map_or(0, |meta| meta.len()) == 0 {
            assert!(started.elapsed() < DEADLINE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::process::Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        let code = child.wait().unwrap().code();
        if code != Some(0) {
            assert_eq!(code, Some(75));
            let saved = fs::read_dir(workspace.path("stopped/checkpoints"))
                .unwrap()
                .count();
            assert_eq!(saved, 2, "one checkpoint of two files");
        }
        anneal(&workspace, "stopped", rare).ok();
        assert!(result(&workspace, "stopped") == result(&workspace, "whole"));
        workspace.remove("stopped");
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let workspace = scored();
    anneal(&workspace, "whole", "").ok();
    let expected = result(&workspace, "whole");
    let newest = |workspace: &Workspace| -> Vec<String> {
        let mut names = Vec::new();
        visit(&workspace.path("run/checkpoints"), &mut |path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            names.extend(
                name.strip_suffix(".b3")
                    .map(|name| format!("run/checkpoints/{name}")),
            );
        });
        names
    };
    type Damage = fn(&mut Vec<u8>);
    let flip: Damage = |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let cut: Damage = |bytes| bytes.truncate(bytes.len() - 1);
    for (damage, ending) in [(flip, ""), (cut, ""), (flip, ".b3")] {
        interrupt(
            anneal(&workspace, "run", "--keep 3"),
            &workspace,
            "run",
            4,
            "-KILL",
        );
        let names = newest(&workspace);
        assert!(names.len() >= 3, "{names:?}");
        let last = names.last().unwrap();
        workspace.damage(&format!("{last}{ending}"), damage);
        let ended = anneal(&workspace, "run", "--keep 3").ok();
        ended.check(
            ended.stderr.contains("is damaged")
                && ended.stderr.contains("trying the one before it"),
            "it should say what is damaged",
        );
        assert!(result(&workspace, "run") == expected);
        workspace.remove("run");
    }
    interrupt(
        anneal(&workspace, "run", "--keep 3"),
        &workspace,
        "run",
        4,
        "-KILL",
    );
    for name in newest(&workspace) {
        workspace.damage(&name, flip);
    }
    let ended = anneal(&workspace, "run", "").run();
    ended.check(
        ended.status.code() == Some(65)
            && ended
                .stderr
                .contains("no checkpoint in run/checkpoints is intact"),
        "without an intact checkpoint there is nothing to resume from",
    );
}

#[test]
fn lost_logs_are_started_over_or_named() {
    let workspace = scored();
    anneal(&workspace, "whole", "").ok();
    interrupt(anneal(&workspace, "run", ""), &workspace, "run", 3, "-KILL");
    workspace.remove("run/tensorboard");
    let metrics = workspace.read("run/metrics.jsonl");
    workspace.write("run/metrics.jsonl", "");
    let ended = anneal(&workspace, "run", "").run();
    ended.check(
        ended.status.code() == Some(65)
            && ended
                .stderr
                .contains("run/metrics.jsonl has 0 bytes, but had ")
            && ended.stderr.contains("\nhint: put it back"),
        "without its lines the run can't end as it should",
    );
    workspace.write("run/metrics.jsonl", metrics);
    anneal(&workspace, "run", "").ok();
    assert!(result(&workspace, "run") == result(&workspace, "whole"));
}

#[test]
fn what_an_interrupted_export_left_is_gone_from_a_finished_one() {
    let workspace = scored();
    anneal(&workspace, "run", "").ok();
    let whole = workspace.snapshot("run");
    // As if the run had been killed before config.json, and had been begun with other shards.
    workspace.remove("run/config.json");
    workspace.write("run/model-00001-of-00009.safetensors", "old");
    workspace.write("run/vocab.json", "{}");
    anneal(&workspace, "run", "").ok();
    let names = |snapshot: &crate::harness::Snapshot| snapshot.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&workspace.snapshot("run")), names(&whole));
    anneal(&workspace, "sharded", "--max-shard-bytes 200K").ok();
    workspace.remove("sharded/config.json");
    workspace.write("sharded/model.safetensors", "old");
    anneal(&workspace, "sharded", "--max-shard-bytes 200K").ok();
    assert!(!workspace.path("sharded/model.safetensors").exists());
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let workspace = scored();
    for keep in [1, 3] {
        anneal(&workspace, "run", &format!("--keep {keep}")).ok();
        let mut names = Vec::new();
        visit(&workspace.path("run/checkpoints"), &mut |path| {
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        });
        let expected: Vec<String> = (STEPS - keep + 1..=STEPS)
            .flat_map(|step| ["", ".b3"].map(|end| format!("step-{step:08}.safetensors{end}")))
            .collect();
        assert_eq!(names, expected);
        workspace.remove("run");
    }
}

#[test]
fn a_checkpoint_resumes_with_its_own_settings_only() {
    let workspace = scored();
    interrupt(anneal(&workspace, "run", ""), &workspace, "run", 3, "-KILL");
    let before = workspace.snapshot("run/checkpoints");
    for (change, difference) in [
        (
            "--weighting uniform",
            "--weighting: it was dynamic, now it is uniform",
        ),
        ("--seed 1", "--seed: it was 0, now it is 1"),
        ("--clip none", "--clip: it was 1.0, now it is none"),
        ("--z-loss 1e-4", "--z-loss: it was 0.0, now it is 0.0001"),
        ("--epsilon 0.3", "--epsilon: it was 0.2, now it is 0.3"),
        ("--beta2 0.99", "--beta2: it was 0.95, now it is 0.99"),
        ("--holdout 0.2", "--holdout: it was none, now it is 0.2"),
    ] {
        let ended = anneal(&workspace, "run", change).run();
        ended.check(
            ended.status.code() == Some(2)
                && ended.stderr.contains("was started with other settings:\n")
                && ended.stderr.contains(difference),
            difference,
        );
    }
    let ended = anneal(&workspace, "run", "--resume=never").run();
    ended.check(
        ended.status.code() == Some(2)
            && ended
                .stderr
                .contains("run/checkpoints has checkpoints, up to step"),
        "--resume=never starts in folders without checkpoints only",
    );
    assert_same(&before, &workspace.snapshot("run/checkpoints"), "refused");
    // What changes nothing may change.
    anneal(
        &workspace,
        "run",
        "--micro-batch-tokens 1100 --threads 1 --keep 1 --activation-checkpointing --resume",
    )
    .ok();
    anneal(&workspace, "whole", "").ok();
    assert!(result(&workspace, "run") == result(&workspace, "whole"));
}

#[test]
fn a_finished_run_is_recognized_and_another_is_refused() {
    let workspace = scored();
    anneal(&workspace, "run", "").ok();
    let before = workspace.snapshot("run");
    let ended = anneal(&workspace, "run", "").ok();
    ended.check(
        ended.stdout == "run was finished already: 20 steps\n",
        "it should say so",
    );
    let ended = anneal(&workspace, "run", "--seed 5").run();
    ended.check(
        ended.status.code() == Some(2)
            && ended.stderr.contains("run holds a model already, made with other settings:\n  --seed: it was 0, now it is 5"),
        "another run must not write over it",
    );
    assert_same(&before, &workspace.snapshot("run"), "a finished run");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let workspace = scored();
    let mut child = anneal(&workspace, "run", "--steps 100000").spawn();
    let started = Instant::now();
    while !workspace.path("run/run.json").exists() {
        assert!(started.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = anneal(&workspace, "run", "--steps 100000").run();
    child.kill().unwrap();
    child.wait().unwrap();
    ended.check(
        ended.status.code() == Some(74) && ended.stderr.contains("another process writes to it"),
        "the second run should be refused",
    );
}
