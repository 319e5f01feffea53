//! Losses on rows that are not trained on, and what a run says it changed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{anneal, scored};
use crate::harness::{INSPECT, SCORE, Workspace};

#[test]
fn no_document_is_on_both_sides_of_a_holdout_also_where_rows_are_windows() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 150);
    workspace
        .command(SCORE)
        .models("tiny-llama", "tiny-llama-base")
        .args("corpus -o set --packing window --seq-len 96 --part-bytes 9000")
        .ok();
    let set = remit::shard::read::ShardSet::open(&workspace.path("set")).unwrap();
    let order = remit::batch::Order::new(&set, 0, Some(0.3)).unwrap();
    let trained: BTreeSet<u64> = order.row_ids(0, 1000).concat().into_iter().collect();
    let held: BTreeSet<u64> = order
        .held_out()
        .flat_map(|rows| rows.unwrap())
        .map(|row| row.row_id)
        .collect();
    let mut all = Vec::new();
    for shard in set.shards() {
        for group in 0..shard.num_row_groups() {
            all.extend(shard.read_row_group(group).unwrap());
        }
    }
    assert!(trained.is_disjoint(&held) && trained.len() > 10 && held.len() > 5);
    assert_eq!(
        (trained.len() + held.len()) as u64 + order.num_left_out(),
        all.len() as u64
    );
    let mut shared = 0;
    for pair in all.windows(2) {
        let [before, after] = pair else { continue };
        let goes_on =
            after.row_id == before.row_id + 1 && after.scored.doc_starts.first() != Some(&0);
        let sides = |id: &u64| (trained.contains(id), held.contains(id));
        if goes_on {
            shared += 1;
            assert!(
                !matches!(
                    (sides(&before.row_id), sides(&after.row_id)),
                    ((true, _), (_, true)) | ((_, true), (true, _))
                ),
                "rows {} and {}",
                before.row_id,
                after.row_id
            );
        }
    }
    assert!(shared > 20, "{shared} rows go on with a document");
}

