//! Whose tokens: which tokenizer decides the ids, what begins and ends documents, and what text spells out.
//! tests/oracle/test_wild_tokens.py compares ids with transformers.

use serde_json::{Value, json};

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace};
use remit::shard::layout::Description;

/// An added token that is special.
fn token(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true
    })
}

fn add_token(workspace: &Workspace, model: &str, id: u32, content: &str) {
    workspace.edit_json(&format!("{model}/tokenizer.json"), |json| {
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        tokens.push(token(id, content));
    });
}

/// Two models with a tokenizer in common, of which `rl` ends its turns with a token of its own, and a corpus.
fn chat_model() -> Workspace {
    let workspace = Workspace::new();
    workspace.copy_model("tiny-llama", "rl");
    workspace.copy_model("tiny-llama-base", "base");
    for model in ["rl", "base"] {
        add_token(&workspace, model, 1024, "<|im_end|>");
    }
    workspace.edit_json("rl/tokenizer_config.json", |config| {
        config["eos_token"] = "<|im_end|>".into();
    });
    workspace.write("corpus/a.jsonl", "{\"text\": \"hello world\"}\n");
    workspace
}

/// BOS and EOS of a set's plan.
fn special(workspace: &Workspace, set: &str) -> Value {
    workspace.description(set, Description::Plan)["special_tokens"].clone()
}

const TRAIN: &str = "--steps 1 --batch-tokens 60 --lr 1e-4";

#[test]
fn without_a_base_the_end_of_a_chat_models_turns_is_a_warning_and_such_a_set_is_refused() {
    let workspace = chat_model();
    let alone = workspace
        .command(SCORE)
        .args("corpus -o alone --rl-model rl");
    let ended = alone.ok();
    let eos = "\"<|im_end|>\" (id 1024, tokenizer_config.json of rl)";
    ended.check(
        ended
            .stderr
            .contains(&format!("WARN documents end with {eos}"))
            && ended
                .stderr
                .contains("give --base-model, or its folder as --tokenizer"),
        "the warning names the token, the risk and the flags",
    );
    ended.check(
        ended.stdout.contains(&format!("EOS         {eos}\n")),
        "it is printed",
    );
    assert_eq!(
        special(&workspace, "alone"),
        json!({"bos": null, "eos": 1024})
    );

    let anneal = |set: &str, out: &str, flag: &str| {
        let run = workspace.command(ANNEAL).args(TRAIN).args(flag);
        run.args(&format!("--weights {set} --model base -o {out}"))
            .run()
    };
    let ended = anneal("alone", "out1", "");
    ended.check(
        ended.status.code() == Some(65)
            && ended.stderr.contains(&format!(
                "error: the documents of the set in alone end with {eos}, not with \"<|endoftext|>\" (id 0, \
                 tokenizer_config.json of base)"
            ))
            && ended.stderr.contains("--keep-special-tokens"),
        "the learner ends documents with another token",
    );
    let ended = anneal("alone", "out2", "--keep-special-tokens");
    ended.check(ended.status.success(), "it was told to take the set");
    for (out, args) in [
        ("both", "--base-model base"),
        ("folder", "--tokenizer base"),
    ] {
        let run = workspace
            .command(SCORE)
            .args("corpus --rl-model rl")
            .args(args);
        let ended = run.args(&format!("-o {out}")).ok();
        ended.check(
            !ended.stderr.contains("documents end with"),
            "the base decides",
        );
        assert_eq!(special(&workspace, out), json!({"bos": null, "eos": 0}));
        let ended = anneal(out, &format!("of-{out}"), "");
        ended.check(ended.status.success(), "the set is as the base has it");
    }
}

