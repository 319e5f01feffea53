//! Matrix products on the CPU: a safe, bounds-checked face of the `gemm` crate, and the rule that
//! makes a row of a product independent of how many rows stand beside it.
//!
//! Shapes are written `[rows, cols]`.

use std::sync::Once;

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::threads::Threads;
use crate::model::Error;

/// Once a process: how the crate goes about products.
static SETTINGS: Once = Once::new();

/// Height, in tiles of the kernel, from which the crate copies its right operand into panels also where that
/// runs along the sum already. On CPUs with AVX-512 products of a layer's shapes took 8 to 10 % less time
/// without these copies, at any height; sums are added in the same order either way.
const NEVER_PACK: usize = 1 << 20;

/// A read-only matrix: a view of a slice with arbitrary positive strides.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `[rows, cols]` stored row after row.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `[rows, cols]` whose rows begin `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, 1);
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transpose, `[cols, rows]`.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to write to, row-major with a stride between its rows.
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// `[rows, cols]` stored row after row.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `[rows, cols]` whose rows begin `row_stride` elements apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, 1);
        Self {
            data,
            rows,
            cols,
            row_stride,
        }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) {
    assert!(
        row_stride >= cols,
        "rows of {cols} columns overlap at a stride of {row_stride}"
    );
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(
            last < len,
            "a {rows} x {cols} matrix does not fit in {len} elements"
        );
    }
}

/// How a product meets what the destination already holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// `dst = a b`
    Replace,
    /// `dst = dst + a b`
    Accumulate,
}

/// `dst (+)= a b` with `a` `[m, k]`, `b` `[k, n]`, `dst` `[m, n]`.
///
/// # Panics
///
/// When the shapes do not fit together; they are the caller's own, never a file's.
pub(crate) fn matmul(dst: MatMut<'_>, write: Write, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    assert_eq!((dst.rows, dst.cols), (a.rows, b.cols), "destination");
    // SAFETY: `check` proved that the element of `dst` with the largest offset lies in its slice, which is
    // borrowed mutably, so it overlaps neither input; its elements are initialized.
    unsafe {
        multiply(dst.data.as_mut_ptr(), dst.row_stride, write, a, b, threads);
    }
}

/// A new matrix `a b`, `[m, n]`, row-major, whose memory is not filled with zeros first.
fn product(a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
    let elements = a.rows * b.cols;
    if a.cols == 0 {
        return vec![0.0; elements];
    }
    let mut out = Vec::with_capacity(elements);
    // SAFETY: the buffer has room for all `a.rows x b.cols` elements at a stride of `b.cols`, nothing else
    // refers to it, and with `Write::Replace` they are written before they are read. As the inner
    // dimension is not 0, every one of them is written, which makes the length true.
    unsafe {
        multiply(
            out.as_mut_ptr(),
            b.cols,
            Write::Replace,
            a,
            b,
            Threads::Pool,
        );
        out.set_len(elements);
    }
    out
}

