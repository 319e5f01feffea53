//! What an export carries over from the initial model besides weights: tokenizer, chat templates, preprocessors,
//! licences, and the code that `auto_map` names.
//!
//! transformers loads code of its own for a model whose `auto_map` names a class, `module.Class`: the file module.py
//! beside config.json, and what that imports with a dot. An export that has the key, but not the file, can't be
//! loaded with `trust_remote_code`. So the files come along, or, where they are not in the folder, the key does not.
//! `org/repo--module.Class` names code on the hub, which is found from any folder, and stays.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Map, Value};

use super::files::{CARD_FILE, COMPLETION_MARKER, is_carried_over};
use crate::model::{ModelFile, OpenModel};

/// Field that names code by the class of transformers that it is for.
const AUTO_MAP: &str = "auto_map";

/// Folder of further chat templates, as transformers writes it.
const TEMPLATES_DIR: &str = "additional_chat_templates";

/// Content of a file to write.
enum Content {
    /// As the initial model has it.
    Same(ModelFile),
    /// Without the part of `auto_map` whose code is not there.
    Edited(Vec<u8>),
}

/// The files to carry over, which are open, so that an export has them whatever becomes of the folder meanwhile.
pub(super) struct Carried {
    files: Vec<(String, Content)>,
    config: Content,
    /// Classes of `auto_map` whose code is not there, and in which file they are named.
    dropped: Vec<String>,
    /// Lines about the licence in the front matter of the initial model's card.
    licence: String,
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Same(file) => file,
            Self::Edited(bytes) => bytes,
        }
    }
}

impl Carried {
    /// Opens the files.
    ///
    /// # Errors
    ///
    /// When one of them can't be read.
    pub fn open(initial: &OpenModel) -> Result<Self> {
        let source = initial.source();
        let mut names: Vec<String> = source.list()?;
        if names.iter().any(|name| name == TEMPLATES_DIR) {
            let templates = source.list_in(TEMPLATES_DIR)?.into_iter();
            names.extend(templates.map(|name| format!("{TEMPLATES_DIR}/{name}")));
        }
        let is_template = |name: &str| {
            name.strip_prefix(TEMPLATES_DIR)
                .is_some_and(|rest| rest.ends_with(".jinja"))
        };
        let mut carried = Self {
            files: Vec::new(),
            config: Content::Same(initial.require(COMPLETION_MARKER)?),
            dropped: Vec::new(),
            licence: licence(initial)?,
        };
        let mut code = BTreeSet::new();
        let config = initial.require(COMPLETION_MARKER)?;
        carried.config = carried.json(COMPLETION_MARKER, config, initial, &mut code)?;
        for name in names {
            if !(is_carried_over(&name) || is_template(&name)) {
                continue;
            }
            if let Some(file) = initial.file(&name)? {
                let content = match name.ends_with("config.json") {
                    true => carried.json(&name, file, initial, &mut code)?,
                    false => Content::Same(file),
                };
                carried.files.push((name, content));
            }
        }
        for name in code {
            if let Some(file) = initial.file(&name)? {
                carried.files.push((name, Content::Same(file)));
            }
        }
        Ok(carried)
    }

    /// Reads a JSON file that may have an `auto_map`; adds the files that it needs to `code`.
    fn json(
        &mut self,
        name: &str,
        file: ModelFile,
        initial: &OpenModel,
        code: &mut BTreeSet<String>,
    ) -> Result<Content> {
        let Ok(Value::Object(mut json)) = serde_json::from_slice::<Value>(&file) else {
            return Ok(Content::Same(file));
        };
        let Some(Value::Object(map)) = json.get(AUTO_MAP) else {
            return Ok(Content::Same(file));
        };
        let mut kept = Map::new();
        for (class, references) in map {
            match needed(references, initial)? {
                Some(files) => {
                    code.extend(files);
                    kept.insert(class.clone(), references.clone());
                }
                None => self.dropped.push(format!("{class} of {name}")),
            }
        }
        if kept.len() == map.len() {
            return Ok(Content::Same(file));
        }
        match kept.is_empty() {
            true => json.remove(AUTO_MAP),
            false => json.insert(AUTO_MAP.to_owned(), Value::Object(kept)),
        };
        let mut text = serde_json::to_vec_pretty(&json)?;
        text.push(b'\n');
        Ok(Content::Edited(text))
    }

