//! Only regular files are opened, and nothing waits for anything else.

use std::path::Path;
use std::process::Command;

use super::measured;
use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace};

fn fifo(workspace: &Workspace, name: &str) {
    let path = workspace.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn what_is_no_regular_file_is_refused_by_name_at_once() {
    let workspace = Workspace::new();
    workspace.write_corpus("good.jsonl", 2);
    workspace.command(SCORE).args("good.jsonl -o set").ok();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let model = format!("without-{file}");
        workspace.copy_model("tiny-llama", &model);
        if workspace.path(&format!("{model}/{file}")).exists() {
            workspace.remove(&format!("{model}/{file}"));
        }
        fifo(&workspace, &format!("{model}/{file}"));
    }
    for name in [
        "f.jsonl",
        "f.parquet",
        "f.txt.gz",
        "f.npy",
        "f.toml",
        "f.list",
    ] {
        fifo(&workspace, name);
    }
    for file in ["part-000000.parquet", "_remit/manifest.parquet"] {
        let set = format!("set-{}", file.replace('/', "-"));
        workspace.copy_folder(&workspace.path("set"), &set);
        workspace.remove(&format!("{set}/{file}"));
        fifo(&workspace, &format!("{set}/{file}"));
    }
    let _socket = std::os::unix::net::UnixListener::bind(workspace.path("s.jsonl")).unwrap();
    workspace.write("lists", "good.jsonl\nf.jsonl\n");
    let cases = [
        (SCORE, "f.jsonl -o out", "f.jsonl: it is a FIFO"),
        (SCORE, "f.parquet -o out", "f.parquet: it is a FIFO"),
        (SCORE, "f.txt.gz -o out", "f.txt.gz: it is a FIFO"),
        (SCORE, "f.npy -o out", "f.npy: it is a FIFO"),
        (SCORE, "s.jsonl -o out", "s.jsonl: it is a socket"),
        (SCORE, "--files-from lists -o out", "f.jsonl: it is a FIFO"),
        (SCORE, "--files-from f.list -o out", "f.list: it is a FIFO"),
        (
            SCORE,
            "--files-from /dev/zero -o out",
            "/dev/zero: it is a device",
        ),
        (SCORE, "--files-from set -o out", "set: it is a folder"),
        (
            ANNEAL,
            "--weights set --config f.toml",
            "f.toml: it is a FIFO",
        ),
        (
            ANNEAL,
            "--weights set --config /dev/zero",
            "/dev/zero: it is a device",
        ),
        (
            SCORE,
            "good.jsonl -o out --rl-model without-config.json",
            "config.json: it is a FIFO",
        ),
        (
            SCORE,
            "good.jsonl -o out --rl-model without-tokenizer.json",
            "tokenizer.json: it is a FIFO",
        ),
        (
            SCORE,
            "good.jsonl -o out --rl-model without-tokenizer_config.json",
            "tokenizer_config.json: it is a FIFO",
        ),
        (
            INSPECT,
            "model without-model.safetensors",
            "model.safetensors: it is a FIFO",
        ),
        (
            INSPECT,
            "set-_remit-manifest.parquet",
            "manifest.parquet: it is a FIFO",
        ),
        (
            INSPECT,
            "show set-part-000000.parquet --row 0",
            "part-000000.parquet: it is a FIFO",
        ),
        (
            ANNEAL,
            "--weights set-part-000000.parquet -o out",
            "part-000000.parquet: it is a FIFO",
        ),
    ];
    for (program, args, expected) in cases {
        let mut command = Command::new(program);
        command
            .current_dir(workspace.path(""))
            .args(args.split(' '));
        let ended = measured(&mut command);
        assert_eq!(ended.problems(65), [""; 0], "{args}");
        assert!(ended.error().contains(expected), "{args}: {}", ended.stderr);
        assert!(
            !workspace
                .path("out")
                .join("_remit/manifest.parquet")
                .exists()
        );
    }
    // As an output as well.
    fifo(&workspace, "model/metrics.jsonl");
    let mut command = Command::new(ANNEAL);
    command
        .current_dir(workspace.path(""))
        .args("--weights set -o model --steps 1".split(' '));
    let ended = measured(&mut command);
    // It ended by itself, and was not killed for want of an end.
    assert!(ended.status.code().is_some_and(|code| code != 0));
    assert!(ended.error().contains("metrics.jsonl"), "{}", ended.stderr);
}

