//! Both formats of shards hold the same, and every command reads both.

use remit::shard::read::ShardSet;

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace, assert_same};

fn scored() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 40);
    for format in ["parquet", "arrow"] {
        workspace
            .command(SCORE)
            .args("corpus --seq-len 64 --part-bytes 3000 --format")
            .arg(format)
            .arg("-o")
            .arg(format)
            .ok();
    }
    workspace
}

#[test]
fn both_formats_hold_the_same_rows_and_anneal_alike() {
    let workspace = scored();
    let rows = |format: &str| {
        let set = ShardSet::open(&workspace.path(format)).unwrap();
        let mut rows = Vec::new();
        for shard in set.shards() {
            for group in 0..shard.num_row_groups() {
                let lengths = shard.row_lengths(group).unwrap();
                let group = shard.read_row_group(group).unwrap();
                let expected = group.iter().map(|row| row.num_tokens() as u32);
                assert!(expected.eq(lengths));
                rows.extend(group);
            }
        }
        rows
    };
    assert_eq!(rows("parquet"), rows("arrow"));
    for format in ["parquet", "arrow"] {
        workspace
            .command(ANNEAL)
            .args("--steps 3 --batch-tokens 500 --lr 1e-3 --weights")
            .arg(format)
            .arg("-o")
            .arg(format!("annealed-{format}"))
            .ok();
    }
    assert_eq!(
        workspace.metrics("annealed-parquet"),
        workspace.metrics("annealed-arrow")
    );
    let model = |format| workspace.read(&format!("annealed-{format}/model.safetensors"));
    assert!(model("parquet") == model("arrow"), "other weights");
}

#[test]
fn another_format_is_another_plan_and_arrow_is_made_again_byte_for_byte() {
    let workspace = scored();
    let ended = workspace
        .command(SCORE)
        .args("corpus --seq-len 64 --part-bytes 3000 -o arrow")
        .run();
    ended.check(ended.status.code() == Some(2), "it is refused");
    ended.check(
        ended
            .stderr
            .contains("\n  format was \"arrow\", is now \"parquet\"\n"),
        "the difference is spelled out",
    );
    let before = workspace.snapshot("arrow");
    workspace.remove("arrow/part-000000.arrow");
    workspace.remove("arrow/_remit/manifest.arrow");
    workspace
        .command(SCORE)
        .args("corpus --seq-len 64 --part-bytes 3000 --format arrow --threads 1 -o arrow")
        .ok();
    assert_same(&before, &workspace.snapshot("arrow"), "a shard made again");
}

#[test]
fn show_prints_a_row_as_a_table_or_as_coloured_text() {
    let workspace = scored();
    let show = |args: &str| {
        workspace
            .command(INSPECT)
            .arg("show")
            .args(args)
            .ok()
            .stdout
    };
    let table = show("parquet --row 0");
    assert_eq!(table, show("arrow --row-id 0"));
    assert!(!table.contains('\x1b'));
    let mut lines = table.lines();
    let header = lines.next().unwrap();
    assert!(
        header.starts_with("row 0: ") && header.ends_with(" of a.jsonl"),
        "{header}"
    );
    assert_eq!(
        lines.next().unwrap().split_whitespace().next(),
        Some("position")
    );
    let first: serde_json::Value = serde_json::from_str(
        std::str::from_utf8(&workspace.read("corpus/a.jsonl"))
            .unwrap()
            .lines()
            .next()
            .unwrap(),
    )
    .unwrap();
    let first = first["text"].as_str().unwrap();
    let coloured = show("parquet --row 0 --color always");
    assert!(coloured.contains("\x1b[30;48;5;"), "{coloured}");
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        rest = rest[at..].split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    let shown: String = plain.lines().skip(3).collect::<Vec<_>>().join("\n");
    let beginning: String = first.chars().take(60).collect();
    assert!(shown.starts_with(&beginning), "{shown}\n{beginning}");

    let ended = workspace
        .command(INSPECT)
        .args("show parquet --row 100000")
        .run();
    ended.check(ended.status.code() == Some(2), "there is no such row");
    ended.check(ended.stderr.contains("no row 100000"), "it is named");
}

#[test]
fn tokens_are_exported_with_nulls_where_nothing_is_predicted() {
    let workspace = Workspace::new();
    workspace.write("corpus/a \"b\",c.txt", "one, \"two\"\nthree");
    for format in ["parquet", "arrow"] {
        workspace
            .command(SCORE)
            .args("corpus --format")
            .arg(format)
            .arg("-o")
            .arg(format)
            .ok();
        for suffix in ["csv", "parquet"] {
            let ended = workspace
                .command(INSPECT)
                .arg("export")
                .arg(format)
                .arg("--tokens")
                .arg(format!("{format}-tokens.{suffix}"))
                .args(if suffix == "csv" { "--raw-cells" } else { "" })
                .ok();
            ended.check(ended.stdout.ends_with(" tokens\n"), "it says how many");
        }
    }
    let csv = String::from_utf8(workspace.read("parquet-tokens.csv")).unwrap();
    assert_eq!(csv.as_bytes(), workspace.read("arrow-tokens.csv"));
    assert!(workspace.read("parquet-tokens.parquet") == workspace.read("arrow-tokens.parquet"));
    let fields = csv_fields(&csv);
    let (header, tokens) = fields.split_first().unwrap();
    assert_eq!(
        header.join(" "),
        "row_id position source doc_index input_id text rl_logprob base_logprob weight"
    );
    let mut text = String::new();
    for (position, token) in tokens.iter().enumerate() {
        assert_eq!(token[0], "0");
        assert_eq!(token[1], position.to_string());
        assert_eq!(token[2], "a \"b\",c.txt");
        text.push_str(&token[5]);
        let is_target = position > 0;
        assert_eq!(!token[6].is_empty(), is_target, "rl_logprob of {position}");
        assert_eq!(
            !token[7].is_empty(),
            is_target,
            "base_logprob of {position}"
        );
        assert_eq!(token[8] != "0", is_target, "weight of {position}");
    }
    assert!(text.starts_with("one, \"two\"\nthree"), "{text}");
}

/// Records of a CSV file, after RFC 4180.
fn csv_fields(csv: &str) -> Vec<Vec<String>> {
    let mut records = vec![vec![String::new()]];
    let mut is_quoted = false;
    let mut chars = csv.trim_end_matches('\n').chars().peekable();
    while let Some(c) = chars.next() {
        let record = records.last_mut().unwrap();
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                record.last_mut().unwrap().extend(chars.next());
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => record.push(String::new()),
            '\n' if !is_quoted => records.push(vec![String::new()]),
            c => record.last_mut().unwrap().push(c),
        }
    }
    records
}
