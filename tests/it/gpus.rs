//! A GPU's memory, and several GPUs: on emulated ones.

use std::io::Read as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::harness::{ANNEAL, Run, SCORE, Snapshot, Workspace, assert_same, visit};

const DEADLINE: Duration = Duration::from_secs(120);

/// About 3,000 tokens.
fn corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 60);
    workspace
}

fn score<'a>(workspace: &'a Workspace, device: &str, output: &str) -> Run<'a> {
    workspace
        .command(SCORE)
        .models("demo-rl", "demo-base")
        .args("corpus --device")
        .arg(device)
        .arg("-o")
        .arg(output)
}

/// In many parts.
fn in_parts<'a>(workspace: &'a Workspace, device: &str, output: &str) -> Run<'a> {
    score(workspace, device, output).args("--part-bytes 600 --batch-tokens 128")
}

fn expected(workspace: &Workspace) -> Snapshot {
    in_parts(workspace, "cuda-emulated", "one").ok();
    workspace.snapshot("one")
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn a_batch_is_chosen_that_fits_into_memory_and_the_plan_is_told() {
    let workspace = corpus();
    score(&workspace, "cuda-emulated", "free").ok();
    let limited = score(&workspace, "cuda-emulated:20MB", "limited").ok();
    let plan = " INFO memory of cuda-emulated: models 7 MB, then 20 MB free; a batch of 2048 tokens takes about ";
    limited.check(limited.stderr.contains(plan), "the plan");
    limited.check(!limited.stderr.contains(" WARN "), "no warning");
    assert_same(
        &workspace.snapshot("free"),
        &workspace.snapshot("limited"),
        "with a limit",
    );
    let refused = score(&workspace, "cuda-emulated:3MB", "refused").run();
    refused.check(refused.status.code() == Some(2), "no room for the models");
    refused.check(
        refused.stderr.contains(
            "error: the models take about 7 MB, and cuda-emulated has 3 MB free\nhint: --dtype bf16 ",
        ),
        "what and what to do",
    );
    let refused = score(&workspace, "cuda-emulated:9MB", "refused").run();
    refused.check(refused.status.code() == Some(2), "no room for a row");
    refused.check(
        refused
            .stderr
            .contains("error: a row of 2048 tokens takes about "),
        "what",
    );
}

#[test]
fn out_of_memory_halves_batches_once_without_changing_a_byte_and_is_an_error_twice() {
    let workspace = corpus();
    score(&workspace, "cuda-emulated", "free").ok();
    let halved = score(&workspace, "cuda-emulated:14MB", "halved")
        .args("--batch-tokens 4096")
        .ok();
    let said = " WARN out of memory on cuda-emulated in a batch of 2970 tokens: from now on batches have up to 1485 ";
    halved.check(count(&halved.stderr, "out of memory") == 1, "told once");
    halved.check(halved.stderr.contains(said), "told");
    assert_same(
        &workspace.snapshot("free"),
        &workspace.snapshot("halved"),
        "in halves",
    );
    workspace.write_corpus("corpus/a.jsonl", 200);
    let failed = score(&workspace, "cuda-emulated:8MB", "failed")
        .args("--batch-tokens 8192")
        .run();
    failed.check(failed.status.code() == Some(1), "twice");
    for text in [
        "error: a batch of ",
        " did not fit on cuda-emulated, after one of ",
        " kB more were asked for, and ",
        "\nhint: give --batch-tokens ",
    ] {
        failed.check(failed.stderr.contains(text), text);
    }
}

#[test]
fn training_that_runs_out_of_memory_names_the_flag_that_helps() {
    let workspace = corpus();
    score(&workspace, "cpu", "set").ok();
    let failed = workspace
        .command(ANNEAL)
        .args("--weights set -o out --steps 1 --device cuda-emulated:300kB")
        .run();
    failed.check(failed.status.code() == Some(1), "out of memory");
    failed.check(
        failed
            .stderr
            .contains("\nhint: give a smaller --micro-batch-tokens"),
        "the flag",
    );
}

#[test]
fn two_gpus_make_the_set_of_one_and_say_things_once() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let several = in_parts(&workspace, "cuda-emulated:0,1", "two").ok();
    assert_same(&expected, &workspace.snapshot("two"), "by two processes");
    several.check(
        count(&several.stderr, "loading ") == 2,
        "both models, by one process",
    );
    several.check(
        several.stderr.contains(" INFO cuda-emulated"),
        "the device before a line",
    );
    several.check(several.stdout.starts_with("scored "), "the result");
    let again = in_parts(&workspace, "cuda-emulated:0,1", "two").ok();
    again.check(again.stdout.starts_with("nothing to score"), "nothing left");
    assert_same(&expected, &workspace.snapshot("two"), "again");
}

