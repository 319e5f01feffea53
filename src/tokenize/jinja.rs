//! Messages to text, by the chat template of a tokenizer, as transformers' `apply_chat_template` does it.
//!
//! The template is a program in Jinja that comes with the model; [`chat`](super::chat) keeps it within limits. It sees `messages`, `tools`, the special tokens by
//! their names, and the functions that transformers gives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use chrono::NaiveDate;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter};

use crate::fs::Digest;

/// The template that is used where no other is asked for.
const DEFAULT: &str = "default";

/// The template that is used for messages with tools, if there is one.
const WITH_TOOLS: &str = "tool_use";

/// Other names under which the reasoning of a message goes, the first being the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The function that gives a template the time.
const NOW: &str = "strftime_now";

/// What decides the text of messages.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Definition {
    /// Sources by name.
    pub(super) templates: BTreeMap<String, String>,
    /// By the names that templates know, as `bos_token`.
    pub(super) special_tokens: BTreeMap<String, String>,
    /// What templates are told of the time, the hour being midnight.
    pub(super) date: NaiveDate,
}

impl Definition {
    /// Returns the digest of the templates and of the special tokens that they are given.
    pub(super) fn fingerprint(&self) -> Digest {
        let mut key = String::new();
        for (name, source) in &self.templates {
            let _ = writeln!(key, "{name} {}", Digest::of(source.as_bytes()));
        }
        for (name, token) in &self.special_tokens {
            let _ = writeln!(key, "{name} {token:?}");
        }
        Digest::of(key.as_bytes())
    }

    /// Returns whether a template asks for the date.
    pub(super) fn uses_date(&self) -> bool {
        self.templates.values().any(|source| source.contains(NOW))
    }
}

/// Templates that were compiled.
#[derive(Debug)]
pub(super) struct Compiled {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl Compiled {
    /// Compiles templates.
    ///
    /// # Errors
    ///
    /// Says which template can't be compiled and why.
    pub(super) fn new(definition: Definition) -> Result<Self, String> {
        let Definition {
            templates,
            special_tokens,
            date,
        } = definition;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function(NOW, move |format: String| now(date, &format));
        for (name, source) in &templates {
            environment
                .add_template_owned(name.clone(), with_plain_blocks(source))
                .map_err(|error| format!("the template {name:?}: {error}"))?;
        }
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// Makes text of messages and tools, both given as JSON.
    ///
    /// # Errors
    ///
    /// Says why the template can't be applied to them.
    pub(super) fn render(&self, messages: &str, tools: Option<&str>) -> Result<String, String> {
        let parse = |json: &str| -> Result<Value, String> {
            serde_json::from_str(json).map_err(|error| error.to_string())
        };
        let mut all = Vec::new();
        for message in parse(messages)?
            .try_iter()
            .map_err(|error| error.to_string())?
        {
            all.push(normalized(&message)?);
        }
        if all.is_empty() {
            return Ok(String::new());
        }
        let tools = match tools.map(parse).transpose()? {
            // Datasets whose tools have different fields keep them as text.
            Some(text) if text.kind() == ValueKind::String => {
                parse(text.as_str().unwrap_or_default())?
            }
            tools => tools.unwrap_or(Value::from(())),
        };
        let name = match self.environment.get_template(WITH_TOOLS) {
            Ok(_) if !tools.is_none() => WITH_TOOLS,
            _ => DEFAULT,
        };
        let template = self.environment.get_template(name).map_err(|_| {
            let names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
            format!(
                "there are chat templates called {}, and none called {name}",
                names.join(", ")
            )
        })?;
        let mut context: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        context.insert("messages", Value::from(all));
        context.insert("tools", tools);
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(false));
        template
            .render(Value::from_pairs(context))
            .map_err(|error| {
                let detail = error
                    .detail()
                    .map_or_else(|| error.kind().to_string(), str::to_owned);
                match error.line() {
                    Some(line) => format!("the chat template says in line {line}: {detail}"),
                    None => format!("the chat template says: {detail}"),
                }
            })
    }
}

/// A message without keys that are null, and its reasoning under all names that templates may read.
fn normalized(message: &Value) -> Result<Value, String> {
    let mut fields: Vec<(String, Value)> = Vec::new();
    for key in message.try_iter().map_err(|error| error.to_string())? {
        let value = message.get_item(&key).map_err(|error| error.to_string())?;
        if !value.is_none() {
            fields.push((key.to_string(), value));
        }
    }
    let get = |name: &str| {
        fields
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    if let Some(reasoning) = REASONING.into_iter().find_map(get) {
        if get("thinking").is_none() {
            fields.insert(0, ("thinking".to_owned(), reasoning.clone()));
        }
        match fields
            .iter_mut()
            .find(|(key, _)| key == "reasoning_content")
        {
            Some((_, value)) => *value = reasoning,
            None => fields.push(("reasoning_content".to_owned(), reasoning)),
        }
    }
    Ok(Value::from_pairs(fields))
}

/// Turns the blocks that mark what an assistant says, which only transformers knows, into ones of as narrow a scope.
fn with_plain_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, block)) = rest.split_once("{%") {
        plain.push_str(before);
        plain.push_str("{%");
        let Some((inner, after)) = block.split_once("%}") else {
            rest = block;
            continue;
        };
        let word = inner.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        match word {
            "generation" => plain.push_str(&inner.replacen(word, "with", 1)),
            "endgeneration" => plain.push_str(&inner.replacen(word, "endwith", 1)),
            _ => plain.push_str(inner),
        }
        plain.push_str("%}");
        rest = after;
    }
    plain.push_str(rest);
    plain
}

