//! Patterns of file names.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::operation::Operation;
use super::paths::is_dir;
use super::url::Url;
use super::walk::{KeepOn, Walk, Walked, walk, walk_with};

/// Why a pattern gives no paths.
#[derive(Debug)]
pub enum GlobError {
    /// It isn't a pattern.
    Pattern(&'static str),
    /// A folder can't be read.
    Io(Error),
}

const OPTIONS: ::glob::MatchOptions = ::glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Returns whether a pattern, as [`glob()`] takes it, would match a path that need not exist; both are compared
/// as they are written.
pub fn matches(pattern: &Path, path: &Path) -> bool {
    let plain = |path: &Path| path.strip_prefix(".").unwrap_or(path).to_owned();
    let pattern = plain(pattern).to_str().map(::glob::Pattern::new);
    let Some(Ok(pattern)) = pattern else {
        return false;
    };
    pattern.matches_path_with(&plain(path), OPTIONS)
}

/// A pattern that files are chosen by: one without `/` has to match a name of the path, of the file or of a
/// folder above it; one with `/` the whole path, where `**` stands for any folders, or a folder above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    compiled: ::glob::Pattern,
}

impl NamePattern {
    /// Parses a pattern of `*`, `?`, `[...]` and `**`.
    ///
    /// # Errors
    ///
    /// When it isn't one; says why.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let plain = text.strip_prefix("./").unwrap_or(text);
        let plain = match plain.trim_end_matches('/') {
            "" => return Err("it names nothing"),
            plain => plain,
        };
        Ok(Self {
            text: text.to_owned(),
            compiled: ::glob::Pattern::new(plain).map_err(|error| error.msg)?,
        })
    }

    /// Returns the pattern as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether a path is meant.
    pub fn matches(&self, path: &Path) -> bool {
        let options = ::glob::MatchOptions {
            require_literal_leading_dot: false,
            ..OPTIONS
        };
        let is_name = !self.compiled.as_str().contains('/');
        path.ancestors().any(|path| {
            let path = match path.file_name() {
                Some(name) if is_name => Path::new(name),
                _ => path,
            };
            self.compiled.matches_path_with(path, options)
        })
    }
}

/// Returns what a pattern of `*`, `?`, `[...]` and `**` matches; names that begin with a dot only where the
/// pattern spells the dot out. What `**` matches are files alone, and as in [`walk`] a folder that
/// links to itself below there is an error.
pub fn glob(pattern: &str, keep_on: KeepOn<'_>) -> Result<Vec<PathBuf>, GlobError> {
    let compiled = ::glob::Pattern::new(pattern).map_err(|error| GlobError::Pattern(error.msg))?;
    if Url::of(Path::new(pattern)).is_some() {
        let special = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
        let fixed = pattern.get(..special).unwrap_or_default();
        let folder = fixed.rsplit_once('/').map_or(fixed, |(folder, _)| folder);
        let mut paths = walk(Path::new(folder), keep_on)
            .map_err(GlobError::Io)?
            .files;
        paths.retain(|path| compiled.matches_path_with(path, OPTIONS));
        return Ok(paths);
    }
    match recursive(pattern) {
        Some((above, below)) => walk_matches(pattern, above, below, keep_on),
        None => listed(pattern),
    }
}

/// Returns what the library finds. It follows links round in circles below a `**`, so it gets none.
fn listed(pattern: &str) -> Result<Vec<PathBuf>, GlobError> {
    let paths = ::glob::glob_with(pattern, OPTIONS).map_err(|e| GlobError::Pattern(e.msg))?;
    paths
        .map(|path| {
            path.map_err(|error| {
                GlobError::Io(Error {
                    operation: Operation::List,
                    path: error.path().to_owned(),
                    source: error.into(),
                })
            })
        })
        .collect()
}

/// Returns what is before the first `**` of a pattern, and what is after it.
fn recursive(pattern: &str) -> Option<(&str, &str)> {
    if let Some(below) = pattern.strip_prefix("**")
        && (below.is_empty() || below.starts_with('/'))
    {
        return Some(("", below));
    }
    if let Some(parts) = pattern.split_once("/**/") {
        return Some(parts);
    }
    pattern.strip_suffix("/**").map(|above| (above, ""))
}

