//! plan.json and manifest.json as text.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::schema::FORMAT_VERSION;
use crate::fs::Digest;

/// A value as it is written to plan.json and manifest.json.
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

/// Refuses another version of the format before the parser says something less clear.
pub(super) fn check_version(
    path: &Path,
    bytes: &[u8],
    version: impl Fn(&Value) -> Option<&Value>,
) -> Result<(), Error> {
    let json = |source| Error::Json {
        path: PathBuf::from(path),
        source,
    };
    let value: Value = serde_json::from_slice(bytes).map_err(json)?;
    match version(&value).and_then(Value::as_u64) {
        Some(found) if found != FORMAT_VERSION => Err(Error::FormatVersion {
            path: path.to_owned(),
            found,
            expected: FORMAT_VERSION,
        }),
        // Without a version the parser says what is wrong.
        _ => Ok(()),
    }
}
