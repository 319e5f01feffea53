//! Documents from lines of JSON: only the field that is wanted is built, the rest is skipped over.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::masks::{self, Masks};
use super::options::{DEFAULT_IDS_FIELD, DEFAULT_MESSAGES_FIELD, DEFAULT_TEXT_FIELD, TOOLS_FIELD};
use super::{RecordProblem, cells};
use crate::types::Content;

/// The content of one record: the field that is named, else `text`, else `input_ids`, else `messages`. Ids have to be
/// below `num_ids`.
pub(super) fn content_of(
    json: &str,
    field: Option<&str>,
    num_ids: u64,
) -> Result<Content, RecordProblem> {
    let wanted = Wanted {
        field: field.unwrap_or(DEFAULT_TEXT_FIELD),
        path: field.filter(|field| field.contains('.')),
        with_defaults: field.is_none(),
    };
    let record = parse(json, &wanted).map_err(|error| {
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
    let fields = match record {
        Record::Object(fields) => *fields,
        Record::Other(found) => {
            return Err(RecordProblem::NotObject {
                field: wanted.field.to_owned(),
                found,
            });
        }
    };
    let Fields {
        value,
        below,
        ids,
        messages,
        masks,
    } = fields;
    let is_top = value.is_some() || below.is_none();
    let (field, value) = match (value.or(below), ids, messages) {
        (Some(value), _, _) => (wanted.field, value),
        (None, Some(ids), _) => (DEFAULT_IDS_FIELD, ids),
        (None, None, Some(messages)) => (DEFAULT_MESSAGES_FIELD, messages),
        (None, None, None) => {
            return Err(RecordProblem::NoTextField {
                field: wanted.field.to_owned(),
                keys: parse(json, KeysSeed).unwrap_or_default(),
            });
        }
    };
    let other = |found| RecordProblem::TextNotString {
        field: field.to_owned(),
        found,
    };
    match value {
        Value::Text(text) => Ok(Content::Text(text)),
        Value::Integers(ids) => {
            let masks = if is_top { masks } else { Masks::default() };
            masks.apply(ids.into_iter().map(i128::from), num_ids)
        }
        Value::Records => {
            let messages = raw(json, field).ok_or_else(|| other("an array"))?;
            if !is_conversation(messages) {
                return Err(other("an array"));
            }
            let tools = raw(json, TOOLS_FIELD).filter(|tools| *tools != "null");
            Ok(Content::Messages {
                messages: messages.to_owned(),
                tools: tools.filter(|_| is_top).map(str::to_owned),
            })
        }
        Value::Flags(_) => Err(other("an array")),
        Value::Other(found) => Err(other(found)),
    }
}

/// The JSON text of a field: of the name, else of what the parts of the name lead to.
fn raw<'a>(json: &'a str, field: &str) -> Option<&'a str> {
    let get = |json: &'a str, name: &str| -> Option<&'a str> {
        let mut fields: BTreeMap<String, &'a RawValue> = serde_json::from_str(json).ok()?;
        fields.remove(name).map(RawValue::get)
    };
    get(json, field).or_else(|| field.split('.').try_fold(json, get))
}

