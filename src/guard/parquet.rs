//! Walks over the metadata of a Parquet file before a parser does, and believes nothing of it.
//!
//! The parser builds the tree of a schema by recursion, and reserves what a page header says before it reads the page.
//! This walk uses a loop and a stack with a limit, reserves nothing, and knows of the metadata (Thrift, in the compact
//! protocol) only what it takes to find the numbers that matter: how deep the schema is, and how long pages are.

/// Most levels of a schema; real ones have a handful.
pub const MAX_SCHEMA_DEPTH: usize = 64;

/// Most structs and lists within each other that metadata has: 6 in the format as it is.
const MAX_NESTING: usize = 32;

/// First and last bytes of a file.
const MAGIC: &[u8] = b"PAR1";

/// Bytes that a page may unpack to, whatever its size.
const FREE_PAGE_BYTES: u64 = 16 << 20;

/// Times its size that a page may unpack to beyond that.
const MAX_EXPANSION: u64 = 256;

/// Values that a chunk may have, whatever its size.
const FREE_VALUES: u64 = 1 << 20;

/// Checks the footer of a file in memory.
///
/// # Errors
///
/// When it is none, or nested too deeply.
pub fn check_footer(file: &[u8]) -> Result<(), String> {
    let cut = || "it does not end as one".to_owned();
    let body = file.strip_suffix(MAGIC).ok_or_else(cut)?;
    let (body, len) = body.split_last_chunk::<4>().ok_or_else(cut)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let start = body
        .len()
        .checked_sub(len)
        .ok_or_else(|| format!("its footer of {len} bytes does not fit in"))?;
    check_metadata(body.get(start..).unwrap_or_default())
}

/// Checks the metadata that a footer holds.
///
/// # Errors
///
/// When it is none, or nested too deeply.
pub fn check_metadata(metadata: &[u8]) -> Result<(), String> {
    /// Number of the field that holds the schema.
    const SCHEMA: i16 = 2;
    /// Number of an element's field that says how many children it has.
    const NUM_CHILDREN: i16 = 5;
    let mut reader = Reader { rest: metadata };
    let mut field = 0;
    while let Some((id, kind)) = reader.field(&mut field)? {
        if (id, kind) != (SCHEMA, LIST) {
            reader.skip(kind)?;
            continue;
        }
        let (count, element) = reader.list()?;
        if element != STRUCT {
            return Err(damaged());
        }
        // Children that are yet to come, of the elements that the next one is in.
        let mut left: Vec<u64> = Vec::new();
        for index in 0..count {
            while left.last() == Some(&0) {
                left.pop();
            }
            if let Some(parent) = left.last_mut() {
                *parent -= 1;
            }
            let mut children = 0;
            let mut field = 0;
            while let Some((id, kind)) = reader.field(&mut field)? {
                match (id, kind) {
                    (NUM_CHILDREN, I16 | I32 | I64) => {
                        children = u64::try_from(reader.zigzag()?).unwrap_or(0);
                    }
                    _ => reader.skip(kind)?,
                }
            }
            // The parser reserves a place for each child before it looks for one.
            let elements_left = count.saturating_sub(index + 1);
            if children > elements_left {
                return Err(format!(
                    "its schema has an element with {children} children, and {elements_left} more elements"
                ));
            }
            if children > 0 {
                left.push(children);
            }
            if left.len() > MAX_SCHEMA_DEPTH {
                return Err(format!(
                    "its schema has more than {MAX_SCHEMA_DEPTH} levels"
                ));
            }
        }
    }
    Ok(())
}