#[test]
fn lists_may_come_from_a_pipe_where_that_is_meant() {
    let workspace = Workspace::new();
    workspace.write_corpus("good.jsonl", 2);
    workspace.write("list", "good.jsonl\n");
    for (script, output) in [
        ("cat list | $SCORE --files-from -", "a"),
        ("cat list | $SCORE --files-from /dev/stdin", "b"),
        ("$SCORE --files-from /dev/stdin < list", "c"),
        ("$SCORE --files-from <(cat list)", "d"),
    ] {
        let script = format!("{script} -o {output}").replace("$SCORE", SCORE);
        workspace.command("bash").arg("-c").arg(script).ok();
        assert!(workspace.has_manifest(output));
    }
}

#[test]
fn files_that_are_left_out_or_empty_are_counted_and_one_is_named() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/good.jsonl", 2);
    fifo(&workspace, "corpus/f.jsonl");
    fifo(&workspace, "corpus/deep/g.jsonl");
    workspace.write("corpus/e.jsonl", "");
    for inputs in ["corpus", "corpus/**/*.jsonl"] {
        let ended = workspace
            .command(SCORE)
            .args(inputs)
            .args("--dry-run -o set")
            .ok();
        let special =
            "2 FIFOs, sockets or devices are left out, the first being corpus/deep/g.jsonl";
        ended.check(ended.stderr.contains(special), "FIFOs are counted");
        let empty = "1 file is empty, the first being corpus/e.jsonl";
        ended.check(ended.stderr.contains(empty), "empty files are counted");
    }
}

#[test]
fn small_files_have_a_limit() {
    let workspace = Workspace::new();
    workspace.write_corpus("good.jsonl", 2);
    let grow = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(workspace.path(name)).unwrap();
        file.set_len(100 << 30).unwrap();
    };
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        workspace.copy_model("tiny-llama", "model");
        grow(&format!("model/{file}"));
        let mut command = Command::new(SCORE);
        command
            .current_dir(workspace.path(""))
            .args("good.jsonl -o out --rl-model model".split(' '));
        let ended = measured(&mut command);
        assert_eq!(ended.problems(65), [""; 0], "{file}");
        assert!(ended.error().contains(file) && ended.error().contains("has more than"));
        workspace.remove("model");
    }
    grow("list");
    grow("c.toml");
    for (program, args) in [
        (SCORE, "--files-from list -o out"),
        (ANNEAL, "--weights set --config c.toml"),
    ] {
        let mut command = Command::new(program);
        command
            .current_dir(workspace.path(""))
            .args(args.split(' '));
        let ended = measured(&mut command);
        assert_eq!(ended.status.code(), Some(65), "{}", ended.stderr);
        assert!(ended.error().contains("has more than"), "{}", ended.stderr);
    }
}

/// Makes folders within each other, whose path is longer than a call may take at once.
fn nest(top: &Path, depth: usize) {
    let script = "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(int(sys.argv[2])):\n    os.mkdir('d'); os.chdir('d')\n";
    let mut command = Command::new("python3");
    let made = command
        .arg("-c")
        .arg(script)
        .arg(top)
        .arg(depth.to_string())
        .status();
    assert!(made.unwrap().success());
}

#[test]
fn two_thousand_folders_within_each_other_are_walked_in_linear_time() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/good.jsonl", 2);
    nest(&workspace.path("corpus"), 1900);
    let mut command = Command::new(SCORE);
    command
        .current_dir(workspace.path(""))
        .args("corpus -o set --dry-run".split(' '));
    assert_eq!(measured(&mut command).problems(0), [""; 0]);
}

#[test]
fn a_system_out_of_file_descriptors_is_no_fault_of_the_file() {
    let workspace = Workspace::new();
    let file = crate::harness::fixtures().join("corpus/prose/articles.parquet");
    let mut codes = Vec::new();
    for limit in 4..14 {
        let script = format!("ulimit -n {limit}; exec {SCORE} {} -o set", file.display());
        let ended = workspace.command("sh").arg("-c").arg(script).run();
        codes.push(ended.status.code().unwrap());
        ended.check(
            matches!(ended.status.code(), Some(0 | 74)),
            "it works, or the system is at fault",
        );
        if ended.status.success() {
            break;
        }
    }
    assert!(codes.contains(&74) && codes.contains(&0), "{codes:?}");
}

#[test]
fn a_file_that_outgrows_the_limit_of_the_shell_is_a_failed_write() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 400);
    // Blocks of 512 bytes: fewer than the shards have.
    let script = format!("ulimit -f 4; exec {SCORE} a.jsonl -o set");
    let ended = workspace.command("sh").arg("-c").arg(script).run();
    ended.check(ended.status.code() == Some(74), "writing failed");
    ended.check(ended.report().contains("File too large"), "it says how");
    workspace.command(SCORE).args("a.jsonl -o set").ok();
}

