//! Tokens that stand beside a tokenizer's vocabulary: which ones the files of a folder name, and in which order
//! transformers 5 adds them, which decides their ids.

use std::collections::BTreeMap;

use tokenizers::AddedToken;

use super::class::Class;
use super::ordered::Ordered;
use super::rebuild::{default_tokens, has_pad_parameter};

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

/// Names of special tokens that every class has, in the order in which transformers adds them.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A token as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// The opposite of `special` where a file does not say it.
    normalized: Option<bool>,
    special: bool,
}

impl Token {
    /// Makes a special token of its spelling.
    fn special(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    fn object(object: &Ordered) -> Option<Self> {
        let flag = |key: &str| object.get(key).is_some_and(Ordered::is_truthy);
        Some(Self {
            content: object.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            normalized: object.get("normalized").and_then(Ordered::as_bool),
            special: flag("special"),
        })
    }

    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// A name for a token, and the file that has it.
#[derive(Debug, Clone, PartialEq)]
struct Named {
    name: String,
    token: Token,
    /// Among names that not every class has, whether transformers adds it before those of `extra_special_tokens`.
    comes_first: bool,
    from: String,
}

/// The contents of files that name tokens.
pub(super) struct TokenFiles<'a> {
    pub(super) class: Class,
    pub(super) tokenizer_config: &'a Ordered,
    pub(super) special_tokens_map: Option<&'a Ordered>,
    pub(super) added_tokens: Option<&'a Ordered>,
    /// `added_tokens` of tokenizer.json.
    pub(super) in_tokenizer_json: &'a Ordered,
    /// `pad_token` of tokenizer.json's padding.
    pub(super) padding: Option<&'a str>,
}

/// The tokens of a folder.
pub(super) struct Tokens {
    /// Tokens with ids of their own in a file, by these.
    by_id: BTreeMap<u64, Token>,
    /// Tokens with names, in the order in which they are added.
    named: Vec<Named>,
    extra: Vec<Token>,
    class: Class,
}

impl Tokens {
    /// Reads what the files name.
    ///
    /// # Errors
    ///
    /// When a token is neither a string nor an object with a string as its content.
    pub(super) fn read(files: &TokenFiles<'_>) -> Result<Self, String> {
        let config = files.tokenizer_config;
        let mut by_id = BTreeMap::new();
        let decoder = config.raw("added_tokens_decoder");
        // Names by file; a later one takes the place of an earlier one.
        let mut names: Vec<(String, &Ordered, &str)> = Vec::new();
        for (key, value) in config.entries() {
            if key.ends_with("_token") && !key.starts_with("add_") {
                names.push((key.clone(), value, CONFIG));
            }
        }
        let mut lists = Lists::of(config)?;
        match decoder {
            Some(decoder) => {
                for (id, object) in decoder.entries() {
                    let id = id.parse().map_err(|_| {
                        format!("{CONFIG}: added_tokens_decoder has the key {id:?}, which is no id")
                    })?;
                    by_id.insert(id, token("added_tokens_decoder", object, CONFIG)?.0);
                }
            }
            None => {
                if let Some(map) = files.special_tokens_map {
                    names.extend(lists.read_map(map)?);
                }
            }
        }
        let mut named = Vec::new();
        for (name, value, from) in names {
            // A null takes a class's own token away.
            if value.is_null() {
                if NAMES.contains(&name.as_str()) {
                    named.retain(|other: &Named| other.name != name);
                }
                continue;
            }
            let (token, is_object) = token(&name, value, from)?;
            let new = Named {
                name,
                token,
                comes_first: is_object || from == MAP,
                from: from.to_owned(),
            };
            let is_common = NAMES.contains(&new.name.as_str());
            let mut known = named.iter_mut();
            match known.find(|other: &&mut Named| other.name == new.name) {
                // Of two files, the first counts for a name that not every class has.
                Some(old) if !is_common && !old.comes_first => old.comes_first = true,
                Some(old) => *old = new,
                None => named.push(new),
            }
        }
        if decoder.is_none() {
            // An object in tokenizer_config.json is not recognised here.
            let is_special = |content: &str| {
                named.iter().any(|named| {
                    let is_string = !named.comes_first || named.from == MAP;
                    NAMES.contains(&named.name.as_str())
                        && is_string
                        && named.token.content == content
                }) || lists
                    .extra
                    .iter()
                    .flatten()
                    .any(|token| token.content == content)
            };
            for (content, id) in files.added_tokens.map_or(&[][..], Ordered::entries) {
                let id = id.as_u64().ok_or_else(|| {
                    format!("added_tokens.json: the id of {content:?} is not a number")
                })?;
                let special = is_special(content);
                let token = Token {
                    normalized: Some(!special),
                    special,
                    ..Token::special(content)
                };
                by_id.insert(id, token);
            }
            for object in files.in_tokenizer_json.items() {
                let id = object.get("id").and_then(Ordered::as_u64);
                if let (Some(id), Some(token)) = (id, Token::object(object)) {
                    by_id.insert(id, token);
                }
            }
        }
        for (object, from) in &lists.objects {
            for (name, value) in object.entries() {
                let new = Named {
                    name: name.clone(),
                    token: token(name, value, from)?.0,
                    comes_first: false,
                    from: (*from).to_owned(),
                };
                match named.iter_mut().find(|other| other.name == new.name) {
                    Some(old) => old.token = new.token,
                    None => named.push(new),
                }
            }
        }
        add_defaults(files, &mut named);
        // A token with flags in one of the lists of ids has them also where it is named.
        for named in &mut named {
            if NAMES.contains(&named.name.as_str())
                && [CONFIG, MAP].contains(&named.from.as_str())
                && let Some(token) = by_id
                    .values()
                    .find(|token| token.content == named.token.content)
            {
                named.token = token.clone();
            }
        }
        named.sort_by_key(|named| {
            let place = NAMES.iter().position(|name| *name == named.name);
            let comes_late = place.is_none() && !named.comes_first;
            (place.unwrap_or(NAMES.len()), comes_late)
        });
        Ok(Self {
            by_id,
            named,
            extra: lists.extra.or(lists.additional).unwrap_or_default(),
            class: files.class,
        })
    }

