//! Reads tensors from files: elements of any dtype that weights may have, widened to f32.
//!
//! Pages of a mapped file that were read are given back at once, so loading needs the f32 tensor and next
//! to nothing beside it.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::source::ModelFile;

/// Bytes of a tensor that are widened before their pages are given back.
const WIDEN_BYTES: usize = 8 << 20;

/// Reads the elements that lie in a range of a file; `None` if weights may not have this dtype, or the file
/// ends before.
pub(super) fn read(file: &ModelFile, range: Range<usize>, dtype: Dtype) -> Option<Vec<f32>> {
    let bytes_each = width(dtype)?;
    let mut values = vec![0.0_f32; range.len() / bytes_each];
    let mut start = range.start;
    for values in values.chunks_mut(WIDEN_BYTES / bytes_each) {
        let end = start + values.len() * bytes_each;
        widen(values, file.get(start..end)?, dtype);
        file.release(start..end);
        start = end;
    }
    Some(values)
}

/// Returns the bytes per element of a dtype that weights may have; `None` for other dtypes.
pub(crate) fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Widens elements of a dtype that weights may have to f32.
pub(crate) fn widened(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / width(dtype).unwrap_or(1)];
    widen(&mut values, bytes, dtype);
    values
}

fn widen(values: &mut [f32], bytes: &[u8], dtype: Dtype) {
    const CHUNK: usize = 1 << 16;
    let bytes_each = width(dtype).unwrap_or(1);
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * bytes_each))
        .for_each(|(values, bytes)| match dtype {
            Dtype::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::BF16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
        });
}
