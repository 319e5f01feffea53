//! From inputs as they were given to files with their names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::Error;
use super::aside::{self, DataFolders};
use super::compression::Compression;
use super::format::{Format, classify};
use super::options::CorpusOptions;
use crate::fs::{self, NamePattern};

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

/// What the inputs come to.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The supported files, in the order of their sources.
    pub(super) files: Vec<Found>,
    /// What was left out.
    pub(super) left_out: LeftOut,
}

/// Files that were found and are not read.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    /// Those of no supported type.
    pub unsupported: Vec<PathBuf>,
    /// Those that lie beside data and are none, as READMEs.
    pub beside: Vec<PathBuf>,
    /// FIFOs, sockets and devices.
    pub special: Vec<PathBuf>,
    /// Number of those that the patterns leave out.
    pub num_excluded: usize,
    /// Patterns that match no file.
    pub idle_patterns: Vec<String>,
}

/// Finds the supported files of the inputs, as far as the patterns let them through.
pub(super) fn find(inputs: &[Input], options: &CorpusOptions) -> Result<Findings, Error> {
    let (include, exclude) = (&options.include, &options.exclude);
    let mut candidates = Candidates {
        text_ext: &options.text_ext,
        keep_on: &|| options.check_stop().is_ok(),
        found: Vec::new(),
        special: Vec::new(),
    };
    for input in inputs {
        match input {
            Input::Path(path) => candidates.add_path(path, inputs.len() > 1)?,
            Input::List(paths) => candidates.add_list(paths)?,
        }
        options.check_stop()?;
    }
    let mut left_out = LeftOut {
        special: candidates.special,
        ..LeftOut::default()
    };
    let mut selection = Selection::new(include, exclude);
    let mut candidates = candidates.found;
    candidates.retain(|candidate| {
        let selected = selection.selects(candidate);
        left_out.num_excluded += usize::from(!selected);
        selected
    });
    left_out.idle_patterns = selection.idle();

    let mut folders = DataFolders::default();
    for candidate in &candidates {
        if let Some((format, _)) = candidate.kind {
            folders.add(&candidate.path, format);
        }
    }
    let mut files = Files::default();
    for candidate in candidates {
        // What is asked for by name or by a pattern is read.
        let chosen = candidate.named || !include.is_empty();
        let path = &candidate.path;
        let format = candidate.kind.map(|(format, _)| format);
        match candidate.kind {
            _ if !chosen && aside::may_be(path, format) && folders.hold(path) => {
                left_out.beside.push(candidate.path);
            }
            Some((format, compression)) => files.add(candidate.found(format, compression)?)?,
            None if candidate.named => {
                return Err(Error::Unsupported {
                    path: candidate.path,
                });
            }
            None => left_out.unsupported.push(candidate.path),
        }
    }
    Ok(Findings {
        // Byte order of strings is the order of a BTreeMap's keys.
        files: files.by_source.into_values().collect(),
        left_out,
    })
}

/// A file as an input leads to it.
struct Candidate {
    path: PathBuf,
    /// Relative to the folder that was given; `None` when that isn't UTF-8.
    source: Option<String>,
    /// What its name says about its content; `None` when it is not supported.
    kind: Option<(Format, Compression)>,
    /// Whether it was given itself, rather than a folder or a pattern.
    named: bool,
}

impl Candidate {
    fn found(self, format: Format, compression: Compression) -> Result<Found, Error> {
        let Self { path, source, .. } = self;
        match source {
            Some(source) => Ok(Found {
                path,
                source,
                format,
                compression,
            }),
            None => Err(Error::NameNotUtf8 { path }),
        }
    }
}

