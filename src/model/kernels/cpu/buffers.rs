//! New buffers, and how loops over them are divided between threads.

use rayon::prelude::*;

use crate::model::kernels::tensor::CHUNK;

/// Returns zeros, written by all threads of the pool where they are many.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    if len < CHUNK {
        return vec![0.0; len];
    }
    rayon::iter::repeat_n(0.0, len).collect()
}

/// Returns how many token rows of `features` elements one task of a parallel loop handles.
pub(super) fn rows_per_task(features: usize) -> usize {
    (CHUNK / features.max(1)).max(1)
}
