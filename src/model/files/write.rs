//! Writes safetensors files one tensor after another, through the atomic files of [`crate::fs`].

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use candle_core::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::read::width;
use crate::fs::{AtomicFile, Digest, HashingWriter, write_error};
use crate::model::Error;
use crate::model::kernels::tensor::{CHUNK, on_host};

/// Elements that are converted and written at a time.
const WRITE_ELEMENTS: usize = 1 << 20;

/// A tensor on its way into a file.
pub(crate) struct Entry<'a> {
    /// Its name there.
    pub name: String,
    /// Its dtype there.
    pub dtype: Dtype,
    /// Its shape and elements.
    pub content: Content<'a>,
}

/// The shape and elements of a tensor on its way into a file.
pub(crate) enum Content<'a> {
    /// Of f32, on any device; converted while they are written.
    Tensor(&'a Tensor),
    /// As they are stored in another file.
    Stored {
        /// Shape.
        shape: &'a [usize],
        /// Elements.
        bytes: &'a [u8],
    },
}

impl Entry<'_> {
    /// Returns the bytes that it takes in a file.
    pub fn size_bytes(&self) -> usize {
        match self.content {
            Content::Tensor(tensor) => tensor.elem_count() * width(self.dtype).unwrap_or(4),
            Content::Stored { bytes, .. } => bytes.len(),
        }
    }

    fn shape(&self) -> &[usize] {
        match self.content {
            Content::Tensor(tensor) => tensor.dims(),
            Content::Stored { shape, .. } => shape,
        }
    }
}

/// Writes a file: the header, padded to 8 bytes, then the tensors in the order given. Returns the digest of
/// the whole file. `metadata` is text by key; there is one key only, since the order of several would be
/// chance.
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
                shape: entry.shape().to_vec(),
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
        let tensor = match entry.content {
            Content::Tensor(tensor) => tensor,
            Content::Stored { bytes, .. } => {
                for bytes in bytes.chunks(4 * WRITE_ELEMENTS) {
                    write(bytes)?;
                }
                continue;
            }
        };
        let values: &[f32] = &on_host(tensor)?;
        for values in values.chunks(WRITE_ELEMENTS) {
            let parts: Vec<Vec<u8>> = values
                .par_chunks(CHUNK)
                .map(|part| narrow(part, entry.dtype))
                .collect();
            write(&parts.concat())?;
        }
    }
    let (file, digest) = file.finish();
    file.publish()?;
    Ok(digest)
}

/// Converts f32 elements to the bytes of another dtype, rounded to nearest even.
fn narrow(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * width(dtype).unwrap_or(4)];
    match dtype {
        Dtype::BF16 => {
            for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *bytes = bf16::from_f32(*value).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *bytes = f16::from_f32(*value).to_le_bytes();
            }
        }
        _ => {
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
    }
    bytes
}
