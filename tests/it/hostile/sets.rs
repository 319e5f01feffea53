//! Sets that are damaged, made by others, or taken away.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::measured;
use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace, assert_same, fixtures};

#[test]
fn a_complete_set_with_a_shard_of_another_size_is_not_called_complete() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 20);
    let score = |args: &str| {
        let command = workspace
            .command(SCORE)
            .args("a.jsonl -o set --part-bytes 1000");
        command.args(args).run()
    };
    score("").check(score("").status.success(), "it is scored");
    let shard = "set/part-000000.parquet";
    let intact = workspace.read(shard);
    let ended = score("");
    let sizes = "shards have the sizes that the manifest says; --verify compares their digests too";
    ended.check(ended.stdout.contains(sizes), "it says what was checked");
    let ended = score("--verify");
    let digests = "shards have the digests that the manifest says\n";
    ended.check(ended.stdout.contains(digests), "it says what was checked");
    let ended = score("--json");
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["checked"], "sizes");

    for damaged in [Vec::new(), intact[..intact.len() - 1].to_vec()] {
        workspace.write(shard, &damaged);
        for args in ["", "--verify", "--json"] {
            let ended = score(args);
            ended.check(ended.status.code() == Some(65), "it is damaged");
            ended.check(ended.stderr.contains(shard), "the shard is named");
            ended.check(!ended.stdout.contains("complete"), "and not complete");
        }
    }
    let mut flipped = intact.clone();
    flipped[300] ^= 1;
    workspace.write(shard, &flipped);
    score("").check(score("").status.success(), "sizes do not tell");
    let ended = score("--verify");
    ended.check(ended.status.code() == Some(65), "digests do");
    ended.check(ended.stderr.contains(shard), "the shard is named");
    workspace.write(shard, &intact);
    score("--verify").check(score("--verify").status.success(), "it is intact again");
}

/// Waits for something that another process does.
fn wait_for(what: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < until, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_folder_that_is_removed_during_annealing_is_an_error_at_the_next_step() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 30);
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    for take in ["out", "out/metrics.jsonl"] {
        let child = workspace
            .command(ANNEAL)
            .args("--weights set -o out --steps 100000 --batch-tokens 64 --save-every 100000")
            .spawn();
        let metrics = workspace.path("out/metrics.jsonl");
        wait_for(|| std::fs::metadata(&metrics).is_ok_and(|meta| meta.len() > 500));
        let taken = Instant::now();
        workspace.remove(take);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{stderr}");
        assert!(taken.elapsed() < Duration::from_secs(20));
        assert!(
            stderr.contains("error: cannot write out/metrics.jsonl: it was removed"),
            "{stderr}"
        );
        if workspace.path("out").exists() {
            workspace.remove("out");
        }
    }
}

#[test]
fn a_shard_that_is_removed_while_the_others_are_made_is_missed() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 400);
    let child = workspace
        .command(SCORE)
        .args("a.jsonl -o set --part-bytes 3000 --threads 1")
        .spawn();
    wait_for(|| workspace.path("set/part-000001.parquet").exists());
    workspace.remove("set/part-000000.parquet");
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{stderr}");
    assert!(
        stderr.contains("the shard set/part-000000.parquet is missing"),
        "{stderr}"
    );
    assert!(!workspace.has_manifest("set"));
    let again = workspace
        .command(SCORE)
        .args("a.jsonl -o set --part-bytes 3000");
    again.ok();
    assert!(workspace.has_manifest("set"));
}

/// Bad files in the places of a set's own: another door to the same parsers.
#[test]
fn bad_files_in_the_place_of_a_manifest_a_plan_or_a_shard_are_refused_within_bounds() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 5);
    for format in ["parquet", "arrow"] {
        let set = format!("set-{format}");
        let score = workspace
            .command(SCORE)
            .args("a.jsonl --format")
            .arg(format);
        score.arg("-o").arg(&set).ok();
        for entry in std::fs::read_dir(fixtures().join("bad")).unwrap() {
            let bad = entry.unwrap().path();
            if bad.extension().is_none_or(|extension| extension != format) {
                continue;
            }
            for file in ["_remit/manifest", "_remit/plan", "part-000000"] {
                let name = format!("{set}/{file}.{format}");
                let intact = workspace.read(&name);
                std::fs::copy(&bad, workspace.path(&name)).unwrap();
                // A shard is parsed before its digest is compared only as long as there is no manifest.
                let manifest = format!("{set}/_remit/manifest.{format}");
                let saved = workspace.read(&manifest);
                if file != "_remit/manifest" {
                    workspace.remove(&manifest);
                }
                let mut command = Command::new(SCORE);
                command
                    .current_dir(workspace.path(""))
                    .args(["a.jsonl", "--format", format, "-o", &set]);
                let ended = measured(&mut command);
                let what = format!("{} as {name}", bad.display());
                assert_eq!(ended.problems(65), [""; 0], "{what}");
                assert!(ended.error().contains(&name), "{what}: {}", ended.stderr);
                if file == "_remit/manifest" {
                    let mut command = Command::new(INSPECT);
                    command
                        .current_dir(workspace.path(""))
                        .stdout(Stdio::null())
                        .arg(&set);
                    assert_eq!(measured(&mut command).problems(65), [""; 0], "{what}");
                }
                workspace.write(&manifest, saved);
                workspace.write(&name, intact);
            }
        }
        workspace.command(INSPECT).arg("verify").arg(&set).ok();
    }
}

/// Numbers that are imported into a set come from somebody else.
#[test]
fn bad_files_to_import_are_refused_within_bounds() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 5);
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    let before = workspace.snapshot("set");
    for entry in std::fs::read_dir(fixtures().join("bad")).unwrap() {
        let bad = entry.unwrap().path();
        if bad
            .extension()
            .is_none_or(|ending| ending != "parquet" && ending != "arrow")
        {
            continue;
        }
        let mut command = Command::new(SCORE);
        command
            .current_dir(workspace.path(""))
            .args(["--add", "set", "--as", "quality", "--import"])
            .arg(&bad);
        let ended = measured(&mut command);
        assert_eq!(ended.problems(65), [""; 0], "{}", bad.display());
        let name = bad.file_name().unwrap().to_str().unwrap();
        assert!(ended.error().contains(name), "{name}: {}", ended.stderr);
        assert!(!workspace.path("set.quality").exists(), "{name}");
    }
    assert_same(&before, &workspace.snapshot("set"), "the set");
}
