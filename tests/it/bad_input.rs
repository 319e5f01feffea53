//! Every bad input has its exit code and its message, publishes nothing and changes no file.

mod annealing;
mod corpora;
mod models;
mod options;
mod sets;
mod wild_models;

use std::path::Path;

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace};

/// One thing that is wrong.
struct Case {
    /// What is wrong.
    input: &'static str,
    /// Makes it wrong, in a copy of the table's folder.
    prepare: fn(&Workspace),
    /// Program and arguments, separated by spaces. The folder is the current one.
    command: &'static str,
    exit: i32,
    /// What stderr has to hold; all of it.
    stderr: &'static [&'static str],
}

/// Usage: the arguments are wrong by themselves, or do not fit the inputs.
const USAGE: i32 = 2;
/// Anything without a code of its own.
const OTHER: i32 = 1;
const BAD_DATA: i32 = 65;
const MISSING: i32 = 66;
const IO: i32 = 74;

/// What a finished set or model can be told by.
const PUBLISHED: [&str; 3] = ["manifest.parquet", "config.json", "remit.json"];

/// Runs every case in a copy of `template`, and reports all that fail.
fn check(template: &Workspace, cases: &[Case]) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let (problems, report) = failures_of(&template.copy(), case);
            (!problems.is_empty())
                .then(|| format!("{}:\n  {}{report}", case.input, problems.join("\n  ")))
        })
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn failures_of(workspace: &Workspace, case: &Case) -> (Vec<String>, String) {
    (case.prepare)(workspace);
    let before = workspace.snapshot("");
    let (program, args) = case.command.split_once(' ').unwrap_or((case.command, ""));
    let program = match program {
        "remit-score" => SCORE,
        "remit-anneal" => ANNEAL,
        "remit-inspect" => INSPECT,
        other => panic!("no program {other}"),
    };
    let ended = workspace.command(program).args(args).run();
    let after = workspace.snapshot("");

    let mut problems = Vec::new();
    let mut expect = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    expect(
        ended.status.code() == Some(case.exit),
        format!("the exit code should be {}", case.exit),
    );
    // Lines of the log may come first; of the error there is one.
    let starts: Vec<usize> = ended
        .stderr
        .match_indices("error: ")
        .map(|(at, _)| at)
        .filter(|&at| at == 0 || ended.stderr[..at].ends_with('\n'))
        .collect();
    expect(
        starts.len() == 1,
        "one line of stderr should begin with `error: `".to_owned(),
    );
    let error = starts.first().map_or("", |&at| &ended.stderr[at..]);
    for line in ended.stderr[..starts.first().copied().unwrap_or(0)].lines() {
        expect(
            line.starts_with(" INFO ") || line.starts_with(" WARN "),
            format!("stderr holds something else than logs and the error: {line:?}"),
        );
    }
    for part in case.stderr {
        expect(error.contains(part), format!("stderr lacks {part:?}"));
    }
    expect(
        !ended.stderr.contains("panicked") && !ended.stderr.contains("RUST_BACKTRACE"),
        "it should not panic".to_owned(),
    );
    expect(ended.stdout.is_empty(), "stdout should be empty".to_owned());
    for (name, bytes) in &before {
        expect(
            after.get(name) == Some(bytes),
            format!("{} was changed", name.display()),
        );
    }
    for new in after.keys().filter(|name| !before.contains_key(*name)) {
        let name = new.file_name().unwrap_or_default().to_string_lossy();
        expect(
            !PUBLISHED.contains(&&*name),
            format!("{} was published", new.display()),
        );
        expect(
            !name.starts_with('.'),
            format!("{} was left behind", new.display()),
        );
    }
    (problems, ended.report().to_owned())
}

fn nothing(_: &Workspace) {}

/// A folder with a small corpus, a pair of models, and the sets that they give.
fn scored() -> Workspace {
    let workspace = unscored();
    let score = |args: &str| {
        workspace
            .command(SCORE)
            .args("corpus --rl-model rl --part-bytes 1000")
            .args(args)
            .ok();
    };
    score("-o set --base-model base");
    score("-o without-base");
    assert!(Path::exists(&workspace.path("set/part-000001.parquet")));
    workspace
}

/// The same without sets.
fn unscored() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/good.jsonl", 8);
    workspace.copy_model("tiny-llama", "rl");
    workspace.copy_model("tiny-llama-base", "base");
    workspace
}
