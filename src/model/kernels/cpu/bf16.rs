//! Products of activations with matrices in bf16, in the CPU's own instructions for bf16 where it has them.

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx512::{self, Left, Right, Size, Target, Words};
use super::buffers::rows_per_task;
use super::gemm;
use super::simd::vectorized;
#[cfg(target_arch = "x86_64")]
use super::threads::Threads;
use crate::model::Error;
#[cfg(target_arch = "x86_64")]
use crate::model::kernels::tensor::bf16_view;
use crate::model::kernels::tensor::widened;

/// Precision of activations in products with matrices in bf16; those with matrices in f32 are f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Activations {
    /// f32, with the matrix widened: the bits that a matrix in f32 gives.
    #[default]
    F32,
    /// Rounded to bf16, as on a GPU.
    Bf16,
    /// A sum of two bf16, off by 2^-17 of the activation at most; f32 where the CPU does not multiply bf16.
    Split,
}

/// Returns `x wᵀ` for token rows `x` `[tokens, in]` and a weight `w` `[out, in]`. A row of the result depends on that
/// row of `x` alone, bit for bit.
pub(super) fn project(
    x: &[f32],
    w: &Tensor,
    tokens: usize,
    out: usize,
    activations: Activations,
) -> Result<Vec<f32>, Error> {
    #[cfg(target_arch = "x86_64")]
    if let Some(kind) = kind(w, activations) {
        let mut y = Vec::with_capacity(tokens * out);
        multiply(y.spare_capacity_mut(), x, w, kind)?;
        // SAFETY: every element was written.
        unsafe { y.set_len(tokens * out) };
        return Ok(y);
    }
    let x = in_f32(x, w, activations);
    Ok(gemm::project(&x, &widened(w)?, tokens, out))
}

/// [`project`] into a buffer of `tokens x out_features`.
pub(super) fn project_into(
    y: &mut [f32],
    x: &[f32],
    w: &Tensor,
    tokens: usize,
    out: usize,
    activations: Activations,
) -> Result<(), Error> {
    #[cfg(target_arch = "x86_64")]
    if let Some(kind) = kind(w, activations) {
        // SAFETY: the buffer is not read until it is written, and holds f32 before and after.
        let y = unsafe { &mut *(std::ptr::from_mut(y) as *mut [std::mem::MaybeUninit<f32>]) };
        return multiply(y, x, w, kind);
    }
    let x = in_f32(x, w, activations);
    gemm::project_into(y, &x, &widened(w)?, tokens, out);
    Ok(())
}

/// Returns activations as they enter a product in f32.
fn in_f32<'a>(x: &'a [f32], w: &Tensor, activations: Activations) -> Cow<'a, [f32]> {
    if w.dtype() != DType::BF16 || activations != Activations::Bf16 {
        return Cow::Borrowed(x);
    }
    let rounded = x.par_iter().map(|x| bf16::from_f32(*x).to_f32());
    Cow::Owned(rounded.collect())
}

/// Returns the kind of words to multiply, unless the product is one of f32.
#[cfg(target_arch = "x86_64")]
fn kind(w: &Tensor, activations: Activations) -> Option<Words> {
    if w.dtype() != DType::BF16 || !avx512::multiplies_bf16() {
        return None;
    }
    match activations {
        Activations::F32 => None,
        Activations::Bf16 => Some(Words::Bf16),
        Activations::Split => Some(Words::SplitBf16),
    }
}

/// Writes `x wᵀ` to all of `y`.
#[cfg(target_arch = "x86_64")]
fn multiply(
    y: &mut [std::mem::MaybeUninit<f32>],
    x: &[f32],
    w: &Tensor,
    kind: Words,
) -> Result<(), Error> {
    let (out, inner) = w.dims2()?;
    if y.is_empty() {
        return Ok(());
    }
    let tokens = y.len() / out;
    let w: &[bf16] = &bf16_view(w)?;
    assert_eq!(
        (x.len(), w.len()),
        (tokens * inner, out * inner),
        "operands"
    );
    assert_eq!(y.len(), tokens * out, "destination");
    let words = inner.div_ceil(2);
    let (high, rest) = pairs(x, tokens, inner, kind == Words::SplitBf16);
    let left = Left {
        words: high.as_ptr(),
        rest: if rest.is_empty() {
            high.as_ptr()
        } else {
            rest.as_ptr()
        },
        row_stride: words,
        word_stride: 1,
    };
    let right = Right {
        words: w.as_ptr().cast(),
        col_bytes: inner * size_of::<bf16>(),
        word_bytes: size_of::<u32>(),
        half_bytes: size_of::<bf16>(),
        ends_in_half: inner % 2 == 1,
    };
    let target = Target {
        values: y.as_mut_ptr().cast(),
        row_stride: out,
        accumulates: false,
    };
    let size = Size {
        rows: tokens,
        cols: out,
        words,
    };
    // SAFETY: the operands are as long as the sizes say, by the assertions and by how pairs are made; `y` is borrowed
    // mutably; that this kind can be multiplied here was looked up.
    unsafe { avx512::multiply(kind, size, left, right, target, Threads::Pool) };
    Ok(())
}

