//! Documents from files of token ids: .npy arrays, and headerless ones as OLMo and nanoGPT keep them.
//!
//! A flat file holds documents one after another, each ended by a separator, which belongs to it. A
//! two-dimensional .npy holds one document a row.

use std::io::{BufRead, Read};
use std::path::Path;

use super::parts::{Cut, Cuts};
use super::{Error, RecordProblem, TokenFileProblem};
use crate::fs;
use crate::types::{Content, TokenDtype, TokenId};

/// What a .npy file begins with.
const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header of a .npy file that is read, bytes.
const MAX_NPY_HEADER_BYTES: u32 = 1 << 16;

/// How an id is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all there is")]
pub enum IdType {
    U8,
    U16,
    U32,
    U64,
    I32,
    I64,
}

impl IdType {
    fn width(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::U64 | Self::I64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> i128 {
        let mut wide = [0; 8];
        wide.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => i128::from(value),
            Self::I32 => i128::from(u32::try_from(value).unwrap_or(0).cast_signed()),
            Self::I64 => i128::from(value.cast_signed()),
        }
    }
}

/// Where the ids of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLayout {
    /// How an id is stored.
    pub id_type: IdType,
    /// Offset of the first id, bytes.
    pub start: u64,
    /// Ids of a row, where the file is a table of them.
    pub row_len: Option<u64>,
}

impl TokenLayout {
    /// Of a file that has not been opened yet.
    pub(super) const UNREAD: Self = Self {
        id_type: IdType::U16,
        start: 0,
        row_len: None,
    };
}

/// Reads what the file says of itself.
pub(super) fn layout(
    path: &Path,
    size_bytes: u64,
    dtype: Option<TokenDtype>,
) -> Result<TokenLayout, Error> {
    let problem = |problem| Error::TokenFile {
        path: path.to_owned(),
        problem,
    };
    let mut head = Vec::new();
    fs::open(path)?
        .take(u64::from(MAX_NPY_HEADER_BYTES) + 12)
        .read_to_end(&mut head)
        .map_err(|source| fs::Error {
            operation: fs::Operation::Read,
            path: path.to_owned(),
            source,
        })?;
    let layout = if head.starts_with(NPY_MAGIC) {
        npy_layout(&head, size_bytes).map_err(problem)?
    } else {
        let id_type = match dtype {
            Some(TokenDtype::Uint16) => IdType::U16,
            Some(TokenDtype::Uint32) => IdType::U32,
            None => return Err(problem(TokenFileProblem::NoDtype)),
        };
        TokenLayout {
            id_type,
            start: 0,
            row_len: None,
        }
    };
    let ids_bytes = size_bytes.saturating_sub(layout.start);
    let width = layout.id_type.width();
    if !ids_bytes.is_multiple_of(width) {
        return Err(problem(TokenFileProblem::Size {
            size_bytes: ids_bytes,
            width,
        }));
    }
    Ok(layout)
}

