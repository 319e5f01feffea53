//! Corpora that can't be read.

use std::io::{Read, Write};

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
        stderr: &[
            "error: empty corpus: all 2 supported files are empty, the first being empty/a.txt;",
        ],
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
        stderr: &[
            "error: corpus/bad.jsonl, line 2: not valid JSON: EOF while parsing an object",
            "\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it\n",
        ],
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
        stderr: &[
            "error: corpus/plain.jsonl.gz: no compressed data, which its name does not say\nhint: rename it to plain.jsonl\n",
        ],
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

/// A .npy file of version 1.0.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{header}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

const LISTS: &[Case] = &[
    Case {
        input: "a pattern that matches nothing",
        prepare: nothing,
        command: "remit-score corpus/*.zst -o out --rl-model rl",
        exit: MISSING,
        stderr: &["error: no file matches corpus/*.zst\n"],
    },
    Case {
        input: "a pattern that is none",
        prepare: nothing,
        command: "remit-score corpus/[a -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &["error: corpus/[a: not a pattern of file names: "],
    },
    Case {
        input: "a list of files that does not exist",
        prepare: nothing,
        command: "remit-score --files-from files.txt -o out --rl-model rl",
        exit: MISSING,
        stderr: &["error: ", "files.txt"],
    },
    Case {
        input: "a list of files with a file that does not exist",
        prepare: |w| w.write("files.txt", "corpus/good.jsonl\ncorpus/none.jsonl\n"),
        command: "remit-score --files-from files.txt -o out --rl-model rl",
        exit: MISSING,
        stderr: &["error: no such file or folder: corpus/none.jsonl\n"],
    },
    Case {
        input: "a list of no files",
        prepare: |w| w.write("files.txt", "\n\n"),
        command: "remit-score --files-from files.txt -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &["error: files.txt: the list names no file"],
    },
    Case {
        input: "a file that is listed twice",
        prepare: |w| w.write("files.txt", "corpus/good.jsonl\n./corpus/good.jsonl\n"),
        command: "remit-score --files-from files.txt -o out --rl-model rl",
        exit: BAD_DATA,
        stderr: &[
            "corpus/good.jsonl and ./corpus/good.jsonl are the same file; its documents would be",
        ],
    },
];

const LIMITS: &[Case] = &[
    Case {
        input: "a line that is longer than a record may be",
        prepare: |w| {
            w.write(
                "corpus/long.jsonl",
                format!("{DOCUMENT}{{\"text\": \"{}\"}}\n", "a".repeat(5000)),
            );
        },
        command: "remit-score corpus -o out --rl-model rl --max-record-bytes 4K",
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/long.jsonl, line 2: longer than 4096 bytes, the most that a record may have;",
            "--max-record-bytes",
        ],
    },
    Case {
        input: "a text that is longer than a record may be",
        prepare: |w| w.write("corpus/long.txt", long_text()),
        command: "remit-score corpus -o out --rl-model rl --max-record-bytes 4K",
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/long.txt: longer than 4096 bytes, the most that a record may have;",
        ],
    },
    Case {
        input: "a text of 3 KB that expands to more than a record may be",
        prepare: |w| {
            let frame = zstd::encode_all(std::io::repeat(b'a').take(100 << 20), 1).unwrap();
            w.write("corpus/bomb.txt.zst", frame);
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/bomb.txt.zst: longer than 16777216 bytes, the most that "],
    },
    Case {
        input: "a .zst that expands far too much",
        prepare: |w| {
            let lines = std::io::repeat(b'\n').take(100 << 20);
            let frame = zstd::encode_all(lines, 1).unwrap();
            w.write("corpus/bomb.jsonl.zst", frame);
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bomb.jsonl.zst: the zstd data unpacks to more than 256 times its size; ",
        ],
    },
    Case {
        input: "a .gz that expands far too much",
        prepare: |w| {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::copy(&mut std::io::repeat(b'\n').take(100 << 20), &mut writer).unwrap();
            w.write("corpus/bomb.jsonl.gz", writer.finish().unwrap());
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bomb.jsonl.gz: the gzip data unpacks to more than 256 times its size; ",
        ],
    },
    Case {
        input: "a table that expands far too much",
        prepare: |w| {
            let zeros = std::io::repeat(0).take(200 << 20);
            w.write(
                "corpus/bomb.parquet.zst",
                zstd::encode_all(zeros, 1).unwrap(),
            );
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/bomb.parquet.zst: the zstd data unpacks to more than 256 times its size; ",
        ],
    },
    Case {
        input: "a .zst that needs a larger window than is allowed",
        prepare: |w| {
            let mut writer = zstd::Encoder::new(Vec::new(), 1).unwrap();
            writer.window_log(22).unwrap();
            writer.include_contentsize(false).unwrap();
            for n in 0..200_000 {
                writeln!(writer, "{{\"text\": \"{} is {n}\"}}", n * n).unwrap();
            }
            w.write("corpus/window.jsonl.zst", writer.finish().unwrap());
        },
        command: "remit-score corpus -o out --rl-model rl --zstd-window-log 20",
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/window.jsonl.zst: to unpack it takes a zstd window of more than 1 MiB; ",
            "--zstd-window-log 31",
        ],
    },
];