#[test]
fn bos_and_eos_are_told_by_a_dry_run_and_by_both_kinds_of_inspection() {
    let workspace = chat_model();
    let score = |args: &str| {
        workspace
            .command(SCORE)
            .args("corpus --rl-model rl")
            .args(args)
            .ok()
            .stdout
    };
    let eos = "EOS         \"<|endoftext|>\" (id 0, tokenizer_config.json of base)\n";
    let dry = score("--base-model base -o set --dry-run");
    assert!(
        dry.contains("BOS         none\n") && dry.contains(eos),
        "{dry}"
    );
    score("--base-model base -o set");
    let set = workspace.command(INSPECT).arg("set").ok().stdout;
    assert!(
        set.contains("BOS         none\n") && set.contains(eos),
        "{set}"
    );
    let model = workspace.command(INSPECT).args("model rl").ok().stdout;
    assert!(
        model.contains("EOS           \"<|im_end|>\" (id 1024, tokenizer_config.json of rl)\n"),
        "{model}"
    );
}

#[test]
fn a_set_without_the_bos_of_the_learners_template_is_refused() {
    let workspace = chat_model();
    workspace.edit_json("base/tokenizer.json", |json| {
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [1024], "tokens": ["<|im_end|>"]}}
        });
    });
    let score = |args: &str| {
        workspace
            .command(SCORE)
            .args("corpus --rl-model rl")
            .args(args)
            .ok()
    };
    score("-o alone --eos never");
    score("--base-model base -o both");
    assert_eq!(special(&workspace, "both"), json!({"bos": 1024, "eos": 0}));
    let run = workspace.command(ANNEAL).args(TRAIN);
    let ended = run.args("--weights alone --model base -o out").run();
    ended.check(
        ended.status.code() == Some(65)
            && ended.stderr.contains(
                "the documents of the set in alone begin with nothing, not with \"<|im_end|>\" (id 1024, the template \
                 in tokenizer.json of base), and end with nothing, not with \"<|endoftext|>\"",
            ),
        "the template of the learner begins documents",
    );
}

#[test]
fn ids_without_a_row_are_bad_records_where_they_are_used_and_nothing_else() {
    let workspace = Workspace::new();
    workspace.copy_model("tiny-gemma3", "rl");
    let config: Value = serde_json::from_slice(&workspace.read("rl/config.json")).unwrap();
    let num_rows = config["vocab_size"].as_u64().unwrap();
    for id in 1024..=num_rows {
        add_token(
            &workspace,
            "rl",
            u32::try_from(id).unwrap(),
            &format!("<new{id}>"),
        );
    }
    workspace.write(
        "corpus/a.jsonl",
        format!("{{\"text\": \"one\"}}\n{{\"text\": \"two <new{num_rows}>\"}}\n{{\"text\": \"three\"}}\n"),
    );
    let ended = workspace
        .command(SCORE)
        .args("corpus -o out --rl-model rl")
        .run();
    let reason = format!(
        "it has the token \"<new{num_rows}>\", whose id {num_rows} has no row in the embedding of {num_rows} rows"
    );
    ended.check(
        ended.status.code() == Some(65)
            && ended.stderr.contains(&format!(
                "a.jsonl, record 1: the tokenizer of rl can't encode the text: {reason}"
            )),
        "the document is named",
    );
    workspace
        .command(SCORE)
        .args("corpus -o out2 --rl-model rl --on-bad-record skip")
        .ok();
    let rejects = workspace.command(INSPECT).args("rejects out2").ok().stdout;
    let reject: Value = serde_json::from_str(&rejects).unwrap();
    assert_eq!(reject["doc_index"], 1);
    assert_eq!(
        workspace.description("out2", Description::Manifest)["totals"]["rows"],
        2
    );
    let model = workspace.command(INSPECT).args("model rl").ok().stdout;
    assert!(
        model.contains(
            "ids; the last 1 have no row in the embedding: a document that uses one is a bad record"
        ),
        "{model}"
    );
}