#[test]
fn out_of_the_time_that_the_shell_gives_is_an_interruption() {
    let workspace = Workspace::new();
    workspace.write_corpus("a.jsonl", 4);
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    let script = format!(
        "ulimit -St 2; exec {ANNEAL} --weights set -o model --steps 1000000 --batch-tokens 200"
    );
    let ended = workspace.command("sh").arg("-c").arg(script).run();
    ended.check(ended.status.code() == Some(75), "it can go on");
    ended.check(ended.report().contains("interrupted"), "it says so");
}

#[test]
fn what_is_wrong_with_small_inputs_is_named() {
    let workspace = Workspace::new();
    workspace.write_corpus("good.jsonl", 2);
    workspace.command(SCORE).args("good.jsonl -o set").ok();
    let refused = |program: &str, args: &str, exit: i32, expected: &str| {
        let ended = workspace.command(program).args(args).run();
        ended.check(
            ended.status.code() == Some(exit),
            &format!("exit code {exit}"),
        );
        ended.check(ended.stderr.contains(expected), expected);
    };
    workspace.write("nul", "good.jsonl\na\0b\n");
    refused(
        SCORE,
        "--files-from nul -o out",
        65,
        "nul: line 2 has a NUL byte",
    );
    workspace.write("latin", b"good.jsonl\ncaf\xe9.txt\n");
    refused(SCORE, "--files-from latin -o out", 65, "latin");
    workspace.write("c.toml", "lr = \"fast\"\n");
    refused(
        ANNEAL,
        "--weights set --config c.toml",
        2,
        "error: c.toml: invalid value 'fast' for '--lr <LR>'",
    );
    workspace.write("ids.jsonl", "{\"input_ids\": [1, 1e30]}\n");
    refused(
        SCORE,
        "ids.jsonl -o out",
        65,
        "ids.jsonl, line 1: the field \"input_ids\" is an array",
    );
    workspace.write("deep.toml", format!("a = {}", "[".repeat(100_000)));
    refused(
        ANNEAL,
        "--weights set --config deep.toml",
        65,
        "deep.toml is not TOML",
    );
    let deep = format!(
        "{{\"b\": {}1{}, \"text\": \"one\"}}\n",
        "[".repeat(300_000),
        "]".repeat(300_000)
    );
    workspace.write("deep.jsonl", deep);
    let ended = workspace.command(SCORE).args("deep.jsonl -o deep").run();
    ended.check(
        matches!(ended.status.code(), Some(0 | 65)),
        "it does not abort",
    );
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        for (value, expected) in [
            (
                "5",
                "eos_token is 5, neither a string nor an object that describes a token",
            ),
            ("[\"a\"]", "eos_token is a list, neither a string"),
            (
                "\"<no such>\"",
                "eos_token is \"<no such>\", which is no token of tokenizer.json: no model has seen it",
            ),
            (
                "{\"content\": \"<no such>\"}",
                "eos_token is \"<no such>\", which is no token",
            ),
        ] {
            workspace.copy_model("tiny-llama", "model");
            if workspace.path("model/tokenizer_config.json").exists() {
                workspace.remove("model/tokenizer_config.json");
            }
            workspace.write(
                &format!("model/{file}"),
                format!("{{\"eos_token\": {value}}}"),
            );
            refused(SCORE, "good.jsonl -o out --rl-model model", 65, file);
            refused(SCORE, "good.jsonl -o out --rl-model model", 65, expected);
            workspace.remove("model");
        }
    }
}

/// 100,000 names of tokens in a file of 6 MB; each was compared with all the others.
#[test]
fn a_hundred_thousand_named_tokens_are_read_in_linear_time() {
    let workspace = Workspace::new();
    workspace.write_corpus("good.jsonl", 2);
    workspace.copy_model("tiny-llama", "model");
    let tokens = (0..100_000).map(|n| {
        let token = serde_json::json!({"content": format!("<{n}>"), "special": n % 2 == 0});
        ((2000 + n).to_string(), token)
    });
    let named = (0..100_000).map(|n| (format!("{n}_token"), format!("<{n}>").into()));
    let decoder: serde_json::Map<_, _> = tokens.collect();
    let mut config: serde_json::Map<String, serde_json::Value> = named.collect();
    config.insert("added_tokens_decoder".to_owned(), decoder.into());
    workspace.write(
        "model/tokenizer_config.json",
        serde_json::to_vec(&config).unwrap(),
    );
    let mut command = Command::new(SCORE);
    command
        .current_dir(workspace.path(""))
        .args("good.jsonl -o out --rl-model model".split(' '));
    let ended = measured(&mut command);
    assert_eq!(ended.problems(0), [""; 0]);
    let more = "model: the same holds of 99997 more tokens";
    assert!(ended.stderr.contains(more), "{}", ended.stderr);
    assert!(ended.stderr.lines().count() < 20, "{}", ended.stderr);
}
