//! From named files to a corpus: hashed, and cut into parts.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::columns::Kind;
use super::compression::{ASSUMED_EXPANSION, Compression};
use super::files::{Corpus, CorpusFile};
use super::format::Format;
use super::inputs::{Findings, Found, Input, find};
use super::options::CorpusOptions;
use super::parts::{self, Cuts, LineCutter};
use super::scans::Scans;
use super::tables::{self, TableFormat};
use super::tokens::{self, TokenCutter};
use super::{Error, TokenFileProblem, bytes, sniff};
use crate::fs;

/// What is known of a file before it is hashed.
struct Sized {
    stamp: fs::Stamp,
    format: Format,
    /// Row groups, for Parquet; batches, for Arrow.
    row_groups: Option<Vec<parts::RowGroup>>,
    /// Whether its column holds messages.
    holds_messages: bool,
}

impl Sized {
    /// Size as it counts towards the default size of a part.
    fn weight(&self, compression: Compression) -> u64 {
        match &self.row_groups {
            Some(groups) => groups
                .iter()
                .fold(0, |sum, group| group.text_bytes.saturating_add(sum)),
            None if compression == Compression::None => self.stamp.size_bytes(),
            None => self.stamp.size_bytes().saturating_mul(ASSUMED_EXPANSION),
        }
    }
}

impl Corpus {
    /// Finds the files of the inputs (files, or folders with all below them), hashes them, and
    /// cuts the corpus into parts.
    ///
    /// A file's source is its path relative to the folder that was given, or its file name where
    /// it was given itself; with several inputs, a folder's own name goes in front. A path that
    /// does not exist and has `*`, `?` or `[` in it is a pattern; sources are then relative to the
    /// folder in front of the first of these. Files are in byte order of their sources. Hidden
    /// files are left out; [`Corpus::left_out`] says which others are.
    ///
    /// Every file is read once, unpacked, to hash it and to find where it can be cut. That a table
    /// has the column is checked here, other content when it is read.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::NoMatch`], [`Error::Unsupported`], [`Error::NameNotUtf8`],
    /// [`Error::SameFile`] and [`Error::Collision`] for the inputs' names, [`Error::Empty`] when nothing is left, those
    /// for damaged files, and [`Error::Io`]. Of several errors, the first in the order of the
    /// files is returned.
    pub fn discover(inputs: &[PathBuf], options: &CorpusOptions) -> Result<Self, Error> {
        let inputs: Vec<Input> = inputs.iter().cloned().map(Input::Path).collect();
        Self::discover_inputs(&inputs, options)
    }

    /// As [`Corpus::discover`], also from lists of files.
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::discover`].
    pub fn discover_inputs(inputs: &[Input], options: &CorpusOptions) -> Result<Self, Error> {
        Self::discover_known(inputs, options, &Scans::default())
    }

    /// As [`Corpus::discover_inputs`], but files that [`Corpus::scans`] of another process tells of are not read as long
    /// as they look as they did then. It has to have been made with the same options.
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::discover`].
    pub fn discover_known(
        inputs: &[Input],
        options: &CorpusOptions,
        known: &Scans,
    ) -> Result<Self, Error> {
        discover(inputs, options, known)
    }
}

fn discover(inputs: &[Input], options: &CorpusOptions, known: &Scans) -> Result<Corpus, Error> {
    let Findings {
        files: found,
        left_out,
    } = find(inputs, options)?;
    let first = found.first().map(|file| file.path.clone());
    let empty = |num_files| Error::Empty {
        num_files,
        first: first.clone(),
        num_skipped: left_out.unsupported.len(),
        num_excluded: left_out.num_excluded,
    };
    let num_files = found.len();
    let sized = in_order(&found, |file| look_at(file, options))?;
    let total = found.iter().zip(&sized).fold(0, |sum: u64, (file, sized)| {
        sum.saturating_add(sized.weight(file.compression))
    });
    if total == 0 {
        return Err(empty(num_files));
    }
    let part_bytes = options
        .part_bytes
        .unwrap_or_else(|| parts::default_part_bytes(total))
        .max(1);
    let files = found.into_iter().zip(sized).collect();
    let scanned = scan_all(files, part_bytes, options, known)?;

    let mut files = Vec::with_capacity(scanned.len());
    let mut cuts = Vec::with_capacity(scanned.len());
    for (file, file_cuts) in scanned {
        files.push(file);
        cuts.push(file_cuts);
    }
    let parts = parts::group(&cuts, part_bytes, options.limit_docs)
        .ok_or(Error::TooManyParts { part_bytes })?;
    if parts.is_empty() {
        return Err(empty(num_files));
    }
    Ok(Corpus {
        files,
        parts,
        cuts,
        left_out,
        options: options.clone(),
        part_bytes,
    })
}

/// Scans the files, all at a time, or one after the other until there are enough documents.
fn scan_all(
    files: Vec<(Found, Sized)>,
    part_bytes: u64,
    options: &CorpusOptions,
    known: &Scans,
) -> Result<Vec<(CorpusFile, Cuts)>, Error> {
    let scan = |(found, sized)| scan(found, sized, part_bytes, options, known);
    let Some(limit) = options.limit_docs else {
        return files
            .into_par_iter()
            .map(scan)
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
    };
    let mut scanned = Vec::new();
    let mut documents = 0_u64;
    for file in files {
        if documents >= limit {
            break;
        }
        let (file, cuts) = scan(file)?;
        documents = documents.saturating_add(cuts.num_documents());
        scanned.push((file, cuts));
    }
    Ok(scanned)
}