#[test]
fn an_rl_tokenizer_may_have_more_tokens_and_another_normalizer_than_the_base() {
    let workspace = chat_model();
    add_token(&workspace, "rl", 1025, "<think>");
    workspace.edit_json("rl/tokenizer.json", |json| {
        json["normalizer"] = json!({"type": "NFC"})
    });
    workspace.write("corpus/a.jsonl", "{\"text\": \"<think>hello world\"}\n");
    let score = |args: &str| {
        workspace
            .command(SCORE)
            .args("corpus --rl-model rl")
            .args(args)
            .run()
    };
    let ended = score("--base-model base -o both");
    ended.check(
        ended.status.success()
            && ended.stderr.contains(
                "WARN the tokenizer of base decides the ids; every one means the same to rl, whose own tokenizer may \
                 split text otherwise: the normalizer is null in one, {\"type\":\"NFC\"} in the other",
            ),
        "the base's ids mean the same to both",
    );
    // The other way round, an id of the deciding tokenizer has no meaning to the base.
    let ended = score("--base-model base --tokenizer rl -o other");
    ended.check(
        ended.status.code() == Some(65)
            && ended.stderr.contains(
                "error: the ids of the tokenizer of rl, which decides, do not mean the same to base: id 1025 is \
                 \"<think>\" in one, nothing in the other\nhint: --tokenizer DIR names another",
            ),
        "the token is named",
    );
    // What was scored with the larger tokenizer can't be trained by a model without it, and the other way round it can.
    score("-o alone --eos never");
    let anneal = |set: &str, model: &str| {
        let run = workspace
            .command(ANNEAL)
            .args(TRAIN)
            .args("--keep-special-tokens");
        run.args(&format!("--weights {set} --model {model} -o {set}-{model}"))
            .run()
    };
    let ended = anneal("alone", "base");
    ended.check(
        ended.status.code() == Some(65)
            && ended.stderr.contains("their ids do not mean the same: id 1025 is \"<think>\" in one, nothing in the other")
            && ended.stderr.contains("hint: score the corpus again with --tokenizer base"),
        "the set may use the token",
    );
    let ended = anneal("both", "rl");
    ended.check(
        ended.status.success(),
        "every id of the set means the same to the learner",
    );
}

#[test]
fn more_than_five_ids_that_differ_are_counted() {
    let workspace = chat_model();
    for id in 1025..1034 {
        add_token(&workspace, "base", id, &format!("<b{id}>"));
        add_token(&workspace, "rl", id, &format!("<r{id}>"));
    }
    let run = workspace
        .command(SCORE)
        .args("corpus -o out --rl-model rl --base-model base");
    let ended = run.run();
    ended.check(
        ended.status.code() == Some(65)
            && ended
                .stderr
                .contains("id 1025 is \"<b1025>\" in one, \"<r1025>\" in the other; ")
            && ended.stderr.contains("; and 4 more\nhint: "),
        "five are shown",
    );
}

#[test]
fn special_tokens_that_text_spells_out_are_counted_or_stay_text() {
    let workspace = chat_model();
    workspace.write(
        "corpus/a.jsonl",
        "{\"text\": \"a<|endoftext|>b<|im_end|>\"}\n{\"text\": \"plain\"}\n{\"text\": \"<|endoftext|>\"}\n",
    );
    let score = |out: &str, args: &str| {
        let run = workspace
            .command(SCORE)
            .args("corpus --rl-model rl --base-model base --part-bytes 30");
        run.args(&format!("-o {out}")).args(args).run()
    };
    let ended = score("parsed", "");
    ended.check(
        ended.stdout.contains(
            "3 special tokens in the text of 2 documents, which became those tokens; with \
             --special-tokens-in-text literal they stay text\n",
        ),
        "they are counted",
    );
    let manifest = workspace.description("parsed", Description::Manifest);
    assert_eq!(manifest["documents"]["spelled_tokens"], 3);
    assert_eq!(manifest["documents"]["spelled_documents"], 2);
    assert_eq!(manifest["plan"].get("special_tokens_in_text"), None);

    let ended = score("literal", "--special-tokens-in-text literal");
    ended.check(
        ended.stdout.contains("special tokens in text stay text\n"),
        "it is told",
    );
    let manifest = workspace.description("literal", Description::Manifest);
    assert_eq!(manifest["plan"]["special_tokens_in_text"], "literal");
    assert_eq!(manifest["documents"].get("spelled_tokens"), None);
    // One token more for every character but those that make tokens of several.
    assert!(manifest["totals"]["tokens"].as_u64() > Some(20));

    // Another way to read text is another plan.
    let ended = score("parsed", "--special-tokens-in-text literal");
    ended.check(
        ended.status.code() == Some(2)
            && ended
                .stderr
                .contains("special_tokens_in_text was null, is now \"literal\""),
        "a set is not mixed",
    );
    workspace.edit_json("base/tokenizer_config.json", |config| {
        config["split_special_tokens"] = true.into();
    });
    score("default", "");
    let plan = workspace.description("default", Description::Plan);
    assert_eq!(plan["special_tokens_in_text"], "literal");
}