fn now(date: NaiveDate, format: &str) -> Result<String, Error> {
    let time = date.and_hms_opt(0, 0, 0).unwrap_or_default();
    let mut text = String::new();
    write!(text, "{}", time.format(format)).map_err(|_| {
        let what = format!("strftime_now does not know the format {format:?}");
        Error::new(ErrorKind::InvalidOperation, what)
    })?;
    Ok(text)
}

/// The filter of that name: `json.dumps` with the options that transformers lets through.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |index: usize| -> Result<String, Error> {
                Ok(pair.get_item(&Value::from(index))?.to_string())
            };
            Some((part(0)?, part(1)?))
        }
        _ => None,
    };
    let (item, key) = separators.unwrap_or_else(|| {
        let item = if indent.is_some() { "," } else { ", " };
        (item.to_owned(), ": ".to_owned())
    });
    let style = Style {
        indent,
        item,
        key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

/// The way that Python's `json` writes.
struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(out, ['[', ']'], &items, depth, |out, item| {
                    self.write(out, item, depth + 1)
                })
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_all(out, ['{', '}'], &keys, depth, |out, key| {
                    self.write_text(out, &key.to_string())?;
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })
            }
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Undefined => Err(Error::new(
                ErrorKind::InvalidOperation,
                "Object of type Undefined is not JSON serializable",
            )),
            ValueKind::Number if !value.is_integer() => {
                out.push_str(&float(f64::try_from(value.clone())?));
                Ok(())
            }
            _ => {
                out.push_str(
                    &serde_json::to_string(value).map_err(|error| {
                        Error::new(ErrorKind::InvalidOperation, error.to_string())
                    })?,
                );
                Ok(())
            }
        }
    }

    fn write_all(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut each: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            each(out, item)?;
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let written = if self.ensure_ascii {
            text.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, Ascii,
            ))
        } else {
            text.serialize(&mut serde_json::Serializer::new(&mut bytes))
        };
        written.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
        out.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }
}

/// Writes what is not ASCII as escapes.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if c.is_ascii() {
                CompactFormatter.write_string_fragment(writer, c.encode_utf8(&mut [0; 4]))?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A number as Python's `repr` has it.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') {
        text
    } else {
        format!("{text}.0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(source: &str) -> Definition {
        Definition {
            templates: BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]),
            special_tokens: BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]),
            date: NaiveDate::from_ymd_opt(2026, 7, 4).unwrap(),
        }
    }

    fn template(source: &str) -> Compiled {
        Compiled::new(definition(source)).unwrap()
    }

    fn rendered(source: &str) -> String {
        let messages = r#"[{"role": "user", "content": "a<b", "n": null, "x": {"z": 1.0, "a": [true, null]}}]"#;
        template(source).render(messages, None).unwrap()
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        for (source, expected) in [
            ("{{ bos_token }}{{ pad_token }}|", "<s>|"),
            (
                "{{ messages[0].x | tojson }}",
                r#"{"z": 1.0, "a": [true, null]}"#,
            ),
            (
                "{{ messages[0].x | tojson(indent=2) }}",
                "{\n  \"z\": 1.0,\n  \"a\": [\n    true,\n    null\n  ]\n}",
            ),
            (
                "{{ messages[0].x | tojson(separators=(',', ':'), sort_keys=true) }}",
                r#"{"a":[true,null],"z":1.0}"#,
            ),
            (
                "{{ [messages[0].content, 'é\u{1f600}'] | tojson }}",
                "[\"a<b\", \"é\u{1f600}\"]",
            ),
            (
                "{{ 'é\u{1f600}' | tojson(ensure_ascii=true) }}",
                r#""\u00e9\ud83d\ude00""#,
            ),
            ("{{ [] | tojson(indent=1) }}{{ {} | tojson }}", "[]{}"),
            (
                "{{ [1e20, 1e-7, 0.5, 100000.0] | tojson }}",
                "[1e+20, 1e-07, 0.5, 100000.0]",
            ),
            (
                "{{ 'n' in messages[0] }} {{ none }} {{ tools is none }}",
                "False None True",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "04 Jul 2026"),
            (
                "{% generation %}\nx{% set y = 1 %}{% endgeneration %}\n{{ y }}",
                "x",
            ),
            ("a\n{%- generation -%} b {%- endgeneration %}", "ab"),
        ] {
            assert_eq!(rendered(source), expected, "{source}");
        }
        let uses_date = |source| definition(source).uses_date();
        assert!(uses_date("{{ strftime_now('%Y') }}") && !uses_date("x"));
    }

    #[test]
    fn a_template_may_refuse_messages_and_says_why() {
        let refused = |source: &str| {
            template(source)
                .render("[{\"role\": \"x\"}]", None)
                .unwrap_err()
        };
        assert_eq!(
            refused("\n{{ raise_exception('roles must alternate') }}"),
            "the chat template says in line 2: roles must alternate"
        );
        assert!(refused("{{ messages[0].content.x }}").contains("undefined"));
        assert!(refused("{{ strftime_now('%') }}").contains("does not know the format"));
        assert!(Compiled::new(definition("{% if %}")).is_err());
    }

    #[test]
    fn reasoning_goes_under_the_names_that_templates_read() {
        let template = template("{{ messages[0] | tojson }}");
        let render = |message: &str| template.render(&format!("[{message}]"), None).unwrap();
        assert_eq!(
            render(r#"{"role": "a", "reasoning": "r"}"#),
            r#"{"thinking": "r", "role": "a", "reasoning": "r", "reasoning_content": "r"}"#
        );
        assert_eq!(
            render(r#"{"thinking": "t", "role": "a", "reasoning_content": null}"#),
            r#"{"thinking": "t", "role": "a", "reasoning_content": "t"}"#
        );
    }
}