/// Runs `work` on all files in parallel; of several errors, that of the first file is returned, so
/// that a broken corpus gives the same message every time.
fn in_order<T: Send>(
    files: &[Found],
    work: impl Fn(&Found) -> Result<T, Error> + Send + Sync,
) -> Result<Vec<T>, Error> {
    let results: Vec<_> = files.par_iter().map(work).collect();
    results.into_iter().collect()
}

/// Sizes and footers: what has to be known before the part size can be chosen.
fn look_at(file: &Found, options: &CorpusOptions) -> Result<Sized, Error> {
    let stamp = fs::stamp(&file.path)?;
    let size_bytes = stamp.size_bytes();
    sniff::check(
        &file.path,
        size_bytes,
        file.format,
        file.compression,
        options.zstd_window_log,
    )?;
    let table = || bytes::open_table(&file.path, file.compression, options);
    let field = options.text_field.as_deref();
    let mut format = file.format;
    let mut holds_messages = false;
    let mut table_of = |(kind, groups): (Kind, Vec<parts::RowGroup>)| {
        holds_messages = kind == Kind::Messages;
        Some(groups)
    };
    let row_groups = match file.format {
        Format::Parquet => {
            let format = TableFormat::Parquet;
            table_of(tables::row_groups(&file.path, format, table()?, field)?)
        }
        Format::Arrow => {
            let format = TableFormat::Arrow;
            table_of(tables::row_groups(&file.path, format, table()?, field)?)
        }
        Format::Tokens(_) if size_bytes > 0 => {
            let layout = tokens::layout(&file.path, size_bytes, options.token_dtype)?;
            if layout.row_len.is_none() && options.separator.is_none() {
                return Err(Error::TokenFile {
                    path: file.path.clone(),
                    problem: TokenFileProblem::NoSeparator,
                });
            }
            format = Format::Tokens(layout);
            None
        }
        Format::Tokens(_) | Format::Text | Format::Jsonl => None,
    };
    Ok(Sized {
        stamp,
        format,
        row_groups,
        holds_messages,
    })
}

/// Looks through JSON for the key that every message of a chat has.
#[derive(Default)]
struct RoleFinder {
    found: bool,
    /// The last bytes of what was seen.
    tail: Vec<u8>,
}

impl RoleFinder {
    const KEY: &[u8] = b"\"role\"";

    fn observe(&mut self, block: &[u8]) {
        if self.found {
            return;
        }
        self.tail.extend(block.iter().take(Self::KEY.len()));
        let has = |bytes: &[u8]| memchr::memmem::find(bytes, Self::KEY).is_some();
        self.found = has(&self.tail) || has(block);
        // A short block was taken in as a whole.
        let seen = match block.len() > Self::KEY.len() {
            true => block,
            false => &self.tail,
        };
        let from = seen.len().saturating_sub(Self::KEY.len() - 1);
        self.tail = seen.get(from..).unwrap_or_default().to_vec();
    }
}

/// Hashes a file and finds, in the same pass, where it can be cut, unless both are known.
fn scan(
    found: Found,
    sized: Sized,
    part_bytes: u64,
    options: &CorpusOptions,
    known: &Scans,
) -> Result<(CorpusFile, Cuts), Error> {
    let Found {
        path,
        source,
        compression,
        ..
    } = found;
    let Sized {
        stamp,
        format,
        row_groups,
        mut holds_messages,
    } = sized;
    let size_bytes = stamp.size_bytes();
    let plain = Compression::None;
    let known = known.of(&source, &stamp);
    let (hashed, cuts) = match (known, format, row_groups) {
        (Some(known), ..) => {
            holds_messages = known.may_hold_messages;
            ((size_bytes, known.digest), known.cuts.clone())
        }
        (None, _, Some(groups)) => {
            let hashed = bytes::scan(&path, plain, options, |_| ())?;
            (hashed, Cuts::RowGroups(groups))
        }
        (None, Format::Jsonl, _) => {
            let mut cutter = LineCutter::new(part_bytes);
            let mut finder = RoleFinder::default();
            let hashed = bytes::scan(&path, compression, options, |block| {
                cutter.observe(block);
                finder.observe(block);
            })?;
            holds_messages = finder.found;
            (hashed, cutter.finish())
        }
        (None, Format::Tokens(layout), _) => {
            let mut cutter = TokenCutter::new(layout, options.separator, part_bytes);
            let hashed = bytes::scan(&path, plain, options, |block| cutter.observe(block))?;
            (hashed, cutter.finish())
        }
        (None, Format::Text | Format::Parquet | Format::Arrow, _) => {
            let hashed = bytes::scan(&path, plain, options, |_| ())?;
            (hashed, Cuts::Never { size_bytes })
        }
    };
    let (_, digest) = hashed;
    let file = CorpusFile {
        path,
        source: Arc::from(source),
        format,
        compression,
        size_bytes,
        digest,
        stamp,
        may_hold_messages: holds_messages,
    };
    // The digest is of what the stamp stands for, if nothing was written in between.
    file.expect_unchanged()?;
    Ok((file, cuts))
}
