//! Tokenizers as the classes of transformers 5 make them anew: of tokenizer.json they take the vocabulary and the
//! merges, while normalizer, pre-tokenizer and the model's settings are the class's own.

use serde_json::{Map, Value, json};

use super::class::Class;
use super::ordered::Ordered;

/// The pattern that [`Class::Qwen2`] splits text by.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern that [`Class::Qwen35`] splits text by.
const QWEN35_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Special tokens that a class has where the files name none: key, content. A null in a file is a name for none.
pub(super) fn default_tokens(class: Class) -> &'static [(&'static str, &'static str)] {
    const END: &str = "<|endoftext|>";
    match class {
        Class::Backend | Class::Other(_) => &[],
        Class::Llama => &[
            ("unk_token", "<unk>"),
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
        ],
        Class::Gemma => &[
            ("unk_token", "<unk>"),
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        Class::Qwen2 | Class::Qwen35 => {
            &[("unk_token", END), ("eos_token", END), ("pad_token", END)]
        }
        Class::Gpt2 => &[("unk_token", END), ("bos_token", END), ("eos_token", END)],
        Class::GptNeoX => &[
            ("unk_token", END),
            ("bos_token", END),
            ("eos_token", END),
            ("pad_token", "<|padding|>"),
        ],
    }
}

/// Returns whether a class has a parameter for the padding token, so that the one of tokenizer.json's padding does
/// not stand in for it.
pub(super) fn has_pad_parameter(class: Class) -> bool {
    !matches!(class, Class::Backend | Class::Llama)
}

/// Changes tokenizer.json to what the class makes of it, without added tokens.
///
/// # Errors
///
/// When the class can't be made of this file.
pub(super) fn rebuild(
    class: Class,
    mut json: Value,
    config: &Ordered,
    unk_token: Option<&str>,
) -> Result<Value, String> {
    let flag = |key: &str| config.get(key).map(Ordered::is_truthy);
    let prefix_space = flag("add_prefix_space");
    if matches!(class, Class::Gpt2 | Class::GptNeoX)
        && let Some(value) = config.raw("add_prefix_space")
        && value.as_bool().is_none()
    {
        return Err("tokenizer_config.json: add_prefix_space is neither true nor false".to_owned());
    }
    let model = json.get_mut("model").map(Value::take).unwrap_or_default();
    let Value::Object(mut model) = model else {
        return Err("tokenizer.json has no model".to_owned());
    };
    let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    if kind != "BPE" || !model.contains_key("merges") {
        return Err(format!(
            "tokenizer.json has a model of the type {kind}, of which {} can't be made",
            class.name()
        ));
    }
    let byte_level = |prefix_space: bool, use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": use_regex
        })
    };
    let split_then_bytes = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(prefix_space.unwrap_or(false), false),
        ]})
    };
    let nfc = json!({"type": "NFC"});
    let (normalizer, pre_tokenizer) = match class {
        Class::Backend | Class::Other(_) => {
            return Err(format!(
                "the class {} is not made of a vocabulary",
                class.name()
            ));
        }
        Class::Llama => {
            let scheme = match (prefix_space.unwrap_or(true), flag("legacy")) {
                (false, _) => "never",
                (true, Some(true)) => "always",
                (true, _) => "first",
            };
            let metaspace = json!({
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false
            });
            (Value::Null, metaspace)
        }
        Class::Gemma => (
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
            }),
        ),
        Class::Qwen2 => (nfc, split_then_bytes(QWEN2_PATTERN)),
        Class::Qwen35 => (nfc, split_then_bytes(QWEN35_PATTERN)),
        Class::Gpt2 => (Value::Null, byte_level(prefix_space.unwrap_or(false), true)),
        Class::GptNeoX => (nfc, byte_level(prefix_space.unwrap_or(false), true)),
    };
    let is_sentencepiece = matches!(class, Class::Llama | Class::Gemma);
    let mut made = Map::new();
    for (key, value) in [
        ("type", json!("BPE")),
        ("dropout", Value::Null),
        (
            "unk_token",
            match class {
                Class::Gemma => json!(unk_token.unwrap_or("None")),
                _ => Value::Null,
            },
        ),
        ("continuing_subword_prefix", Value::Null),
        ("end_of_word_suffix", Value::Null),
        ("fuse_unk", json!(is_sentencepiece)),
        ("byte_fallback", json!(is_sentencepiece)),
        ("ignore_merges", json!(false)),
    ] {
        made.insert(key.to_owned(), value);
    }
    for key in ["vocab", "merges"] {
        made.insert(key.to_owned(), model.remove(key).unwrap_or_default());
    }
    if let Value::Object(json) = &mut json {
        json.insert("model".to_owned(), Value::Object(made));
        json.insert("normalizer".to_owned(), normalizer);
        json.insert("pre_tokenizer".to_owned(), pre_tokenizer);
        json.insert("added_tokens".to_owned(), json!([]));
        if class == Class::GptNeoX {
            // The class makes its template anew, without BOS and EOS whatever the files say.
            json.insert("post_processor".to_owned(), Value::Null);
        }
    }
    Ok(json)
}