/// The header of a .npy file: magic, version, length, and a Python dictionary.
fn npy_layout(head: &[u8], size_bytes: u64) -> Result<TokenLayout, TokenFileProblem> {
    let other = |found: String, expected| TokenFileProblem::Header { found, expected };
    let damaged = || other("a damaged header".to_owned(), "one as NumPy writes it");
    let (start, len) = match head.get(6) {
        Some(1) => {
            let len = head.get(8..10).ok_or_else(damaged)?;
            (10_usize, usize::from(u16::from_le_bytes([len[0], len[1]])))
        }
        Some(2 | 3) => {
            let len = head.get(8..12).ok_or_else(damaged)?;
            let len =
                u32::from_le_bytes([len[0], len[1], len[2], len[3]]).min(MAX_NPY_HEADER_BYTES);
            (12, usize::try_from(len).unwrap_or(usize::MAX))
        }
        Some(version) => {
            return Err(other(format!("a header of version {version}"), "1, 2 or 3"));
        }
        None => return Err(damaged()),
    };
    let end = start.checked_add(len).ok_or_else(damaged)?;
    let text = head.get(start..end).ok_or_else(damaged)?;
    let text = std::str::from_utf8(text).map_err(|_| damaged())?;
    let after = |key: &str| -> Option<&str> {
        let at = text.find(&format!("'{key}':"))?;
        Some(text.get(at + key.len() + 3..)?.trim_start())
    };
    let descr = after("descr").ok_or_else(damaged)?;
    let descr = descr
        .strip_prefix('\'')
        .and_then(|rest| rest.split('\'').next());
    let id_type = match descr.ok_or_else(damaged)? {
        "|u1" => IdType::U8,
        "<u2" => IdType::U16,
        "<u4" => IdType::U32,
        "<u8" => IdType::U64,
        "<i4" => IdType::I32,
        "<i8" => IdType::I64,
        found => {
            return Err(other(
                format!("the dtype {found}"),
                "little-endian integers: u1, u2, u4, u8, i4 or i8",
            ));
        }
    };
    if after("fortran_order").is_none_or(|rest| !rest.starts_with("False")) {
        return Err(other(
            "columns in a line".to_owned(),
            "rows in a line (C order)",
        ));
    }
    let shape = after("shape")
        .and_then(|rest| rest.strip_prefix('(')?.split(')').next())
        .ok_or_else(damaged)?;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse::<u64>().map_err(|_| damaged()))
        .collect::<Result<Vec<_>, _>>()?;
    let count = shape
        .iter()
        .try_fold(1_u64, |product, &n| product.checked_mul(n))
        .and_then(|count| count.checked_mul(id_type.width()))
        .and_then(|bytes| bytes.checked_add(end as u64));
    if count != Some(size_bytes) {
        return Err(other(
            format!("the shape {shape:?} in {size_bytes} bytes"),
            "as many ids as the shape says",
        ));
    }
    let row_len = match shape.as_slice() {
        [_] => None,
        [_, row_len] => Some(*row_len),
        _ => {
            return Err(other(
                format!("{} dimensions", shape.len()),
                "one, or two with a document a row",
            ));
        }
    };
    Ok(TokenLayout {
        id_type,
        start: end as u64,
        row_len,
    })
}

/// Finds, in a stream of blocks, the first document start at or after every `part_bytes` bytes since
/// the cut before.
pub(super) struct TokenCutter {
    layout: TokenLayout,
    separator: Option<TokenId>,
    part_bytes: u64,
    /// Bytes seen of the file, header included.
    at: Cut,
    /// Bytes of an id that was split between two blocks.
    partial: Vec<u8>,
    header_left: u64,
    ids_in_row: u64,
    document_open: bool,
    threshold: u64,
    cuts: Vec<Cut>,
}

impl TokenCutter {
    pub(super) fn new(layout: TokenLayout, separator: Option<TokenId>, part_bytes: u64) -> Self {
        let start = Cut {
            offset: layout.start,
            record: 0,
            documents: 0,
        };
        Self {
            layout,
            separator,
            part_bytes,
            at: start,
            partial: Vec::new(),
            header_left: layout.start,
            ids_in_row: 0,
            document_open: false,
            threshold: layout.start.saturating_add(part_bytes),
            cuts: vec![start],
        }
    }

    /// Takes the next bytes of the file.
    pub(super) fn observe(&mut self, block: &[u8]) {
        let skip = usize::try_from(self.header_left)
            .unwrap_or(usize::MAX)
            .min(block.len());
        self.header_left -= skip as u64;
        let mut rest = block.get(skip..).unwrap_or_default();
        let width = usize::try_from(self.layout.id_type.width()).unwrap_or(1);
        if !self.partial.is_empty() {
            let (now, later) = rest.split_at((width - self.partial.len()).min(rest.len()));
            self.partial.extend_from_slice(now);
            rest = later;
            if self.partial.len() < width {
                return;
            }
            let id = std::mem::take(&mut self.partial);
            self.id(&id);
        }
        let ids = rest.chunks_exact(width);
        self.partial.extend_from_slice(ids.remainder());
        ids.for_each(|id| self.id(id));
    }

