//! From inputs to named, hashed files and their parts.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::parts::{self, Cuts, LineCutter};
use super::{
    Compression, Corpus, CorpusFile, CorpusOptions, Error, Format, MAX_RECORD_BYTES, classify,
    parquet,
};
use crate::fs;

/// A supported file, before anything of it has been read.
struct Found {
    path: PathBuf,
    source: String,
    format: Format,
    compression: Compression,
}

/// What is known of a file before it is hashed.
struct Sized {
    size_bytes: u64,
    /// Row groups, for Parquet.
    row_groups: Option<Vec<parts::RowGroup>>,
}

impl Sized {
    /// Size as it counts towards a part.
    fn weight(&self) -> u64 {
        match &self.row_groups {
            Some(groups) => groups
                .iter()
                .fold(0, |sum, group| group.text_bytes.saturating_add(sum)),
            None => self.size_bytes,
        }
    }
}

pub(super) fn discover(inputs: &[PathBuf], options: &CorpusOptions) -> Result<Corpus, Error> {
    let (found, skipped) = find(inputs)?;
    let sized = in_order(&found, |_, file| look_at(file, options))?;
    let total = sized
        .iter()
        .fold(0, |sum: u64, file| sum.saturating_add(file.weight()));
    if total == 0 {
        return Err(Error::Empty {
            num_files: found.len(),
            num_skipped: skipped.len(),
        });
    }
    let part_bytes = options
        .part_bytes
        .unwrap_or_else(|| parts::default_part_bytes(total))
        .max(1);
    let scanned = in_order(&found, |index, file| {
        let size_bytes = sized.get(index).map_or(0, |sized| sized.size_bytes);
        scan(file, size_bytes, part_bytes)
    })?;

    let mut files = Vec::with_capacity(found.len());
    let mut cuts = Vec::with_capacity(found.len());
    for ((found, sized), (digest, lines)) in found.into_iter().zip(sized).zip(scanned) {
        cuts.push(match (sized.row_groups, lines) {
            (Some(groups), _) => Cuts::RowGroups(groups),
            (None, Some(lines)) => lines,
            (None, None) => Cuts::Never {
                size_bytes: sized.size_bytes,
            },
        });
        files.push(CorpusFile {
            path: found.path,
            source: Arc::from(found.source),
            format: found.format,
            compression: found.compression,
            size_bytes: sized.size_bytes,
            digest,
        });
    }
    let parts = parts::group(&cuts, part_bytes).ok_or(Error::TooManyParts { part_bytes })?;
    Ok(Corpus {
        files,
        parts,
        skipped,
        text_field: options.text_field.clone(),
        part_bytes,
    })
}

/// Runs `work` on all files in parallel; of several errors, that of the first file is returned, so
/// that a broken corpus gives the same message every time.
fn in_order<T: Send>(
    files: &[Found],
    work: impl Fn(usize, &Found) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let results: Vec<_> = files
        .par_iter()
        .enumerate()
        .map(|(index, file)| work(index, file))
        .collect();
    results.into_iter().collect()
}

/// The supported files of the inputs in the order of their sources, and those that are skipped.
fn find(inputs: &[PathBuf]) -> Result<(Vec<Found>, Vec<PathBuf>), Error> {
    let mut by_source: BTreeMap<String, Found> = BTreeMap::new();
    let mut skipped = Vec::new();
    let mut add = |path: PathBuf, source: Option<String>, kind: (Format, Compression)| {
        let Some(source) = source else {
            return Err(Error::NameNotUtf8 { path });
        };
        if let Some(other) = by_source.get(&source) {
            return Err(Error::Collision {
                name: source,
                first: other.path.clone(),
                second: path,
            });
        }
        let (format, compression) = kind;
        let found = Found {
            path,
            source: source.clone(),
            format,
            compression,
        };
        by_source.insert(source, found);
        Ok(())
    };
    for input in inputs {
        if !fs::exists(input)? {
            return Err(Error::Missing {
                path: input.clone(),
            });
        }
        if !fs::is_dir(input) {
            let Some(kind) = classify(input) else {
                return Err(Error::Unsupported {
                    path: input.clone(),
                });
            };
            let source = input.file_name().and_then(|name| name.to_str());
            add(input.clone(), source.map(str::to_owned), kind)?;
            continue;
        }
        let prefix = match inputs {
            [_] => None,
            _ => Some(own_name(input)?),
        };
        for path in fs::walk(input)? {
            match classify(&path) {
                Some(kind) => {
                    let source = relative(input, &path, prefix.as_deref());
                    add(path, source, kind)?;
                }
                None => skipped.push(path),
            }
        }
    }
    // Byte order of strings is the order of a BTreeMap's keys.
    Ok((by_source.into_values().collect(), skipped))
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

/// Sizes and footers: what has to be known before the part size can be chosen.
fn look_at(file: &Found, options: &CorpusOptions) -> Result<Sized, Error> {
    let size_bytes = fs::size_bytes(&file.path)?;
    let plain_text = file.format == Format::Text && file.compression == Compression::None;
    if plain_text && size_bytes > MAX_RECORD_BYTES {
        return Err(Error::TooLong {
            path: file.path.clone(),
            place: "the document".to_owned(),
        });
    }
    let row_groups = match file.format {
        Format::Parquet => Some(parquet::row_groups(&file.path, &options.text_field)?),
        Format::Text | Format::Jsonl => None,
    };
    Ok(Sized {
        size_bytes,
        row_groups,
    })
}

/// Hashes a file and finds, in the same pass, where it can be cut.
fn scan(file: &Found, expected: u64, part_bytes: u64) -> Result<(fs::Digest, Option<Cuts>), Error> {
    let plain_lines = file.format == Format::Jsonl && file.compression == Compression::None;
    let mut cutter = plain_lines.then(|| LineCutter::new(part_bytes));
    let (actual, digest) = fs::hash_file(&file.path, |block| {
        if let Some(cutter) = &mut cutter {
            cutter.observe(block);
        }
    })?;
    if actual != expected {
        return Err(Error::Changed {
            path: file.path.clone(),
            expected,
            actual,
        });
    }
    Ok((digest, cutter.map(LineCutter::finish)))
}
