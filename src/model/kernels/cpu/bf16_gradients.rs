//! The products of the backward pass with operands in bf16, in the CPU's own instructions for bf16 where it has them.
//!
//! Gradients and activations are rounded to bf16 where they meet; sums are f32.

use candle_core::{DType, Tensor};
#[cfg(target_arch = "x86_64")]
use half::bf16;
#[cfg(target_arch = "x86_64")]
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx512::{self, Left, Right, Size, Target, Words};
use super::bf16::Activations;
#[cfg(target_arch = "x86_64")]
use super::bf16::{pair, pairs, rounded};
#[cfg(target_arch = "x86_64")]
use super::buffers::rows_per_task;
use super::gemm::{self, Mat, MatMut, Write};
#[cfg(target_arch = "x86_64")]
use super::simd::vectorized;
use super::threads::Threads;
use crate::model::Error;
#[cfg(target_arch = "x86_64")]
use crate::model::kernels::tensor::bf16_view;
use crate::model::kernels::tensor::widened;

/// Returns whether products of this precision are the hardware's.
#[cfg(target_arch = "x86_64")]
fn multiplies(precision: Activations) -> bool {
    precision == Activations::Bf16 && avx512::multiplies_bf16()
}

/// Returns whether products of this precision are the hardware's.
#[cfg(not(target_arch = "x86_64"))]
fn multiplies(_: Activations) -> bool {
    false
}

/// `dx (+)= dy w` for gradients `dy` `[tokens, out]` and a weight `w` `[out, in]`. A row of the result depends on that
/// row of `dy` alone, bit for bit.
pub(super) fn rows_times(
    dx: &mut [f32],
    write: Write,
    dy: &[f32],
    w: &Tensor,
    precision: Activations,
) -> Result<(), Error> {
    let (out, inner) = w.dims2()?;
    let tokens = dx.len() / inner.max(1);
    let in_hardware = multiplies(precision);
    #[cfg(target_arch = "x86_64")]
    if in_hardware && w.dtype() == DType::BF16 {
        let w: &[bf16] = &bf16_view(w)?;
        assert_eq!(
            (dx.len(), dy.len(), w.len()),
            (tokens * inner, tokens * out, out * inner),
            "operands"
        );
        if dx.is_empty() {
            return Ok(());
        }
        let words = out.div_ceil(2);
        let (dy, _) = pairs(dy, tokens, out, false);
        let row_bytes = inner * size_of::<bf16>();
        let right = Right {
            words: w.as_ptr().cast(),
            col_bytes: size_of::<bf16>(),
            word_bytes: 2 * row_bytes,
            half_bytes: row_bytes,
            ends_in_half: out % 2 == 1,
        };
        multiply(dx, write, (tokens, inner, words), (&dy, words, 1), right);
        return Ok(());
    }
    debug_assert!(!in_hardware || w.dtype() != DType::BF16);
    let (dy, w) = (Mat::new(dy, tokens, out), &widened(w)?);
    gemm::rows_times(dx, write, dy, Mat::new(w, out, inner));
    Ok(())
}

/// `d_w += dyᵀ x` for gradients `dy` `[tokens, out]` and activations `x` `[tokens, in]`.
pub(super) fn add_products(
    d_w: &mut [f32],
    dy: &[f32],
    x: &[f32],
    (tokens, out, inner): (usize, usize, usize),
    precision: Activations,
) {
    let in_hardware = multiplies(precision);
    #[cfg(target_arch = "x86_64")]
    if in_hardware {
        assert_eq!(
            (d_w.len(), dy.len(), x.len()),
            (out * inner, tokens * out, tokens * inner),
            "operands"
        );
        if d_w.is_empty() || tokens == 0 {
            return;
        }
        let (dy, x) = (pairs_of_rows(dy, out), pairs_of_rows(x, inner));
        let right = Right {
            words: x.as_ptr().cast(),
            col_bytes: size_of::<u32>(),
            word_bytes: inner * size_of::<u32>(),
            half_bytes: size_of::<bf16>(),
            ends_in_half: false,
        };
        let size = (out, inner, tokens.div_ceil(2));
        multiply(d_w, Write::Accumulate, size, (&dy, 1, out), right);
        return;
    }
    debug_assert!(!in_hardware);
    gemm::matmul(
        MatMut::new(d_w, out, inner),
        Write::Accumulate,
        Mat::new(dy, tokens, out).t(),
        Mat::new(x, tokens, inner),
        Threads::Pool,
    );
}

