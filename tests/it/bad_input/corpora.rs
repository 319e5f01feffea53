//! Corpora that can't be read.

use std::io::Write;

use super::{BAD_DATA, Case, MISSING, check, nothing, unscored};
use crate::harness::{Workspace, fixtures};

const DOCUMENT: &str = "{\"id\": 1, \"text\": \"What is 1+2?\"}\n";

/// The command of most cases.
const SCORE_CORPUS: &str = "remit-score corpus -o out --rl-model rl";

/// Writes the first bytes of a file that was compressed whole.
fn write_cut(workspace: &Workspace, name: &str, compressed: &[u8]) {
    workspace.write(name, &compressed[..compressed.len() - 12]);
}

fn long_text() -> String {
    (0..2000).map(|n| format!("{} is {n}. ", n * n)).collect()
}

const FILES: &[Case] = &[
    Case {
        input: "an input that does not exist",
        prepare: nothing,
        command: "remit-score nowhere -o out --rl-model rl",
        exit: MISSING,
        stderr: &["error: no such file or folder: nowhere\n"],
    },
    Case {
        input: "one of two inputs that does not exist",
        prepare: nothing,
        command: "remit-score corpus corpus/none.txt -o out --rl-model rl",
        exit: MISSING,
        stderr: &["error: no such file or folder: corpus/none.txt\n"],
    },
    Case {
        input: "an empty folder",
        prepare: |w| std::fs::create_dir(w.path("empty")).unwrap(),
        command: "remit-score empty -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &["error: empty corpus: no file was found; supported are .txt, .md, .jsonl"],
    },
    Case {
        input: "empty files only",
        prepare: |w| {
            w.write("empty/a.txt", "");
            w.write("empty/b.jsonl", "");
        },
        command: "remit-score empty -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &["error: empty corpus: all 2 supported files are empty;"],
    },
    Case {
        input: "a folder with only files of other types",
        prepare: |w| {
            w.write("pages/a.html", "<p>");
            w.write("pages/deep/b.pdf", "%PDF");
        },
        command: "remit-score pages -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &[
            "error: empty corpus: none of the 2 files found is of a supported type; supported are",
        ],
    },
    Case {
        input: "a file of another type, named itself",
        prepare: |w| w.write("pages/a.html", "<p>"),
        command: "remit-score corpus pages/a.html -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &["error: pages/a.html: a file of this type is not supported; supported are"],
    },
];

const RECORDS: &[Case] = &[
    Case {
        input: "a line that is no JSON",
        prepare: |w| w.write("corpus/bad.jsonl", format!("{DOCUMENT}{{\"text\": \"a\"\n")),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/bad.jsonl, line 2: not valid JSON: EOF while parsing an object"],
    },
    Case {
        input: "a line that is JSON, but no object",
        prepare: |w| w.write("corpus/bad.jsonl", format!("{DOCUMENT}\n[1]\n")),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bad.jsonl, line 3: expected an object like {\"text\": \"...\"}, found an array\n",
        ],
    },
    Case {
        input: "a line without the text field",
        prepare: |w| {
            w.write(
                "corpus/bad.jsonl",
                format!("{DOCUMENT}{{\"id\": 7, \"body\": \"a\"}}\n"),
            );
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bad.jsonl, line 2: no field \"text\"; the record has \"id\", \"body\"; \
             name the field that holds the text with --text-field\n",
        ],
    },
    Case {
        input: "a text field that no line has",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --text-field body",
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/good.jsonl, line 1: no field \"body\"; the record has \"id\", \"text\",",
        ],
    },
    Case {
        input: "a text that is a number",
        prepare: |w| w.write("corpus/bad.jsonl", format!("{DOCUMENT}{{\"text\": 3}}\n")),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bad.jsonl, line 2: the field \"text\" is a number, not a string; name",
        ],
    },
    Case {
        input: "a text that is null",
        prepare: |w| w.write("corpus/bad.jsonl", "{\"text\": null}\n"),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/bad.jsonl, line 1: the field \"text\" is null, not a string;"],
    },
    Case {
        input: "a .txt that is not UTF-8",
        prepare: |w| w.write("corpus/bad.txt", b"first\nsec\xffond\n"),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/bad.txt, line 2: not valid UTF-8 at byte 9 of the text; convert"],
    },
    Case {
        input: "a .jsonl that is not UTF-8",
        prepare: |w| {
            let mut content = DOCUMENT.as_bytes().to_vec();
            content.extend(b"{\"text\": \"\xc3(\"}\n");
            w.write("corpus/bad.jsonl", content);
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/bad.jsonl, line 2: not valid UTF-8 at byte "],
    },
];

const CONTAINERS: &[Case] = &[
    Case {
        input: "a .gz that was cut short",
        prepare: |w| {
            let mut writer =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(long_text().as_bytes()).unwrap();
            write_cut(w, "corpus/cut.txt.gz", &writer.finish().unwrap());
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/cut.txt.gz: the gzip data is damaged or cut short: "],
    },
    Case {
        input: "a .zst that was cut short",
        prepare: |w| {
            let compressed = zstd::encode_all(long_text().as_bytes(), 3).unwrap();
            write_cut(w, "corpus/cut.txt.zst", &compressed);
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/cut.txt.zst: the zstd data is damaged or cut short: "],
    },
    Case {
        input: "a .gz that is plain text",
        prepare: |w| w.write("corpus/plain.jsonl.gz", DOCUMENT),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/plain.jsonl.gz: the gzip data is damaged or cut short: "],
    },
    Case {
        input: "a .parquet that is plain text",
        prepare: |w| w.write("corpus/plain.parquet", DOCUMENT),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/plain.parquet: not a readable Parquet file: "],
    },
    Case {
        input: "a .parquet that was cut short",
        prepare: |w| {
            let path = fixtures().join("corpus/prose/articles.parquet");
            write_cut(w, "corpus/cut.parquet", &std::fs::read(path).unwrap());
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/cut.parquet: not a readable Parquet file: "],
    },
    Case {
        input: "a .parquet without the column",
        prepare: |w| {
            let path = fixtures().join("corpus/prose/articles.parquet");
            w.write("tables/articles.parquet", std::fs::read(path).unwrap());
        },
        command: "remit-score tables -o out --rl-model rl --text-field essay",
        exit: BAD_DATA,
        stderr: &[
            "error: tables/articles.parquet: no column \"essay\"; the file has \"",
            "; name the column that holds the text with --text-field\n",
        ],
    },
];

#[test]
fn missing_empty_and_unsupported_inputs_are_told_apart() {
    check(&unscored(), FILES);
}

#[test]
fn a_bad_record_is_named_by_file_and_line() {
    check(&unscored(), RECORDS);
}

#[test]
fn a_damaged_container_is_named() {
    check(&unscored(), CONTAINERS);
}
