//! Loads the tokenizer of a folder as `AutoTokenizer` of transformers 5 does: tokenizer.json, and what the files
//! beside it change of it.

use std::collections::BTreeMap;

use super::added::{TokenFiles, Tokens};
use super::class::{Class, pick};
use super::error::Error;
use super::load::guarded;
use super::ordered::Ordered;
use super::rebuild::rebuild;
use super::special::NamedToken;
use super::text::{TextTokenizer, parsed};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

/// Contents of the files that decide what a tokenizer does.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerFiles<'a> {
    /// The folder, for messages.
    pub name: &'a str,
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `added_tokens.json`.
    pub added_tokens: Option<&'a [u8]>,
    /// The model's `config.json`, which has a say in the class.
    pub config: Option<&'a [u8]>,
}

/// The way round a class.
const USE_FILE: &str = "hint: if tokenizer.json alone is to decide, put \"tokenizer_class\": \
                        \"PreTrainedTokenizerFast\" into tokenizer_config.json";

/// The parts of tokenizer.json that are looked at whatever the class.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Option<Ordered>,
    #[serde(default)]
    padding: Option<Padding>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
}

#[derive(Deserialize)]
struct Padding {
    pad_token: Option<String>,
}

impl TextTokenizer {
    /// Loads the tokenizer of a folder with all that its files say of tokens. No special tokens are put around
    /// documents until [`TextTokenizer::with_special_tokens`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] when tokenizer.json is not a tokenizer, and [`Error::Files`] when another file is not what
    /// it has to be, or asks for what is not implemented.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Self, Error> {
        let refused = |reason: String| Error::Files {
            name: files.name.to_owned(),
            reason,
        };
        let parse = |name: &str, text: Option<&[u8]>| -> Result<Option<Ordered>, Error> {
            let parse = |text| serde_json::from_slice(text);
            text.map(parse)
                .transpose()
                .map_err(|error| refused(format!("{name} is not valid JSON: {error}")))
        };
        let tokenizer_config =
            parse("tokenizer_config.json", files.tokenizer_config)?.unwrap_or(Ordered::EMPTY);
        let special_tokens_map = parse("special_tokens_map.json", files.special_tokens_map)?;
        let added_tokens = parse("added_tokens.json", files.added_tokens)?;
        let config = parse("config.json", files.config)?.unwrap_or(Ordered::EMPTY);
        let outline: Outline =
            serde_json::from_slice(files.tokenizer).map_err(|error| Error::Load {
                name: files.name.to_owned(),
                reason: error.to_string(),
            })?;

        check_versions(&tokenizer_config).map_err(refused)?;
        let is_byte_level = contains(files.tokenizer, b"\"ByteLevel\"");
        let (class, code) =
            pick(files.name, &config, &tokenizer_config, is_byte_level).map_err(refused)?;
        let mut warnings = Vec::new();
        if let Some(code) = code {
            warnings.push(format!(
                "{}: tokenizer_config.json names code of its own ({code}), which is not run: {} takes its place",
                files.name,
                class.name()
            ));
        }
        let in_tokenizer_json = outline.added_tokens.unwrap_or(Ordered::Array(Vec::new()));
        let tokens = Tokens::read(&TokenFiles {
            class,
            tokenizer_config: &tokenizer_config,
            special_tokens_map: special_tokens_map.as_ref(),
            added_tokens: added_tokens.as_ref(),
            in_tokenizer_json: &in_tokenizer_json,
            padding: outline
                .padding
                .as_ref()
                .and_then(|padding| padding.pad_token.as_deref()),
        })
        .map_err(refused)?;

        let mut tokenizer = match class {
            Class::Backend => parsed(files.tokenizer, files.name)?,
            Class::Other(name) => {
                return Err(refused(format!(
                    "its class in transformers is {name}, which is not implemented\n{USE_FILE}"
                )));
            }
            class => {
                let unk = tokens.named("unk_token").map(|(content, _)| content);
                let json = serde_json::from_slice(files.tokenizer).map_err(|error| {
                    refused(format!("tokenizer.json is not valid JSON: {error}"))
                })?;
                let json = rebuild(class, json, &tokenizer_config, unk)
                    .map_err(|reason| refused(format!("{reason}\n{USE_FILE}")))?;
                parsed(json.to_string().as_bytes(), files.name)?
            }
        };
        let known = tokenizer.get_added_vocabulary().get_vocab();
        let to_add = tokens.to_add(|content| known.contains_key(content));
        let has_no_id = |token: &&AddedToken| {
            tokenizer.token_to_id(&token.content).is_none()
                && tokens
                    .stated_ids()
                    .all(|(_, content)| content != token.content)
        };
        let new: Vec<String> = to_add
            .iter()
            .filter(has_no_id)
            .map(|token| token.content.clone())
            .collect();
        if !to_add.is_empty() {
            guarded(|| tokenizer.add_tokens(to_add)).map_err(refused)?;
        }
        let mut loaded = Self::new(tokenizer, files.name)?;
        if class != Class::Backend {
            let plain = Self::from_bytes(files.tokenizer, files.name)?;
            if let Some(difference) = plain.canonical.splitting_difference(&loaded.canonical) {
                warnings.push(format!(
                    "{}: as in transformers 5, the class {} takes vocabulary and merges from tokenizer.json and \
                     makes the rest itself: {difference}, with the value of the file first\n{USE_FILE}",
                    files.name,
                    class.name()
                ));
            }
        }
        for (id, content) in tokens.stated_ids() {
            let found = loaded.token_to_id(content);
            if found.map(u64::from) != Some(id) {
                warnings.push(format!(
                    "{}: the files give {content:?} the id {id}, but as in transformers it gets {}",
                    files.name,
                    found.map_or("none".to_owned(), |id| id.to_string())
                ));
            }
        }
        if class == Class::Backend {
            warnings.extend(
                prefix_space_warning(&tokenizer_config, outline.pre_tokenizer.as_ref())
                    .map(|warning| format!("{}: {warning}", files.name)),
            );
        }
        check_mistral_pattern(&config, &tokenizer_config, loaded.vocab_size()).map_err(refused)?;
        loaded.named = named(&tokens, &loaded);
        loaded.new_ids = new
            .iter()
            .filter_map(|token| loaded.token_to_id(token))
            .collect();
        loaded.splits_special_tokens = tokenizer_config
            .get("split_special_tokens")
            .is_some_and(Ordered::is_truthy);
        warnings.extend(template_warnings(&loaded, &tokenizer_config, class));
        loaded.warnings = warnings;
        Ok(loaded)
    }
}