#[test]
fn a_chat_template_writes_special_tokens_also_where_text_does_not() {
    let workspace = chat_model();
    workspace.edit_json("base/tokenizer_config.json", |config| {
        config["chat_template"] =
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}".into();
    });
    workspace.write(
        "corpus/a.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}\n",
    );
    let tokens = |reading: &str| {
        let run = workspace
            .command(SCORE)
            .args("corpus --rl-model rl --base-model base");
        run.args(&format!("-o {reading} --special-tokens-in-text {reading}"))
            .ok();
        workspace.description(reading, Description::Manifest)["totals"]["tokens"].clone()
    };
    assert_eq!(tokens("parse"), tokens("literal"));
}

#[test]
fn a_tokenizer_of_an_older_kind_is_refused_with_the_line_that_converts_it() {
    for file in ["tokenizer.model", "vocab.json", "tekken.json"] {
        let workspace = chat_model();
        workspace.remove("rl/tokenizer.json");
        workspace.write(&format!("rl/{file}"), "...");
        let ended = workspace
            .command(SCORE)
            .args("corpus -o out --rl-model rl")
            .run();
        ended.check(
            ended.status.code() == Some(65)
                && ended
                    .stderr
                    .contains(&format!("error: rl has {file}, but no tokenizer.json"))
                && ended.stderr.contains(
                    "python -c \"from transformers import AutoTokenizer as A; \
                     A.from_pretrained('rl').save_pretrained('rl')\"",
                ),
            file,
        );
    }
}

#[test]
fn classes_and_files_that_are_not_implemented_are_refused_by_name() {
    let cases: [(&str, Value, &str); 4] = [
        (
            "tokenizer_class",
            "CodeLlamaTokenizer".into(),
            "its class in transformers is CodeLlamaTokenizer",
        ),
        (
            "auto_map",
            json!({"AutoTokenizer": ["tok.Slow", "tok.Fast"]}),
            "code of its own (tok.Fast)",
        ),
        (
            "fast_tokenizer_files",
            json!(["tokenizer.json", "tokenizer.4.0.0.json"]),
            "fast_tokenizer_files",
        ),
        (
            "pad_token",
            5.into(),
            "pad_token is 5, neither a string nor an object",
        ),
    ];
    for (field, value, expected) in cases {
        let workspace = chat_model();
        workspace.edit_json("rl/tokenizer_config.json", |config| {
            if field == "auto_map" {
                config.as_object_mut().unwrap().remove("tokenizer_class");
            }
            config[field] = value;
        });
        let ended = workspace
            .command(SCORE)
            .args("corpus -o out --rl-model rl")
            .run();
        ended.check(
            ended.status.code() == Some(65)
                && ended
                    .stderr
                    .contains("error: rl: the tokenizer can't be used as transformers uses it: ")
                && ended.stderr.contains(expected),
            field,
        );
    }
}