/// Rounds rows to pairs of bf16, the last of an odd number beside a zero; and what rounding left off, if that is wanted.
#[cfg(target_arch = "x86_64")]
pub(super) fn pairs(
    x: &[f32],
    tokens: usize,
    inner: usize,
    with_rest: bool,
) -> (Vec<u32>, Vec<u32>) {
    let words = inner.div_ceil(2);
    let mut high = vec![0; tokens * words];
    let mut rest = vec![0; if with_rest { tokens * words } else { 0 }];
    if inner == 0 {
        return (high, rest);
    }
    let rows = rows_per_task(inner);
    let task = |x: &[f32], high: &mut [u32], rest: &mut [u32]| {
        vectorized(
            #[inline(always)]
            || {
                for (i, x) in x.chunks_exact(inner).enumerate() {
                    let at = i * words..(i + 1) * words;
                    round_row(
                        x,
                        &mut high[at.clone()],
                        &mut rest[if with_rest { at } else { 0..0 }],
                    );
                }
            },
        );
    };
    let xs = x.par_chunks(rows * inner);
    let highs = high.par_chunks_mut(rows * words);
    if with_rest {
        let rests = rest.par_chunks_mut(rows * words);
        xs.zip(highs)
            .zip(rests)
            .for_each(|((x, high), rest)| task(x, high, rest));
    } else {
        xs.zip(highs).for_each(|(x, high)| task(x, high, &mut []));
    }
    (high, rest)
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn round_row(x: &[f32], high: &mut [u32], rest: &mut [u32]) {
    let (whole, last) = x.as_chunks::<2>();
    for (high, [a, b]) in high.iter_mut().zip(whole) {
        *high = pair(rounded(*a), rounded(*b));
    }
    if let ([a], Some(high)) = (last, high.last_mut()) {
        *high = pair(rounded(*a), 0);
    }
    let left_off = |x: f32| rounded(x - f32::from_bits(rounded(x)));
    for (rest, [a, b]) in rest.iter_mut().zip(whole) {
        *rest = pair(left_off(*a), left_off(*b));
    }
    if let ([a], Some(rest)) = (last, rest.last_mut()) {
        *rest = pair(left_off(*a), 0);
    }
}

/// Puts two together that were rounded.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn pair(a: u32, b: u32) -> u32 {
    a >> 16 | b & 0xffff_0000
}

/// Rounds to the nearest bf16, to the even one of two, and returns it as an f32 whose lower half is zero. What is no
/// number stays none.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if x.is_nan() { bits | 0x0040_0000 } else { up }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Noise;
    use super::*;
    use crate::model::kernels::tensor::rounded_to_bf16;

    /// The product in f64, of operands as they are rounded; and the sum of its terms' sizes.
    fn exact(x: &[f32], w: &[f32], (tokens, out, inner): (usize, usize, usize)) -> Vec<(f64, f64)> {
        let mut all = Vec::new();
        for t in 0..tokens {
            for o in 0..out {
                let terms = (0..inner).map(|i| {
                    let w = bf16::from_f32(w[o * inner + i]).to_f64();
                    f64::from(x[t * inner + i]) * w
                });
                all.push(terms.fold((0.0, 0.0), |(sum, size), term| {
                    (sum + term, size + term.abs())
                }));
            }
        }
        all
    }

    #[test]
    fn products_are_those_of_rounded_activations_whatever_the_shape() {
        let mut noise = Noise::new(11);
        for (tokens, out, inner) in [
            (1, 1, 1),
            (2, 70, 33),
            (7, 64, 256),
            (13, 130, 515),
            (481, 17, 64),
            (500, 200, 301),
        ] {
            let (x, w) = (noise.vector(tokens * inner), noise.vector(out * inner));
            let narrow = rounded_to_bf16(&w, (out, inner)).unwrap();
            for (activations, error) in [
                (Activations::F32, 1e-6),
                (Activations::Split, 1e-5),
                (Activations::Bf16, 1e-6),
            ] {
                let x_in: Vec<f32> = match activations {
                    Activations::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
                    _ => x.clone(),
                };
                let wanted = exact(&x_in, &w, (tokens, out, inner));
                let all = project(&x, &narrow, tokens, out, activations).unwrap();
                for (found, (wanted, size)) in all.iter().zip(wanted) {
                    assert!(
                        (f64::from(*found) - wanted).abs() <= error * size,
                        "{activations:?} {tokens} {out} {inner}: {found} {wanted}"
                    );
                }
                // A row alone, into a buffer of something else.
                let row = tokens / 2;
                let mut alone = vec![f32::NAN; out];
                let x_row = &x[row * inner..(row + 1) * inner];
                project_into(&mut alone, x_row, &narrow, 1, out, activations).unwrap();
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&alone), bits(&all[row * out..(row + 1) * out]));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn rounding_is_to_the_nearest_even_and_keeps_what_is_not_finite() {
        let mut noise = Noise::new(5);
        let mut values = noise.vector(1000);
        values.extend([
            0.0,
            -0.0,
            1.003_906_2,
            1.011_718_8,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
            1e-40,
        ]);
        for value in values {
            let found = f32::from_bits(rounded(value));
            let wanted = bf16::from_f32(value).to_f32();
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan());
        }
    }
}
