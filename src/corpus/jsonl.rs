//! Documents from lines of JSON: only the field that is wanted is built, the rest is skipped over.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::options::{DEFAULT_IDS_FIELD, DEFAULT_TEXT_FIELD};
use super::{RecordProblem, columns};
use crate::types::Content;

/// The content of one record: the field that is named, else `text`, else `input_ids`. Ids have to be
/// below `num_ids`.
pub(super) fn content_of(
    json: &str,
    field: Option<&str>,
    num_ids: u64,
) -> Result<Content, RecordProblem> {
    let fallback = field.is_none().then_some(DEFAULT_IDS_FIELD);
    let field = field.unwrap_or(DEFAULT_TEXT_FIELD);
    let record = parse(json, RecordSeed { field, fallback }).map_err(|error| {
        let text = error.to_string();
        let reason = text
            .rfind(" at line ")
            .and_then(|at| text.get(..at))
            .unwrap_or(&text);
        RecordProblem::Json {
            column: error.column(),
            reason: explained(json, error.column(), reason),
        }
    })?;
    let field = || field.to_owned();
    match record {
        Record::Object(Some(Value::Text(text))) => Ok(Content::Text(text)),
        Record::Object(Some(Value::Integers(ids))) => {
            columns::checked_ids(ids.into_iter().map(i128::from), num_ids).map(Content::Ids)
        }
        Record::Object(Some(Value::Other(found))) => Err(RecordProblem::TextNotString {
            field: field(),
            found,
        }),
        Record::Object(None) => Err(RecordProblem::NoTextField {
            field: field(),
            keys: parse(json, KeysSeed).unwrap_or_default(),
        }),
        Record::Other(found) => Err(RecordProblem::NotObject {
            field: field(),
            found,
        }),
    }
}

/// Adds to what the parser says what stands at that place, where other writers and readers have another idea of JSON.
fn explained(json: &str, column: usize, reason: &str) -> String {
    let at = column.saturating_sub(1);
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'\\');
    let (before, after) = json.as_bytes().split_at(at.min(json.len()));
    let start = at
        - before
            .iter()
            .rev()
            .take_while(|byte| is_word(byte))
            .count()
            .min(at);
    let len = after.iter().take_while(|byte| is_word(byte)).count();
    let word = json
        .get(start..(at + len).min(json.len()))
        .unwrap_or_default();
    let word = word.strip_prefix('-').unwrap_or(word);
    match word {
        "NaN" | "Infinity" | "nan" | "inf" => {
            return format!(
                "{word} is no JSON, though Python's json.dumps writes it; write null with \
                 json.dumps(..., allow_nan=False) and a value in its place"
            );
        }
        "None" | "True" | "False" => {
            return format!("{word} is Python, not JSON; write records with json.dumps");
        }
        _ => {}
    }
    if after.first() == Some(&b'\'') || before.last() == Some(&b'\'') {
        return format!("{reason}; JSON has double quotes: write records with json.dumps");
    }
    if (reason.contains("surrogate") || reason.contains("hex escape"))
        && let Some(escape) = surrogate_before(json, at)
    {
        return format!(
            "{escape} is half of a surrogate pair, which is no character; repair the text in Python with \
             text.encode(\"utf-16\", \"surrogatepass\").decode(\"utf-16\", \"replace\")"
        );
    }
    reason.to_owned()
}

/// Returns the first escape near a place that is a surrogate without its other half.
fn surrogate_before(json: &str, at: usize) -> Option<&str> {
    let from = at.saturating_sub(14);
    let escapes = (from..at).filter_map(|start| json.get(start..start + 6));
    escapes.into_iter().find(|escape| is_surrogate(escape))
}

/// Returns whether this is an escape of a surrogate, as `\ud83d`.
fn is_surrogate(escape: &str) -> bool {
    escape
        .strip_prefix("\\u")
        .and_then(|digits| u16::from_str_radix(digits, 16).ok())
        .is_some_and(|unit| (0xd800..0xe000).contains(&unit))
}

fn parse<'de, S: DeserializeSeed<'de>>(json: &'de str, seed: S) -> serde_json::Result<S::Value> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A value: its text when it is a string, its elements when it is a list of integers, else the name
/// of its type.
enum Value {
    Text(String),
    /// Beyond the range of the type, its bound: no model has such an id.
    Integers(Vec<i64>),
    Other(&'static str),
}

/// A line: the text field's value when it is an object, else the name of its type.
enum Record {
    Object(Option<Value>),
    Other(&'static str),
}

struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut integers = Vec::new();
        while let Some(element) = seq.next_element_seed(IntegerSeed)? {
            let Some(integer) = element else {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Value::Other("an array"));
            };
            integers.push(integer);
        }
        Ok(Value::Integers(integers))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}

/// An integer, or `None` for anything else.
struct IntegerSeed;

impl<'de> DeserializeSeed<'de> for IntegerSeed {
    type Value = Option<i64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for IntegerSeed {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Self::Value, E> {
        Ok(Some(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Self::Value, E> {
        Ok(Some(i64::try_from(integer).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

struct RecordSeed<'a> {
    field: &'a str,
    /// Key that is taken where `field` isn't there.
    fallback: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for RecordSeed<'_> {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_> {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, _: &str) -> Result<Record, E> {
        Ok(Record::Other("a string"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Record, E> {
        Ok(Record::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Record, E> {
        Ok(Record::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Record, E> {
        Ok(Record::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Record, E> {
        Ok(Record::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Record, E> {
        Ok(Record::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Record, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Record::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let (mut value, mut fallback) = (None, None);
        while let Some(key) = map.next_key_seed(KeySeed(&self))? {
            let (slot, name) = match key {
                Key::Field => (&mut value, self.field),
                Key::Fallback => (&mut fallback, self.fallback.unwrap_or_default()),
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.is_some() {
                return Err(A::Error::custom(format_args!("duplicate field {name:?}")));
            }
            *slot = Some(map.next_value_seed(ValueSeed)?);
        }
        Ok(Record::Object(value.or(fallback)))
    }
}

/// What a key is to the reader.
enum Key {
    Field,
    Fallback,
    Other,
}

/// Compares a key without a copy of it.
struct KeySeed<'a>(&'a RecordSeed<'a>);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(if key == self.0.field {
            Key::Field
        } else if Some(key) == self.0.fallback {
            Key::Fallback
        } else {
            Key::Other
        })
    }
}

/// The keys of an object, for a message.
struct KeysSeed;

impl<'de> DeserializeSeed<'de> for KeysSeed {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<String>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeysSeed {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            keys.push(key);
        }
        Ok(keys)
    }
}