fn walk_matches(
    pattern: &str,
    above: &str,
    below: &str,
    keep_on: KeepOn<'_>,
) -> Result<Vec<PathBuf>, GlobError> {
    let is_relative = above.is_empty() && !pattern.starts_with('/');
    let roots = match above {
        "" if is_relative => vec![PathBuf::from(".")],
        "" => vec![PathBuf::from("/")],
        above if above.contains(['*', '?', '[']) => listed(above)?,
        above => vec![PathBuf::from(above)],
    };
    let what = Walk {
        hidden: below.starts_with('.') || below.contains("/."),
        dangling: true,
    };
    // The paths that are walked have one separator between names.
    let mut plain = pattern.to_owned();
    while plain.contains("//") {
        plain = plain.replace("//", "/");
    }
    let compiled = ::glob::Pattern::new(&plain).map_err(|error| GlobError::Pattern(error.msg))?;
    let mut paths = Vec::new();
    for root in roots {
        if !is_dir(&root).map_err(GlobError::Io)? {
            continue;
        }
        let Walked { files, special } = walk_with(&root, what, keep_on).map_err(GlobError::Io)?;
        let mut found = files;
        found.extend(special);
        let as_written = |path: PathBuf| match path.strip_prefix(".") {
            Ok(path) if is_relative => path.to_owned(),
            _ => path,
        };
        let found = found.into_iter().map(as_written);
        paths.extend(found.filter(|path| compiled.matches_path_with(path, OPTIONS)));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.txt", "a/b/x.txt", "a/b/c/y.md", "a/.h/x.txt", "z.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write_atomic(&path, b"text").unwrap();
        }
        dir
    }

    fn found(dir: &Path, pattern: &str) -> Vec<String> {
        let paths = glob(&format!("{}/{pattern}", dir.display()), &|| true).unwrap();
        let below = |path: &PathBuf| path.strip_prefix(dir).unwrap().display().to_string();
        paths.iter().map(below).collect()
    }

    #[test]
    fn two_stars_reach_into_folders_of_any_depth() {
        let dir = tree();
        for (pattern, paths) in [
            ("**/*.txt", &["a/b/x.txt", "a/x.txt", "z.txt"][..]),
            ("a/**/x.txt", &["a/b/x.txt", "a/x.txt"]),
            ("a//**/c/*", &["a/b/c/y.md"]),
            ("?/**/y.md", &["a/b/c/y.md"]),
            ("a/**/.h/*", &["a/.h/x.txt"]),
            ("a/**", &["a/b/c/y.md", "a/b/x.txt", "a/x.txt"]),
            ("none/**/x.txt", &[]),
        ] {
            assert_eq!(found(dir.path(), pattern), paths, "{pattern}");
        }
        assert!(matches!(
            glob("a**/x", &|| true),
            Err(GlobError::Pattern(_))
        ));
    }

    #[test]
    fn a_pattern_matches_names_anywhere_and_paths_from_the_top() {
        for (pattern, path, matches) in [
            ("*.jsonl", "a/b/x.jsonl", true),
            ("*.jsonl", "a/b/x.jsonl.gz", false),
            ("old", "a/old/x.jsonl", true),
            ("old/", "a/old/x.jsonl", true),
            ("old", "a/older/x.jsonl", false),
            ("a/*.txt", "a/x.txt", true),
            ("./a/*.txt", "a/x.txt", true),
            ("a/*.txt", "a/b/x.txt", false),
            ("a/**", "a/b/x.txt", true),
            ("a/b/", "a/b/c/x.txt", true),
            ("b/*", "a/b/x.txt", false),
            ("**/b/*", "a/b/x.txt", true),
            ("/d/a/*", "/d/a/x.txt", true),
        ] {
            let compiled = NamePattern::new(pattern).unwrap();
            assert_eq!(
                compiled.matches(Path::new(path)),
                matches,
                "{pattern} {path}"
            );
        }
        assert!(NamePattern::new("a**").is_err() && NamePattern::new("/").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_above_is_refused_and_one_to_nothing_left_out() {
        let dir = tree();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/dangling")).unwrap();
        assert_eq!(found(dir.path(), "**/*.md"), ["a/b/c/y.md"]);
        for link in ["a/b/up", "a/b/up-too"] {
            // With two of them the library would walk 2^40 folders.
            std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join(link)).unwrap();
        }
        let pattern = format!("{}/**/*.none", dir.path().display());
        let Err(GlobError::Io(error)) = glob(&pattern, &|| true) else {
            panic!("it should be refused");
        };
        assert!(error.path.ends_with("a/b/up"), "{error}");
        assert_eq!(
            error.source.to_string(),
            "the folder contains a link to itself"
        );
    }
}
