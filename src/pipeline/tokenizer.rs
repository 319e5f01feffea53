//! The tokenizer of a model or a folder, with all files that have a say in it.

use anyhow::Result;

use super::BadInput;
use crate::model::{self, ModelFile, ModelSource, OpenModel};
use crate::tokenize::{TextTokenizer, TokenizerFiles};

/// Name of the file that holds a model's tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Files of other kinds of tokenizers, which transformers converts when it loads them.
const OTHER_KINDS: [&str; 8] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
    "vocab.json",
    "vocab.txt",
];

/// Loads the tokenizer of a model, without special tokens.
pub(super) fn tokenizer_of(model: &OpenModel) -> Result<TextTokenizer> {
    load(model.source(), |name| model.file(name))
}

/// Loads the tokenizer of a folder that need hold nothing else of a model.
pub(super) fn tokenizer_in(source: &ModelSource) -> Result<TextTokenizer> {
    load(source, |name| Ok(source.read(name)?.map(ModelFile::from)))
}

fn load(
    source: &ModelSource,
    file: impl Fn(&str) -> Result<Option<ModelFile>, model::Error>,
) -> Result<TextTokenizer> {
    let name = source.to_string();
    let Some(tokenizer) = file(TOKENIZER_FILE)? else {
        for other in OTHER_KINDS {
            if file(other)?.is_some() {
                return Err(BadInput(needs_conversion(&name, other)).into());
            }
        }
        source.require(TOKENIZER_FILE)?;
        return Err(BadInput(format!("{name}: {TOKENIZER_FILE} has vanished")).into());
    };
    let tokenizer_config = file("tokenizer_config.json")?;
    let special_tokens_map = file("special_tokens_map.json")?;
    let added_tokens = file("added_tokens.json")?;
    let config = file("config.json")?;
    let loaded = TextTokenizer::from_files(&TokenizerFiles {
        name: &name,
        tokenizer: &tokenizer,
        tokenizer_config: tokenizer_config.as_deref(),
        special_tokens_map: special_tokens_map.as_deref(),
        added_tokens: added_tokens.as_deref(),
        config: config.as_deref(),
    })?;
    tokenizer.release(0..tokenizer.len());
    Ok(loaded)
}

/// Tells how to make tokenizer.json of an older file.
fn needs_conversion(folder: &str, file: &str) -> String {
    format!(
        "{folder} has {file}, but no {TOKENIZER_FILE}, the only kind of tokenizer that remit reads\nhint: with \
         transformers, sentencepiece, tiktoken and protobuf installed, this writes one: python -c \"from \
         transformers import AutoTokenizer as A; A.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
}
