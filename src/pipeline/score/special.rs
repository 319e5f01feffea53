//! The ids that are put around documents, as the options and the models' files have them.

use anyhow::Result;

use super::super::{BadInput, json_of};
use super::options::{AddToken, RowOptions};
use crate::model::OpenModel;
use crate::tokenize::{SpecialTokens, TextTokenizer};
use crate::types::TokenId;

/// Returns BOS and EOS of documents, as the files of a model name them.
pub(super) fn special_tokens(
    options: &RowOptions,
    model: &OpenModel,
    tokenizer: &TextTokenizer,
) -> Result<SpecialTokens> {
    let named = |key: &str| named(model, tokenizer, key);
    let required = |key: &str, flag: &str| -> Result<Option<TokenId>> {
        match named(key)? {
            Some(id) => Ok(Some(id)),
            None => Err(BadInput(format!(
                "{model} names no {key} in tokenizer_config.json or config.json, but {flag} always was given"
            ))
            .into()),
        }
    };
    Ok(SpecialTokens {
        bos: match options.bos {
            AddToken::Auto => match explicit_bos(model)? {
                None => tokenizer.default_bos(),
                Some(true) => named("bos_token")?,
                Some(false) => None,
            },
            AddToken::Always => required("bos_token", "--bos")?,
            AddToken::Never => None,
        },
        eos: match options.eos {
            AddToken::Auto => named("eos_token")?,
            AddToken::Always => required("eos_token", "--eos")?,
            AddToken::Never => None,
        },
    })
}

/// Returns whether tokenizer_config.json's own template begins with BOS; `None` if that of tokenizer.json is used. As in transformers, naming either of the two fields does that.
fn explicit_bos(model: &OpenModel) -> Result<Option<bool>> {
    let config = json_of(model, "tokenizer_config.json")?;
    let flag = |key: &str| config.as_ref()?.get(key)?.as_bool();
    Ok(match (flag("add_bos_token"), flag("add_eos_token")) {
        (None, None) => None,
        (bos, _) => Some(bos.unwrap_or(false)),
    })
}

/// Returns the id of a special token, whether or not it is put around documents.
pub(super) fn named(
    model: &OpenModel,
    tokenizer: &TextTokenizer,
    key: &str,
) -> Result<Option<TokenId>> {
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let config = json_of(model, file)?;
        let Some(token) = config.as_ref().and_then(|config| config.get(key)) else {
            continue;
        };
        if token.is_null() {
            continue;
        }
        let content = token.as_str().or_else(|| token.get("content")?.as_str());
        let refused =
            |reason: String| BadInput(format!("{file} of the model {model}: {key} {reason}"));
        let Some(content) = content else {
            return Err(refused(format!("is {token}, not the text of a token")).into());
        };
        return match tokenizer.token_to_id(content) {
            Some(id) => Ok(Some(id)),
            None => Err(refused(format!(
                "is {content:?}, which is no token of its tokenizer.json\nhint: correct it, or remove {key} from {file}"
            ))
            .into()),
        };
    }
    let config = json_of(model, "config.json")?;
    let id = config.as_ref().and_then(|config| {
        let id = config.get(format!("{key}_id"))?;
        id.as_u64().or_else(|| id.get(0)?.as_u64())
    });
    Ok(id.and_then(|id| TokenId::try_from(id).ok()))
}