/// Multiplies pairs of bf16. The left operand comes with the strides of its rows and words.
#[cfg(target_arch = "x86_64")]
fn multiply(
    y: &mut [f32],
    write: Write,
    (rows, cols, words): (usize, usize, usize),
    (left, row_stride, word_stride): (&[u32], usize, usize),
    right: Right,
) {
    assert_eq!((y.len(), left.len()), (rows * cols, rows * words), "left");
    let left = Left {
        words: left.as_ptr(),
        rest: left.as_ptr(),
        row_stride,
        word_stride,
    };
    let target = Target {
        values: y.as_mut_ptr(),
        row_stride: cols,
        accumulates: write == Write::Accumulate,
    };
    let size = Size { rows, cols, words };
    // SAFETY: the operands are as long as the sizes say, by the assertions here and in both callers; `y` is borrowed
    // mutably; that bf16 can be multiplied here was looked up.
    unsafe { avx512::multiply(Words::Bf16, size, left, right, target, Threads::Pool) };
}

/// Rounds to pairs of a column's elements in two rows that follow each other, the last of an odd number beside zeros.
#[cfg(target_arch = "x86_64")]
fn pairs_of_rows(x: &[f32], width: usize) -> Vec<u32> {
    let words = x.len().div_ceil(2 * width);
    let mut all = vec![0; words * width];
    let rows = rows_per_task(width);
    let tasks = all.par_chunks_mut(rows * width);
    tasks
        .zip(x.par_chunks(2 * rows * width))
        .for_each(|(all, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (words, x) in all.chunks_exact_mut(width).zip(x.chunks(2 * width)) {
                        let (a, b) = x.split_at(width);
                        if b.is_empty() {
                            for (word, a) in words.iter_mut().zip(a) {
                                *word = pair(rounded(*a), 0);
                            }
                        }
                        for ((word, a), b) in words.iter_mut().zip(a).zip(b) {
                            *word = pair(rounded(*a), rounded(*b));
                        }
                    }
                },
            );
        });
    all
}

#[cfg(test)]
mod tests {
    use super::super::simd::Noise;
    use super::*;
    use crate::model::kernels::tensor::{rounded as to_bf16, rounded_to_bf16};

    fn narrow(x: &[f32]) -> Vec<f32> {
        to_bf16(x).iter().map(|x| x.to_f32()).collect()
    }

    #[test]
    fn gradients_are_those_of_rounded_operands_whatever_the_shape() {
        let mut noise = Noise::new(12);
        for (tokens, out, inner) in [
            (1, 1, 1),
            (2, 70, 33),
            (7, 64, 256),
            (13, 131, 65),
            (481, 17, 64),
            (500, 200, 301),
        ] {
            let (dy, x) = (noise.vector(tokens * out), noise.vector(tokens * inner));
            let (w, before) = (noise.vector(out * inner), noise.vector(tokens * inner));
            let weight = rounded_to_bf16(&w, (out, inner)).unwrap();
            let rounds = multiplies(Activations::Bf16);
            let as_used = |x: &[f32]| if rounds { narrow(x) } else { x.to_vec() };
            let (dy_used, x_used, w_used) = (as_used(&dy), as_used(&x), narrow(&w));

            let mut dx = before.clone();
            rows_times(&mut dx, Write::Accumulate, &dy, &weight, Activations::Bf16).unwrap();
            let mut d_w = w.clone();
            let sizes = (tokens, out, inner);
            add_products(&mut d_w, &dy, &x, sizes, Activations::Bf16);
            let near = |found: f32, start: f32, terms: &mut dyn Iterator<Item = (f32, f32)>| {
                let (mut sum, mut size) = (f64::from(start), f64::from(start.abs()));
                for (a, b) in terms {
                    sum += f64::from(a) * f64::from(b);
                    size += f64::from((a * b).abs());
                }
                assert!(
                    (f64::from(found) - sum).abs() <= 1e-6 * size,
                    "{tokens} {out} {inner}: {found} {sum}"
                );
            };
            for (at, found) in dx.iter().enumerate() {
                let (t, i) = (at / inner, at % inner);
                let mut terms = (0..out).map(|o| (dy_used[t * out + o], w_used[o * inner + i]));
                near(*found, before[at], &mut terms);
            }
            for (at, found) in d_w.iter().enumerate() {
                let (o, i) = (at / inner, at % inner);
                let mut terms = (0..tokens).map(|t| (dy_used[t * out + o], x_used[t * inner + i]));
                near(*found, w[at], &mut terms);
            }
            // A row alone, into a buffer of something else.
            let row = tokens / 2;
            let mut alone = vec![f32::NAN; inner];
            let dy_row = &dy[row * out..(row + 1) * out];
            rows_times(
                &mut alone,
                Write::Replace,
                dy_row,
                &weight,
                Activations::Bf16,
            )
            .unwrap();
            let mut all = vec![f32::NAN; tokens * inner];
            rows_times(&mut all, Write::Replace, &dy, &weight, Activations::Bf16).unwrap();
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone), bits(&all[row * inner..(row + 1) * inner]));
        }
    }
}
