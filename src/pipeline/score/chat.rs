//! The chat template that messages of the corpus become text by.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use chrono::NaiveDate;
use serde_json::Value;

use super::super::{BadInput, json_of};
use crate::escape::Show as _;
use crate::fs;
use crate::model::OpenModel;
use crate::tokenize::ChatTemplate;

/// Files of templates, which come before those in tokenizer_config.json.
const FILES: [(&str, &str); 2] = [
    ("default", "chat_template.jinja"),
    ("tool_use", "additional_chat_templates/tool_use.jinja"),
];

/// Special tokens that templates know by these names.
const SPECIAL: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A chat template, and the file that it is from.
pub(super) struct Found {
    pub(super) template: ChatTemplate,
    pub(super) file: String,
}

/// Finds the chat template: the `file`, else that of the first model that has one.
///
/// # Errors
///
/// When it can't be read or compiled.
pub(super) fn find(
    file: Option<&Path>,
    models: &[&OpenModel],
    date: NaiveDate,
) -> Result<Option<Found>> {
    let compile = |templates, model: Option<&&OpenModel>, file: String| -> Result<Option<Found>> {
        let special = model.map_or_else(|| Ok(BTreeMap::new()), |model| special_tokens(model))?;
        let template = ChatTemplate::new(&templates, special, date).map_err(|reason| {
            BadInput(format!("{file}: the chat template can't be used: {reason}"))
        })?;
        Ok(Some(Found { template, file }))
    };
    if let Some(file) = file {
        let text = String::from_utf8(fs::read(file)?)
            .map_err(|_| BadInput(format!("{}: not valid UTF-8", file.shown())))?;
        let templates = BTreeMap::from([("default".to_owned(), text)]);
        return compile(templates, models.first(), file.shown().to_string());
    }
    for model in models {
        if let Some((templates, name)) = of_model(model)? {
            return compile(templates, Some(model), format!("{model}/{name}"));
        }
    }
    Ok(None)
}

/// The templates of a model by name, and the file that they are from.
fn of_model(model: &OpenModel) -> Result<Option<(BTreeMap<String, String>, &'static str)>> {
    let mut templates = BTreeMap::new();
    for (name, file) in FILES {
        if let Some(bytes) = model.file(file)? {
            let text = std::str::from_utf8(&bytes)
                .with_context(|| BadInput(format!("{model}/{file}: not valid UTF-8")))?;
            templates.insert(name.to_owned(), text.to_owned());
        }
    }
    if !templates.is_empty() {
        return Ok(Some((templates, FILES[0].1)));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let config = json_of(model, file)?;
        match config
            .as_ref()
            .and_then(|config| config.get("chat_template"))
        {
            Some(Value::String(text)) => {
                templates.insert("default".to_owned(), text.clone());
            }
            Some(Value::Array(named)) => templates.extend(named.iter().filter_map(|template| {
                let text = |key: &str| template.get(key)?.as_str().map(str::to_owned);
                Some((text("name")?, text("template")?))
            })),
            Some(Value::Object(named)) => templates.extend(
                named
                    .iter()
                    .filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))),
            ),
            _ => {}
        }
        if !templates.is_empty() {
            return Ok(Some((templates, file)));
        }
    }
    Ok(None)
}

/// The special tokens of a model, spelled out.
fn special_tokens(model: &OpenModel) -> Result<BTreeMap<String, String>> {
    let mut tokens = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(config) = json_of(model, file)? else {
            continue;
        };
        for name in SPECIAL {
            let token = config
                .get(name)
                .and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
            if let Some(token) = token {
                tokens.insert(name.to_owned(), token.to_owned());
            }
        }
    }
    Ok(tokens)
}
