//! Defects that were found and mended; each test states the mechanism.

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace};

fn corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 12);
    workspace
}

fn small_set() -> Workspace {
    let workspace = corpus();
    workspace.command(SCORE).args("corpus -o set").ok();
    workspace
}

/// The plan was renamed over whatever was there, so two runs that both found none went on with two
/// plans, and their shards met in one set that verified.
#[test]
fn of_two_runs_with_other_options_begun_together_one_is_refused_and_the_set_is_of_one_plan() {
    let workspace = corpus();
    for round in 0..6 {
        let out = format!("set{round}");
        let score = || {
            workspace
                .command(SCORE)
                .args("corpus --part-bytes 200 --threads 1 -o")
                .arg(&out)
        };
        let mut first = score().spawn();
        let second = score().args("--exact --epsilon 0.5").run();
        let first = first.wait().unwrap().code();
        let codes = [first, second.status.code()];
        second.check(
            codes == [Some(0), Some(2)] || codes == [Some(2), Some(0)],
            &format!("round {round}: exit codes {codes:?}"),
        );
        workspace.command(INSPECT).arg("verify").arg(&out).ok();
    }
}

/// Whoever completed a set swept away the temporary files of others, who then failed to publish.
#[test]
fn the_same_run_begun_four_times_together_succeeds_four_times() {
    let workspace = corpus();
    for round in 0..4 {
        let out = format!("set{round}");
        let score = || {
            workspace
                .command(SCORE)
                .args("corpus --part-bytes 200 --threads 1 -o")
                .arg(&out)
        };
        let mut others: Vec<_> = (0..3).map(|_| score().spawn()).collect();
        score().ok();
        for other in &mut others {
            assert_eq!(other.wait().unwrap().code(), Some(0), "round {round}");
        }
        workspace.command(INSPECT).arg("verify").arg(&out).ok();
    }
}

/// A part counted as finished by its name alone, so shards of a lost plan passed for those of a new one.
#[test]
fn shards_without_their_plan_are_not_gone_on_with() {
    let workspace = small_set();
    workspace.remove("set/_remit/plan.parquet");
    for reason in ["exact was false, is now true", "but no plan in _remit/"] {
        let again = workspace.command(SCORE).args("corpus -o set --exact").run();
        again.check(
            again.status.code() == Some(2) && again.stderr.contains(reason),
            "it should be refused",
        );
        // As long as it is there, the manifest says what the plan was.
        if workspace.has_manifest("set") {
            workspace.remove("set/_remit/manifest.parquet");
        }
    }
}

/// The plan of a run that made nothing stood in the way of the next one, and nothing said so.
#[test]
fn after_a_first_run_that_failed_the_message_says_what_to_remove() {
    let workspace = corpus();
    workspace.write("corpus/a0.jsonl", "{\n{\"text\": \"1+1 is 2.\"}\n");
    let score = |args: &str| workspace.command(SCORE).args("corpus -o set").args(args);
    let failed = score("").run();
    failed.check(
        failed.status.code() == Some(65) && failed.stderr.contains("--on-bad-record skip"),
        "it says how to go on",
    );
    let refused = score("--on-bad-record skip").run();
    refused.check(
        refused.status.code() == Some(2)
            && refused
                .stderr
                .contains("remove set/_remit/plan.parquet and"),
        "it says what to remove",
    );
    workspace.remove("set/_remit/plan.parquet");
    score("--on-bad-record skip").ok();
    workspace.command(INSPECT).args("verify set").ok();
}

/// A set without a row, since no record could be read, looked like any other.
#[test]
fn a_set_without_rows_is_complete_but_warned_of() {
    let workspace = Workspace::new();
    workspace.write("corpus/a.jsonl", "{\n[1]\n");
    let ended = workspace
        .command(SCORE)
        .args("corpus -o set --on-bad-record skip")
        .ok();
    ended.check(
        ended.stderr.contains(
            "the set has no rows: of its records, 0 held no text, 0 were too short, and 2 could not be read",
        ),
        "it is warned of",
    );
}

/// A rerun of tasks 2 and 5 of an array of 8 took the parts of 0 and 3, which were there, and said that
/// there was nothing to do.
#[test]
fn tasks_of_an_array_that_run_again_take_their_own_parts() {
    let workspace = corpus();
    let run = |id: &str, range: [&str; 4]| {
        let [count, min, max, step] = range;
        workspace
            .command(SCORE)
            .args("corpus -o set --part-bytes 100 --num-workers 8")
            .env("SLURM_ARRAY_TASK_ID", id)
            .env("SLURM_ARRAY_TASK_COUNT", count)
            .env("SLURM_ARRAY_TASK_MIN", min)
            .env("SLURM_ARRAY_TASK_MAX", max)
            .env("SLURM_ARRAY_TASK_STEP", step)
            .ok()
    };
    for id in ["0", "1", "3", "4", "6", "7"] {
        run(id, ["8", "0", "7", "1"]);
    }
    assert!(!workspace.has_manifest("set"));
    for id in ["2", "5"] {
        let ended = run(id, ["2", "2", "5", "3"]);
        ended.check(ended.stdout.starts_with("scored "), "it has parts");
    }
    assert!(workspace.has_manifest("set"));
}

/// A pattern took a file once more for every round that a link led through its own folder, 41 times.
#[cfg(unix)]
#[test]
fn a_pattern_through_a_folder_that_links_to_itself_is_refused() {
    let workspace = corpus();
    std::os::unix::fs::symlink(".", workspace.path("corpus/again")).unwrap();
    for input in ["corpus", "corpus/**/*.jsonl"] {
        let ended = workspace.command(SCORE).arg(input).args("-o set").run();
        ended.check(
            ended.status.code() == Some(74)
                && ended
                    .stderr
                    .contains("cannot walk corpus/again: the folder contains a link to itself"),
            "it should be refused",
        );
    }
}

/// The next run took the shards in there for text.
#[test]
fn an_output_inside_the_input_is_refused_before_anything_is_written() {
    let workspace = corpus();
    for out in ["corpus/set", "corpus", "corpus/../corpus/deep/er"] {
        let ended = workspace.command(SCORE).args("corpus -o").arg(out).run();
        ended.check(
            ended.status.code() == Some(2) && ended.stderr.contains("lies inside the input"),
            "it should be refused",
        );
    }
    assert_eq!(workspace.snapshot("corpus").len(), 1);
}

/// The norm of the gradient was not looked at, so the last step could fill the model with NaN.
#[test]
fn a_run_that_diverges_stops_and_exports_nothing() {
    let workspace = small_set();
    for (lr, steps) in [("1e30", "2"), ("1e38", "1")] {
        let ended = workspace
            .command(ANNEAL)
            .args("--weights set -o out --weight-decay 0 --lr")
            .arg(lr)
            .arg("--steps")
            .arg(steps)
            .run();
        ended.check(!ended.status.success(), "it should fail");
        let left = workspace.snapshot("out");
        assert!(!left.keys().any(|name| name.ends_with("model.safetensors")));
        assert!(!left.keys().any(|name| name.ends_with("config.json")));
    }
}

/// All epochs were shuffled, to count their steps, before the first one was taken.
#[test]
fn a_run_of_very_many_steps_begins_at_once_and_can_be_stopped() {
    let workspace = small_set();
    let mut child = workspace
        .command(ANNEAL)
        .args("--weights set -o out --steps 1000000000000")
        .spawn();
    let begun = std::time::Instant::now();
    while !workspace.path("out/metrics.jsonl").exists() || workspace.metrics("out").is_empty() {
        assert!(begun.elapsed().as_secs() < 120, "it has not begun");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let id = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(75));
}
