//! Applies chat templates in a process of their own.
//!
//! A template is a program that comes with a model: it may loop without end, double a text until memory is full, and
//! be nested until its parser has no stack left. So a process with limits compiles and applies it (see
//! [`process`](crate::guard::process)): for each record, what a file of the template's and the record's size may take.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::jinja::{Compiled, Definition};
use crate::fs::Digest;
use crate::guard::guarded;
use crate::guard::process::{Death, Failure, Kind, Session, Source, Task};

/// How a process applies chat templates.
pub const CHAT_TEMPLATES: Kind = Kind {
    id: 3,
    start: |_| Box::new(Application(None)),
};

/// Records of more bytes get a process that may take more than others.
const LARGE_BYTES: usize = 1 << 20;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The template is bad, or does not fit the messages.
    #[error("{0}")]
    Bad(String),
    /// No process could be started.
    #[error("cannot start a process to apply the chat template")]
    NoProcess(#[source] io::Error),
}

/// Templates that make text of messages.
pub struct ChatTemplate {
    /// What a process has to be told first.
    compile: Vec<u8>,
    fingerprint: Digest,
    uses_date: bool,
    /// Those that have compiled the templates and wait for messages.
    idle: Mutex<Vec<Session>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.fingerprint)
    }
}

impl ChatTemplate {
    /// Compiles templates by their names. `special_tokens` go by the names that templates know, as `bos_token`; `date`
    /// is what they are told of the time, the hour being midnight.
    ///
    /// # Errors
    ///
    /// Says which template can't be compiled and why.
    pub fn new(
        templates: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
        date: NaiveDate,
    ) -> Result<Self, Refusal> {
        let definition = Definition {
            templates,
            special_tokens,
            date,
        };
        let (fingerprint, uses_date) = (definition.fingerprint(), definition.uses_date());
        let template = Self {
            compile: encoded(&Request::Compile(definition)),
            fingerprint,
            uses_date,
            idle: Mutex::default(),
        };
        let session = template.open(0)?;
        template.idle().push(session);
        Ok(template)
    }

    /// Returns the digest of the templates and of the special tokens that they are given.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Returns whether a template asks for the date.
    pub fn uses_date(&self) -> bool {
        self.uses_date
    }

    /// Makes text of messages and tools, both given as JSON.
    ///
    /// # Errors
    ///
    /// Says why the template can't be applied to them.
    pub fn render(&self, messages: &str, tools: Option<&str>) -> Result<String, Refusal> {
        let size = messages.len() + tools.map_or(0, str::len);
        let is_large = size > LARGE_BYTES;
        let waiting = match is_large {
            true => None,
            false => self.idle().pop(),
        };
        let mut session = match waiting {
            Some(session) => session,
            None => self.open(size)?,
        };
        let request = encoded(&Request::Apply {
            messages: messages.into(),
            tools: tools.map(Into::into),
        });
        let answer = session.call(&request);
        let is_there = matches!(answer, Ok(_) | Err(Failure::Refused(_)));
        if is_there && !is_large {
            self.idle().push(session);
        }
        let applying = "the chat template: applying it to these messages";
        let text = answer.map_err(|failure| refusal(failure, applying))?;
        String::from_utf8(text)
            .map_err(|_| Refusal::Bad("the chat template gave no text".to_owned()))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process that has compiled the templates.
    fn open(&self, record_bytes: usize) -> Result<Session, Refusal> {
        let size = NoFile((self.compile.len() as u64).saturating_add(record_bytes as u64));
        let mut session = Session::open(CHAT_TEMPLATES, Arc::new(size))
            .map_err(|failure| refusal(failure, "starting"))?;
        session
            .call(&self.compile)
            .map_err(|failure| refusal(failure, "compiling it"))?;
        Ok(session)
    }
}

fn refusal(failure: Failure, doing: &str) -> Refusal {
    Refusal::Bad(match failure {
        Failure::Source(error) | Failure::Start(error) => return Refusal::NoProcess(error),
        Failure::Refused(reason) => String::from_utf8_lossy(&reason).into_owned(),
        Failure::Died(death) => match death {
            Death::Memory { limit_bytes } => format!(
                "{doing} takes more than {} MiB of memory, the most that it may take",
                limit_bytes >> 20
            ),
            Death::Time { limit_seconds } => format!(
                "{doing} takes more than {limit_seconds} seconds, the most that it may take"
            ),
            Death::Stack => format!("{doing} takes more than its stack: it is nested too deeply"),
            other => format!("{doing} failed: {other}"),
        },
    })
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    serde_json::to_vec(request).unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
enum Request<'a> {
    Compile(Definition),
    Apply {
        messages: std::borrow::Cow<'a, str>,
        tools: Option<std::borrow::Cow<'a, str>>,
    },
}

/// Stands for a file where there is none; its size decides the limits.
struct NoFile(u64);

impl Source for NoFile {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn read(&self, _: Range<u64>) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

struct Application(Option<Compiled>);

impl Task for Application {
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let answer = guarded(|| self.answer(request)).and_then(|answer| answer);
        answer.map(String::into_bytes).map_err(String::into_bytes)
    }
}

impl Application {
    fn answer(&mut self, request: &[u8]) -> Result<String, String> {
        match serde_json::from_slice(request).map_err(|error| error.to_string())? {
            Request::Compile(definition) => {
                self.0 = Some(Compiled::new(definition)?);
                Ok(String::new())
            }
            Request::Apply { messages, tools } => {
                let compiled = self.0.as_ref().ok_or("there is no template")?;
                compiled.render(&messages, tools.as_deref())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<ChatTemplate, Refusal> {
        let templates = BTreeMap::from([("default".to_owned(), source.to_owned())]);
        ChatTemplate::new(templates, BTreeMap::new(), NaiveDate::default())
    }

    #[test]
    fn one_process_applies_a_template_to_record_after_record_and_large_ones_get_their_own() {
        let template = template("{{ messages[0].content }}!").unwrap();
        let large = "a".repeat(LARGE_BYTES);
        for text in ["a", "\u{e9}", large.as_str(), "b"] {
            let messages = format!(r#"[{{"role": "user", "content": "{text}"}}]"#);
            assert_eq!(
                template.render(&messages, None).unwrap(),
                format!("{text}!")
            );
            assert_eq!(template.idle().len(), 1);
        }
    }

    #[test]
    fn a_process_that_refused_a_record_takes_the_next() {
        let template = template("{{ messages[0].content.text.first }}!").unwrap();
        let refused = template.render("[{}]", None).unwrap_err().to_string();
        assert_eq!(refused, "the chat template says in line 1: undefined value");
        assert_eq!(template.idle().len(), 1);
        let messages = r#"[{"content": {"text": {"first": "a"}}}]"#;
        assert_eq!(template.render(messages, None).unwrap(), "a!");
    }

    #[test]
    fn a_template_that_can_not_be_compiled_says_why() {
        let refused = template("{% if %}").unwrap_err().to_string();
        assert!(
            refused.contains("the template \"default\": syntax error"),
            "{refused}"
        );
    }
}
