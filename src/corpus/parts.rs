//! Cutting a corpus into parts: pure arithmetic on sizes and record boundaries.

use super::{DEFAULT_NUM_PARTS, MAX_PART_BYTES, MIN_PART_BYTES, Part, Slice, SliceRange};

/// A record boundary at which a file may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Byte at which the next record starts.
    pub(super) offset: u64,
    /// Number of that record.
    pub(super) record: u64,
}

/// A row group of a Parquet file, as far as it matters for cutting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowGroup {
    pub(super) num_rows: u64,
    pub(super) text_bytes: u64,
}

/// Where a file can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cuts {
    /// Nowhere.
    Never { size_bytes: u64 },
    /// At these record boundaries, ascending, none of them at 0.
    Lines { size_bytes: u64, cuts: Vec<Cut> },
    /// Between row groups.
    RowGroups(Vec<RowGroup>),
}

/// The part size for a corpus of `total_bytes` where none is asked for.
pub(super) fn default_part_bytes(total_bytes: u64) -> u64 {
    (total_bytes / DEFAULT_NUM_PARTS).clamp(MIN_PART_BYTES, MAX_PART_BYTES)
}

/// Finds, in a stream of blocks, the first line start at or after every `part_bytes` bytes since
/// the cut before.
#[derive(Debug)]
pub(super) struct LineCutter {
    part_bytes: u64,
    offset: u64,
    lines: u64,
    threshold: u64,
    cuts: Vec<Cut>,
}

impl LineCutter {
    pub(super) fn new(part_bytes: u64) -> Self {
        let part_bytes = part_bytes.max(1);
        Self {
            part_bytes,
            offset: 0,
            lines: 0,
            threshold: part_bytes,
            cuts: Vec::new(),
        }
    }

    /// Takes the next bytes of the file.
    pub(super) fn observe(&mut self, mut block: &[u8]) {
        loop {
            // A newline counts as a boundary from the byte before the threshold on.
            let skip = (self.threshold - 1).saturating_sub(self.offset);
            let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(block.len());
            let (before, rest) = block.split_at(skip);
            self.lines += before.iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.offset += before.len() as u64;
            let Some(newline) = rest.iter().position(|&byte| byte == b'\n') else {
                self.offset += rest.len() as u64;
                return;
            };
            self.lines += 1;
            self.offset += newline as u64 + 1;
            self.cuts.push(Cut {
                offset: self.offset,
                record: self.lines,
            });
            self.threshold = self.offset.saturating_add(self.part_bytes);
            block = rest.get(newline + 1..).unwrap_or_default();
        }
    }

    /// The cuts inside a file whose last byte has been seen.
    pub(super) fn finish(mut self) -> Cuts {
        self.cuts.retain(|cut| cut.offset < self.offset);
        Cuts::Lines {
            size_bytes: self.offset,
            cuts: self.cuts,
        }
    }
}

/// Groups the pieces of all files, in order, into parts of about `part_bytes`: a part is closed
/// before a piece that would take it beyond that size. `None` when the parts can't be numbered.
///
/// Example: pieces of 3, 4, 9 and 2 bytes with `part_bytes` = 8 give (3, 4), (9), (2).
pub(super) fn group(files: &[Cuts], part_bytes: u64) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for (file, cuts) in files.iter().enumerate() {
        for (range, size_bytes) in pieces(cuts) {
            let slice = Slice { file, range };
            match parts.last_mut() {
                Some(part) if part.size_bytes.saturating_add(size_bytes) <= part_bytes => {
                    part.size_bytes = part.size_bytes.saturating_add(size_bytes);
                    push(&mut part.slices, slice);
                }
                _ => parts.push(Part {
                    index: u32::try_from(parts.len()).ok()?,
                    slices: vec![slice],
                    size_bytes,
                }),
            }
        }
    }
    Some(parts)
}

/// The smallest slices of a file that are worth a part of their own, with their sizes.
fn pieces(cuts: &Cuts) -> Vec<(SliceRange, u64)> {
    match cuts {
        Cuts::Never { size_bytes } => vec![(SliceRange::Whole, *size_bytes)],
        Cuts::Lines { size_bytes, cuts } if cuts.is_empty() => {
            vec![(SliceRange::Whole, *size_bytes)]
        }
        Cuts::Lines { size_bytes, cuts } => {
            let origin = Cut {
                offset: 0,
                record: 0,
            };
            let starts = std::iter::once(&origin).chain(cuts);
            let ends = cuts.iter().map(|cut| cut.offset).chain([*size_bytes]);
            starts
                .zip(ends)
                .map(|(start, end)| {
                    let range = SliceRange::Bytes {
                        start: start.offset,
                        end,
                        first_record: start.record,
                    };
                    (range, end.saturating_sub(start.offset))
                })
                .collect()
        }
        Cuts::RowGroups(groups) => {
            let mut first_record = 0_u64;
            let mut pieces = Vec::with_capacity(groups.len());
            for (index, group) in groups.iter().enumerate() {
                let range = SliceRange::RowGroups {
                    start: index,
                    end: index + 1,
                    first_record,
                    num_records: group.num_rows,
                };
                pieces.push((range, group.text_bytes));
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
        let parts = group(&files, 8).unwrap();
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
        let parts = group(&[Cuts::RowGroups(groups)], 6).unwrap();
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

    proptest! {
        #[test]
        fn cuts_lie_at_line_starts_and_ignore_how_the_file_is_blocked(
            text in "[a\n]{0,60}",
            part_bytes in 1_u64..20,
            block in 1_usize..9,
        ) {
            let mut cutter = LineCutter::new(part_bytes);
            text.as_bytes().chunks(block).for_each(|chunk| cutter.observe(chunk));
            let mut whole = LineCutter::new(part_bytes);
            whole.observe(text.as_bytes());
            let cuts = cutter.finish();
            prop_assert_eq!(&cuts, &whole.finish());
            let Cuts::Lines { size_bytes, cuts } = cuts else { unreachable!() };
            prop_assert_eq!(size_bytes, text.len() as u64);
            let mut before = 0;
            for cut in cuts {
                let at = cut.offset as usize;
                prop_assert!(at < text.len() && &text[at - 1..at] == "\n");
                prop_assert_eq!(cut.record, text[..at].matches('\n').count() as u64);
                prop_assert!(cut.offset >= before + part_bytes);
                // No earlier line start would have done.
                let earliest = (before + part_bytes) as usize - 1;
                prop_assert!(!text[earliest..at - 1].contains('\n'));
                before = cut.offset;
            }
        }
    }
}
