//! A run that is killed at any moment and started again ends with the bytes of an undisturbed one.

use std::fs;
use std::io::Read;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use crate::harness::{ANNEAL, Run, SCORE, Snapshot, Workspace, assert_same, visit};

const DEADLINE: Duration = Duration::from_secs(60);

/// About 5,000 tokens in some 20 parts.
fn corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 100);
    workspace
}

fn score<'a>(workspace: &'a Workspace, output: &str) -> Run<'a> {
    workspace
        .command(SCORE)
        .args("corpus --part-bytes 800 --batch-tokens 256 --threads 1 -o")
        .arg(output)
}

fn undisturbed(workspace: &Workspace) -> Snapshot {
    score(workspace, "undisturbed").ok();
    workspace.snapshot("undisturbed")
}

fn num_shards(workspace: &Workspace, output: &str) -> usize {
    let mut shards = 0;
    visit(&workspace.path(output), &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        shards += usize::from(name.starts_with("part-"));
    });
    shards
}

/// Waits until this many shards are there; false when the process ended before.
fn wait_for_shards(workspace: &Workspace, output: &str, child: &mut Child, count: usize) -> bool {
    let started = Instant::now();
    while num_shards(workspace, output) < count {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(started.elapsed() < DEADLINE, "no shard {count} in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Completes a run that was disturbed, and compares.
fn finish(workspace: &Workspace, output: &str, expected: &Snapshot, what: &str) {
    score(workspace, output).ok();
    let set = workspace.snapshot(output);
    let hidden = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b".")
    };
    assert_eq!(set.keys().find(hidden), None, "{what}: left behind");
    assert_same(expected, &set, what);
    workspace.remove(output);
}

#[test]
fn a_run_killed_after_any_number_of_shards_resumes_to_the_same_bytes() {
    let workspace = corpus();
    let expected = undisturbed(&workspace);
    let total = num_shards(&workspace, "undisturbed");
    assert!(total >= 12, "{total} shards");
    for count in [1, 2, total / 2, total - 1, total] {
        let mut child = score(&workspace, "killed").spawn();
        let seen = wait_for_shards(&workspace, "killed", &mut child, count);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen || count == total, "it ended before shard {count}");
        // Only what is missing is computed.
        let kept = mtimes(&workspace, "killed");
        let kept: Vec<_> = kept
            .into_iter()
            .filter(|(name, _)| name.starts_with("part-"))
            .collect();
        assert!(kept.len() >= count);
        let ended = score(&workspace, "killed").ok();
        if kept.len() < total {
            let claim = format!("scored {} of {total} parts", total - kept.len());
            ended.check(ended.stdout.contains(&claim), &claim);
        }
        let now = mtimes(&workspace, "killed");
        for shard in &kept {
            assert!(now.contains(shard), "{} was computed again", shard.0);
        }
        finish(
            &workspace,
            "killed",
            &expected,
            &format!("killed at {count}"),
        );
    }
}

#[test]
fn a_run_killed_at_odd_moments_and_more_than_once_resumes_to_the_same_bytes() {
    let workspace = corpus();
    let started = Instant::now();
    let expected = undisturbed(&workspace);
    let whole = started.elapsed();
    // A fixed sequence of moments: the high bits of a linear congruential generator.
    let mut state = 20_251_123_u64;
    for attempt in 0..8 {
        let kills = 1 + attempt % 3;
        for _ in 0..kills {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let share = (state >> 40) as f64 / (1_u64 << 24) as f64;
            let mut child = score(&workspace, "killed").spawn();
            std::thread::sleep(whole.mul_f64(share));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        finish(
            &workspace,
            "killed",
            &expected,
            &format!("attempt {attempt}"),
        );
    }
}

fn mtimes(workspace: &Workspace, dir: &str) -> Vec<(String, SystemTime)> {
    let mut times = Vec::new();
    visit(&workspace.path(dir), &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        times.push((name, fs::metadata(path).unwrap().modified().unwrap()));
    });
    times
}

