//! Cutting a corpus into parts: pure arithmetic on sizes and record boundaries.

use serde::{Deserialize, Serialize};

/// A corpus is cut into about this many parts, where [`MIN_PART_BYTES`] and [`MAX_PART_BYTES`]
/// allow it and no size is given.
pub const DEFAULT_NUM_PARTS: u64 = 64;

/// Smallest default part size: 256 KiB.
pub const MIN_PART_BYTES: u64 = 256 << 10;

/// Largest default part size: 16 MiB.
pub const MAX_PART_BYTES: u64 = 16 << 20;

/// A deterministic slice of the corpus: the unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Number of the part, from 0.
    pub index: u32,
    /// What it consists of, in the order of the corpus.
    pub slices: Vec<Slice>,
    /// Size as [`CorpusOptions::part_bytes`](super::CorpusOptions::part_bytes) measures it.
    pub size_bytes: u64,
}

impl Part {
    /// Number of its records, if all of them are rows of tables.
    pub fn num_rows(&self) -> Option<u64> {
        self.slices.iter().try_fold(0, |sum: u64, slice| {
            let SliceRange::RowGroups { num_records, .. } = slice.range else {
                return None;
            };
            let rows = slice
                .max_documents
                .map_or(num_records, |max| max.min(num_records));
            Some(sum.saturating_add(rows))
        })
    }
}

/// What a part takes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Index in [`Corpus::files`](super::Corpus::files).
    pub file: usize,
    /// Which of its records.
    pub range: SliceRange,
    /// Most documents that are taken of it, where that is less than it holds.
    pub max_documents: Option<u64>,
}

/// Which records of a file a slice takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceRange {
    /// All of them.
    Whole,
    /// The records that lie in the bytes `start..end` of the file, unpacked.
    Bytes {
        /// Offset of the first byte; a record starts there.
        start: u64,
        /// Offset after the last byte.
        end: u64,
        /// Number of the first record in the file, from 0.
        first_record: u64,
    },
    /// The row groups `start..end` of a Parquet file, or batches of an Arrow file.
    RowGroups {
        /// First row group.
        start: usize,
        /// Row group after the last.
        end: usize,
        /// Number of the first row in the file, from 0.
        first_record: u64,
        /// Rows in all of these groups.
        num_records: u64,
    },
}

/// A record boundary at which a file may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cut {
    /// Byte at which the next record starts, unpacked.
    pub(super) offset: u64,
    /// Number of that record.
    pub(super) record: u64,
    /// Documents before it.
    pub(super) documents: u64,
}

/// Row groups of a Parquet file or batches of an Arrow file, as far as they matter for cutting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RowGroup {
    pub(super) num_rows: u64,
    pub(super) text_bytes: u64,
}

/// Where a file can be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cuts {
    /// Nowhere: it is one document.
    Never { size_bytes: u64 },
    /// At these record boundaries, ascending; the first is where the first record starts. `end` is
    /// the boundary after the last record.
    Records { cuts: Vec<Cut>, end: Cut },
    /// Between row groups.
    RowGroups(Vec<RowGroup>),
}

impl Cuts {
    /// Documents of the file.
    pub(super) fn num_documents(&self) -> u64 {
        match self {
            Self::Never { .. } => 1,
            Self::Records { end, .. } => end.documents,
            Self::RowGroups(groups) => groups
                .iter()
                .fold(0, |sum: u64, group| sum.saturating_add(group.num_rows)),
        }
    }
}

/// The part size for a corpus of `total_bytes` where none is asked for.
pub(super) fn default_part_bytes(total_bytes: u64) -> u64 {
    (total_bytes / DEFAULT_NUM_PARTS).clamp(MIN_PART_BYTES, MAX_PART_BYTES)
}

/// Finds, in a stream of blocks, the first line start at or after every `part_bytes` bytes since
/// the cut before. Lines of nothing but white space are no documents.
#[derive(Debug)]
pub(super) struct LineCutter {
    part_bytes: u64,
    at: Cut,
    /// Whether the line so far is blank.
    blank: bool,
    threshold: u64,
    cuts: Vec<Cut>,
}

const START: Cut = Cut {
    offset: 0,
    record: 0,
    documents: 0,
};

impl LineCutter {
    pub(super) fn new(part_bytes: u64) -> Self {
        let part_bytes = part_bytes.max(1);
        Self {
            part_bytes,
            at: START,
            blank: true,
            threshold: part_bytes,
            cuts: vec![START],
        }
    }