/// Checks the headers of all pages of a column chunk; the bytes are the chunk's. Returns how many values they say
/// that they hold.
///
/// # Errors
///
/// When there is one that is none, that reaches beyond the chunk, or that claims far more than its size.
pub fn check_pages(chunk: &[u8]) -> Result<u64, String> {
    let mut rest = chunk;
    let mut num_values = 0_u64;
    while !rest.is_empty() {
        let page = PageHeader::parse(rest)?;
        page.check(rest.len() as u64)?;
        num_values = num_values.saturating_add(page.num_values);
        let len = usize::try_from(page.stored_bytes.saturating_add(page.header_bytes));
        rest = rest.get(len.unwrap_or(usize::MAX)..).unwrap_or_default();
    }
    let stored = chunk.len() as u64;
    if num_values > FREE_VALUES && num_values / MAX_EXPANSION > stored {
        return Err(format!(
            "{num_values} values are said to be in a column of {stored} bytes"
        ));
    }
    Ok(num_values)
}

/// What the header of a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Bytes of the header itself.
    pub header_bytes: u64,
    /// Bytes of what comes after it.
    pub stored_bytes: u64,
    /// Bytes that this unpacks to.
    pub unpacked_bytes: u64,
    /// Number of values.
    pub num_values: u64,
    /// Holds a dictionary, rather than values of rows.
    pub is_dictionary: bool,
    /// Number of the encoding in the format.
    pub encoding: i64,
}

impl PageHeader {
    /// Number of the encoding of texts by what they share with the one before.
    pub const DELTA_BYTE_ARRAY: i64 = 7;

    /// Numbers of the encodings by places in a dictionary.
    pub const DICTIONARY: [i64; 2] = [2, 8];

    /// Parses a header at the start of bytes.
    ///
    /// # Errors
    ///
    /// When there is none, or the bytes end before it does.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { rest: bytes };
        let (mut unpacked, mut stored, mut num_values, mut encoding) = (-1, -1, 0, -1);
        let mut is_dictionary = false;
        let mut field = 0;
        while let Some((id, kind)) = reader.field(&mut field)? {
            match (id, kind) {
                (2, I32) => unpacked = reader.zigzag()?,
                (3, I32) => stored = reader.zigzag()?,
                // The headers of data pages, of dictionaries, and of data pages of version 2.
                (5 | 7 | 8, STRUCT) => {
                    is_dictionary |= id == 7;
                    let encoding_field = if id == 8 { 4 } else { 2 };
                    let mut field = 0;
                    while let Some((id, kind)) = reader.field(&mut field)? {
                        match (id, kind) {
                            (1, I32) => num_values = reader.zigzag()?,
                            (id, I32) if id == encoding_field => encoding = reader.zigzag()?,
                            _ => reader.skip(kind)?,
                        }
                    }
                }
                _ => reader.skip(kind)?,
            }
        }
        let unsigned = |number: i64| u64::try_from(number).map_err(|_| damaged());
        Ok(Self {
            header_bytes: (bytes.len() - reader.rest.len()) as u64,
            stored_bytes: unsigned(stored)?,
            unpacked_bytes: unsigned(unpacked)?,
            num_values: unsigned(num_values)?,
            is_dictionary,
            encoding,
        })
    }

    /// Checks what the header says against the bytes that are left of its column, itself included.
    ///
    /// # Errors
    ///
    /// What it says too much.
    pub fn check(&self, bytes_left: u64) -> Result<(), String> {
        let Self {
            stored_bytes: stored,
            unpacked_bytes: unpacked,
            num_values,
            ..
        } = *self;
        if stored.saturating_add(self.header_bytes) > bytes_left {
            return Err(format!(
                "a page of {stored} bytes reaches beyond its column"
            ));
        }
        if unpacked > FREE_PAGE_BYTES && unpacked / MAX_EXPANSION > stored {
            return Err(format!(
                "a page of {stored} bytes is said to unpack to {unpacked}, more than {MAX_EXPANSION} times its size"
            ));
        }
        // A value takes a byte at least, but truth values have no dictionary.
        if self.is_dictionary && num_values > unpacked {
            return Err(format!(
                "a dictionary of {unpacked} bytes is said to have {num_values} values"
            ));
        }
        Ok(())
    }
}