    /// Returns the files besides config.json by their names, with their contents.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter();
        files.map(|(name, content)| (name.as_str(), content.bytes()))
    }

    /// Returns config.json.
    pub fn config(&self) -> &[u8] {
        self.config.bytes()
    }

    /// Returns what of `auto_map` is left out, since its code is not in the folder.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// Returns the lines about the licence in the front matter of the initial model's card; empty if it has none.
    pub fn licence(&self) -> &str {
        &self.licence
    }
}

/// Returns the files of code that an entry of `auto_map` needs: a reference, or a list of them and of nulls. `None`
/// if one of them can't be loaded from the folder.
fn needed(references: &Value, initial: &OpenModel) -> Result<Option<BTreeSet<String>>> {
    let references = match references {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut files = BTreeSet::new();
    for reference in references {
        let reference = match reference {
            Value::Null => continue,
            Value::String(reference) => reference,
            _ => return Ok(None),
        };
        if reference.contains("--") {
            continue;
        }
        let Some((module, class)) = reference.split_once('.') else {
            return Ok(None);
        };
        if !(is_identifier(class) && add_module(module, initial, &mut files)?) {
            return Ok(None);
        }
    }
    Ok(Some(files))
}

/// Adds the file of a module and those that it imports; returns whether all of them are there.
fn add_module(module: &str, initial: &OpenModel, files: &mut BTreeSet<String>) -> Result<bool> {
    if !is_identifier(module) {
        return Ok(false);
    }
    let name = format!("{module}.py");
    if files.contains(&name) {
        return Ok(true);
    }
    let Some(code) = initial.file(&name)? else {
        return Ok(false);
    };
    files.insert(name);
    for module in relative_imports(&String::from_utf8_lossy(&code)) {
        if !add_module(module, initial, files)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the modules that a file imports from its own folder, as `get_relative_imports` of transformers finds them:
/// `from .module import name`.
fn relative_imports(code: &str) -> Vec<&str> {
    let module = |line: &'_ str| -> Option<std::ops::Range<usize>> {
        let trimmed = line.trim_start();
        let (rest, needs_import) = match trimmed.strip_prefix("from") {
            Some(rest) => (rest, true),
            None => (trimmed.strip_prefix("import")?, false),
        };
        let after = rest.trim_start();
        if after.len() == rest.len() {
            return None;
        }
        let name = after.strip_prefix('.')?;
        let end = name.find(char::is_whitespace).unwrap_or(name.len());
        let tail = name.get(end..)?.trim_start();
        let is_import = match needs_import {
            true => tail.starts_with("import"),
            false => tail.is_empty(),
        };
        let start = line.len() - name.len();
        (is_import && end > 0).then_some(start..start + end)
    };
    code.lines()
        .filter_map(|line| line.get(module(line)?))
        .collect()
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
}

/// Returns the lines about the licence in the front matter of a model's card.
fn licence(initial: &OpenModel) -> Result<String> {
    let Some(card) = initial.file(CARD_FILE)? else {
        return Ok(String::new());
    };
    let text = String::from_utf8_lossy(&card);
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Ok(String::new());
    }
    Ok(lines
        .take_while(|line| line.trim_end() != "---")
        .filter(|line| {
            ["license:", "license_name:", "license_link:"]
                .iter()
                .any(|key| {
                    line.strip_prefix(key)
                        .is_some_and(|value| !value.trim().is_empty())
                })
        })
        .map(|line| format!("{}\n", line.trim_end()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_with_a_dot_are_those_that_transformers_finds() {
        let code = "from .a import x\nfrom . import y\nimport .b\n    from  .c  import (\nfrom torch import nn\n\
                    from .d.e import f\nfromage = 3\n# from .g import h\nfrom .h import\\\n";
        assert_eq!(relative_imports(code), ["a", "b", "c", "d.e", "h"]);
    }
}