    /// Takes the next bytes of the file.
    pub(super) fn observe(&mut self, block: &[u8]) {
        let mut rest = block;
        while !rest.is_empty() {
            let len = memchr::memchr(b'\n', rest).map_or(rest.len(), |newline| newline + 1);
            let (piece, after) = rest.split_at(len);
            rest = after;
            // Nearly always the first byte decides.
            self.blank = self.blank && piece.iter().all(u8::is_ascii_whitespace);
            self.at.offset += piece.len() as u64;
            if !piece.ends_with(b"\n") {
                return;
            }
            self.at.record += 1;
            self.at.documents += u64::from(!self.blank);
            self.blank = true;
            if self.at.offset >= self.threshold {
                self.cuts.push(self.at);
                self.threshold = self.at.offset.saturating_add(self.part_bytes);
            }
        }
    }

    /// The cuts inside a file whose last byte has been seen.
    pub(super) fn finish(mut self) -> Cuts {
        self.at.documents += u64::from(!self.blank);
        self.cuts.retain(|cut| cut.offset < self.at.offset);
        Cuts::Records {
            cuts: self.cuts,
            end: self.at,
        }
    }
}

/// Groups the pieces of all files, in order, into parts of about `part_bytes`: a part is closed
/// before a piece that would take it beyond that size. With `limit_docs`, what comes after that
/// many documents belongs to no part. `None` when the parts can't be numbered.
///
/// Example: pieces of 3, 4, 9 and 2 bytes with `part_bytes` = 8 give (3, 4), (9), (2).
pub(super) fn group(files: &[Cuts], part_bytes: u64, limit_docs: Option<u64>) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut left = limit_docs;
    for (file, cuts) in files.iter().enumerate() {
        for piece in pieces(cuts) {
            if left == Some(0) {
                return Some(parts);
            }
            let max_documents = left.filter(|&left| left < piece.documents);
            left = left.map(|left| left.saturating_sub(piece.documents));
            let slice = Slice {
                file,
                range: piece.range,
                max_documents,
            };
            match parts.last_mut() {
                Some(part) if part.size_bytes.saturating_add(piece.size_bytes) <= part_bytes => {
                    part.size_bytes = part.size_bytes.saturating_add(piece.size_bytes);
                    push(&mut part.slices, slice);
                }
                _ => parts.push(Part {
                    index: u32::try_from(parts.len()).ok()?,
                    slices: vec![slice],
                    size_bytes: piece.size_bytes,
                }),
            }
        }
    }
    Some(parts)
}

/// What lies between two neighbouring cuts.
struct Piece {
    range: SliceRange,
    size_bytes: u64,
    documents: u64,
}

/// The smallest slices of a file that are worth a part of their own.
fn pieces(cuts: &Cuts) -> Vec<Piece> {
    match cuts {
        Cuts::Never { size_bytes } => vec![Piece {
            range: SliceRange::Whole,
            size_bytes: *size_bytes,
            documents: 1,
        }],
        Cuts::Records { cuts, end } => {
            let ends = cuts.iter().skip(1).chain([end]);
            cuts.iter()
                .zip(ends)
                .map(|(start, end)| Piece {
                    range: SliceRange::Bytes {
                        start: start.offset,
                        end: end.offset,
                        first_record: start.record,
                    },
                    size_bytes: end.offset.saturating_sub(start.offset),
                    documents: end.documents.saturating_sub(start.documents),
                })
                .collect()
        }
        Cuts::RowGroups(groups) => {
            let mut first_record = 0_u64;
            let mut pieces = Vec::with_capacity(groups.len());
            for (index, group) in groups.iter().enumerate() {
                pieces.push(Piece {
                    range: SliceRange::RowGroups {
                        start: index,
                        end: index + 1,
                        first_record,
                        num_records: group.num_rows,
                    },
                    size_bytes: group.text_bytes,
                    documents: group.num_rows,
                });
                first_record = first_record.saturating_add(group.num_rows);
            }
            pieces
        }
    }
}