fn damaged() -> String {
    "its metadata is damaged".to_owned()
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// What is left of metadata.
struct Reader<'a> {
    rest: &'a [u8],
}

/// Something that a value is in, and what is left of it.
enum Inside {
    Struct { field: i16 },
    Elements { kind: u8, left: u64 },
    Entries { key: u8, value: u8, left: u64 },
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, String> {
        let (byte, rest) = self.rest.split_first().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    fn zigzag(&mut self) -> Result<i64, String> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn leave_out(&mut self, len: u64) -> Result<(), String> {
        let len = usize::try_from(len).map_err(|_| damaged())?;
        self.rest = self.rest.get(len..).ok_or_else(damaged)?;
        Ok(())
    }

    /// The number and type of a struct's next field; `None` at its end.
    fn field(&mut self, last: &mut i16) -> Result<Option<(i16, u8)>, String> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let (delta, kind) = (byte >> 4, byte & 0x0f);
        *last = match delta {
            0 => i16::try_from(self.zigzag()?).map_err(|_| damaged())?,
            delta => last.checked_add(i16::from(delta)).ok_or_else(damaged)?,
        };
        Ok(Some((*last, kind)))
    }

    /// The length of a list, each element of which takes a byte at least, and their type.
    fn list(&mut self) -> Result<(u64, u8), String> {
        let byte = self.byte()?;
        let count = match byte >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        if count > self.rest.len() as u64 {
            return Err(damaged());
        }
        Ok((count, byte & 0x0f))
    }

    /// Leaves out a value.
    fn skip(&mut self, kind: u8) -> Result<(), String> {
        let mut inside = Vec::new();
        self.value(kind, false, &mut inside)?;
        while let Some(current) = inside.last_mut() {
            let next = match current {
                Inside::Struct { field } => self.field(field)?.map(|(_, kind)| (kind, false)),
                Inside::Elements { left: 0, .. } | Inside::Entries { left: 0, .. } => None,
                Inside::Elements { kind, left } => {
                    *left -= 1;
                    Some((*kind, true))
                }
                Inside::Entries { key, value, left } => {
                    *left -= 1;
                    // Keys and values take turns.
                    std::mem::swap(key, value);
                    Some((*value, true))
                }
            };
            match next {
                None => {
                    inside.pop();
                }
                Some((kind, is_element)) => self.value(kind, is_element, &mut inside)?,
            }
        }
        Ok(())
    }

