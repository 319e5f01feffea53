//! What scripts rely on: options, help texts, streams.

use std::path::Path;

use remit::shard::layout::Description;
use serde_json::Value;

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace};

/// Set this variable to write the help texts anew.
const BLESS: &str = "REMIT_BLESS";

#[test]
fn help_texts_are_as_frozen() {
    let workspace = Workspace::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/help");
    let mut changed = Vec::new();
    for (program, args, file) in [
        (SCORE, "--help", "remit-score.txt"),
        (ANNEAL, "--help", "remit-anneal.txt"),
        (INSPECT, "--help", "remit-inspect.txt"),
        (INSPECT, "verify --help", "remit-inspect-verify.txt"),
        (INSPECT, "show --help", "remit-inspect-show.txt"),
        (INSPECT, "export --help", "remit-inspect-export.txt"),
        (INSPECT, "rejects --help", "remit-inspect-rejects.txt"),
        (INSPECT, "model --help", "remit-inspect-model.txt"),
        (INSPECT, "report --help", "remit-inspect-report.txt"),
        (INSPECT, "sweep --help", "remit-inspect-sweep.txt"),
        (INSPECT, "rank --help", "remit-inspect-rank.txt"),
        (INSPECT, "generate --help", "remit-inspect-generate.txt"),
    ] {
        let ended = workspace.command(program).args(args).ok();
        ended.check(ended.stderr.is_empty(), "help goes to stdout alone");
        let path = folder.join(file);
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&path, &ended.stdout).unwrap();
        } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&ended.stdout) {
            changed.push(format!("{}\n{}", path.display(), ended.stdout));
        }
    }
    assert!(
        changed.is_empty(),
        "help differs from these files; if that is meant, set {BLESS}=1, run this test again and \
         commit them:\n{}",
        changed.join("\n")
    );
}

#[test]
fn versions_are_those_of_the_package_with_commit_and_features() {
    let workspace = Workspace::new();
    for (program, name) in [
        (SCORE, "remit-score"),
        (ANNEAL, "remit-anneal"),
        (INSPECT, "remit-inspect"),
    ] {
        let first = format!("{name} {}", env!("CARGO_PKG_VERSION"));
        let short = workspace.command(program).arg("-V").ok();
        assert_eq!(short.stdout, format!("{first}\n"));
        let long = workspace.command(program).arg("--version").ok();
        let lines: Vec<&str> = long.stdout.lines().collect();
        let [version, commit, features] = lines[..] else {
            panic!("{}", long.stdout);
        };
        assert_eq!(version, first);
        let commit = commit.strip_prefix("commit: ").unwrap();
        let is_hash = commit.len() >= 7 && commit.chars().all(|c| c.is_ascii_hexdigit());
        assert!(is_hash || commit == "not known", "{commit}");
        let sign = |is_on| if is_on { '+' } else { '-' };
        assert_eq!(
            features,
            format!(
                "features: {}cuda {}object-store{}",
                sign(cfg!(feature = "cuda")),
                sign(cfg!(feature = "object-store")),
                // Named only where it is on: it is for tests.
                match cfg!(feature = "cuda-emulator") {
                    true => " +cuda-emulator",
                    false => "",
                }
            )
        );
        assert_eq!(short.stderr + &long.stderr, "");
    }
}

#[test]
fn man_pages_and_completions_are_made_by_one_command() {
    let workspace = Workspace::new();
    workspace.command(INSPECT).args("generate share").ok();
    for program in ["remit-score", "remit-anneal", "remit-inspect"] {
        for (file, names) in [
            (format!("man/{program}.1"), ".TH"),
            (format!("completions/bash/{program}.bash"), "complete -F"),
            (format!("completions/zsh/_{program}"), "#compdef"),
            (format!("completions/fish/{program}.fish"), "complete -c"),
            (format!("completions/elvish/{program}.elv"), "edit:"),
            (
                format!("completions/powershell/_{program}.ps1"),
                "Register-",
            ),
        ] {
            let text = String::from_utf8(workspace.read(&format!("share/{file}"))).unwrap();
            assert!(text.contains(names) && text.contains(program), "{file}");
        }
    }
    let verify = workspace.read("share/man/remit-inspect-verify.1");
    assert!(
        String::from_utf8(verify)
            .unwrap()
            .contains("\nremit\\-inspect\\-verify")
    );
    let before = workspace.snapshot("share");
    workspace.command(INSPECT).args("generate share").ok();
    assert_eq!(before, workspace.snapshot("share"), "made again, the same");

    // Where the tools are there, they take the files.
    let lint = |program: &str, args: &[&str], file: &str| {
        let path = workspace.path(file);
        let Ok(done) = std::process::Command::new(program)
            .args(args)
            .arg(&path)
            .output()
        else {
            return;
        };
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.status.success() && said.is_empty(),
            "{program} {file}: {said}"
        );
    };
    for file in before
        .keys()
        .map(|path| format!("share/{}", path.display()))
    {
        if file.contains("/bash/") {
            lint("bash", &["-n"], &file);
        } else if file.contains("/zsh/") {
            lint("zsh", &["-n"], &file);
        } else if file.contains("/fish/") {
            lint("fish", &["-n"], &file);
        } else if file.contains("/man/") {
            lint("groff", &["-man", "-Tutf8", "-wall", "-z"], &file);
            lint("mandoc", &["-Tlint", "-Werror"], &file);
        }
    }
}

