//! What a file is by its first bytes, where that is not what its name says.
//!
//! Only what can't be a file of its name's kind is refused here, so that nobody has to guess from a parser's words, or
//! trains on the three lines that Git LFS leaves in the place of data.

use std::io::{Cursor, Read};
use std::path::Path;

use super::bytes::Unpacker;
use super::compression::Compression;
use super::format::Format;
use super::{Disguise, Error};
use crate::fs;

/// Bytes that are looked at.
const HEAD_BYTES: u64 = 1024;

/// Packed bytes that are unpacked to look at what is in them.
const PACKED_HEAD_BYTES: u64 = 64 << 10;

const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Containers by what they begin with.
const MAGIC: &[(&[u8], &str)] = &[
    (b"\x1f\x8b\x08", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x04\x22\x4d\x18", "lz4 data"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file of version 1"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x93NUMPY", "a .npy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
];

/// Refuses a file whose content can't be what its name says.
pub(super) fn check(
    path: &Path,
    size_bytes: u64,
    format: Format,
    compression: Compression,
    window_log: u32,
) -> Result<(), Error> {
    let file = fs::open(path)?;
    let head = |len: u64| {
        file.read_range(0..len.min(size_bytes))
            .map_err(|source| fs::Error {
                operation: fs::Operation::Read,
                path: path.to_owned(),
                source,
            })
    };
    let raw = head(HEAD_BYTES)?;
    let refuse = |packed: Option<Compression>, disguise: Disguise| {
        Err(Error::Disguised {
            path: path.to_owned(),
            packed,
            disguise,
        })
    };
    if is_pointer(&raw) {
        return refuse(None, Disguise::Pointer);
    }
    if compression == Compression::None {
        return match disguise(&raw, format, path) {
            Some(disguise) => refuse(None, disguise),
            None => Ok(()),
        };
    }
    if raw.is_empty() {
        return Ok(());
    }
    let expected = match compression {
        Compression::Gzip => raw.starts_with(b"\x1f\x8b"),
        // A frame, or one that holds what is to be skipped.
        _ => raw.starts_with(b"\x28\xb5\x2f\xfd") || raw.get(1..4) == Some(b"\x2a\x4d\x18"),
    };
    if !expected {
        let found = match disguise(&raw, format, path) {
            Some(Disguise::Other(found)) => found,
            _ => "no compressed data",
        };
        return refuse(None, Disguise::Other(found));
    }
    let unpacked = Unpacker::new(
        Cursor::new(head(PACKED_HEAD_BYTES)?),
        compression,
        window_log,
    );
    let mut start = Vec::new();
    if let Ok(unpacked) = unpacked {
        // What is damaged, or goes on after these bytes, is found when all of it is read.
        let _ = unpacked.take(HEAD_BYTES).read_to_end(&mut start);
    }
    match disguise(&start, format, path) {
        _ if is_pointer(&start) => refuse(Some(compression), Disguise::Pointer),
        Some(disguise) => refuse(Some(compression), disguise),
        None => Ok(()),
    }
}

/// Returns whether these are the lines that a version control system keeps in the place of a large file.
fn is_pointer(head: &[u8]) -> bool {
    head.starts_with(LFS_POINTER) || head.starts_with(b"/annex/objects/")
}

/// Returns what the content of a file is, where it can't be of this format.
fn disguise(head: &[u8], format: Format, path: &Path) -> Option<Disguise> {
    match format {
        // Ids may be any bytes: a checkpoint is told by more of them.
        Format::Tokens(_) => (head.starts_with(b"PK\x03\x04")
            && memchr::memmem::find(head, b"/data.pkl").is_some())
        .then_some(Disguise::Other("a checkpoint of PyTorch")),
        Format::Parquet => container(head)
            .filter(|_| !head.starts_with(b"PAR1"))
            .map(Disguise::Other),
        Format::Arrow => container(head)
            .filter(|_| !head.starts_with(b"ARROW1"))
            .map(Disguise::Other),
        Format::Text => text(head),
        Format::Jsonl => text(head).or_else(|| json(head, path)),
    }
}

fn container(head: &[u8]) -> Option<&'static str> {
    if head.get(257..262) == Some(b"ustar") {
        return Some("a tar archive");
    }
    let magic = |(magic, _): &&(&[u8], _)| head.starts_with(magic);
    MAGIC.iter().find(magic).map(|(_, name)| *name)
}

