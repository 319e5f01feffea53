//! Says which files of the inputs are not read, and which are read twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::Progress;
use crate::corpus::Corpus;
use crate::escape::Show as _;

/// Most names or endings that a line lists.
const MAX_LISTED: usize = 8;

/// Endings that only say how a file is packed; the one in front says what it is.
const PACKED: [&str; 8] = ["gz", "zst", "bz2", "xz", "lz4", "br", "zip", "lzma"];

/// Tells what was left out of a corpus, and what looks like a mistake.
pub(super) fn tell(corpus: &Corpus, progress: &dyn Progress) {
    let left_out = corpus.left_out();
    if !left_out.unsupported.is_empty() {
        progress.warn(&format!(
            "{} left out, since remit-score does not read files with their endings: {}; --text-ext takes more for text",
            files_are(left_out.unsupported.len()),
            by_ending(&left_out.unsupported)
        ));
    }
    if !left_out.beside.is_empty() {
        let names: Vec<String> = left_out
            .beside
            .iter()
            .map(|path| path.shown().to_string())
            .collect();
        progress.note(&format!(
            "{} left out, by name no data but about the data beside: {}; name the file itself or use --include to \
             score it",
            files_are(names.len()),
            listed(&names)
        ));
    }
    if left_out.num_excluded > 0 {
        progress.note(&format!(
            "{} left out by --include and --exclude",
            files_are(left_out.num_excluded)
        ));
    }
    if !left_out.idle_patterns.is_empty() {
        progress.warn(&format!(
            "no file matches {}",
            listed(&left_out.idle_patterns)
        ));
    }
    if let Some(first) = left_out.special.first() {
        let count = left_out.special.len();
        progress.note(&format!(
            "{count} FIFOs, sockets or devices are left out, the first being {}",
            first.shown()
        ));
    }
    let mut empty = corpus.files().iter().filter(|file| file.size_bytes == 0);
    if let Some(first) = empty.next() {
        progress.note(&format!(
            "{} empty, the first being {}",
            files_are(1 + empty.count()),
            first.path.shown()
        ));
    }
    let copies = corpus.copies();
    if let Some((first, copy)) = copies.first() {
        progress.warn(&format!(
            "{} copies of others, byte for byte, and their documents are scored again, the first being {}, a copy \
             of {}; --exclude leaves files out",
            files_are(copies.len()),
            copy.path.shown(),
            first.path.shown()
        ));
    }
}

fn files_are(count: usize) -> String {
    match count {
        1 => "1 file is".to_owned(),
        count => format!("{count} files are"),
    }
}

/// Counts files by ending, the most frequent first, each with an example.
fn by_ending(paths: &[PathBuf]) -> String {
    let mut endings: BTreeMap<String, (usize, &Path)> = BTreeMap::new();
    for path in paths {
        let (count, _) = endings.entry(ending(path)).or_insert((0, path));
        *count += 1;
    }
    let mut endings: Vec<(String, (usize, &Path))> = endings.into_iter().collect();
    endings.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    let endings: Vec<String> = endings
        .into_iter()
        .map(|(ending, (count, first))| match count {
            1 => format!("1 {ending} ({})", first.shown()),
            count => format!("{count} {ending} (the first is {})", first.shown()),
        })
        .collect();
    listed(&endings)
}

/// Returns what a name ends with, from its last dot on, or the one before where a file is packed.
fn ending(path: &Path) -> String {
    let Some(extension) = path.extension() else {
        return "without an ending".to_owned();
    };
    let extension = extension.to_string_lossy().to_lowercase();
    let inner = path.file_stem().map(Path::new).and_then(Path::extension);
    match inner {
        Some(inner) if PACKED.contains(&extension.as_str()) => {
            format!("*.{}.{extension}", inner.to_string_lossy().to_lowercase())
        }
        _ => format!("*.{extension}"),
    }
}

fn listed(names: &[String]) -> String {
    let first = names.get(..MAX_LISTED).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
