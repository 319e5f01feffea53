use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::types::{Content, Document, TokenId};

/// A byte-level BPE with three merges, a template with BOS, padding and truncation.
fn bpe() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 7}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"
        },
        "added_tokens": [
            {"id": 8, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 9, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [8], "tokens": ["<s>"]}}
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "ca": 5, "t": 6, "h": 7},
            "merges": ["a b", "ab c", "c a"]
        }
    })
}

fn load(json: &Value) -> TextTokenizer {
    TextTokenizer::from_bytes(json.to_string().as_bytes(), "model").unwrap()
}

fn document(index: u64, text: &str) -> Document {
    Document {
        source: Arc::from("a.txt"),
        index,
        content: Content::Text(text.to_owned()),
    }
}

fn ids(tokenizer: &TextTokenizer, text: &str) -> Vec<TokenId> {
    let documents = tokenizer.encode_batch(vec![document(0, text)]);
    documents[0].as_ref().unwrap().input_ids.clone()
}

#[test]
fn padding_truncation_and_template_are_left_out() {
    assert_eq!(ids(&load(&bpe()), "abc CAC b a c"), [4, 5, 2, 1, 0, 2]);
}

#[test]
fn bos_and_eos_follow_the_policy_and_leave_an_empty_document_empty() {
    let tokenizer = load(&bpe()).with_special_tokens(SpecialTokens {
        bos: Some(8),
        eos: Some(9),
    });
    assert_eq!(ids(&tokenizer, "ab"), [8, 3, 9]);
    assert_eq!(ids(&tokenizer, ""), [0; 0]);
    let tokenizer = tokenizer.with_special_tokens(SpecialTokens {
        bos: None,
        eos: Some(9),
    });
    assert_eq!(ids(&tokenizer, "ab"), [3, 9]);
}

#[test]
fn dropout_in_the_file_does_not_make_ids_random() {
    let mut json = bpe();
    json["model"]["dropout"] = json!(0.9);
    let tokenizer = load(&json);
    for _ in 0..20 {
        assert_eq!(ids(&tokenizer, "abc"), [4]);
    }
    assert_eq!(tokenizer.compare(&load(&bpe())), Ok(()));
}

#[test]
fn order_and_ids_do_not_depend_on_the_number_of_threads() {
    let tokenizer = load(&bpe());
    let documents: Vec<_> = (0..300_usize)
        .map(|n| document(n as u64, &["abc", "ca ", "b"].repeat(n % 7).concat()))
        .collect();
    let encode = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let encoded = pool.install(|| tokenizer.encode_batch(documents.clone()));
        encoded.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let one = encode(1);
    assert_eq!(one, encode(4));
    assert!(one.iter().map(|doc| doc.index).eq(0..300));
}

#[test]
fn vocabulary_is_as_large_as_its_largest_id_asks_for() {
    let mut json = bpe();
    let tokenizer = load(&json);
    assert_eq!(tokenizer.vocab_size(), 10);
    assert_eq!(tokenizer.token_to_id("</s>"), Some(9));
    assert_eq!(tokenizer.id_to_token(9).as_deref(), Some("</s>"));
    assert_eq!(tokenizer.decode(&[3, 9, 77]).unwrap(), "ab </s>");
    json["added_tokens"] = json!([]);
    json["post_processor"] = Value::Null;
    json["model"]["vocab"]["zz"] = json!(40);
    let tokenizer = load(&json);
    assert_eq!(tokenizer.vocab_size(), 41);
    assert_eq!(tokenizer.token_to_id("zz"), Some(40));
    assert_eq!(tokenizer.id_to_token(30), None);
}

#[test]
fn a_template_is_at_most_one_token_in_front_and_one_after() {
    let around = |bos, eos| SpecialTokens { bos, eos };
    assert_eq!(load(&bpe()).template().unwrap(), around(Some(8), None));
    let mut json = bpe();
    json["post_processor"] = Value::Null;
    assert_eq!(load(&json).template().unwrap(), around(None, None));
    json["post_processor"] = bpe()["post_processor"].clone();
    json["post_processor"]["single"]
        .as_array_mut()
        .unwrap()
        .reverse();
    assert_eq!(load(&json).template().unwrap(), around(None, Some(8)));
    let twice = json["post_processor"]["single"][1].clone();
    json["post_processor"]["single"]
        .as_array_mut()
        .unwrap()
        .push(twice);
    assert_eq!(
        load(&json).template().unwrap_err().to_string(),
        "model: the template of the tokenizer turns the text \"a\" into [0, 8, 8], which is not [0] with at most one \
         token in front and one after\nhint: --bos and --eos always or never overrule the template"
    );
}