/// Returns whether this is a list of messages, each of which has a role.
fn is_conversation(json: &str) -> bool {
    let messages: Option<Vec<BTreeMap<String, IgnoredAny>>> = serde_json::from_str(json).ok();
    messages.is_some_and(|messages| messages.iter().all(|fields| fields.contains_key("role")))
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

/// A value: its text when it is a string, its elements when it is a list of numbers, else the name of its type.
enum Value {
    Text(String),
    /// Beyond the range of the type, its bound: no model has such an id.
    Integers(Vec<i64>),
    /// A list that has numbers or booleans, and not only integers.
    Flags(Vec<i64>),
    /// A list whose first element is an object.
    Records,
    Other(&'static str),
}

/// A line: its fields when it is an object, else the name of its type.
enum Record {
    Object(Box<Fields>),
    Other(&'static str),
}

/// The fields of a record that may matter.
#[derive(Default)]
struct Fields {
    value: Option<Value>,
    /// Where the parts of the name lead.
    below: Option<Value>,
    ids: Option<Value>,
    messages: Option<Value>,
    masks: Masks,
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
        let mut numbers = Vec::new();
        let mut all_integers = true;
        while let Some(element) = seq.next_element_seed(ElementSeed)? {
            let number = match element {
                Element::Integer(integer) => integer,
                Element::Flag(flag) => {
                    all_integers = false;
                    flag
                }
                Element::Object | Element::Other => {
                    while seq.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(match element {
                        Element::Object if numbers.is_empty() => Value::Records,
                        _ => Value::Other("an array"),
                    });
                }
            };
            numbers.push(number);
        }
        Ok(match all_integers {
            true => Value::Integers(numbers),
            false => Value::Flags(numbers),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}

/// An element of a list.
enum Element {
    Integer(i64),
    /// A boolean, or a number with a point.
    Flag(i64),
    Object,
    Other,
}

struct ElementSeed;

impl<'de> DeserializeSeed<'de> for ElementSeed {
    type Value = Element;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Element, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ElementSeed {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Element, E> {
        Ok(Element::Integer(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Element, E> {
        Ok(Element::Integer(i64::try_from(integer).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Element, E> {
        Ok(Element::Flag(cells::whole(value)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Element, E> {
        Ok(Element::Flag(i64::from(value)))
    }

    fn visit_str<E>(self, _: &str) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_unit<E>(self) -> Result<Element, E> {
        Ok(Element::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element::Object)
    }
}

/// The field that a path leads to, where all above it are objects.
struct PathSeed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for PathSeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PathSeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
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
        let (name, below) = match self.0.split_once('.') {
            Some((name, below)) => (name, Some(below)),
            None => (self.0, None),
        };
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(NameSeed(name))? {
            match (is_it, below) {
                (false, _) => {
                    map.next_value::<IgnoredAny>()?;
                }
                (true, Some(below)) => found = map.next_value_seed(PathSeed(below))?,
                (true, None) => found = Some(map.next_value_seed(ValueSeed)?),
            }
        }
        Ok(found)
    }
}

/// Compares a key with a name.
struct NameSeed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// The fields that are looked for.
struct Wanted<'a> {
    field: &'a str,
    /// The same as a path, if its name can be one.
    path: Option<&'a str>,
    /// Whether ids or messages are taken where `field` isn't there.
    with_defaults: bool,
}

impl<'de> DeserializeSeed<'de> for &Wanted<'_> {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Wanted<'_> {
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
        let mut fields = Fields::default();
        while let Some(key) = map.next_key_seed(KeySeed(self))? {
            let (slot, name) = match key {
                Key::Field => (&mut fields.value, self.field),
                Key::Ids => (&mut fields.ids, DEFAULT_IDS_FIELD),
                Key::Messages => (&mut fields.messages, DEFAULT_MESSAGES_FIELD),
                Key::Above(below) => {
                    fields.below = map.next_value_seed(PathSeed(below))?;
                    continue;
                }
                Key::Mask(name) => {
                    let value = map.next_value_seed(ValueSeed)?;
                    if let Some(slot) = fields.masks.slot(name) {
                        *slot = match value {
                            Value::Integers(values) | Value::Flags(values) => Some(values),
                            _ => None,
                        };
                    }
                    continue;
                }
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
        Ok(Record::Object(Box::new(fields)))
    }
}

/// What a key is to the reader.
enum Key<'a> {
    Field,
    Ids,
    Messages,
    Mask(&'static str),
    /// The first of a path, and what is below.
    Above(&'a str),
    Other,
}

/// Compares a key without a copy of it.
struct KeySeed<'a>(&'a Wanted<'a>);

impl<'de, 'a> DeserializeSeed<'de> for KeySeed<'a> {
    type Value = Key<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for KeySeed<'a> {
    type Value = Key<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key<'a>, E> {
        let wanted = self.0;
        let above = wanted.path.and_then(|path| path.split_once('.'));
        Ok(match (key, above) {
            _ if key == wanted.field => Key::Field,
            (_, Some((root, below))) if key == root => Key::Above(below),
            (DEFAULT_IDS_FIELD, _) if wanted.with_defaults => Key::Ids,
            (DEFAULT_MESSAGES_FIELD, _) if wanted.with_defaults => Key::Messages,
            _ => match masks::NAMES.into_iter().find(|name| *name == key) {
                Some(name) => Key::Mask(name),
                None => Key::Other,
            },
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
