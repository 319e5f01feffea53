//! Writes safetensors files one tensor after another, through the atomic files of [`crate::fs`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use candle_core::Tensor;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::kernels::tensor::{CHUNK, on_host};
use super::{Error, weights};
use crate::fs::{AtomicFile, Digest, HashingWriter, write_error};

/// Elements that are converted and written at a time.
const WRITE_ELEMENTS: usize = 1 << 20;

/// A tensor on its way into a file.
pub(crate) struct Entry<'a> {
    /// Its name there.
    pub name: String,
    /// Its dtype there.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Values<'a>,
}

/// Where the elements of an [`Entry`] are.
pub(crate) enum Values<'a> {
    /// In a tensor, on any device.
    Of(&'a Tensor),
    /// In memory, row-major.
    Slice(Cow<'a, [f32]>),
}

impl Entry<'_> {
    /// Bytes that it takes in a file.
    pub fn size_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * weights::width(self.dtype).unwrap_or(4)
    }
}

/// Writes a file: the header, padded to 8 bytes, then the tensors in the order given. `metadata` is text by
/// key, of which there may be one only, since the order of several would be chance. The digest is that of
/// the whole file.
pub(crate) fn write(
    path: &Path,
    metadata: (&str, String),
    entries: &[Entry<'_>],
) -> Result<Digest, Error> {
    let mut end = 0;
    let infos = entries
        .iter()
        .map(|entry| {
            let start = end;
            end += entry.size_bytes();
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                data_offsets: (start, end),
            };
            (entry.name.clone(), info)
        })
        .collect();
    let (key, value) = metadata;
    let metadata = HashMap::from([(key.to_owned(), value)]);
    let header = Metadata::new(Some(metadata), infos)
        .ok()
        .and_then(|header| serde_json::to_vec(&header).ok())
        .ok_or(Error::Internal("the header of a safetensors file"))?;
    let padding = header.len().next_multiple_of(8) - header.len();

    let mut file = HashingWriter::new(AtomicFile::create(path)?);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(|e| write_error(path, e));
    write(&((header.len() + padding) as u64).to_le_bytes())?;
    write(&header)?;
    write(&vec![b' '; padding])?;
    for entry in entries {
        let values: &[f32] = match &entry.values {
            Values::Of(tensor) => &on_host(tensor)?,
            Values::Slice(values) => values,
        };
        for values in values.chunks(WRITE_ELEMENTS) {
            let parts: Vec<Vec<u8>> = values
                .par_chunks(CHUNK)
                .map(|part| weights::narrow(part, entry.dtype))
                .collect();
            write(&parts.concat())?;
        }
    }
    let (file, digest) = file.finish();
    file.publish()?;
    Ok(digest)
}
