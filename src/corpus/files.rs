//! The files of a corpus, known by content.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::bytes;
use super::compression::Compression;
use super::format::Format;
use super::inputs::LeftOut;
use super::options::CorpusOptions;
use super::parts::{Cuts, Part};
use super::scans::{Scan, Scans};
use crate::fs::{self, Digest, Stamp};

/// One file of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its documents carry as their source; unique in the corpus.
    pub source: Arc<str>,
    /// How it holds documents.
    pub format: Format,
    /// How it is compressed.
    pub compression: Compression,
    /// Size as stored, bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the file as stored.
    pub digest: Digest,
    /// What the file looked like when it was hashed.
    pub stamp: Stamp,
    /// Whether a record of it may be messages of a chat.
    pub may_hold_messages: bool,
}

impl CorpusFile {
    /// Fails when the file has been written to since it was hashed.
    pub(super) fn expect_unchanged(&self) -> Result<(), Error> {
        match self.stamp.difference(&fs::stamp(&self.path)?) {
            None => Ok(()),
            Some(how) => Err(Error::Changed {
                path: self.path.clone(),
                how,
            }),
        }
    }
}

/// Files, known by content, and their parts.
#[derive(Debug, Clone)]
pub struct Corpus {
    pub(super) files: Vec<CorpusFile>,
    pub(super) parts: Vec<Part>,
    /// Where each file can be cut.
    pub(super) cuts: Vec<Cuts>,
    pub(super) left_out: LeftOut,
    pub(super) options: CorpusOptions,
    pub(super) part_bytes: u64,
}

impl Corpus {
    /// The files, in byte order of their sources.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// The parts; together they are the whole corpus, in order. There is at least one.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns what reading the files found, for [`Corpus::discover_known`] with the same options.
    pub fn scans(&self) -> Scans {
        let files = self.files.iter().zip(&self.cuts);
        Scans(
            files
                .map(|(file, cuts)| Scan {
                    source: file.source.to_string(),
                    stamp: file.stamp.clone(),
                    digest: file.digest,
                    may_hold_messages: file.may_hold_messages,
                    cuts: cuts.clone(),
                })
                .collect(),
        )
    }

    /// Files of the inputs that are not read.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// Files that have the very content of another, which comes first; empty ones aside.
    pub fn copies(&self) -> Vec<(&CorpusFile, &CorpusFile)> {
        let mut first: BTreeMap<String, &CorpusFile> = BTreeMap::new();
        let mut copies = Vec::new();
        for file in self.files.iter().filter(|file| file.size_bytes > 0) {
            match first.entry(file.digest.to_string()) {
                Entry::Vacant(entry) => {
                    entry.insert(file);
                }
                Entry::Occupied(entry) => copies.push((*entry.get(), file)),
            }
        }
        copies
    }

    /// Returns whether a record may be messages of a chat; of text alone, `false`.
    pub fn may_hold_messages(&self) -> bool {
        self.files.iter().any(|file| file.may_hold_messages)
    }

    /// Target size of a part that was used, bytes.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// Size of all files as stored, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// What the inputs are taken for.
    pub fn options(&self) -> &CorpusOptions {
        &self.options
    }

    pub(super) fn file(&self, index: usize) -> Option<&CorpusFile> {
        self.files.get(index)
    }

    pub(super) fn read_error(&self, file: &CorpusFile, error: io::Error) -> Error {
        let window_log = self.options.zstd_window_log;
        bytes::read_error(&file.path, file.compression, window_log, error)
    }
}