/// Appends a slice, joined with the last one where they are neighbouring row groups.
fn push(slices: &mut Vec<Slice>, slice: Slice) {
    if let Some(last) = slices.last_mut()
        && last.file == slice.file
        && let SliceRange::RowGroups {
            end, num_records, ..
        } = &mut last.range
        && let SliceRange::RowGroups {
            end: new_end,
            num_records: more,
            ..
        } = slice.range
    {
        last.max_documents = slice
            .max_documents
            .map(|documents| num_records.saturating_add(documents));
        *end = new_end;
        *num_records = num_records.saturating_add(more);
        return;
    }
    slices.push(slice);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn default_part_size_is_a_64th_within_its_bounds() {
        assert_eq!(default_part_bytes(0), MIN_PART_BYTES);
        assert_eq!(default_part_bytes(64 << 20), 1 << 20);
        assert_eq!(default_part_bytes(u64::MAX), MAX_PART_BYTES);
    }

    #[test]
    fn small_files_share_a_part_and_a_large_one_stands_alone() {
        let files = [3, 4, 9, 2].map(|size_bytes| Cuts::Never { size_bytes });
        let parts = group(&files, 8, None).unwrap();
        let sizes: Vec<_> = parts.iter().map(|part| part.size_bytes).collect();
        assert_eq!(sizes, [7, 9, 2]);
        let files: Vec<Vec<_>> = parts
            .iter()
            .map(|part| part.slices.iter().map(|slice| slice.file).collect())
            .collect();
        assert_eq!(files, [vec![0, 1], vec![2], vec![3]]);
    }

    #[test]
    fn neighbouring_row_groups_become_one_slice() {
        let groups = [(10, 3), (20, 3), (5, 3)]
            .map(|(num_rows, text_bytes)| RowGroup {
                num_rows,
                text_bytes,
            })
            .to_vec();
        let parts = group(&[Cuts::RowGroups(groups)], 6, None).unwrap();
        let ranges: Vec<_> = parts.iter().map(|part| part.slices[0].range).collect();
        assert_eq!(
            ranges,
            [
                SliceRange::RowGroups {
                    start: 0,
                    end: 2,
                    first_record: 0,
                    num_records: 30
                },
                SliceRange::RowGroups {
                    start: 2,
                    end: 3,
                    first_record: 30,
                    num_records: 5
                },
            ]
        );
    }

    #[test]
    fn a_limit_on_documents_ends_the_last_part_inside_a_piece() {
        let group_of = |num_rows| RowGroup {
            num_rows,
            text_bytes: 4,
        };
        let files = [
            Cuts::Never { size_bytes: 1 },
            Cuts::RowGroups(vec![group_of(10), group_of(10), group_of(10)]),
        ];
        let parts = group(&files, 100, Some(14)).unwrap();
        let slices: Vec<_> = parts.iter().flat_map(|part| &part.slices).collect();
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0].max_documents, None);
        assert_eq!(slices[1].max_documents, Some(13));
        let SliceRange::RowGroups { start, end, .. } = slices[1].range else {
            unreachable!()
        };
        assert_eq!((start, end), (0, 2));
        assert_eq!(group(&files, 100, Some(1)).unwrap()[0].slices.len(), 1);
    }

    proptest! {
        #[test]
        fn cuts_lie_at_line_starts_and_ignore_how_the_file_is_blocked(
            text in "[a \n]{0,60}",
            part_bytes in 1_u64..20,
            block in 1_usize..9,
        ) {
            let mut cutter = LineCutter::new(part_bytes);
            text.as_bytes().chunks(block).for_each(|chunk| cutter.observe(chunk));
            let mut whole = LineCutter::new(part_bytes);
            whole.observe(text.as_bytes());
            let cuts = cutter.finish();
            prop_assert_eq!(&cuts, &whole.finish());
            let Cuts::Records { cuts, end } = cuts else { unreachable!() };
            prop_assert_eq!(end.offset, text.len() as u64);
            let documents = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count() as u64;
            prop_assert_eq!(end.documents, documents(&text));
            let mut before = 0;
            for cut in cuts {
                if cut == START { continue; }
                let at = cut.offset as usize;
                prop_assert!(at < text.len() && &text[at - 1..at] == "\n");
                prop_assert_eq!(cut.record, text[..at].matches('\n').count() as u64);
                prop_assert_eq!(cut.documents, documents(&text[..at]));
                prop_assert!(cut.offset >= before + part_bytes);
                // No earlier line start would have done.
                let earliest = (before + part_bytes) as usize - 1;
                prop_assert!(!text[earliest..at - 1].contains('\n'));
                before = cut.offset;
            }
        }
    }
}
