//! Failing to write to stderr changes nothing; failing to write to stdout is told.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace, assert_same};

fn full() -> Stdio {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    full.into()
}

/// A pipe whose reader is gone.
fn broken() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn run(workspace: &Workspace, program: &str, args: &str, stdout: Stdio, stderr: Stdio) -> i32 {
    let mut command = Command::new(program);
    command
        .current_dir(workspace.path(""))
        .args(args.split_whitespace())
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    command.status().unwrap().code().unwrap()
}

#[test]
fn a_stderr_that_can_not_be_written_to_changes_neither_work_nor_exit_code() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 20);
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    workspace
        .command(ANNEAL)
        .args("--weights set -o model --steps 4 --batch-tokens 200")
        .ok();
    let train = "--weights set --steps 4 --batch-tokens 200 -o";
    for (name, stderr) in [("full", full as fn() -> Stdio), ("broken", broken)] {
        let ends = |program, args: &str| run(&workspace, program, args, Stdio::null(), stderr());
        for json in ["", " --json"] {
            workspace.write("other.jsonl", workspace.read("a.jsonl"));
            let set = format!("set-{name}{}", json.len());
            assert_eq!(ends(SCORE, &format!("a.jsonl -o {set}{json}")), 0, "{name}");
            assert_same(&workspace.snapshot("set"), &workspace.snapshot(&set), name);
            let model = format!("model-{name}{}", json.len());
            assert_eq!(ends(ANNEAL, &format!("{train} {model}{json}")), 0, "{name}");
            let weights = |dir: &str| workspace.read(&format!("{dir}/model.safetensors"));
            assert_eq!(weights("model"), weights(&model), "{name}");
        }
        assert_eq!(ends(INSPECT, "verify nowhere"), 66, "{name}");
        assert_eq!(ends(INSPECT, "show set --row 1000000"), 2, "{name}");
        assert_eq!(ends(SCORE, "--no-such-option"), 2, "{name}");
        assert_eq!(ends(SCORE, "a.jsonl -o set --epsilon 7"), 2, "{name}");
    }
}

#[test]
fn a_stdout_that_can_not_be_written_to_is_an_error_and_one_whose_reader_left_ends_quietly() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 3);
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    for (program, args) in [
        (SCORE, "a.jsonl -o set"),
        (SCORE, "a.jsonl -o set --json"),
        (SCORE, "--help"),
        (SCORE, "--version"),
        (ANNEAL, "--weights set --print-config"),
        (INSPECT, "set"),
        (INSPECT, "set --json"),
        (INSPECT, "show set --row 0 --color always"),
        (INSPECT, "order set"),
        (INSPECT, "help show"),
    ] {
        let null = Stdio::null;
        assert_eq!(run(&workspace, program, args, full(), null()), 75, "{args}");
        assert_eq!(
            run(&workspace, program, args, broken(), null()),
            141,
            "{args}"
        );
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(run(&workspace, program, args, broken(), writer.into()), 141);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert!(!said.contains("error"), "{args}: {said}");
    }
}