const IDS: &[Case] = &[
    Case {
        input: "a .bin that nothing says the width of",
        prepare: |w| w.write("corpus/ids.bin", [1, 0, 2, 0]),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/ids.bin: a file of token ids without a header; say what they are with \
             --token-dtype uint16 or uint32\n",
        ],
    },
    Case {
        input: "a .bin of half an id",
        prepare: |w| w.write("corpus/ids.bin", [1, 0, 2]),
        command: "remit-score corpus -o out --rl-model rl --token-dtype uint16",
        exit: BAD_DATA,
        stderr: &["error: corpus/ids.bin: 3 bytes are no whole number of ids of 2 bytes\n"],
    },
    Case {
        input: "a .bin with an id that the model has not",
        prepare: |w| w.write("corpus/ids.bin", [1, 0, 0xff, 0xff]),
        command: "remit-score corpus -o out --rl-model rl --token-dtype uint16",
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/ids.bin, document 0: the token id at position 1 is 65535; the models have the \
             ids 0 to ",
        ],
    },
    Case {
        input: "a .npy that is none",
        prepare: |w| w.write("corpus/ids.npy", DOCUMENT),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/ids.npy: "],
    },
    Case {
        input: "a .npy of floats",
        prepare: |w| {
            let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
            w.write("corpus/ids.npy", npy(header, &[0; 4]));
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/ids.npy: a .npy file with ", "<f4"],
    },
    Case {
        input: "a .npy that was cut short",
        prepare: |w| {
            let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }";
            w.write("corpus/ids.npy", npy(header, &[1, 0, 2, 0]));
        },
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/ids.npy: "],
    },
    Case {
        input: "a list of ids with a negative one",
        prepare: |w| w.write("corpus/ids.jsonl", "{\"input_ids\": [3, -1]}\n"),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/ids.jsonl, line 1: "],
    },
    Case {
        input: "a list of ids with one that the model has not",
        prepare: |w| w.write("corpus/ids.jsonl", "{\"input_ids\": [3, 70000]}\n"),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &[
            "error: corpus/ids.jsonl, line 1: the token id at position 1 is 70000; the models have ",
        ],
    },
    Case {
        input: "an .arrow that is plain text",
        prepare: |w| w.write("corpus/plain.arrow", DOCUMENT),
        command: SCORE_CORPUS,
        exit: BAD_DATA,
        stderr: &["error: corpus/plain.arrow: not a readable Arrow IPC file: "],
    },
];

#[test]
fn patterns_and_lists_that_name_no_files_are_told_apart() {
    check(&unscored(), LISTS);
}

#[test]
fn records_and_files_beyond_the_limits_are_refused() {
    check(&unscored(), LIMITS);
}

#[test]
fn ids_that_cannot_be_read_are_named_by_file_and_document() {
    check(&unscored(), IDS);
}

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
