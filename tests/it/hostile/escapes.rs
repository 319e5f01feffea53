//! Nothing that comes from a file or its name reaches a terminal as anything but text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use remit::escape::is_control;
use serde_json::json;

use crate::harness::{ANNEAL, Ended, INSPECT, SCORE, Workspace};

/// What a name may have: sequences of a terminal, with two bytes and with one; a line of ours; overrides of the
/// direction of writing; a bell.
const NASTY: &str = "x\u{1b}[2J\u{9b}31m\nerror: fake\nhint: run it\u{202e}\u{2066}\u{7}";

/// Panics if a stream has a character that does something, or a line that a name has made up.
#[track_caller]
fn check_plain(ended: &Ended) {
    for stream in [&ended.stdout, &ended.stderr] {
        let bad = stream
            .chars()
            .find(|&c| is_control(c) && c != '\n' && c != '\t');
        ended.check(bad.is_none(), &format!("{bad:?} is raw"));
        let made_up = stream
            .lines()
            .any(|line| line.starts_with("error: fake") || line.starts_with("hint: run it"));
        ended.check(!made_up, "a name makes a line of its own");
    }
}

#[test]
fn names_of_files_are_escaped_in_errors_logs_and_tables() {
    let workspace = Workspace::new();
    let good = "{\"text\": \"What is 1+2?\"}\n";
    workspace.write(&format!("corpus/{NASTY}.jsonl"), good);
    workspace.write(&format!("corpus/{NASTY}.pdf"), "%PDF");
    workspace.write(&format!("corpus/{NASTY}.txt"), "");
    let set = format!("set{NASTY}");
    let score = |dir: &str| workspace.command(SCORE).arg(dir).arg("-o").arg(&set);
    let ended = score("corpus").ok();
    check_plain(&ended);
    ended.check(ended.stdout.contains("x\\u{1b}[2J"), "the name is shown");
    check_plain(&score("corpus").arg("--json").ok());
    for args in ["", "--json"] {
        check_plain(&workspace.command(INSPECT).arg(&set).args(args).ok());
        let verify = workspace.command(INSPECT).arg("verify").arg(&set);
        check_plain(&verify.args(args).ok());
    }
    for color in ["always", "never"] {
        let show = workspace.command(INSPECT).arg("show").arg(&set);
        let ended = show.args("--row 0 --color").arg(color).ok();
        let first = ended.stdout.lines().next().unwrap();
        ended.check(!first.contains(is_control), "the first line is plain");
        ended.check(first.contains("\\u{202e}"), "the source is shown");
    }
    let model = format!("model{NASTY}");
    let anneal = |program: &str| workspace.command(program).arg("--weights").arg(&set);
    check_plain(&anneal(ANNEAL).arg("-o").arg(&model).args("--steps 1").ok());
    check_plain(&workspace.command(INSPECT).arg("model").arg(&model).ok());

    workspace.write(&format!("corpus/{NASTY}.jsonl"), "{\"tex\": 1}\n");
    let ended = workspace.command(SCORE).args("corpus -o new").run();
    ended.check(ended.status.code() == Some(65), "the record is bad");
    check_plain(&ended);
    let ended = workspace.command(SCORE).arg(NASTY).args("-o new").run();
    ended.check(ended.status.code() == Some(65), "it is no pattern");
    check_plain(&ended);
    // A word of the command line that is quoted back.
    let ended = workspace.command(SCORE).arg(format!("--{NASTY}")).run();
    ended.check(ended.status.code() == Some(2), "no option");
    check_plain(&ended);
    let name = OsStr::from_bytes(b"\xff\x1b[2J.jsonl");
    std::fs::write(workspace.path("corpus").join(name), good).unwrap();
    let ended = workspace.command(SCORE).args("corpus -o new").run();
    check_plain(&ended);
    ended.check(
        ended.stderr.contains("\\xff\\u{1b}[2J.jsonl"),
        "bytes are shown",
    );
}

#[test]
fn what_a_model_says_of_itself_is_escaped() {
    let workspace = Workspace::new();
    let check = |change: &dyn Fn(&mut serde_json::Value), file: &str, what: &str| {
        workspace.copy_model("tiny-llama", "model");
        workspace.edit_json(&format!("model/{file}"), |value| change(value));
        for args in ["", "--json"] {
            let ended = workspace
                .command(INSPECT)
                .args("model model")
                .args(args)
                .run();
            check_plain(&ended);
        }
        let ended = workspace.command(INSPECT).args("model model").run();
        let all = format!("{}{}", ended.stdout, ended.stderr);
        ended.check(all.contains("\\u{202e}"), what);
        workspace.remove("model");
    };
    check(
        &|v| v["model_type"] = json!(NASTY),
        "config.json",
        "model_type",
    );
    check(
        &|v| v["hidden_act"] = json!(NASTY),
        "config.json",
        "a value",
    );
    check(&|v| v[NASTY] = json!(1), "config.json", "a field");

    // Tensors, and the files of an index.
    workspace.copy_model("tiny-llama", "model");
    workspace.damage("model/model.safetensors", |bytes| {
        let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap();
        let mut header: serde_json::Value = serde_json::from_slice(&rest[..len]).unwrap();
        let tensor = header["model.norm.weight"].take();
        header.as_object_mut().unwrap().remove("model.norm.weight");
        header[NASTY] = tensor;
        let text = serde_json::to_vec(&header).unwrap();
        let data = rest[len..].to_vec();
        *bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
    });
    let ended = workspace.command(INSPECT).args("model model").run();
    check_plain(&ended);
    ended.check(ended.stderr.contains("\\u{202e}"), "a tensor");
    workspace.remove("model/model.safetensors");
    let index = json!({"weight_map": {"a": NASTY}}).to_string();
    workspace.write("model/model.safetensors.index.json", index);
    let ended = workspace.command(INSPECT).args("model model").run();
    check_plain(&ended);
    ended.check(ended.stderr.contains("\\u{202e}"), "a file of the index");
}

