//! What a tokenizer.json may ask for, as far as that can be told from its text.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

use crate::escape::Show as _;

/// Ids are below this. The largest vocabularies have some 2^18 tokens, and there are tables with a place for each id.
const MAX_IDS: u64 = 1 << 24;

/// Times its length that normalizers or decoders may make a text. What is in use makes it about 4 times as long; rules
/// that each double it make it 2^40 times as long when there are 40.
const MAX_GROWTH: f64 = 1024.0;

/// Refuses what would take the memory of a machine, here or once a text comes.
///
/// # Errors
///
/// What it asks for, and how much it may.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let Ok(file) = serde_json::from_slice::<File>(json) else {
        // The parser knows better what is wrong.
        return Ok(());
    };
    let model = file.model.and_then(|model| model.vocab.0);
    let added = file.added_tokens.into_iter().flatten();
    let added = added.map(|token| (token.id, token.content));
    if let Some((id, token)) = model.into_iter().chain(added).max()
        && id >= MAX_IDS
    {
        return Err(format!(
            "the token \"{}\" has the id {id}; ids are less than {MAX_IDS}",
            token.shown()
        ));
    }
    for (name, rules) in [("normalizer", file.normalizer), ("decoder", file.decoder)] {
        let growth = rules.as_ref().map_or(1.0, growth);
        if growth > MAX_GROWTH {
            return Err(format!(
                "its {name} may make a text {growth:.3e} times as long; at most {MAX_GROWTH} times is allowed"
            ));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct File {
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Option<Vec<AddedToken>>,
    normalizer: Option<Value>,
    decoder: Option<Value>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: LargestId,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u64,
    #[serde(default)]
    content: String,
}

/// The largest id of a vocabulary, and its token; of a list, whose places are the ids, none.
#[derive(Default)]
struct LargestId(Option<(u64, String)>);

impl<'de> Deserialize<'de> for LargestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = LargestId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LargestId, A::Error> {
                let mut largest: Option<(u64, String)> = None;
                while let Some(token) = map.next_key::<String>()? {
                    let id = map.next_value::<u64>()?;
                    if largest.as_ref().is_none_or(|(most, _)| id > *most) {
                        largest = Some((id, token));
                    }
                }
                Ok(LargestId(largest))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LargestId, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(LargestId(None))
            }

            fn visit_unit<E: de::Error>(self) -> Result<LargestId, E> {
                Ok(LargestId(None))
            }
        }
        deserializer.deserialize_any(Ids)
    }
}

/// How many times as long rules may make a text, at most.
fn growth(rules: &Value) -> f64 {
    let kind = rules.get("type").and_then(Value::as_str);
    let content = || {
        let content = rules.get("content").and_then(Value::as_str);
        content.map_or(0.0, |content| content.len() as f64)
    };
    match kind {
        Some("Sequence") => ["normalizers", "decoders"]
            .iter()
            .filter_map(|key| rules.get(key)?.as_array())
            .flatten()
            .map(growth)
            .product(),
        Some("Replace") => match rules.get("pattern") {
            Some(Value::Object(pattern)) => {
                let text = pattern.get("String").and_then(Value::as_str);
                match text.map(str::len) {
                    Some(len) if len > 0 => (content() / len as f64).max(1.0),
                    // It may match a character, or between any two of them.
                    _ => 1.0 + content(),
                }
            }
            _ => 1.0 + content(),
        },
        Some("Precompiled") => {
            let map = rules.get("precompiled_charsmap").and_then(Value::as_str);
            map.map_or(1.0, |map| longest_replacement(map.as_bytes()) as f64)
                .max(1.0)
        }
        _ => 1.0,
    }
}

/// Bytes of the longest text that a precompiled map, in base64, may put for a character: texts end with a zero, and
/// come after a table that has its length in front.
fn longest_replacement(base64: &[u8]) -> usize {
    let mut bytes = Vec::with_capacity(base64.len() / 4 * 3);
    let (mut bits, mut num_bits) = (0_u32, 0);
    for digit in base64 {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits & 0xff) as u8);
        }
    }
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else {
        return 0;
    };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let texts = rest.get(len..).unwrap_or_default();
    texts
        .split(|byte| *byte == 0)
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut file = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
            "added_tokens": [{"id": 2, "content": "<s>"}],
            "normalizer": null, "decoder": null,
        });
        change(&mut file);
        check(&serde_json::to_vec(&file).unwrap()).err()
    }

    #[test]
    fn ids_are_limited_in_the_vocabulary_and_among_added_tokens() {
        assert_eq!(refused(|_| ()), None);
        assert_eq!(
            refused(|file| file["model"]["vocab"]["x\n"] = json!(2_147_483_647)),
            Some("the token \"x\\n\" has the id 2147483647; ids are less than 16777216".to_owned())
        );
        assert_eq!(
            refused(|file| file["added_tokens"][0]["id"] = json!(4_294_967_295_u32)),
            Some("the token \"<s>\" has the id 4294967295; ids are less than 16777216".to_owned())
        );
        // The ids of a list are its places.
        assert_eq!(
            refused(|file| file["model"]["vocab"] = json!([["a", -1.0]])),
            None
        );
    }

    #[test]
    fn rules_that_double_a_text_again_and_again_are_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let regex = json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "a"});
        for (rule, most) in [(&double, 10), (&regex, 10)] {
            for (count, is_fine) in [(most, true), (most + 1, false), (40, false)] {
                for (key, list) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
                    let rules = json!({"type": "Sequence", list: vec![rule.clone(); count]});
                    let nested = json!({"type": "Sequence", list: [rules]});
                    let found = refused(|file| file[key] = nested);
                    assert_eq!(found.is_none(), is_fine, "{count} {found:?}");
                }
            }
        }
        let once = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        assert_eq!(growth(&once), 3.0);
    }

    #[test]
    fn a_map_that_puts_a_book_for_a_letter_is_refused() {
        // A table of 4 bytes, then two texts: "ab" and some of zeros' length.
        assert_eq!(longest_replacement(b"BAAAAAAAAABhYgBjAA=="), 2);
        assert_eq!(longest_replacement(b"BAA"), 0);
        assert_eq!(longest_replacement(b"/////w=="), 0);
    }
}
