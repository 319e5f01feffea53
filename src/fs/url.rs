//! Paths that are URLs of objects.

use std::fmt;
use std::path::Path;

/// Schemes, as they begin a path.
const SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// An object, or a prefix of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    /// `s3`, `gs` or `az`.
    pub(super) scheme: &'static str,
    /// The bucket, or container.
    pub(super) bucket: String,
    /// Without slashes at its ends; empty for the bucket itself.
    pub(super) key: String,
}

impl Url {
    /// The URL that a path is, if it is one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let (scheme, rest) = path.to_str()?.split_once("://")?;
        let scheme = SCHEMES.into_iter().find(|known| *known == scheme)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Self {
            scheme,
            bucket: bucket.to_owned(),
            key: key.trim_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.bucket)?;
        if !self.key.is_empty() {
            write!(f, "/{}", self.key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        let text = |path: &str| Url::of(Path::new(path)).map(|url| url.to_string());
        for path in ["corpus", "/s3/x", "s3:/x", "http://x/y", "a/s3://b", ""] {
            assert_eq!(text(path), None, "{path}");
        }
        assert_eq!(
            text("s3://b/k/x.jsonl"),
            Some("s3://b/k/x.jsonl".to_owned())
        );
        assert_eq!(text("gs://b/k/"), Some("gs://b/k".to_owned()));
        assert_eq!(text("az://b"), Some("az://b".to_owned()));
        let joined = Path::new("s3://b/k").join("part-0.parquet");
        assert_eq!(Url::of(&joined).unwrap().key, "k/part-0.parquet");
        assert_eq!(Url::of(joined.parent().unwrap()).unwrap().key, "k");
    }
}