#[test]
fn fingerprint_ignores_layout_defaults_and_what_does_not_decide_ids() {
    let tokenizer = load(&bpe());
    let mut json = bpe();
    json["model"]["merges"] = json!([["a", "b"], ["ab", "c"], ["c", "a"]]);
    for key in ["truncation", "padding", "post_processor", "decoder"] {
        json[key] = Value::Null;
    }
    let model = json["model"].as_object_mut().unwrap();
    model.remove("ignore_merges");
    model.insert("end_of_word_suffix".to_owned(), json!(""));
    let pretty = serde_json::to_vec_pretty(&json).unwrap();
    let other = TextTokenizer::from_bytes(&pretty, "other").unwrap();
    assert_eq!(tokenizer.fingerprint(), other.fingerprint());
    assert_eq!(tokenizer.compare(&other), Ok(()));
}

#[test]
fn every_difference_changes_the_fingerprint_and_is_named() {
    let message = |edit: &dyn Fn(&mut Value)| {
        let mut json = bpe();
        edit(&mut json);
        let other = TextTokenizer::from_bytes(json.to_string().as_bytes(), "rl").unwrap();
        assert_ne!(load(&bpe()).fingerprint(), other.fingerprint());
        let message = load(&bpe()).compare(&other).unwrap_err().to_string();
        let prefix = "the tokenizers of model and rl differ: ";
        message.strip_prefix(prefix).unwrap().to_owned()
    };
    assert_eq!(
        message(&|json| json["model"]["vocab"]["x"] = json!(10)),
        "the vocabularies have 8 and 9 tokens"
    );
    assert_eq!(
        message(&|json| {
            json["model"]["vocab"]["t"] = json!(7);
            json["model"]["vocab"]["h"] = json!(6);
        }),
        r#"id 6 is "t" in one, "h" in the other"#
    );
    assert_eq!(
        message(&|json| json["model"]["merges"] = json!(["a b", "c a", "ab c"])),
        r#"the merges differ from entry 1: ["ab","c"] in one, ["c","a"] in the other"#
    );
    assert_eq!(
        message(&|json| json["model"]["merges"] = json!(["a b", "ab c"])),
        r#"the merges differ from entry 2: ["c","a"] in one, nothing in the other"#
    );
    assert_eq!(
        message(&|json| json["model"]["byte_fallback"] = json!(true)),
        "the model's byte_fallback is not set in one, true in the other"
    );
    assert_eq!(
        message(&|json| json["normalizer"] = Value::Null),
        r#"the normalizer is {"type":"Lowercase"} in one, null in the other"#
    );
    assert_eq!(
        message(&|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})),
        r#"the pre-tokenizer is {"type":"WhitespaceSplit"} in one, {"type":"Whitespace"} in the other"#
    );
    assert!(
        message(&|json| json["added_tokens"][1]["lstrip"] = json!(true))
            .starts_with("the added token 9 is {\"content\":\"</s>\"")
    );
}

#[test]
fn a_broken_tokenizer_is_an_error_that_names_the_model() {
    for bytes in [&b""[..], b"{}", b"\xff\xfe", b"{\"version\":\"1.0\"}"] {
        let error = TextTokenizer::from_bytes(bytes, "models/base").unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("models/base: tokenizer.json is not"),
            "{message}"
        );
    }
}

#[test]
fn pieces_of_a_row_are_its_text_also_where_characters_span_ids() {
    let json = crate::demo::rl_model().require("tokenizer.json").unwrap();
    let tokenizer = TextTokenizer::from_bytes(&json, "demo").unwrap();
    for text in [
        "Question: 3+4?",
        "\u{fffd}\u{fffd}你好 ok",
        "naïve café, 日本語 🙂🙃 end",
        "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}🙂",
        "🙂",
        "",
    ] {
        let ids = ids(&tokenizer, text);
        let pieces = tokenizer.pieces(&ids).unwrap();
        assert_eq!(
            pieces
                .iter()
                .map(|(_, piece)| piece.as_str())
                .collect::<String>(),
            text
        );
        assert_eq!(pieces.iter().map(|(len, _)| len).sum::<usize>(), ids.len());
        // A character that is cut off stays one, and nothing is said twice.
        let cut = &ids[..ids.len().saturating_sub(1)];
        let pieces = tokenizer.pieces(cut).unwrap();
        let joined: String = pieces.iter().map(|(_, piece)| piece.as_str()).collect();
        assert_eq!(joined, tokenizer.decode(cut).unwrap());
    }
}

#[test]
fn ids_without_a_text_come_in_pieces_of_few_however_many_there_are() {
    let json = serde_json::to_vec(&bpe()).unwrap();
    let tokenizer = TextTokenizer::from_bytes(&json, "model").unwrap();
    let started = std::time::Instant::now();
    // Of no id of these is there a token; the last one is "a".
    let mut ids = vec![1_000_000; 60_000];
    ids.push(0);
    let pieces = tokenizer.pieces(&ids).unwrap();
    assert_eq!(pieces.iter().map(|(len, _)| len).sum::<usize>(), ids.len());
    assert!(pieces.iter().all(|(len, _)| *len <= 64));
    let text: String = pieces.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(text, "a");
    // Decoding all of them again for each takes a minute.
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
}