#[test]
fn fields_columns_and_lines_of_a_configuration_are_escaped() {
    let workspace = Workspace::new();
    workspace.write("a.jsonl", json!({NASTY: 1}).to_string());
    check_plain(&workspace.command(SCORE).args("a.jsonl -o set").run());
    for text in [
        format!("lr = \"{NASTY}\""),
        format!("lr = '''{NASTY}'''"),
        format!("{NASTY} = 1"),
        format!(
            "\"{}\" = 1",
            NASTY.escape_default().to_string().replace("\\'", "'")
        ),
        "lr = \"\\u001b[2J\\u202E\\nerror: fake\"".to_owned(),
    ] {
        workspace.write("c.toml", text);
        let ended = workspace
            .command(ANNEAL)
            .args("--weights set --config c.toml")
            .run();
        check_plain(&ended);
        ended.check(ended.stderr.contains("c.toml"), "the file is named");
    }
}

#[test]
fn text_of_tokens_is_escaped_in_colour_and_without() {
    let workspace = Workspace::new();
    let text = "one \u{1b}[2J\u{1b}]0;title\u{7} two\u{202e}three\u{9b}1m\r four\n";
    workspace.write("a.jsonl", json!({"text": text}).to_string());
    workspace.command(SCORE).args("a.jsonl -o set").ok();
    for color in ["always", "never"] {
        let show = workspace.command(INSPECT).args("show set --row 0 --color");
        let ended = show.arg(color).ok();
        // Colours of ours are digits between these two.
        let mut rest = ended.stdout.as_str();
        while let Some(at) = rest.find('\u{1b}') {
            let sequence = &rest[at + 1..];
            let len = sequence[1..].find(|c: char| !(c.is_ascii_digit() || c == ';'));
            let is_colour =
                sequence.starts_with('[') && sequence[1 + len.unwrap()..].starts_with('m');
            ended.check(is_colour, "only colours are obeyed");
            rest = sequence;
        }
        let bad = ended
            .stdout
            .chars()
            .find(|&c| is_control(c) && !matches!(c, '\n' | '\u{1b}'));
        ended.check(bad.is_none(), &format!("{bad:?} is raw"));
    }
}

#[test]
fn cells_of_a_table_that_a_spreadsheet_would_run_are_marked_unless_they_are_wanted_raw() {
    let workspace = Workspace::new();
    workspace.write("=1+1.jsonl", "{\"text\": \"=1+1\"}\n");
    workspace.command(SCORE).args("=1+1.jsonl -o set").ok();
    let export = |file: &str, args: &str| {
        let command = workspace.command(INSPECT).args("export set --tokens");
        command.arg(file).args(args).ok();
        String::from_utf8(workspace.read(file)).unwrap()
    };
    let guarded = export("guarded.csv", "");
    let raw = export("raw.csv", "--raw-cells");
    assert!(
        guarded.contains(",\"'=1+1.jsonl\",") && guarded.contains(",\"'=\","),
        "{guarded}"
    );
    assert!(
        raw.contains(",\"=1+1.jsonl\",") && raw.contains(",\"=\","),
        "{raw}"
    );
    // Numbers are numbers, also below 0.
    assert!(guarded.contains(",-"), "{guarded}");
}

/// Paths are shown escaped everywhere: `Path::display` is for files alone, which keep names as they are.
#[test]
fn only_what_is_written_to_files_has_paths_as_they_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    crate::harness::visit(&root, &mut |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
        if code.contains(".display()") && !name.ends_with("tests.rs") {
            found.push(name.to_owned());
        }
    });
    assert_eq!(
        found,
        [
            "cli/anneal.rs",
            "fs/paths.rs",
            "model/files/source.rs",
            "pipeline/anneal/export.rs",
            "pipeline/anneal/report.rs",
            "pipeline/compare.rs",
            "pipeline/report/runs.rs",
            "pipeline/report/sweep.rs",
            "pipeline/report/write.rs",
            "pipeline/score/add.rs",
        ],
        "use escape::Show"
    );
}