/// Patterns that files are chosen by, and which of them have matched one.
struct Selection<'a> {
    include: Vec<(&'a NamePattern, bool)>,
    exclude: Vec<(&'a NamePattern, bool)>,
}

impl<'a> Selection<'a> {
    fn new(include: &'a [NamePattern], exclude: &'a [NamePattern]) -> Self {
        let fresh = |patterns: &'a [NamePattern]| patterns.iter().map(|p| (p, false)).collect();
        Self {
            include: fresh(include),
            exclude: fresh(exclude),
        }
    }

    fn selects(&mut self, candidate: &Candidate) -> bool {
        let matches = |patterns: &mut Vec<(&NamePattern, bool)>| {
            let mut any = false;
            for (pattern, has_matched) in patterns {
                let source = candidate.source.as_deref().map(Path::new);
                let paths = [Some(candidate.path.as_path()), source];
                if paths
                    .into_iter()
                    .flatten()
                    .any(|path| pattern.matches(path))
                {
                    any = true;
                    *has_matched = true;
                }
            }
            any
        };
        let included = self.include.is_empty() || matches(&mut self.include);
        let excluded = matches(&mut self.exclude);
        included && !excluded
    }

    fn idle(&self) -> Vec<String> {
        let idle = |flag: &str, patterns: &[(&NamePattern, bool)]| -> Vec<String> {
            let idle = patterns.iter().filter(|(_, has_matched)| !has_matched);
            idle.map(|(pattern, _)| format!("{flag} {}", pattern.as_str()))
                .collect()
        };
        let mut all = idle("--include", &self.include);
        all.extend(idle("--exclude", &self.exclude));
        all
    }
}

struct Candidates<'a> {
    /// Endings of files that are taken for text.
    text_ext: &'a [String],
    keep_on: fs::KeepOn<'a>,
    found: Vec<Candidate>,
    special: Vec<PathBuf>,
}

impl Candidates<'_> {
    fn add(&mut self, path: PathBuf, source: Option<String>, named: bool) {
        self.found.push(Candidate {
            kind: classify(&path, self.text_ext),
            path,
            source,
            named,
        });
    }

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
            fs::expect_regular(path)?;
            let name = path.file_name().map(Path::new).unwrap_or(path);
            self.add(path.to_owned(), relative(Path::new(""), name, None), true);
            return Ok(());
        }
        let prefix = has_siblings.then(|| own_name(path)).transpose()?;
        let walked = fs::walk(path, self.keep_on)?;
        self.special.extend(walked.special);
        for file in walked.files {
            let source = relative(path, &file, prefix.as_deref());
            self.add(file, source, false);
        }
        Ok(())
    }

    /// Adds the files that a pattern matches, in folders that it matches too.
    fn add_pattern(&mut self, pattern: &str) -> Result<(), Error> {
        let paths = fs::glob(pattern, self.keep_on).map_err(|error| match error {
            fs::GlobError::Pattern(reason) => Error::Pattern {
                pattern: pattern.to_owned(),
                reason,
            },
            fs::GlobError::Io(error) => Error::Io(error),
        })?;
        let root = fixed_folder(pattern);
        let before = self.found.len();
        for path in paths {
            if fs::is_dir(&path)? {
                continue;
            }
            match fs::expect_regular(&path) {
                Err(error) if error.is_unfit() => self.special.push(path),
                outcome => {
                    outcome?;
                    let source = relative(root, &path, None);
                    self.add(path, source, false);
                }
            }
        }
        if self.found.len() > before {
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
            fs::expect_regular(path)?;
            self.add(path.clone(), relative(&shared, path, None), true);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Files {
    by_source: BTreeMap<String, Found>,
    by_identity: BTreeMap<String, PathBuf>,
}

impl Files {
    fn add(&mut self, found: Found) -> Result<(), Error> {
        let identity = fs::identity(&found.path)?;
        if let Some(first) = self.by_identity.insert(identity, found.path.clone()) {
            return Err(Error::SameFile {
                first,
                second: found.path,
            });
        }
        if let Some(other) = self.by_source.get(&found.source) {
            return Err(Error::Collision {
                name: found.source,
                first: other.path.clone(),
                second: found.path,
            });
        }
        self.by_source.insert(found.source.clone(), found);
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