    /// Returns the spelling of a named token, and the file that names it.
    pub(super) fn named(&self, name: &str) -> Option<(&str, &str)> {
        let named = self.named.iter().find(|named| named.name == name)?;
        Some((&named.token.content, &named.from))
    }

    /// Returns ids that files give to tokens, with the spelling of these.
    pub(super) fn stated_ids(&self) -> impl Iterator<Item = (u64, &str)> {
        self.by_id
            .iter()
            .map(|(id, token)| (*id, token.content.as_str()))
    }

    /// Returns the tokens in the order in which transformers adds them to a tokenizer that knows `known` already.
    pub(super) fn to_add(&self, known: impl Fn(&str) -> bool) -> Vec<AddedToken> {
        let is_named = |content: &str| self.named.iter().any(|n| n.token.content == content);
        let mut tokens: Vec<Token> = self.by_id.values().cloned().collect();
        let others = self.named.iter().map(|named| &named.token);
        for token in others.chain(&self.extra) {
            let has_id = self
                .by_id
                .values()
                .any(|other| other.content == token.content);
            if !known(&token.content) && !has_id && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        for token in &mut tokens {
            token.special |= is_named(&token.content);
        }
        if self.class == Class::Qwen2 {
            let mut seen: Vec<&str> = Vec::new();
            let all = self.named.iter().map(|named| &named.token);
            for token in all.chain(&self.extra) {
                if !seen.contains(&token.content.as_str()) {
                    seen.push(&token.content);
                    tokens.push(Token::special(&token.content));
                }
            }
        }
        tokens.iter().map(Token::to_added).collect()
    }
}

/// The lists of further special tokens. There are two names for one thing, and one of them may also be an object of
/// names; transformers reads the second name only where nothing has the first.
struct Lists<'a> {
    /// `extra_special_tokens` as a list.
    extra: Option<Vec<Token>>,
    /// `additional_special_tokens`.
    additional: Option<Vec<Token>>,
    /// `extra_special_tokens` as objects, with their files.
    objects: Vec<(&'a Ordered, &'static str)>,
}

impl<'a> Lists<'a> {
    /// Reads those of tokenizer_config.json.
    fn of(config: &'a Ordered) -> Result<Self, String> {
        let mut lists = Self {
            extra: None,
            additional: None,
            objects: Vec::new(),
        };
        let extra = config.raw("extra_special_tokens");
        let additional = config.raw("additional_special_tokens");
        let read = |list: &Ordered| read_list("extra_special_tokens", list, CONFIG);
        match (extra, additional) {
            (Some(extra), additional) if extra.is_truthy() || additional.is_none() => {
                match extra {
                    Ordered::Object(_) => lists.objects.push((extra, CONFIG)),
                    list => lists.extra = Some(read(list)?),
                }
                lists.additional = additional.map(read).transpose()?;
            }
            (_, Some(additional)) => lists.extra = Some(read(additional)?),
            _ => {}
        }
        Ok(lists)
    }

