//! The tokens that are put around documents, as the options and the files have them.

use anyhow::Result;
use serde_json::Value;

use super::score::options::AddToken;
use super::tokenizer::{tokenizer_in, tokenizer_of};
use super::{BadInput, Progress, json_of};
use crate::model::{self, ModelSource, OpenModel};
use crate::tokenize::{DocumentTokens, NamedToken, TextTokenizer};
use crate::types::TokenId;

/// A tokenizer, and the config.json that lies beside it.
pub(super) struct TokenizerSource {
    /// Where both are from.
    pub source: ModelSource,
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    config: Option<Value>,
}

impl TokenizerSource {
    /// Takes the tokenizer of a model.
    pub fn of(model: &OpenModel) -> Result<Self> {
        Ok(Self {
            source: model.source().clone(),
            tokenizer: tokenizer_of(model)?,
            config: json_of(model, "config.json")?,
        })
    }

    /// Takes the tokenizer of a folder that need hold nothing else.
    pub fn in_folder(source: &ModelSource) -> Result<Self> {
        let tokenizer = tokenizer_in(source)?;
        let parse = |text: &[u8]| serde_json::from_slice(text);
        let config = source.read("config.json")?;
        let config = config.as_deref().map(parse).transpose();
        Ok(Self {
            source: source.clone(),
            tokenizer,
            config: config.map_err(|error| model::Error::Json {
                model: source.to_string(),
                file: "config.json".to_owned(),
                source: error,
            })?,
        })
    }

    /// Returns a special token, whether or not it is put around documents.
    pub fn named(&self, key: &str) -> Option<NamedToken> {
        if let Some(named) = self.tokenizer.named(key) {
            return Some(NamedToken {
                from: format!("{} of {}", named.from, self.source),
                ..named.clone()
            });
        }
        let key = format!("{key}_id");
        let config = self.config.as_ref()?;
        let id = config
            .get(&key)
            .or_else(|| config.get("text_config")?.get(&key))?;
        let id = id.as_u64().or_else(|| id.get(0)?.as_u64())?;
        self.token(TokenId::try_from(id).ok()?, "config.json")
    }

    fn token(&self, id: TokenId, file: &str) -> Option<NamedToken> {
        Some(NamedToken {
            id,
            token: self.tokenizer.id_to_token(id).unwrap_or_default(),
            from: format!("{file} of {}", self.source),
        })
    }

    /// Returns BOS and EOS of documents.
    ///
    /// # Errors
    ///
    /// When a token is asked for that no file names, when one is left to the template of the tokenizer, which is
    /// none of BOS and EOS, and when one is in no list of tokens.
    pub fn document_tokens(&self, bos: AddToken, eos: AddToken) -> Result<DocumentTokens> {
        const TEMPLATE: &str = "the template in tokenizer.json";
        let template = || self.tokenizer.template();
        let of_template = |id: Option<TokenId>| id.and_then(|id| self.token(id, TEMPLATE));
        let required = |key: &str, flag: &str| -> Result<Option<NamedToken>> {
            match self.named(key) {
                Some(token) => Ok(Some(token)),
                None => Err(BadInput(format!(
                    "{} names no {key} in tokenizer_config.json or config.json, but {flag} always was given",
                    self.source
                ))
                .into()),
            }
        };
        let tokens = DocumentTokens {
            bos: match bos {
                AddToken::Auto => of_template(template()?.bos),
                AddToken::Always => required("bos_token", "--bos")?,
                AddToken::Never => None,
            },
            eos: match eos {
                AddToken::Auto => of_template(template()?.eos).or_else(|| self.named("eos_token")),
                AddToken::Always => required("eos_token", "--eos")?,
                AddToken::Never => None,
            },
        };
        for (name, token) in [("bos", &tokens.bos), ("eos", &tokens.eos)] {
            if let Some(NamedToken { id, token, from }) = token
                && self.tokenizer.is_new(*id)
            {
                return Err(BadInput(format!(
                    "{from}: {name}_token is {token:?}, which is no token of tokenizer.json: no model has seen it\n\
                     hint: correct it, or turn it off with --{name} never"
                ))
                .into());
            }
        }
        Ok(tokens)
    }
}

/// Most ids that a message lists.
const MAX_LISTED: usize = 5;

/// Checks that ids of the deciding tokenizer below `num_rows` mean the same to a model. How the model's own
/// tokenizer would split a text does not matter to that, but is worth a warning.
///
/// # Errors
///
/// [`BadInput`] with the ids that mean something else.
pub(super) fn check_meaning(
    deciding: &TextTokenizer,
    model: &OpenModel,
    num_rows: usize,
    progress: &dyn Progress,
) -> Result<()> {
    let own = tokenizer_of(model)?;
    if let Some(difference) = difference(deciding, &own, num_rows) {
        return Err(BadInput(format!(
            "the ids of the tokenizer of {}, which decides, do not mean the same to {model}: {difference}\nhint: \
             --tokenizer DIR names another tokenizer to decide; each of its ids has to mean the same to all models",
            deciding.name()
        ))
        .into());
    }
    if let Some(difference) = deciding.other_splitting(&own) {
        progress.warn(&format!(
            "the tokenizer of {} decides the ids; every one means the same to {model}, whose own tokenizer may split \
             text otherwise: {difference}",
            deciding.name()
        ));
    }
    Ok(())
}

/// Lists how ids of one tokenizer mean something else in another.
pub(super) fn difference(
    deciding: &TextTokenizer,
    other: &TextTokenizer,
    num_rows: usize,
) -> Option<String> {
    if !deciding.spells_like(other) {
        let how = deciding.other_splitting(other)?;
        return Some(format!("they spell tokens by other rules: {how}"));
    }
    let meanings = deciding.other_meanings(other, num_rows);
    let listed: Vec<String> = meanings
        .iter()
        .take(MAX_LISTED)
        .map(ToString::to_string)
        .collect();
    let more = match meanings.len().saturating_sub(listed.len()) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (!listed.is_empty()).then(|| format!("{}{more}", listed.join("; ")))
}