#[test]
fn all_gpus_are_those_that_there_are() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let mut child = in_parts(&workspace, "cuda-emulated:all", "all").spawn();
    let mut missing = vec!["cuda-emulated", "cuda-emulated:1", "cuda-emulated:2"];
    wait_until("a process for each", || {
        missing.retain(|device| process_of(child.id(), device).is_none());
        missing.is_empty() || child.try_wait().unwrap().is_some()
    });
    assert!(missing.is_empty(), "no process for {missing:?}");
    let (code, stderr) = ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    assert_same(&expected, &workspace.snapshot("all"), "by all");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn all_gpus_of_a_program_without_cuda_are_none_and_it_says_so() {
    let workspace = corpus();
    let refused = score(&workspace, "cuda:all", "set").run();
    refused.check(refused.status.code() == Some(1), "no GPU");
    refused.check(
        refused
            .stderr
            .contains("this program was built without CUDA"),
        "why",
    );
}

#[test]
fn an_error_that_all_would_meet_ends_all_and_is_told_once() {
    let workspace = corpus();
    workspace.write("corpus/b.jsonl", "{\"text\": 1}\n");
    let failed = in_parts(&workspace, "cuda-emulated:0,1", "set").run();
    failed.check(failed.status.code() == Some(65), "bad input");
    failed.check(count(&failed.stderr, "error: cuda-emulated") == 1, "once");
    failed.check(failed.stderr.contains("b.jsonl"), "the file");
}

#[test]
fn several_gpus_are_refused_where_they_can_not_be_used() {
    let workspace = corpus();
    let commands = [
        (
            SCORE,
            "- -o set --device cuda:0,1",
            "error: stdin, -, can't be read by a process for each GPU\nhint: ",
        ),
        (
            SCORE,
            "corpus -o set --device cuda:1,1",
            "'--device <DEVICE>': cuda:1 is given twice",
        ),
        (
            ANNEAL,
            "--weights set -o out --device cuda:0,1",
            "several GPUs are for remit-score; to train on several, give the shards to PyTorch",
        ),
        (
            ANNEAL,
            "--weights set -o out --device cuda:all",
            "several GPUs are for remit-score; to train on several, give the shards to PyTorch",
        ),
    ];
    for (program, args, text) in commands {
        let refused = workspace.command(program).args(args).run();
        refused.check(refused.status.code() == Some(2), "usage");
        refused.check(refused.stderr.contains(text), text);
    }
}

fn num_shards(workspace: &Workspace, output: &str) -> usize {
    let mut shards = 0;
    visit(&workspace.path(output), &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        shards += usize::from(name.starts_with("part-"));
    });
    shards
}

/// Waits until it holds; panics after some minutes.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process for a device, of all that `parent` started.
fn process_of(parent: u32, device: &str) -> Option<u32> {
    let children = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(children).ok()?;
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| {
            let ids = list.split_whitespace();
            ids.map(|id| id.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    let wanted = format!("--gpu-process\0{device}\0");
    children.into_iter().find(|child| {
        let line = std::fs::read_to_string(format!("/proc/{child}/cmdline"));
        line.is_ok_and(|line| line.contains(&wanted))
    })
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .args([name, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Starts a run on two GPUs, and waits for its first shard; returns it with both processes.
fn begun(workspace: &Workspace) -> (Child, [u32; 2]) {
    let child = in_parts(workspace, "cuda-emulated:1,2", "set").spawn();
    wait_until("a first shard", || num_shards(workspace, "set") > 0);
    let processes = ["cuda-emulated:1", "cuda-emulated:2"].map(|device| {
        process_of(child.id(), device).unwrap_or_else(|| panic!("no process for {device}"))
    });
    (child, processes)
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

#[test]
fn a_gpu_that_dies_leaves_its_parts_to_the_other() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let (child, [first, _]) = begun(&workspace);
    signal("-KILL", first);
    let (code, stderr) = ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    let warning = " WARN the process of cuda-emulated:1 has ended (signal: 9 (SIGKILL)): its ";
    assert_eq!(count(&stderr, warning), 1, "{stderr}");
    assert_same(&expected, &workspace.snapshot("set"), "by the other");
}

#[test]
fn when_all_gpus_die_the_run_fails_and_the_same_command_finishes_it() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let (child, both) = begun(&workspace);
    for process in both {
        signal("-KILL", process);
    }
    let (code, stderr) = ended(child);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("and there is no other GPU\nhint: run the same command again"),
        "{stderr}"
    );
    in_parts(&workspace, "cuda-emulated:1,2", "set").ok();
    assert_same(&expected, &workspace.snapshot("set"), "at last");
}

#[test]
fn a_signal_to_stop_is_passed_on_and_waited_for() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let (child, both) = begun(&workspace);
    signal("-TERM", child.id());
    let (code, stderr) = ended(child);
    assert_eq!(both.map(runs), [false, false]);
    assert_eq!(code, Some(75), "{stderr}");
    assert!(
        stderr.contains("error: interrupted\nhint: run the same command again"),
        "{stderr}"
    );
    in_parts(&workspace, "cuda-emulated:1,2", "set").ok();
    assert_same(&expected, &workspace.snapshot("set"), "at last");
}

#[test]
fn processes_end_when_the_one_that_started_them_is_killed() {
    let workspace = corpus();
    let expected = expected(&workspace);
    let (mut child, both) = begun(&workspace);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("no orphan is left", || both.map(runs) == [false, false]);
    in_parts(&workspace, "cuda-emulated:1,2", "set").ok();
    assert_same(&expected, &workspace.snapshot("set"), "at last");
}
