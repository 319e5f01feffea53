//! From inputs as they were given to files with their names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::Error;
use super::compression::Compression;
use super::format::{Format, classify};
use crate::fs;

/// One input of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A file, a folder, or a pattern.
    Path(PathBuf),
    /// Files of a list. Their sources are relative to the folder that all of them share.
    List(Vec<PathBuf>),
}

/// A supported file, before anything of it has been read.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) source: String,
    pub(super) format: Format,
    pub(super) compression: Compression,
}

/// The supported files of the inputs in the order of their sources, and those that are skipped.
/// Files that end in one of `text_ext` are text.
pub(super) fn find(
    inputs: &[Input],
    text_ext: &[String],
) -> Result<(Vec<Found>, Vec<PathBuf>), Error> {
    let mut files = Files {
        text_ext: text_ext.to_vec(),
        ..Files::default()
    };
    for input in inputs {
        match input {
            Input::Path(path) => files.add_path(path, inputs.len() > 1)?,
            Input::List(paths) => files.add_list(paths)?,
        }
    }
    // Byte order of strings is the order of a BTreeMap's keys.
    Ok((files.by_source.into_values().collect(), files.skipped))
}

#[derive(Default)]
struct Files {
    text_ext: Vec<String>,
    by_source: BTreeMap<String, Found>,
    skipped: Vec<PathBuf>,
}

impl Files {
    fn add_path(&mut self, path: &Path, has_siblings: bool) -> Result<(), Error> {
        if !fs::exists(path)? {
            return match pattern(path) {
                Some(pattern) => self.add_pattern(pattern),
                None => Err(Error::Missing {
                    path: path.to_owned(),
                }),
            };
        }
        if !fs::is_dir(path)? {
            let name = path.file_name().map(Path::new).unwrap_or(path);
            return self.add_named(path, relative(Path::new(""), name, None));
        }
        let prefix = has_siblings.then(|| own_name(path)).transpose()?;
        for file in fs::walk(path)? {
            match classify(&file, &self.text_ext) {
                Some(_) => {
                    let source = relative(path, &file, prefix.as_deref());
                    self.add_named(&file, source)?;
                }
                None => self.skipped.push(file),
            }
        }
        Ok(())
    }

    /// Adds the files that a pattern matches, in folders that it matches too.
    fn add_pattern(&mut self, pattern: &str) -> Result<(), Error> {
        let paths = fs::glob(pattern).map_err(|error| match error {
            fs::GlobError::Pattern(reason) => Error::Pattern {
                pattern: pattern.to_owned(),
                reason,
            },
            fs::GlobError::Io(error) => Error::Io(error),
        })?;
        let root = fixed_folder(pattern);
        let mut any = false;
        for path in paths {
            if fs::is_dir(&path)? {
                continue;
            }
            any = true;
            match classify(&path, &self.text_ext) {
                Some(_) => self.add_named(&path, relative(root, &path, None))?,
                None => self.skipped.push(path),
            }
        }
        if any {
            return Ok(());
        }
        Err(Error::NoMatch {
            pattern: pattern.to_owned(),
        })
    }

    fn add_list(&mut self, paths: &[PathBuf]) -> Result<(), Error> {
        let shared = shared_folder(paths);
        for path in paths {
            if !fs::exists(path)? {
                return Err(Error::Missing { path: path.clone() });
            }
            self.add_named(path, relative(&shared, path, None))?;
        }
        Ok(())
    }

    fn add_named(&mut self, path: &Path, source: Option<String>) -> Result<(), Error> {
        let Some((format, compression)) = classify(path, &self.text_ext) else {
            return Err(Error::Unsupported {
                path: path.to_owned(),
            });
        };
        let Some(source) = source else {
            return Err(Error::NameNotUtf8 {
                path: path.to_owned(),
            });
        };
        if let Some(other) = self.by_source.get(&source) {
            return Err(Error::Collision {
                name: source,
                first: other.path.clone(),
                second: path.to_owned(),
            });
        }
        let found = Found {
            path: path.to_owned(),
            source: source.clone(),
            format,
            compression,
        };
        self.by_source.insert(source, found);
        Ok(())
    }
}

/// The path as a pattern, if it has a character of one.
fn pattern(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.contains(['*', '?', '[']))
}

/// The folders of a pattern in front of the first special character.
fn fixed_folder(pattern: &str) -> &Path {
    let special = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    let fixed = pattern.get(..special).unwrap_or_default();
    Path::new(fixed.rsplit_once('/').map_or("", |(folder, _)| folder))
}

/// The longest folder that all files are in.
fn shared_folder(paths: &[PathBuf]) -> PathBuf {
    let mut folders = paths
        .iter()
        .map(|path| path.parent().unwrap_or(Path::new("")));
    let Some(first) = folders.next() else {
        return PathBuf::new();
    };
    folders.fold(first.to_owned(), |shared, folder| {
        shared
            .components()
            .zip(folder.components())
            .take_while(|(a, b)| a == b)
            .map(|(component, _)| component)
            .collect()
    })
}

/// A folder's name, also for `.` and `..`; empty for the root.
fn own_name(dir: &Path) -> Result<PathBuf, Error> {
    Ok(match dir.file_name() {
        Some(name) => PathBuf::from(name),
        None => fs::canonicalize(dir)?
            .file_name()
            .map(PathBuf::from)
            .unwrap_or_default(),
    })
}

/// A path relative to a folder, with `/` between its components; `None` when it isn't UTF-8.
fn relative(dir: &Path, path: &Path, prefix: Option<&Path>) -> Option<String> {
    let below = path.strip_prefix(dir).unwrap_or(path);
    let mut components = Vec::new();
    for component in prefix
        .into_iter()
        .flat_map(Path::components)
        .chain(below.components())
    {
        if let Component::Normal(name) = component {
            components.push(name.to_str()?);
        }
    }
    Some(components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_folder_of_a_pattern_ends_before_its_first_special_character() {
        for (pattern, folder) in [
            ("data/web-*/x.jsonl", "data"),
            ("*.txt", ""),
            ("/a/b/[ab].txt", "/a/b"),
            ("a/**/b.md", "a"),
        ] {
            assert_eq!(fixed_folder(pattern), Path::new(folder));
        }
    }

    #[test]
    fn listed_files_share_the_longest_folder() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        for (list, folder) in [
            (&["/d/a/x", "/d/ab/y", "/d/a/c/z"][..], "/d"),
            (&["a/x"], "a"),
            (&["x", "a/y"], ""),
        ] {
            assert_eq!(shared_folder(&paths(list)), Path::new(folder));
        }
    }
}
