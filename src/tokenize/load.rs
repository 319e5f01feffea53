//! A tokenizer.json to a tokenizer.

use tokenizers::{ModelWrapper, Tokenizer};

use super::limits;
use crate::guard;

/// Loads a tokenizer.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn load(tokenizer_json: &[u8]) -> Result<Tokenizer, String> {
    limits::check(tokenizer_json)?;
    guarded(|| deterministic(Tokenizer::from_bytes(tokenizer_json)?))
}

/// Switches off what makes ids depend on anything but the text.
fn deterministic(mut tokenizer: Tokenizer) -> tokenizers::Result<Tokenizer> {
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None)?;
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// Runs a call into the tokenizer, which panics on some inconsistent files.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    guard::guarded(call)?.map_err(|error| error.to_string())
}