    /// Reads those of special_tokens_map.json, and returns the names that it has for tokens.
    fn read_map(
        &mut self,
        map: &'a Ordered,
    ) -> Result<Vec<(String, &'a Ordered, &'static str)>, String> {
        let mut names = Vec::new();
        for (key, value) in map.entries() {
            match (key.as_str(), value) {
                ("extra_special_tokens", Ordered::Object(_)) => {
                    self.objects.push((value, MAP));
                    self.extra = None;
                }
                ("extra_special_tokens", Ordered::Array(_)) => {
                    let mut all = self.extra.take().unwrap_or_default();
                    for token in read_list(key, value, MAP)? {
                        if !all.contains(&token) {
                            all.push(token);
                        }
                    }
                    self.extra = Some(all);
                }
                ("additional_special_tokens", _) => {
                    self.additional = Some(read_list(key, value, MAP)?);
                }
                (key, _) if key.ends_with("_token") => names.push((key.to_owned(), value, MAP)),
                _ => {}
            }
        }
        Ok(names)
    }
}

fn read_list(key: &str, list: &Ordered, file: &str) -> Result<Vec<Token>, String> {
    let tokens = list.items().iter().map(|item| token(key, item, file));
    tokens.map(|token| Ok(token?.0)).collect()
}

/// Adds the tokens that a class, or the padding of tokenizer.json, has where no file names one.
fn add_defaults(files: &TokenFiles<'_>, named: &mut Vec<Named>) {
    let is_set = |key: &str| {
        files.tokenizer_config.raw(key).is_some()
            || (files.tokenizer_config.raw("added_tokens_decoder").is_none()
                && files
                    .special_tokens_map
                    .is_some_and(|map| map.raw(key).is_some()))
    };
    let default = |name: &str, content: &str, from: &str| Named {
        name: name.to_owned(),
        token: Token::special(content),
        comes_first: false,
        from: from.to_owned(),
    };
    for (name, content) in default_tokens(files.class) {
        if !is_set(name) {
            named.push(default(name, content, files.class.name()));
        }
    }
    if let Some(content) = files.padding
        && !has_pad_parameter(files.class)
        && !is_set("pad_token")
    {
        named.push(default("pad_token", content, "tokenizer.json"));
    }
}

/// Reads a token, and whether it is an object.
fn token(key: &str, value: &Ordered, file: &str) -> Result<(Token, bool), String> {
    if let Some(content) = value.as_str() {
        return Ok((Token::special(content), false));
    }
    let is_map = file == MAP;
    match Token::object(value) {
        Some(token) if is_map => Ok((
            Token {
                special: true,
                ..token
            },
            true,
        )),
        Some(token) => Ok((token, true)),
        None => Err(format!(
            "{file}: {key} is {}, neither a string nor an object that describes a token",
            value.kind()
        )),
    }
}
