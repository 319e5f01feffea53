//! Plans and manifests as text.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use crate::fs::Digest;

/// Returns a value as it is written.
pub(super) fn pretty<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Digest of a manifest's text with its own digest replaced by zeros; `None` if the text does not
/// hold that digest exactly once at the place it is written to.
pub(super) fn content_digest(text: &[u8], written: Digest) -> Option<Digest> {
    let needle = format!("\"content_blake3\": \"{written}\"");
    let mut places = text
        .windows(needle.len())
        .enumerate()
        .filter(|(_, w)| *w == needle.as_bytes());
    let (at, _) = places.next()?;
    if places.next().is_some() {
        return None;
    }
    let mut blanked = text.to_vec();
    let end = at + needle.len() - 1;
    blanked.get_mut(end - 64..end)?.fill(b'0');
    Some(Digest::of(&blanked))
}

/// Parses a plan or a manifest, and refuses another version of the format before the parser says something
/// less clear.
pub(super) fn check_version(
    path: &Path,
    text: &[u8],
    expected: u64,
    version: impl Fn(&Value) -> Option<&Value>,
) -> Result<Value, Error> {
    let value: Value = serde_json::from_slice(text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    match version(&value).and_then(Value::as_u64) {
        Some(found) if found != expected => Err(Error::FormatVersion {
            path: path.to_owned(),
            found,
            expected,
        }),
        // Without a version the parser says what is wrong.
        _ => Ok(value),
    }
}
