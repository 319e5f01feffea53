//! remit-inspect report and sweep: one page per command, the same every time, and what is refused. What a browser makes of the
//! page is looked at in tests/oracle/test_report.py.

use std::collections::BTreeSet;

use remit::pipeline::report::{self, DEFAULT_SAMPLE_TOKENS, MAX_PAGE_BYTES, ReportOptions};
use remit::pipeline::{Progress, StopFlag};
use serde_json::Value;

use crate::harness::{ANNEAL, Ended, INSPECT, SCORE, Workspace, model};

/// A set of two sources, and another of its rows.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/b.jsonl", 40);
    workspace.write("corpus/a.txt", "Question: What is 12+34?\nAnswer: 46\n");
    score(&workspace, "set");
    workspace
}

fn score(workspace: &Workspace, set: &str) {
    let run = workspace.command(SCORE).args("corpus -o").arg(set);
    run.models("demo-rl", "demo-base").ok();
}

fn inspect(workspace: &Workspace, args: &str) -> Ended {
    workspace.command(INSPECT).args(args).ok()
}

/// The data in a page.
fn data(workspace: &Workspace, page: &str) -> Value {
    let page = String::from_utf8(workspace.read(page)).unwrap();
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn row_ids(data: &Value) -> BTreeSet<String> {
    let rows = data["sets"][0]["rows"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_page_is_the_same_every_time_and_another_seed_shows_other_rows() {
    let workspace = workspace();
    let said = inspect(&workspace, "report set -o a.html --sample 400").stdout;
    assert!(said.starts_with("The RL model "), "{said}");
    assert!(said.contains("\na.html: "), "{said}");
    inspect(&workspace, "report set -o b.html --sample 400");
    assert!(workspace.read("a.html") == workspace.read("b.html"));
    inspect(&workspace, "report set -o c.html --sample 400 --seed 1");
    let [a, c] = ["a.html", "c.html"].map(|page| row_ids(&data(&workspace, page)));
    assert!(a != c && a.len() > 2 && a.len() < 15, "{a:?}, {c:?}");
    // A row that is asked for comes besides.
    let more: BTreeSet<String> = (0..41).map(|row| row.to_string()).collect();
    let missing: Vec<_> = more.difference(&a).collect();
    assert!(!missing.is_empty());
    let wanted = format!("report set -o d.html --sample 400 --row-id {}", missing[0]);
    inspect(&workspace, &wanted);
    let d = row_ids(&data(&workspace, "d.html"));
    assert!(d.contains(missing[0]) && d.is_superset(&a), "{d:?}");
}

#[test]
fn sources_beyond_the_first_are_one_and_sums_are_those_of_the_manifest() {
    let workspace = Workspace::new();
    for source in 0..40 {
        workspace.write_corpus(&format!("corpus/{source:02}.jsonl"), 1 + source % 3);
    }
    score(&workspace, "set");
    inspect(&workspace, "report set -o all.html");
    let page = data(&workspace, "all.html");
    let set = &page["sets"][0];
    let sources = set["sources"].as_array().unwrap();
    // 32 are told apart, and the others are one.
    assert_eq!(sources.len(), 33);
    let rest = &sources[32];
    assert_eq!((&rest["name"], &rest["sources"]), (&Value::Null, &8.into()));
    let sum = |key: &str| -> u64 {
        let numbers = sources.iter().map(|source| &source["numbers"][key]);
        numbers.map(|number| number.as_u64().unwrap()).sum()
    };
    let manifest: Value = serde_json::from_str(&inspect(&workspace, "set --json").stdout).unwrap();
    for key in ["rows", "tokens", "targets"] {
        assert_eq!(sum(key), manifest["totals"][key].as_u64().unwrap());
    }
    let mean = |of: &Value, key: &str| of[key].as_f64().unwrap();
    let totals = &manifest["totals"];
    for (found, wanted) in [
        (mean(&set["totals"], "rl"), mean(totals, "rl_logprob_mean")),
        (
            mean(&set["totals"], "base"),
            mean(totals, "base_logprob_mean"),
        ),
        (
            mean(&set["totals"], "weight"),
            mean(&totals["weight"], "mean"),
        ),
        (
            mean(&set["totals"], "at_lower"),
            mean(&totals["weight"], "share_at_lower"),
        ),
        (
            mean(&set["totals"], "at_upper"),
            mean(&totals["weight"], "share_at_upper"),
        ),
    ] {
        assert!((found - wanted).abs() < 1e-9, "{found}, {wanted}");
    }
}

struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

#[test]
fn rows_are_left_out_of_a_page_that_would_be_too_large() {
    let workspace = workspace();
    let write = |name: &str, max_page_bytes| {
        let options = ReportOptions {
            sets: vec![workspace.path("set")],
            output: workspace.path(name),
            runs: Vec::new(),
            losses: None,
            sample_tokens: DEFAULT_SAMPLE_TOKENS,
            seed: 0,
            row_ids: Vec::new(),
            max_page_bytes,
            tokenizer: None,
        };
        let written = report::write(&options, &StopFlag::default(), &Quiet).unwrap();
        assert_eq!(written.bytes, workspace.read(name).len());
        written
    };
    let whole = write("whole.html", MAX_PAGE_BYTES);
    assert_eq!((whole.rows, whole.all_rows), (41, 41));
    let less = write("less.html", whole.bytes - 1);
    assert!(less.bytes < whole.bytes && less.rows > 1 && less.rows < 41);
    // Of each source those of lowest rank are left, whatever there is room for.
    let [few, all] = ["less.html", "whole.html"].map(|page| row_ids(&data(&workspace, page)));
    assert!(few.is_subset(&all));
    let none = write("none.html", 1);
    assert_eq!(none.rows, 0);
}

#[test]
fn a_sweep_is_a_table_and_its_json_has_the_sources() {
    let workspace = workspace();
    let table = inspect(
        &workspace,
        "sweep set --epsilon 0.2,0.5 --temperature 1 --top-k-fraction 0.5",
    )
    .stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(
        lines[0].starts_with("weighting    epsilon temperature center "),
        "{table}"
    );
    assert!(
        lines[1].starts_with("dynamic          0.2           1    row "),
        "{table}"
    );
    assert!(lines[3].starts_with("excess-top-k 0.5 "), "{table}");
    let widths: BTreeSet<usize> = lines.iter().map(|line| line.len()).collect();
    assert_eq!(widths.len(), 1, "{table}");
    let by_source = inspect(
        &workspace,
        "sweep set --epsilon 0.2 --temperature 1 --by-source",
    )
    .stdout;
    assert_eq!(by_source.lines().count(), 4, "{by_source}");
    let json = inspect(&workspace, "sweep set --epsilon 0 --temperature 1 --json").stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let weights = &json["weights"][0];
    assert_eq!(weights["all"]["weight_mean"], 1.0);
    assert_eq!(weights["sources"][1]["source"], "b.jsonl");
    assert_eq!(weights["center"], "row");
}

#[test]
fn what_can_not_be_shown_is_refused_and_nothing_is_written() {
    let workspace = workspace();
    workspace.write("there.html", "mine");
    workspace.write("bad-run/metrics.jsonl", "{\"step\": 1}\n");
    workspace.write("losses.json", "{}");
    workspace
        .command(SCORE)
        .args("corpus -o bare --rl-model")
        .arg(model("demo-rl"))
        .ok();
    for (args, code, says) in [
        (
            "report set -o page.txt",
            2,
            "page.txt: the file to write has to end with .html",
        ),
        (
            "report set -o there.html",
            2,
            "there.html exists already\nhint: remove it, or give another name",
        ),
        (
            "report set -o set/page.html",
            2,
            "set/page.html lies in the set itself",
        ),
        ("report nowhere -o page.html", 66, "no such folder: nowhere"),
        (
            "report set nowhere -o page.html",
            66,
            "no such folder: nowhere",
        ),
        (
            "report set -o page.html --row-id 99",
            2,
            "set has no row with the row_id 99, and there are 41",
        ),
        (
            "report set -o page.html --run corpus",
            66,
            "corpus is no folder of a training run: cannot open corpus/metrics.jsonl",
        ),
        (
            "report set -o page.html --run bad-run",
            65,
            "bad-run/metrics.jsonl, line 1 is not what remit-anneal writes: missing field",
        ),
        (
            "report set -o page.html --losses losses.json",
            65,
            "losses.json is not what remit-inspect compare prints with --json",
        ),
        (
            "report set set set -o page.html",
            2,
            "unexpected value 'set'",
        ),
        (
            "report set -o page.html --sample 0",
            2,
            "it must be at least 1",
        ),
        (
            "sweep bare",
            65,
            "the set in bare was scored without a base",
        ),
        (
            "sweep set --epsilon 0.2,1.5",
            2,
            "epsilon is 1.5; it must be at least 0 and less than 1",
        ),
        (
            "sweep set --temperature 0",
            2,
            "temperature is 0; it must be a positive number",
        ),
        ("sweep set --top-k-fraction 2", 2, "2 is more than 1"),
    ] {
        let ended = workspace.command(INSPECT).args(args).run();
        ended.check(
            ended.status.code() == Some(code),
            &format!("exit code {code}"),
        );
        ended.check(ended.stderr.contains(says), says);
        ended.check(!workspace.path("page.html").exists(), "no page");
    }
    assert_eq!(workspace.read("there.html"), b"mine");
    workspace.damage("set/part-000000.parquet", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let ended = workspace
        .command(INSPECT)
        .args("report set -o page.html")
        .run();
    ended.check(ended.status.code() == Some(65), "a damaged shard");
    ended.check(!workspace.path("page.html").exists(), "no page");
}

#[test]
fn a_run_that_is_not_finished_is_drawn_as_far_as_it_is() {
    let workspace = workspace();
    workspace
        .command(ANNEAL)
        .args("--weights set -o run --steps 3 --batch-tokens 500 --model")
        .arg(model("demo-base"))
        .ok();
    workspace.damage("run/metrics.jsonl", |log| {
        let end = log.len() - 20;
        log.truncate(end);
    });
    inspect(&workspace, "report set -o page.html --run run");
    let run = &data(&workspace, "page.html")["runs"][0];
    assert_eq!(run["steps"], 2);
    assert_eq!(run["settings"]["objective"]["weighting"], "dynamic");
}
