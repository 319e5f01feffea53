//! The fields of a JSON object, read one by one so that what is left over can be refused.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::ignored::is_ignored;
use crate::escape::Show as _;

/// Largest number that a size may be, so that products of two can't overflow.
pub(super) const MAX_SIZE: usize = i32::MAX as usize;

/// A JSON object, with a record of the fields that were read.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// Starts with no field read.
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            read: BTreeSet::new(),
        }
    }

    /// Reads a field of any type; null counts as absent.
    pub(super) fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.read.insert(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Returns whether the field is there, be it null or not.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Reads a whole number of at most [`MAX_SIZE`].
    pub(super) fn size(&mut self, name: &'static str) -> Result<Option<usize>, String> {
        self.get(name)
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .filter(|&n| n <= MAX_SIZE)
                    .ok_or_else(|| {
                        format!("{name} is {value}, not a whole number of at most {MAX_SIZE}")
                    })
            })
            .transpose()
    }

    /// Reads a size that has to be there.
    pub(super) fn required_size(&mut self, name: &'static str) -> Result<usize, String> {
        self.size(name)?.ok_or_else(|| format!("it has no {name}"))
    }

    /// Reads a size that may be null, which means none; `default` where the field is absent.
    pub(super) fn nullable_size(
        &mut self,
        name: &'static str,
        default: usize,
    ) -> Result<Option<usize>, String> {
        if self.contains(name) {
            self.size(name)
        } else {
            Ok(Some(default))
        }
    }

    /// Reads a number.
    pub(super) fn float(&mut self, name: &'static str, default: f64) -> Result<f64, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_f64()
                .ok_or_else(|| format!("{name} is {value}, not a number"))
        })
    }

    /// Reads true or false.
    pub(super) fn boolean(&mut self, name: &'static str, default: bool) -> Result<bool, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| format!("{name} is {value}, not true or false"))
        })
    }

    /// Reads a string.
    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, String> {
        self.get(name)
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(format!("{name} is {other}, not a string")),
            })
            .transpose()
    }

    /// Accepts a field only with the one value that is implemented; absent is fine.
    pub(super) fn only(&mut self, name: &'static str, implemented: &Value) -> Result<(), String> {
        let same = |value: &Value| match (value.as_f64(), implemented.as_f64()) {
            // 0 and 0.0 are two values to the parser.
            (Some(value), Some(implemented)) => value == implemented,
            _ => value == implemented,
        };
        match self.get(name) {
            Some(value) if !same(value) => Err(format!(
                "{name} is {value}; only {implemented} is implemented"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses the object if a field of it was not read and may have influence.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.unread().as_slice() {
            [] => Ok(()),
            unread => Err(not_implemented(unread)),
        }
    }

    /// Refuses the object as [`Fields::finish`] does, but for fields that are among `ignored`. Returns those of
    /// them that it has.
    pub(super) fn finish_ignoring(self, ignored: &[String]) -> Result<Vec<String>, String> {
        if let Some(name) = ignored
            .iter()
            .find(|name| self.read.contains(name.as_str()) && self.contains(name))
        {
            return Err(format!(
                "{name} is read for this model_type, so --ignore-config-field can't have it ignored"
            ));
        }
        let (accepted, unread): (Vec<&str>, Vec<&str>) = self
            .unread()
            .into_iter()
            .partition(|name| ignored.iter().any(|ignored| ignored == name));
        if let Some(first) = unread.first() {
            return Err(format!(
                "{}\nhint: if a field changes nothing in what the model computes, --ignore-config-field {} accepts it",
                not_implemented(&unread),
                first.shown()
            ));
        }
        Ok(accepted.into_iter().map(str::to_owned).collect())
    }

    /// Returns the fields that were not read and may have influence.
    fn unread(&self) -> Vec<&'a str> {
        self.map
            .iter()
            .filter(|(name, value)| !(self.read.contains(name.as_str()) || is_ignored(name, value)))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

fn not_implemented(fields: &[&str]) -> String {
    format!(
        "not implemented for this model_type, and possibly of influence on its output: {}",
        fields
            .iter()
            .map(|field| field.shown().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    )
}
