//! Every file of fixtures/bad is refused with an exact message, within bounds, and so are larger ones that are made
//! here.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use arrow_array::builder::StringViewBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;

use super::{Measured, measured};
use crate::harness::{ANNEAL, SCORE, Workspace, fixtures};

const BAD_DATA: i32 = 65;

/// Every file of fixtures/bad, the exit code, and the whole message.
const MESSAGES: &[(&str, i32, &str)] = &[
    (
        "buffer2g.arrow",
        65,
        "buffer2g.arrow: not a readable Arrow IPC file: Memory error: failed to allocate memory for layout Layout { size: 2147483664, align: 128 (1 << 7) }",
    ),
    (
        "children2g.parquet",
        65,
        "children2g.parquet: the Parquet file is damaged: its schema has an element with 2147483647 children, and 1 more elements",
    ),
    (
        "deep.jsonl",
        65,
        "deep.jsonl, line 1: the field \"text\" is an array, not a string; name the field that holds the text with --text-field\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it",
    ),
    (
        "deep.tokenizer.json",
        65,
        "model: tokenizer.json is not a tokenizer that can be used: recursion limit exceeded at line 1 column 2157",
    ),
    (
        "deep.toml",
        65,
        "deep.toml is not TOML: TOML parse error at line 1, column 86\n  |\n1 | lr = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ ...\n  |                                                                                      ^\ncannot recurse further; max recursion depth met",
    ),
    (
        "deep400.parquet",
        65,
        "deep400.parquet: the Parquet file is damaged: its schema has more than 64 levels",
    ),
    (
        "deep4000.parquet",
        65,
        "deep4000.parquet: the Parquet file is damaged: its schema has more than 64 levels",
    ),
    (
        "dict2g.parquet",
        65,
        "dict2g.parquet: the Parquet file is damaged: a dictionary of 9 bytes is said to have 2147483647 values",
    ),
    (
        "dictrep.parquet",
        65,
        "dictrep.parquet: the Parquet file is damaged: its documents come to more than 256 times its size of 1207 bytes",
    ),
    (
        "dlba.parquet",
        65,
        "dlba.parquet: the Parquet file is damaged: reading it takes more than 320 MiB of memory, the most that a file of its size may take; write it again with smaller pages and row groups, or batches, if it is meant to be so",
    ),
    (
        "double40.jinja",
        65,
        "chat.jsonl, record 0: the chat template: applying it to these messages takes more than 320 MiB of memory, the most that it may take\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it",
    ),
    (
        "double40.tokenizer.json",
        65,
        "model: tokenizer.json is not a tokenizer that can be used: its normalizer may make a text 1.100e12 times as long; at most 1024 times is allowed",
    ),
    (
        "einval.arrow",
        65,
        "einval.arrow: not a readable Arrow IPC file: Io error: invalid input parameter",
    ),
    (
        "float.jsonl",
        65,
        "float.jsonl, line 1: the field \"input_ids\" is an array, not a string; name the field that holds the text with --text-field\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it",
    ),
    (
        "id2g.tokenizer.json",
        65,
        "model: tokenizer.json is not a tokenizer that can be used: the token \"b\" has the id 2147483647; ids are less than 16777216",
    ),
    (
        "latin1.list",
        65,
        "cannot read the list from latin1.list: line 2 is not valid UTF-8; rename the file",
    ),
    (
        "long.list",
        66,
        "cannot look at aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.jsonl: File name too long (os error 36)",
    ),
    (
        "loop.jinja",
        65,
        "chat.jsonl, record 0: the chat template: applying it to these messages takes more than 6 seconds, the most that it may take\nhint: --on-bad-record skip leaves out what can't be read; remit-inspect rejects lists it",
    ),
    ("nothing.list", 65, "nothing.list: the list names no file"),
    (
        "nul.list",
        65,
        "cannot read the list from nul.list: line 2 has a NUL byte, which no path has; write one path per line",
    ),
    (
        "number.special_tokens_map.json",
        65,
        "model: the tokenizer can't be used as transformers uses it: special_tokens_map.json: eos_token is 5, neither a string nor an object that describes a token",
    ),
    (
        "page2g-gzip.parquet",
        65,
        "page2g-gzip.parquet: the Parquet file is damaged: a page of 9 bytes is said to unpack to 2147483647, more than 256 times its size",
    ),
    (
        "page2g-plain.parquet",
        65,
        "page2g-plain.parquet: the Parquet file is damaged: a page of 9 bytes is said to unpack to 2147483647, more than 256 times its size",
    ),
    (
        "page2g-snappy.parquet",
        65,
        "page2g-snappy.parquet: the Parquet file is damaged: a page of 9 bytes is said to unpack to 2147483647, more than 256 times its size",
    ),
    (
        "page2g-zstd.parquet",
        65,
        "page2g-zstd.parquet: the Parquet file is damaged: a page of 9 bytes is said to unpack to 2147483647, more than 256 times its size",
    ),
    (
        "precompiled.tokenizer.json",
        65,
        "model: tokenizer.json is not a tokenizer that can be used: reading it takes more than 320 MiB of memory, the most that a file of its size may take",
    ),
    (
        "prefixes.parquet",
        65,
        "prefixes.parquet: the Parquet file is damaged: its documents come to more than 256 times its size of 1212 bytes",
    ),
    (
        "rlebomb50m.parquet",
        65,
        "rlebomb50m.parquet: the Parquet file is damaged: it has 50000000 values, more than 256 for each of its 138 bytes",
    ),
    (
        "stored2g.parquet",
        65,
        "stored2g.parquet: the Parquet file is damaged: a page of 2147483647 bytes reaches beyond its column",
    ),
    (
        "unknown.special_tokens_map.json",
        65,
        "special_tokens_map.json of model: eos_token is \"<no such>\", which is no token of tokenizer.json: no model has seen it\nhint: correct it, or turn it off with --eos never",
    ),
    (
        "word.toml",
        2,
        "word.toml: invalid value 'fast' for '--lr <LR>': it is not a number",
    ),
    (
        "words.tokenizer.json",
        65,
        "model: tokenizer.json is not a tokenizer that can be used: its model looks up words of 1000000000 characters; at most 1024 are allowed",
    ),
];