/// Returns BOS and EOS as the files name them.
fn named(tokens: &Tokens, loaded: &TextTokenizer) -> BTreeMap<String, NamedToken> {
    let mut named = BTreeMap::new();
    for name in ["bos_token", "eos_token"] {
        if let Some((content, from)) = tokens.named(name)
            && let Some(id) = loaded.token_to_id(content)
        {
            let token = NamedToken {
                id,
                token: content.to_owned(),
                from: from.to_owned(),
            };
            named.insert(name.to_owned(), token);
        }
    }
    named
}

/// Refuses tokenizer files that are chosen by the version of transformers.
fn check_versions(config: &Ordered) -> Result<(), String> {
    match config.get("fast_tokenizer_files") {
        Some(files)
            if files
                .items()
                .iter()
                .any(|file| file.as_str() != Some("tokenizer.json")) =>
        {
            Err(
                "tokenizer_config.json has fast_tokenizer_files, by which the version of transformers chooses \
                 another file than tokenizer.json\nhint: remove the field if tokenizer.json is the file to use"
                    .to_owned(),
            )
        }
        _ => Ok(()),
    }
}

/// Refuses a pattern that transformers puts in the place of that of tokenizer.json, for Mistral's larger
/// vocabularies alone.
fn check_mistral_pattern(
    config: &Ordered,
    tokenizer_config: &Ordered,
    num_tokens: usize,
) -> Result<(), String> {
    const TYPES: [&str; 5] = ["mistral", "mistral3", "voxtral", "ministral", "pixtral"];
    let text = |key: &str| config.get(key).and_then(Ordered::as_str);
    let is_old = text("transformers_version").is_none_or(|version| {
        let major = version.split('.').next().and_then(|n| n.parse().ok());
        major.is_none_or(|major: u64| major < 5)
    });
    let is_mistral = text("model_type").is_none_or(|model_type| TYPES.contains(&model_type));
    let asks = tokenizer_config.get("fix_mistral_regex");
    if asks.is_some_and(Ordered::is_truthy) && is_old && is_mistral && num_tokens > 100_000 {
        return Err(
            "tokenizer_config.json sets fix_mistral_regex, so transformers replaces the pattern of tokenizer.json \
             when it loads it\nhint: save the tokenizer again with AutoTokenizer of transformers 5, which writes \
             the pattern into tokenizer.json"
                .to_owned(),
        );
    }
    Ok(())
}

/// Tells where add_prefix_space contradicts the pre-tokenizer, which wins.
fn prefix_space_warning(config: &Ordered, pre_tokenizer: Option<&Value>) -> Option<String> {
    fn collect(value: &Value, found: &mut Vec<bool>) {
        if let Some(list) = value.get("pretokenizers").and_then(Value::as_array) {
            list.iter().for_each(|value| collect(value, found));
        }
        match value.get("prepend_scheme").and_then(Value::as_str) {
            Some(scheme) => found.push(scheme != "never"),
            None => found.extend(value.get("add_prefix_space").and_then(Value::as_bool)),
        }
    }
    let wanted = config.get("add_prefix_space")?.as_bool()?;
    let mut found = Vec::new();
    collect(pre_tokenizer?, &mut found);
    (!found.is_empty() && found.iter().all(|found| *found != wanted)).then(|| {
        format!(
            "tokenizer_config.json says add_prefix_space {wanted}, tokenizer.json does the opposite; as in \
             transformers 5, tokenizer.json counts"
        )
    })
}

/// Tells where the flags of tokenizer_config.json contradict the template of tokenizer.json, which wins.
fn template_warnings(loaded: &TextTokenizer, config: &Ordered, class: Class) -> Vec<String> {
    // One that is not understood is refused where it is needed.
    let Ok(template) = loaded.template() else {
        return Vec::new();
    };
    let source = match class {
        Class::GptNeoX => "the class GPTNeoXTokenizer",
        _ => "the template of tokenizer.json",
    };
    let mut warnings = Vec::new();
    for (flag, what, found) in [
        ("add_bos_token", "in front of", template.bos),
        ("add_eos_token", "after", template.eos),
    ] {
        let wanted = config.get(flag).and_then(Ordered::as_bool);
        let does = match (wanted, found) {
            (Some(true), None) => "no token".to_owned(),
            (Some(false), Some(id)) => match loaded.id_to_token(id) {
                Some(token) => format!("{token:?}"),
                None => format!("the id {id}"),
            },
            _ => continue,
        };
        // EOS ends documents also where no template does that.
        if found.is_none() && flag == "add_eos_token" {
            continue;
        }
        warnings.push(format!(
            "{}: tokenizer_config.json says {flag} {}, but {source} puts {does} {what} a text; as in transformers 5, \
             the flag does not count\nhint: --bos and --eos always or never overrule both",
            loaded.name(),
            wanted.unwrap_or_default(),
        ));
    }
    warnings
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}