/// `dst (+)= a b`, `dst` row-major with rows `row_stride` elements apart.
///
/// # Safety
///
/// `dst` must be valid for writes of `a.rows` such rows of `b.cols` elements each, must not overlap `a` or
/// `b`, and its elements must be initialized unless they are replaced.
unsafe fn multiply(
    dst: *mut f32,
    row_stride: usize,
    write: Write,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions");
    #[cfg(target_arch = "x86_64")]
    if avx512::multiplies_f32() {
        let size = avx512::Size {
            rows: a.rows,
            cols: b.cols,
            words: a.cols,
        };
        let left = avx512::Left {
            words: a.data.as_ptr().cast(),
            rest: a.data.as_ptr().cast(),
            row_stride: a.row_stride,
            word_stride: a.col_stride,
        };
        let right = avx512::Right {
            words: b.data.as_ptr().cast(),
            col_bytes: b.col_stride * size_of::<f32>(),
            word_bytes: b.row_stride * size_of::<f32>(),
            half_bytes: size_of::<u16>(),
            ends_in_half: false,
        };
        let target = avx512::Target {
            values: dst,
            row_stride,
            accumulates: write == Write::Accumulate,
        };
        // SAFETY: `check` proved for both inputs that the element with the largest offset lies in its slice; the
        // caller answers for `dst`.
        unsafe { avx512::multiply(avx512::Words::F32, size, left, right, target, threads) };
        return;
    }
    SETTINGS.call_once(|| gemm::set_rhs_packing_threshold(NEVER_PACK));
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::Pool => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `check` proved for both inputs that the element with the largest offset lies in its slice, and
    // offsets are never negative; the caller answers for `dst`. The crate needs nothing else: any
    // alignment and any strides are accepted.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst,
            1,
            row_stride as isize,
            write == Write::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Fewest rows of `x` at which a product may be handed to the kernel as it is.
///
/// Read off gemm-common 0.19: a product of one row takes a matrix-vector path; one of at most
/// 16 x 16 outputs whose operands both run along the sum takes a dot-product path; and one of at
/// most 64 x 64 outputs splits a sum of more than 512 terms at other places than a larger one.
/// Each adds in another order. From this many rows on, every height adds in the same order.
fn min_rows(out_features: usize) -> usize {
    if out_features > 64 {
        // 4 x 65 > 256
        4
    } else {
        65.max(256 / out_features.max(1) + 1)
    }
}

/// `y = x wᵀ` for token rows `x` `[tokens, in]` and a weight `w` `[out, in]`, giving `[tokens, out]`.
///
/// A row of `y` depends on that row of `x` alone, bit for bit: not on how many rows there are, nor
/// on where it stands among them, nor on the number of threads. Every product of the forward pass
/// in which the rows of different contexts meet goes through here.
pub(crate) fn project(x: &[f32], w: &[f32], tokens: usize, out_features: usize) -> Vec<f32> {
    let in_features = w.len() / out_features.max(1);
    new_rows(
        Mat::new(x, tokens, in_features),
        Mat::new(w, out_features, in_features).t(),
    )
}

/// A new `x b`, as [`rows_times`] has it.
pub(crate) fn new_rows(x: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
    if x.rows >= min_rows(b.cols) {
        return product(x, b);
    }
    let mut y = vec![0.0; x.rows * b.cols];
    rows_times(&mut y, Write::Replace, x, b);
    y
}

/// [`project`] into a buffer of `tokens x out_features`.
pub(crate) fn project_into(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    tokens: usize,
    out_features: usize,
) {
    if tokens == 0 || out_features == 0 {
        return;
    }
    let in_features = w.len() / out_features;
    rows_times(
        y,
        Write::Replace,
        Mat::new(x, tokens, in_features),
        Mat::new(w, out_features, in_features).t(),
    );
}

/// `y (+)= x b` for token rows `x` `[tokens, in]`, stored row after row, and any `b` `[in, out]`. As with
/// [`project`], a row of `y` depends on that row of `x` (and of `y`) alone, bit for bit.
pub(crate) fn rows_times(y: &mut [f32], write: Write, x: Mat<'_>, b: Mat<'_>) {
    let (tokens, inner, out) = (x.rows, x.cols, b.cols);
    if tokens == 0 || out == 0 {
        return;
    }
    let least = min_rows(out);
    if tokens >= least {
        matmul(MatMut::new(y, tokens, out), write, x, b, Threads::Pool);
        return;
    }
    let mut padded = vec![0.0; least * inner];
    padded[..tokens * inner].copy_from_slice(&x.data[..tokens * inner]);
    let mut wide = vec![0.0; least * out];
    wide[..tokens * out].copy_from_slice(&y[..tokens * out]);
    matmul(
        MatMut::new(&mut wide, least, out),
        write,
        Mat::new(&padded, least, inner),
        b,
        Threads::Pool,
    );
    y[..tokens * out].copy_from_slice(&wide[..tokens * out]);
}

/// Checks a product's element count before it is allocated.
pub(crate) fn elements(rows: usize, cols: usize) -> Result<usize, Error> {
    rows.checked_mul(cols).ok_or(Error::TooLarge { rows, cols })
}

#[cfg(test)]
mod tests {
    use super::super::simd::Noise;
    use super::*;
    use proptest::prelude::*;

    fn reference(x: &[f32], w: &[f32], tokens: usize, out: usize, inner: usize) -> Vec<f64> {
        let mut y = vec![0.0; tokens * out];
        for t in 0..tokens {
            for o in 0..out {
                y[t * out + o] = (0..inner)
                    .map(|i| f64::from(x[t * inner + i]) * f64::from(w[o * inner + i]))
                    .sum();
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// The shapes straddle every switch of the kernel: 1 row, 256 outputs, 64 x 64, k = 512.
        #[test]
        fn a_projected_row_does_not_depend_on_its_neighbours(
            out in prop_oneof![1..20_usize, 60..70_usize, 120..140_usize, Just(300)],
            inner in prop_oneof![1..8_usize, 30..70_usize, Just(512), 513..520_usize, Just(600), Just(1100)],
            tokens in prop_oneof![1..6_usize, 14..18_usize, 60..70_usize, Just(130)],
            seed in any::<u64>(),
        ) {
            let mut noise = Noise::new(seed);
            let x = noise.vector(tokens * inner);
            let w = noise.vector(out * inner);
            let together = project(&x, &w, tokens, out);
            let exact = reference(&x, &w, tokens, out, inner);
            for (got, want) in together.iter().zip(&exact) {
                prop_assert!((f64::from(*got) - want).abs() < 1e-3 * (inner as f64).sqrt());
            }
            for start in [0, tokens / 2, tokens - 1] {
                for end in [start + 1, start + 2, tokens] {
                    if end > tokens { continue; }
                    let part = project(&x[start * inner..end * inner], &w, end - start, out);
                    prop_assert_eq!(
                        part.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                        together[start * out..end * out].iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                        "rows {}..{} of {} tokens, {} -> {}", start, end, tokens, inner, out
                    );
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (tokens, inner, out) = (700, 600, 1500);
        let mut noise = Noise::new(7);
        let x = noise.vector(tokens * inner);
        let w = noise.vector(out * inner);
        let run = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| project(&x, &w, tokens, out))
        };
        let one = run(1);
        for threads in [2, 3, 5] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }
}