#[test]
fn what_is_evaluated_on_another_set_is_what_comparing_the_models_finds() {
    let workspace = scored();
    anneal(&workspace, "run", "--eval-weights set").ok();
    let text = workspace.read("run/eval.jsonl");
    let last: Value =
        serde_json::from_str(std::str::from_utf8(&text).unwrap().lines().last().unwrap()).unwrap();
    let base = crate::harness::model("tiny-llama-base");
    let compared = workspace
        .command(INSPECT)
        .arg("compare")
        .arg(&base)
        .args("run --weights set --json")
        .ok();
    let compared: Value = serde_json::from_str(&compared.stdout).unwrap();
    let sources = last["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 2);
    for source in sources {
        let name = source["source"].as_str().unwrap();
        let other = &compared["sources"][name];
        assert_eq!(source["targets"], other["targets"]);
        // The exported weights are those that were trained, in the dtype of the checkpoint.
        for key in ["ntp_loss", "loss"] {
            let (ours, theirs) = (
                source[key].as_f64().unwrap(),
                other[key][1].as_f64().unwrap(),
            );
            assert!(
                (ours - theirs).abs() < 1e-3,
                "{name} {key}: {ours} {theirs}"
            );
        }
        assert!(other["ntp_loss"][0].as_f64() > other["ntp_loss"][1].as_f64());
    }
    let table = workspace
        .command(INSPECT)
        .arg("compare")
        .arg(&base)
        .args("run --weights set")
        .ok();
    table.check(
        table.stdout.contains("\nall ") && table.stdout.contains("\nb.jsonl "),
        "a line a source",
    );
}

/// Lines of a log as JSON.
fn log(workspace: &Workspace, path: &str) -> Vec<Value> {
    let text = workspace.read(path);
    let lines = std::str::from_utf8(&text).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Mean of a loss over the targets of some steps.
fn mean(steps: &[Value], key: &str) -> f64 {
    let number = |step: &Value, key: &str| step[key].as_f64().unwrap();
    let weighted = steps
        .iter()
        .map(|step| number(step, key) * number(step, "targets"));
    weighted.sum::<f64>()
        / steps
            .iter()
            .map(|step| number(step, "targets"))
            .sum::<f64>()
}

#[test]
fn a_report_compares_held_out_rows_before_and_after() {
    let workspace = scored();
    let ended = anneal(&workspace, "run", "--holdout 0.1 --json").ok();
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let evaluations = log(&workspace, "run/eval.jsonl");
    let (first, last) = (&evaluations[0], evaluations.last().unwrap());
    assert_eq!(report["losses"]["measured_on"], "evaluation_rows");
    for (side, evaluation) in [("first", first), ("last", last)] {
        for key in ["step", "targets", "loss", "ntp_loss"] {
            assert_eq!(report["losses"][side][key], evaluation[key], "{side} {key}");
        }
    }
    assert_eq!(&report["evaluation"], last);
    assert_eq!((&first["step"], &last["step"]), (&0.into(), &20.into()));
    workspace.remove("run");
    let ended = anneal(&workspace, "run", "--holdout 0.1").ok();
    let number = |evaluation: &Value, key: &str| evaluation[key].as_f64().unwrap();
    let expected = format!(
        "\nloss {:.4} -> {:.4}, plain {:.4} -> {:.4} on {} evaluation targets, after step 0 and after step 20\n",
        number(first, "loss"),
        number(last, "loss"),
        number(first, "ntp_loss"),
        number(last, "ntp_loss"),
        last["targets"]
    );
    ended.check(ended.stdout.contains(&expected), &expected);
}

#[test]
fn a_report_without_evaluation_rows_averages_the_first_and_the_last_tenth_also_when_resumed() {
    let workspace = scored();
    anneal(&workspace, "run", "").ok();
    let steps = log(&workspace, "run/metrics.jsonl");
    // As if the run had been killed before config.json: nothing is left to train, and all is left to report.
    for resumed in [false, true] {
        let ended = if resumed {
            workspace.remove("run/config.json");
            anneal(&workspace, "run", "").ok()
        } else {
            workspace.remove("run");
            anneal(&workspace, "run", "").ok()
        };
        let expected = format!(
            "\nloss {:.4} -> {:.4}, plain {:.4} -> {:.4}, means of steps 1-2 and 19-20, each on rows of its own; ",
            mean(&steps[..2], "loss"),
            mean(&steps[18..], "loss"),
            mean(&steps[..2], "ntp_loss"),
            mean(&steps[18..], "ntp_loss")
        );
        ended.check(ended.stdout.contains(&expected), &expected);
        ended.check(
            ended.stdout.contains("resumed after step 20") == resumed,
            "a run that resumed says so",
        );
        let card = String::from_utf8(workspace.read("run/README.md")).unwrap();
        assert!(
            card.contains("nats per target over steps 1 to 2 and "),
            "{card}"
        );
    }
    workspace.remove("run/config.json");
    let ended = anneal(&workspace, "run", "--json").ok();
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["losses"]["measured_on"], "training_rows");
    assert_eq!(report["losses"]["first"]["last_step"], 2);
    assert_eq!(report["losses"]["last"]["first_step"], 19);
    let reported = report["losses"]["last"]["ntp_loss"].as_f64().unwrap();
    assert!((reported - mean(&steps[18..], "ntp_loss")).abs() < 1e-12);
    // A finished run reports the same.
    let again = anneal(&workspace, "run", "--json").ok();
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["was_finished"], true);
    assert_eq!(again["losses"], report["losses"]);
}

#[test]
fn a_report_on_few_steps_compares_none_of_them() {
    let workspace = scored();
    let ended = anneal(&workspace, "run", "--steps 10").ok();
    let steps = log(&workspace, "run/metrics.jsonl");
    let expected = format!(
        "\nloss {:.4}, plain {:.4}, means of all steps, which are too few to tell a change; ",
        mean(&steps, "loss"),
        mean(&steps, "ntp_loss")
    );
    ended.check(ended.stdout.contains(&expected), &expected);
    ended.check(!ended.stdout.contains("->"), "no two steps are compared");
}