    /// Leaves out a simple value, or begins with one that holds others.
    fn value(
        &mut self,
        kind: u8,
        is_element: bool,
        inside: &mut Vec<Inside>,
    ) -> Result<(), String> {
        match kind {
            // As a field, a truth value is in the field's type.
            TRUE | FALSE if is_element => self.leave_out(1)?,
            TRUE | FALSE => {}
            BYTE => self.leave_out(1)?,
            I16 | I32 | I64 => {
                self.varint()?;
            }
            DOUBLE => self.leave_out(8)?,
            BINARY => {
                let len = self.varint()?;
                self.leave_out(len)?;
            }
            LIST | SET => {
                let (left, kind) = self.list()?;
                inside.push(Inside::Elements { kind, left });
            }
            MAP => {
                let count = self.varint()?;
                if count > self.rest.len() as u64 {
                    return Err(damaged());
                }
                if count > 0 {
                    let kinds = self.byte()?;
                    inside.push(Inside::Entries {
                        key: kinds >> 4,
                        value: kinds & 0x0f,
                        left: 2 * count,
                    });
                }
            }
            STRUCT => inside.push(Inside::Struct { field: 0 }),
            _ => return Err(damaged()),
        }
        if inside.len() > MAX_NESTING {
            return Err(format!("its metadata has more than {MAX_NESTING} levels"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use arrow_schema::{DataType, Field};
    use parquet::arrow::ArrowWriter;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    fn file(column: ArrayRef) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn texts() -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            (0..3000).map(|n| format!("{n} and {}", n % 7)),
        ))
    }

    /// A struct in a struct, and so on, around a string.
    fn nested(depth: usize) -> ArrayRef {
        (0..depth).fold(texts(), |inner, _| {
            let field = Field::new("a", inner.data_type().clone(), false);
            let fields = vec![(Arc::new(field), inner)];
            Arc::new(arrow_array::StructArray::from(fields))
        })
    }

    #[test]
    fn the_depth_of_a_schema_is_limited() {
        // The schema itself is a level, and so is the column.
        for (depth, is_fine) in [(0, true), (5, true), (63, true), (64, false), (90, false)] {
            let found = check_footer(&file(nested(depth)));
            assert_eq!(found.is_ok(), is_fine, "{depth}: {found:?}");
        }
        assert_eq!(
            check_footer(&file(nested(80))).unwrap_err(),
            "its schema has more than 64 levels"
        );
        assert!(matches!(nested(1).data_type(), DataType::Struct(_)));
    }

    #[test]
    fn children_that_are_not_there_are_not_believed() {
        // Field 2, a list of two structs; the first has the field 5, an i32, the number of its children.
        let metadata = |children: &[u8]| {
            let first = [&[0x55], children, &[0]].concat();
            [&[0x29, 0x2c], first.as_slice(), &[0, 0]].concat()
        };
        assert_eq!(check_metadata(&metadata(&[2])), Ok(()));
        // The largest i32, as a zigzag varint.
        let error = check_metadata(&metadata(&[0xfe, 0xff, 0xff, 0xff, 0x0f])).unwrap_err();
        assert_eq!(
            error,
            "its schema has an element with 2147483647 children, and 1 more elements"
        );
    }

    #[test]
    fn pages_are_counted_and_their_lengths_not_believed() {
        let bytes = file(texts());
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes.clone())).unwrap();
        let (start, len) = reader.metadata().row_group(0).column(0).byte_range();
        let chunk = &bytes[start as usize..(start + len) as usize];
        // Those of the dictionary as well.
        assert_eq!(check_pages(chunk).unwrap(), 6000);
        for cut in 0..chunk.len() {
            let whole = cut == 0;
            assert_eq!(check_pages(&chunk[..cut]).is_ok(), whole, "{cut}");
            if cut > 300 {
                break;
            }
        }
        // type, unpacked, stored, and the end of the header
        let header = |unpacked: u64, stored: u64| {
            let mut bytes = vec![0x15, 0];
            for number in [unpacked, stored] {
                bytes.push(0x15);
                let mut rest = number << 1;
                while rest >= 0x80 {
                    bytes.push((rest & 0x7f) as u8 | 0x80);
                    rest >>= 7;
                }
                bytes.push(rest as u8);
            }
            bytes.push(0);
            bytes.extend((0..stored.min(100)).map(|_| 0));
            bytes
        };
        assert_eq!(check_pages(&header(100, 10)), Ok(0));
        let error = check_pages(&header(1 << 30, 10)).unwrap_err();
        assert!(error.contains("said to unpack to 1073741824"), "{error}");
        let error = check_pages(&header(100, 1000)).unwrap_err();
        assert!(error.contains("reaches beyond its column"), "{error}");
    }

    #[test]
    fn no_bytes_make_the_walk_fail_otherwise_than_with_an_error() {
        let bytes = file(nested(3));
        for at in 0..bytes.len().min(20_000) {
            for flip in [1_u8, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let _ = check_footer(&damaged);
                let _ = check_pages(&damaged[at..]);
            }
        }
        // Lists in lists, for ever.
        let deep = vec![0x19; 1 << 20];
        let error = check_metadata(&deep).unwrap_err();
        assert!(error.contains("levels"), "{error}");
    }
}