    fn id(&mut self, bytes: &[u8]) {
        self.at.offset += bytes.len() as u64;
        self.ids_in_row += 1;
        let ends = match self.layout.row_len {
            Some(row_len) => self.ids_in_row == row_len,
            None => Some(self.layout.id_type.decode(bytes)) == self.separator.map(i128::from),
        };
        self.document_open = !ends;
        if !ends {
            return;
        }
        self.ids_in_row = 0;
        self.at.record += 1;
        self.at.documents += 1;
        if self.at.offset >= self.threshold {
            self.cuts.push(self.at);
            self.threshold = self.at.offset.saturating_add(self.part_bytes);
        }
    }

    /// The cuts inside a file whose last byte has been seen.
    pub(super) fn finish(mut self) -> Cuts {
        let open = u64::from(self.document_open);
        self.at.record += open;
        self.at.documents += open;
        self.cuts.retain(|cut| cut.offset < self.at.offset);
        Cuts::Records {
            cuts: self.cuts,
            end: self.at,
        }
    }
}

/// Documents of a slice of a file.
pub(super) struct Documents<R> {
    stream: R,
    layout: TokenLayout,
    separator: Option<TokenId>,
    num_ids: u64,
    /// Number of the next document.
    index: u64,
    /// Bytes that were read so far.
    offset: u64,
}

impl<R: BufRead> Documents<R> {
    pub(super) fn new(
        stream: R,
        layout: TokenLayout,
        separator: Option<TokenId>,
        num_ids: u64,
        first: u64,
    ) -> Self {
        Self {
            stream,
            layout,
            separator,
            num_ids,
            index: first,
            offset: 0,
        }
    }

    /// Bytes from where it began to the next document.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next document's number and ids; `None` after the last.
    pub(super) fn next(
        &mut self,
        max_bytes: u64,
    ) -> std::io::Result<Option<(u64, Result<Content, RecordProblem>)>> {
        let width = self.layout.id_type.width();
        let separator = self.separator.map(i128::from);
        let mut ids: Vec<TokenId> = Vec::new();
        let mut problem = None;
        let mut count = 0_u64;
        let mut partial: Vec<u8> = Vec::new();
        let max_ids = max_bytes / width;
        loop {
            let block = self.stream.fill_buf()?;
            if block.is_empty() {
                break;
            }
            let mut used = 0;
            let mut ended = false;
            for &byte in block {
                used += 1;
                partial.push(byte);
                if (partial.len() as u64) < width {
                    continue;
                }
                let id = self.layout.id_type.decode(&partial);
                partial.clear();
                match TokenId::try_from(id) {
                    _ if problem.is_some() => {}
                    _ if count >= max_ids => problem = Some(RecordProblem::TooLong { max_bytes }),
                    Ok(token) if u64::from(token) < self.num_ids => ids.push(token),
                    _ => {
                        problem = Some(RecordProblem::IdOutOfRange {
                            position: ids.len(),
                            id,
                            num_ids: self.num_ids,
                        });
                    }
                }
                count += 1;
                ended = match self.layout.row_len {
                    Some(row_len) => count == row_len,
                    None => Some(id) == separator,
                };
                if ended {
                    break;
                }
            }
            self.stream.consume(used);
            self.offset += used as u64;
            if ended {
                break;
            }
        }
        if count == 0 {
            return Ok(None);
        }
        let index = self.index;
        self.index += 1;
        let content = match problem {
            Some(problem) => Err(problem),
            None => Ok(Content::Ids {
                ids,
                loss_mask: None,
            }),
        };
        Ok(Some((index, content)))
    }
}