#[test]
fn a_run_over_a_finished_set_changes_nothing_and_says_so() {
    let workspace = corpus();
    let expected = undisturbed(&workspace);
    let before = mtimes(&workspace, "undisturbed");
    let ended = score(&workspace, "undisturbed").ok();
    ended.check(
        ended
            .stdout
            .starts_with("nothing to score: all parts of this worker are there already\n"),
        "it says that there is nothing to do",
    );
    assert_same(&expected, &workspace.snapshot("undisturbed"), "run again");
    assert_eq!(before, mtimes(&workspace, "undisturbed"));
}

#[test]
fn of_a_set_that_lost_a_shard_only_that_one_is_computed_again() {
    let workspace = corpus();
    let expected = undisturbed(&workspace);
    let before = mtimes(&workspace, "undisturbed");
    workspace.remove("undisturbed/part-000003.parquet");
    workspace.remove("undisturbed/_remit/manifest.parquet");
    let ended = score(&workspace, "undisturbed").ok();
    let total = num_shards(&workspace, "undisturbed");
    let claim = format!("scored 1 of {total} parts");
    ended.check(ended.stdout.starts_with(&claim), &claim);
    for (old, new) in before.iter().zip(mtimes(&workspace, "undisturbed")) {
        assert_eq!(old.0, new.0);
        let made_again = ["part-000003.parquet", "manifest.parquet"].contains(&&*old.0);
        assert_eq!(old.1 != new.1, made_again, "{}", old.0);
    }
    assert_same(
        &expected,
        &workspace.snapshot("undisturbed"),
        "one shard again",
    );
}

#[test]
fn a_terminated_run_exits_75_with_a_hint_and_resumes_to_the_same_bytes() {
    let workspace = corpus();
    let expected = undisturbed(&workspace);
    for (signal, count) in [("-TERM", 1), ("-INT", 4)] {
        let mut child = score(&workspace, "stopped").spawn();
        assert!(wait_for_shards(&workspace, "stopped", &mut child, count));
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(status.code(), Some(75), "{signal}: {stderr}");
        assert!(
            stderr.ends_with(
                "error: interrupted\n\
                 hint: run the same command again; finished parts are kept, and it does the rest\n"
            ),
            "{signal}: {stderr}"
        );
        assert!(!workspace.has_manifest("stopped"));
        finish(&workspace, "stopped", &expected, signal);
    }
}

#[test]
fn a_stopped_annealing_publishes_no_model_and_run_again_gives_the_undisturbed_one() {
    let workspace = corpus();
    score(&workspace, "set").ok();
    let anneal = |output: &str| {
        workspace
            .command(ANNEAL)
            .args("--weights set --batch-tokens 256 --threads 1 --lr 1e-3 -o")
            .arg(output)
    };
    anneal("undisturbed").ok();
    for signal in ["-TERM", "-KILL"] {
        let mut child = anneal("stopped").spawn();
        let started = Instant::now();
        let log = workspace.path("stopped/metrics.jsonl");
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 3 {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before step 3");
            assert!(started.elapsed() < DEADLINE, "no step 3 in a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let status = child.wait().unwrap();
        let expected = (signal == "-TERM").then_some(75);
        assert_eq!(status.code(), expected, "{signal}");
        for file in ["config.json", "model.safetensors", "remit.json"] {
            let path = workspace.path("stopped").join(file);
            assert!(!path.exists(), "{signal}: {file} was published");
        }
        anneal("stopped").ok();
        assert_eq!(
            workspace.metrics("undisturbed"),
            workspace.metrics("stopped")
        );
        let mut left = workspace.snapshot("undisturbed");
        let mut right = workspace.snapshot("stopped");
        for snapshot in [&mut left, &mut right] {
            // Steps say how fast they were, and were compared above; others say when, or where.
            for name in ["metrics.jsonl", "run.json", "README.md"] {
                snapshot.remove(name.as_ref() as &std::path::Path);
            }
            snapshot.retain(|name, _| {
                !name.starts_with("tensorboard") && !name.starts_with("checkpoints")
            });
        }
        assert_same(&left, &right, signal);
        workspace.remove("stopped");
    }
}