/// The one JSON object that stdout is.
fn only_object(stdout: &str) -> Value {
    assert_eq!(stdout.matches('\n').count(), 1, "{stdout}");
    let value: Value = serde_json::from_str(stdout).unwrap();
    assert!(value.is_object(), "{stdout}");
    value
}

#[test]
fn json_on_stdout_is_one_object_and_everything_else_is_on_stderr() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 10);
    let scored = workspace.command(SCORE).args("corpus -o set --json").ok();
    let events: Vec<Value> = scored
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    scored.check(
        events[0]["event"] == "warning"
            && events[0]["message"]
                .as_str()
                .is_some_and(|message| message.starts_with("DEMO: no --rl-model was given")),
        "the demo pair is announced on stderr, first",
    );
    let end = events.iter().find(|event| event["event"] == "end").unwrap();
    assert_eq!(end["done"], end["total"]);
    let score = only_object(&scored.stdout);
    assert_eq!(score["scored_parts"], score["num_parts"]);
    assert_eq!(score["missing_parts"], serde_json::json!([]));
    assert_eq!(
        score["scored_tokens"],
        score["manifest"]["totals"]["tokens"]
    );

    let on_disk = workspace.description("set", Description::Manifest);
    assert_eq!(
        score["manifest"], on_disk,
        "the run that makes a set prints its manifest"
    );
    let again = workspace.command(SCORE).args("corpus -o set --json").ok();
    assert_eq!(only_object(&again.stdout)["manifest"], on_disk);

    let inspected = workspace.command(INSPECT).args("set --json").ok();
    assert_eq!(inspected.stderr, "");
    assert_eq!(only_object(&inspected.stdout), on_disk);

    let annealed = workspace
        .command(ANNEAL)
        .args("--weights set --steps 2 --json")
        .ok();
    annealed.check(!annealed.stderr.is_empty(), "the log goes to stderr");
    let anneal = only_object(&annealed.stdout);
    assert_eq!(anneal["output"], "annealed");
    let steps: Vec<Value> = workspace.metrics("annealed");
    assert_eq!(steps.len(), 2);
    let losses = &anneal["losses"];
    assert_eq!(losses["measured_on"], "all_training_rows");
    assert_eq!(
        losses["all"]["targets"].as_u64(),
        steps.iter().map(|step| step["targets"].as_u64()).sum()
    );
    assert_eq!(anneal["evaluation"], Value::Null);
}

#[test]
fn results_for_people_go_to_stdout() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 10);
    let scored = workspace.command(SCORE).args("corpus -o set").ok();
    scored.check(
        scored
            .stdout
            .contains("\nset is complete\n\nRL model    builtin:demo-rl (qwen3)\n"),
        "the summary is a result",
    );
    let inspected = workspace.command(INSPECT).arg("set").ok();
    inspected.check(
        scored.stdout.ends_with(&inspected.stdout),
        "both programs print the same summary",
    );
    let verified = workspace.command(INSPECT).args("verify set").ok();
    verified.check(
        verified.stdout.starts_with("set: 1 shards, 10 rows, "),
        "the result of the check is a result",
    );
    let annealed = workspace
        .command(ANNEAL)
        .args("--weights set --steps 1")
        .ok();
    annealed.check(
        annealed
            .stdout
            .starts_with("annealed builtin:demo-base with dynamic weights: ")
            && annealed
                .stdout
                .ends_with("annealed/metrics.jsonl has every step\n"),
        "the outcome is a result",
    );
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_is_no_reason_to_panic_or_to_lose_the_set() {
    /// 128 + SIGPIPE, as a shell reports a program that such a signal ends.
    const BROKEN_PIPE: i32 = 141;
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 10);
    for (program, args, exit) in [
        (SCORE, "corpus -o set", BROKEN_PIPE),
        (SCORE, "corpus -o set --json", BROKEN_PIPE),
        (INSPECT, "set", BROKEN_PIPE),
        (INSPECT, "set --json", BROKEN_PIPE),
        (ANNEAL, "--weights set --steps 1", BROKEN_PIPE),
        (SCORE, "--help", BROKEN_PIPE),
        (SCORE, "--version", BROKEN_PIPE),
    ] {
        let ended = workspace.command(program).args(args).stdout(closed()).run();
        ended.check(ended.status.code() == Some(exit), args);
        ended.check(!ended.stderr.contains("panicked"), args);
        ended.check(!ended.stderr.contains("error:"), args);
    }
    workspace.command(INSPECT).args("verify set").ok();
    assert!(workspace.path("annealed/config.json").exists());
}