/// Returns what is no UTF-8 text, and what would pass for it.
fn text(head: &[u8]) -> Option<Disguise> {
    if head.starts_with(b"\xff\xfe\x00\x00") || head.starts_with(b"\x00\x00\xfe\xff") {
        return Some(Disguise::Encoding("UTF-32"));
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Some(Disguise::Encoding("UTF-16"));
    }
    // Without a mark: of characters below U+0100, and most text begins with some, every second byte is zero.
    let zeros = |from: usize| {
        let bytes = head.get(..64.min(head.len() / 2 * 2)).unwrap_or_default();
        bytes.len() >= 4 && bytes.iter().skip(from).step_by(2).all(|&byte| byte == 0)
    };
    if zeros(0) != zeros(1) {
        return Some(Disguise::Encoding("UTF-16"));
    }
    container(head).map(Disguise::Other)
}

/// Returns what is JSON, but no object a line.
fn json(head: &[u8], path: &Path) -> Option<Disguise> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let head = head.trim_ascii_start();
    let name = path.to_string_lossy().to_lowercase();
    // A file of JSON lines may begin with a bad line; this one calls itself JSON.
    let is_json = [".json", ".json.gz", ".json.zst"]
        .iter()
        .any(|ending| name.ends_with(ending));
    match head.split_first()? {
        (b'[', rest) => {
            let is_broken = rest.trim_ascii_start().is_empty()
                || rest.starts_with(b"\n")
                || rest.starts_with(b"\r\n");
            (is_json || is_broken || rest.trim_ascii_start().starts_with(b"{"))
                .then_some(Disguise::JsonArray)
        }
        (b'{', rest) => {
            let line = rest.split(|&byte| byte == b'\n').next()?;
            (is_json && line.len() < rest.len() && line.trim_ascii().is_empty())
                .then_some(Disguise::JsonOverLines)
        }
        (b'<', _) => Some(Disguise::Other("HTML or XML")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::tokens::TokenLayout;

    #[test]
    fn any_bytes_may_be_token_ids() {
        let tokens = Format::Tokens(TokenLayout::UNREAD);
        for (magic, name) in MAGIC {
            let path = Path::new("x");
            assert_eq!(disguise(magic, tokens, path), None, "{name}");
            assert_eq!(
                disguise(magic, Format::Text, path),
                Some(Disguise::Other(name))
            );
        }
    }

    #[test]
    fn text_that_begins_oddly_is_text() {
        let path = Path::new("x.txt");
        for text in [
            "", "[", "<", "\0", "\0\0\0\0", "P", "a\0", "Bzzz", "é", "{\n",
        ] {
            assert_eq!(
                disguise(text.as_bytes(), Format::Text, path),
                None,
                "{text:?}"
            );
        }
        for (text, expected) in [
            ("{\"text\": 1}", None),
            ("{\n\"text\": 1}", Some(Disguise::JsonOverLines)),
            (" [{\"text\": 1}]", Some(Disguise::JsonArray)),
            ("[1]\n", Some(Disguise::JsonArray)),
        ] {
            let found = disguise(text.as_bytes(), Format::Jsonl, Path::new("x.json"));
            assert_eq!(found, expected, "{text}");
        }
        // Lines that can't be read are records that can be left out.
        for text in ["[1]\n", "{\n"] {
            let path = Path::new("x.jsonl");
            assert_eq!(disguise(text.as_bytes(), Format::Jsonl, path), None);
        }
    }
}