/// Gives a file to the program that reads such files: as a corpus or a list of one, as options, or as a part of a model.
fn read(workspace: &Workspace, name: &str) -> Measured {
    let in_model = |file: &str| {
        workspace.copy_model("tiny-llama", "model");
        workspace.write(&format!("model/{file}"), workspace.read(name));
        ["good.jsonl", "--rl-model", "model"]
    };
    let list = ["--files-from", name];
    let template = ["chat.jsonl", "--chat-template", name];
    let options = ["--weights", "set", "--config", name];
    let kind = name.split_once('.').unwrap().1;
    let (program, args) = match kind {
        "tokenizer.json" | "special_tokens_map.json" => (SCORE, &in_model(kind)[..]),
        "jinja" => (SCORE, &template[..]),
        "list" => (SCORE, &list[..]),
        "toml" => (ANNEAL, &options[..]),
        _ => (SCORE, &[name][..]),
    };
    workspace.write_corpus("good.jsonl", 2);
    let chat = r#"{"messages": [{"role": "user", "content": "What is 1+2?"}]}"#;
    workspace.write("chat.jsonl", chat);
    let mut command = Command::new(program);
    command.current_dir(workspace.path(""));
    measured(command.args(args).args(["-o", "out"]))
}

#[test]
fn every_bad_file_is_refused_with_its_message_within_bounds() {
    let mut failures = Vec::new();
    for (name, exit, message) in MESSAGES {
        let workspace = Workspace::new();
        let content = std::fs::read(fixtures().join("bad").join(name)).unwrap();
        workspace.write(name, content);
        let ended = read(&workspace, name);
        let mut problems = ended.problems(*exit);
        let expected = format!("error: {message}\n");
        if ended.error() != expected {
            problems.push(format!("expected {expected}found    {}", ended.error()));
        }
        if !problems.is_empty() {
            failures.push(format!("{name}: {}", problems.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Templates whose parser, or whatever takes the parsed one apart again, recurses once for each operator.
#[test]
fn chat_templates_that_are_nested_without_end_are_refused() {
    for (first, repeated, last) in [
        ("1", "+1", ""),
        ("", "-", "1"),
        ("", "not ", "1"),
        ("a", ".a", ""),
    ] {
        let workspace = Workspace::new();
        let template = format!("{{{{ {first}{}{last} }}}}", repeated.repeat(300_000));
        workspace.write("deep.jinja", template);
        let ended = read(&workspace, "deep.jinja");
        assert_eq!(ended.problems(BAD_DATA), [""; 0], "{repeated}");
        let expected = "error: deep.jinja: the chat template can't be used: compiling it takes more than its stack: it is \
                        nested too deeply\n";
        assert_eq!(ended.error(), expected, "{repeated}");
    }
}

#[test]
fn every_file_of_the_folder_has_a_message() {
    let files: BTreeSet<String> = std::fs::read_dir(fixtures().join("bad"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let named: BTreeSet<String> = MESSAGES
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    assert_eq!(files, named);
    assert_eq!(named.len(), MESSAGES.len());
}

fn arrow_file(column: ArrayRef) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// 100,000 references to a text of a megabyte, in the two ways that Arrow has.
#[test]
fn an_arrow_file_that_repeats_a_text_without_end_is_refused() {
    let text = "a".repeat(1 << 20);
    let keys = Int32Array::from(vec![0; 100_000]);
    let values: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
    let dictionary: ArrayRef =
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap());
    let mut builder = StringViewBuilder::new();
    let block = builder.append_block(text.into_bytes().into());
    for _ in 0..100_000 {
        builder.try_append_view(block, 0, 1 << 20).unwrap();
    }
    for (name, column) in [
        ("dictionary.arrow", dictionary),
        ("views.arrow", Arc::new(builder.finish()) as ArrayRef),
    ] {
        let workspace = Workspace::new();
        workspace.write(name, arrow_file(column));
        let ended = read(&workspace, name);
        assert_eq!(ended.problems(BAD_DATA), [""; 0]);
        let expected = "its documents come to more than 256 times its size of ";
        assert!(ended.error().contains(expected), "{}", ended.stderr);
        assert!(ended.error().contains(name), "{}", ended.stderr);
    }
}

/// What repeats itself as much as real files do is read.
#[test]
fn files_that_repeat_themselves_within_bounds_are_scored() {
    let texts: Vec<String> = (0..2000)
        .map(|n| format!("{} and 1 is 2.", n % 3))
        .collect();
    let values: ArrayRef = Arc::new(StringArray::from(vec!["0 and 1 is 2.", "1 and 1 is 2."]));
    let keys = Int32Array::from_iter_values((0..500).map(|n| n % 2));
    let workspace = Workspace::new();
    workspace.write(
        "dictionary.arrow",
        arrow_file(Arc::new(
            DictionaryArray::<Int32Type>::try_new(keys, values).unwrap(),
        )),
    );
    let column: ArrayRef = Arc::new(StringArray::from(texts));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    for (name, version, dictionary) in [
        ("v1.parquet", 1, true),
        ("v2.parquet", 2, true),
        ("prefixes.parquet", 2, false),
    ] {
        use parquet::basic::Encoding;
        use parquet::file::properties::{WriterProperties, WriterVersion};
        let mut properties = WriterProperties::builder()
            .set_dictionary_enabled(dictionary)
            .set_writer_version(match version {
                1 => WriterVersion::PARQUET_1_0,
                _ => WriterVersion::PARQUET_2_0,
            });
        if !dictionary {
            properties = properties.set_encoding(Encoding::DELTA_BYTE_ARRAY);
        }
        let properties = Some(properties.build());
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), properties).unwrap();
        writer.write(&batch).unwrap();
        workspace.write(name, writer.into_inner().unwrap());
    }
    for name in [
        "dictionary.arrow",
        "v1.parquet",
        "v2.parquet",
        "prefixes.parquet",
    ] {
        let ended = workspace
            .command(SCORE)
            .arg(name)
            .args("-o out --dry-run --json")
            .ok();
        ended.check(ended.stdout.contains("\"tokens\""), "it is read");
    }
}
