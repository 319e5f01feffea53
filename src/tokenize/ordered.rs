//! JSON whose objects keep the order of their keys: new tokens get their ids in that order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A JSON value. Of a key that occurs twice the last value counts, in the place of the first, as in Python.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ordered {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    Array(Vec<Ordered>),
    Object(Vec<(String, Ordered)>),
}

impl Ordered {
    /// An object without keys.
    pub(super) const EMPTY: Self = Self::Object(Vec::new());

    /// Returns the entries of an object; none for another value.
    pub(super) fn entries(&self) -> &[(String, Self)] {
        match self {
            Self::Object(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the items of an array; none for another value.
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    /// Returns the value of a key, `None` for null too.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.raw(key).filter(|value| !value.is_null())
    }

    /// Returns the value of a key, which may be null.
    pub(super) fn raw(&self, key: &str) -> Option<&Self> {
        let mut entries = self.entries().iter();
        entries
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(Value::Null))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Scalar(value) => value.as_str(),
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Scalar(value) => value.as_bool(),
            _ => None,
        }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Scalar(value) => value.as_u64(),
            _ => None,
        }
    }

    /// Names the kind of the value, for messages: a scalar as it is written.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Scalar(value) => value.to_string(),
            Self::Array(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }

    /// Returns whether Python takes the value for true.
    pub(super) fn is_truthy(&self) -> bool {
        match self {
            Self::Scalar(Value::Null | Value::Bool(false)) => false,
            Self::Scalar(Value::String(text)) => !text.is_empty(),
            Self::Scalar(Value::Number(number)) => number.as_f64() != Some(0.0),
            Self::Scalar(_) => true,
            Self::Array(items) => !items.is_empty(),
            Self::Object(entries) => !entries.is_empty(),
        }
    }
}

fn insert(entries: &mut Vec<(String, Ordered)>, key: String, value: Ordered) {
    match entries.iter_mut().find(|(name, _)| *name == key) {
        Some((_, old)) => *old = value,
        None => entries.push((key, value)),
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Ordered::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = access.next_entry()? {
                    insert(&mut entries, key, value);
                }
                Ok(Ordered::Object(entries))
            }
        }
        deserializer.deserialize_any(AnyValue)
    }
}
