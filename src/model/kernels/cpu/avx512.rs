//! Matrix products with AVX-512: one loop for f32, and for bf16 where the CPU multiplies pairs of it.
//!
//! Operands are words of 32 bits: an f32, or two bf16 that follow each other along the sum. The right operand is
//! copied into panels of [`PANEL`] columns, a block of the sum at a time, and multiplied while it is in the cache; the
//! left one is read where it is. An element of the destination is the sum of its blocks in order, each summed in order
//! from 0: it depends on its own row and column alone, bit for bit, and not on the number of threads.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_cvtepu16_epi32, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::mem::transmute;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::threads::Threads;

/// Words of a register.
const LANES: usize = 16;
/// Registers beside each other in a tile.
const VECTORS: usize = 4;
/// Columns of a panel, and of a tile.
const PANEL: usize = VECTORS * LANES;
/// Rows of a tile: with 24 registers for its sums, what is left holds the operands.
const TILE_ROWS: usize = 6;
/// Words of the sum that a panel holds at a time: 32 KiB, which the nearest cache has room for.
const BLOCK: usize = 128;
/// Rows that go through a panel before it is copied anew, so that those of the left operand stay in a near cache too.
/// Where there are tasks enough for all threads, a task has as many rows as a batch mostly has, and copies less.
const ROWS_OF_TASK: [usize; 2] = [80 * TILE_ROWS, 171 * TILE_ROWS];
/// Tasks of each thread that are enough.
const TASKS_OF_THREAD: usize = 4;

/// AVX-512 is there.
static HAS_F32: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512f"));
/// And products of bf16.
static HAS_BF16: LazyLock<bool> =
    LazyLock::new(|| *HAS_F32 && is_x86_feature_detected!("avx512bf16"));

/// Returns whether products of f32 can be computed here.
pub(super) fn multiplies_f32() -> bool {
    *HAS_F32
}

/// Returns whether products of bf16 can be computed here.
pub(super) fn multiplies_bf16() -> bool {
    *HAS_BF16
}

/// The kind of words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// An f32.
    F32,
    /// Two bf16.
    Bf16,
    /// Two bf16, and the left operand is the sum of two of its kind.
    SplitBf16,
}

/// The left operand: words of rows, `row_stride` and `word_stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub words: *const u32,
    /// The second summand, of [`Words::SplitBf16`]; else the first again.
    pub rest: *const u32,
    pub row_stride: usize,
    pub word_stride: usize,
}

/// The right operand: words of columns, at any address, `col_bytes` and `word_bytes` apart.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub words: *const u8,
    pub col_bytes: usize,
    pub word_bytes: usize,
    /// Where the second half of a word of two bf16 is, from its first; side by side they are a word as it is stored.
    pub half_bytes: usize,
    /// The last word of a column is half a word: the last of an odd number of bf16.
    pub ends_in_half: bool,
}

impl Right {
    /// Returns whether words are stored as such.
    fn has_whole_words(self) -> bool {
        self.half_bytes == size_of::<u16>()
    }
}

/// The destination: rows of f32 `row_stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub values: *mut f32,
    pub row_stride: usize,
    /// Adds to what is there.
    pub accumulates: bool,
}

/// Rows, columns, and words of the sum.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub rows: usize,
    pub cols: usize,
    pub words: usize,
}

/// Everything that a task needs to know.
#[derive(Clone, Copy)]
struct Product {
    kind: Words,
    size: Size,
    left: Left,
    right: Right,
    target: Target,
    rows_of_task: usize,
}

// SAFETY: whoever makes one answers for reads of the operands and writes of the target from any thread, and no two
// tasks write the same element.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

/// Multiplies.
///
/// # Safety
///
/// The words of all rows and columns must be readable, `size.rows` rows of `size.cols` elements writable and, unless
/// they are replaced, initialized; the target overlaps no operand. The CPU has to have what the kind needs:
/// [`multiplies_f32`], or [`multiplies_bf16`].
pub(super) unsafe fn multiply(
    kind: Words,
    size: Size,
    left: Left,
    right: Right,
    target: Target,
    threads: Threads,
) {
    let panels = size.cols.div_ceil(PANEL);
    let [few, many] = ROWS_OF_TASK;
    let wanted = match threads {
        Threads::One => 1,
        Threads::Pool => TASKS_OF_THREAD * rayon::current_num_threads(),
    };
    let rows_of_task = match panels * size.rows.div_ceil(many) >= wanted {
        true => many,
        false => few,
    };
    let product = Product {
        kind,
        size,
        left,
        right,
        target,
        rows_of_task,
    };
    let tasks = panels * size.rows.div_ceil(rows_of_task);
    let run = |task: usize| {
        // SAFETY: the caller answers for memory and CPU; tasks differ in their rows or in their columns.
        unsafe { product.run(task / panels, task % panels) }
    };
    match threads {
        Threads::One => (0..tasks).for_each(run),
        Threads::Pool => (0..tasks).into_par_iter().for_each(run),
    }
}

thread_local! {
    /// A block of a panel.
    static PACKED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Product {
    /// Computes a panel of the target, for the rows of one task.
    ///
    /// # Safety
    ///
    /// As [`multiply`].
    unsafe fn run(&self, rows: usize, panel: usize) {
        let first_row = rows * self.rows_of_task;
        let last_row = self.size.rows.min(first_row + self.rows_of_task);
        let first_col = panel * PANEL;
        let cols = PANEL.min(self.size.cols - first_col);
        PACKED.with_borrow_mut(|packed| {
            packed.resize(BLOCK * PANEL, 0);
            let mut at = 0;
            loop {
                let words = BLOCK.min(self.size.words - at);
                // SAFETY: the block lies within the operand, by the sizes; the buffer holds any block.
                unsafe { self.pack(packed, (first_col, cols), (at, words)) };
                let replaces = at == 0 && !self.target.accumulates;
                let mut row = first_row;
                while row < last_row {
                    let height = TILE_ROWS.min(last_row - row);
                    let tile = Tile {
                        left: self.left.at(row, at),
                        packed: packed.as_ptr(),
                        words,
                        // SAFETY: row and column lie within the target.
                        target: unsafe {
                            self.target
                                .values
                                .add(row * self.target.row_stride + first_col)
                        },
                        row_stride: self.target.row_stride,
                        cols,
                        replaces,
                    };
                    // SAFETY: the caller answers for the CPU; the tile lies within operands and target.
                    unsafe { tile.run(self.kind, height) };
                    row += height;
                }
                at += words;
                if at >= self.size.words {
                    break;
                }
            }
        });
    }

    /// Copies a block of a panel, word after word of the sum; columns that are not there are zeros.
    ///
    /// # Safety
    ///
    /// As [`multiply`]; `packed` has room for `words` times [`PANEL`].
    unsafe fn pack(
        &self,
        packed: &mut [u32],
        (first_col, cols): (usize, usize),
        (first_word, words): (usize, usize),
    ) {
        let Right {
            words: from,
            col_bytes,
            word_bytes,
            half_bytes,
            ends_in_half,
        } = self.right;
        // Offsets of words of the operand, from its first.
        let at = |col: usize, word: usize| {
            (first_col + col) * col_bytes + (first_word + word) * word_bytes
        };
        let is_last = first_word + words == self.size.words;
        let whole = words - usize::from(ends_in_half && is_last);
        if cols < PANEL {
            packed[..words * PANEL].fill(0);
        }
        // Columns that run along the sum are transposed in squares, what is left over one by one.
        let (mut square_cols, mut square_words) = (0, 0);
        if word_bytes == size_of::<u32>() && self.right.has_whole_words() {
            square_cols = cols / LANES * LANES;
            square_words = whole / LANES * LANES;
            for col in (0..square_cols).step_by(LANES) {
                for word in (0..square_words).step_by(LANES) {
                    // SAFETY: 16 columns of 16 words lie within the operand and within the buffer.
                    unsafe {
                        let to = packed.as_mut_ptr().add(word * PANEL + col);
                        transpose(from.add(at(col, word)), col_bytes, to);
                    }
                }
            }
        }
        for word in 0..whole {
            let begin = if word < square_words { square_cols } else { 0 };
            let row = &mut packed[word * PANEL..word * PANEL + cols];
            if !self.right.has_whole_words() {
                // SAFETY: both halves of the words lie within the operand, and whoever multiplies bf16 has AVX-512.
                unsafe { interleave(from.add(at(0, word)), col_bytes, half_bytes, row) };
                continue;
            }
            if begin == 0 && col_bytes == size_of::<u32>() {
                // SAFETY: the columns of a word lie side by side in the operand.
                unsafe {
                    from.add(at(0, word))
                        .copy_to_nonoverlapping(row.as_mut_ptr().cast(), size_of_val(row));
                }
                continue;
            }
            for (col, packed) in row.iter_mut().enumerate().skip(begin) {
                // SAFETY: the word lies within the operand.
                *packed = unsafe { from.add(at(col, word)).cast::<u32>().read_unaligned() };
            }
        }
        if whole < words {
            let row = &mut packed[whole * PANEL..whole * PANEL + cols];
            for (col, packed) in row.iter_mut().enumerate() {
                // SAFETY: the first half of the word is the last of the operand's column.
                let half = unsafe { from.add(at(col, whole)).cast::<u16>().read_unaligned() };
                *packed = u32::from(half);
            }
        }
    }
}

impl Left {
    /// Returns where words of a row begin.
    fn at(self, row: usize, word: usize) -> Self {
        let offset = row * self.row_stride + word * self.word_stride;
        Self {
            words: self.words.wrapping_add(offset),
            rest: self.rest.wrapping_add(offset),
            ..self
        }
    }
}

/// Some rows of a panel of the target, and a block of the sum.
struct Tile {
    left: Left,
    packed: *const u32,
    words: usize,
    target: *mut f32,
    row_stride: usize,
    cols: usize,
    replaces: bool,
}

/// The sums of a tile's rows.
type Sums<const ROWS: usize> = [[__m512; VECTORS]; ROWS];

impl Tile {
    /// Computes a tile of 1 to [`TILE_ROWS`] rows.
    ///
    /// # Safety
    ///
    /// The rows of the left operand and of the target must be there, and the CPU has to have what the kind needs.
    unsafe fn run(&self, kind: Words, rows: usize) {
        // SAFETY: the caller's.
        unsafe {
            match rows {
                1 => self.of_rows::<1>(kind),
                2 => self.of_rows::<2>(kind),
                3 => self.of_rows::<3>(kind),
                4 => self.of_rows::<4>(kind),
                5 => self.of_rows::<5>(kind),
                _ => self.of_rows::<TILE_ROWS>(kind),
            }
        }
    }

    unsafe fn of_rows<const ROWS: usize>(&self, kind: Words) {
        // What the sums are written to is under way while they are added up.
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                let at = row * self.row_stride + vector * LANES;
                // SAFETY: a hint, for whatever address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(self.target.wrapping_add(at).cast());
                }
            }
        }
        // Known strides leave the loop nothing to compute.
        let is_along = self.left.word_stride == 1;
        // SAFETY: the caller's.
        unsafe {
            match (kind, is_along) {
                (Words::F32, true) => self.f32::<ROWS, true>(),
                (Words::F32, false) => self.f32::<ROWS, false>(),
                (Words::Bf16, true) => self.bf16::<ROWS, false, true>(),
                (Words::Bf16, false) => self.bf16::<ROWS, false, false>(),
                (Words::SplitBf16, true) => self.bf16::<ROWS, true, true>(),
                (Words::SplitBf16, false) => self.bf16::<ROWS, true, false>(),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn f32<const ROWS: usize, const ALONG: bool>(&self) {
        let stride = if ALONG { 1 } else { self.left.word_stride };
        let mut sums: Sums<ROWS> = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for word in 0..self.words {
            // SAFETY: the panel has this word, and the left operand these rows.
            unsafe {
                let right = vectors(self.packed, word);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = row * self.left.row_stride + word * stride;
                    let left: __m512 =
                        transmute(_mm512_set1_epi32(*self.left.words.add(at) as i32));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm512_fmadd_ps(left, transmute::<__m512i, __m512>(right), *sum);
                    }
                }
            }
        }
        // SAFETY: the caller's.
        unsafe { self.write(&sums) };
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16<const ROWS: usize, const SPLIT: bool, const ALONG: bool>(&self) {
        let stride = if ALONG { 1 } else { self.left.word_stride };
        let mut sums: Sums<ROWS> = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for word in 0..self.words {
            // SAFETY: the panel has this word, and the left operand these rows.
            unsafe {
                let right = vectors(self.packed, word);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = row * self.left.row_stride + word * stride;
                    let left: __m512bh =
                        transmute(_mm512_set1_epi32(*self.left.words.add(at) as i32));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm512_dpbf16_ps(*sum, left, transmute::<__m512i, __m512bh>(right));
                    }
                    if SPLIT {
                        let rest: __m512bh =
                            transmute(_mm512_set1_epi32(*self.left.rest.add(at) as i32));
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum =
                                _mm512_dpbf16_ps(*sum, rest, transmute::<__m512i, __m512bh>(right));
                        }
                    }
                }
            }
        }
        // SAFETY: the caller's.
        unsafe { self.write(&sums) };
    }

    /// Writes the sums, or adds them to what is there.
    #[target_feature(enable = "avx512f")]
    unsafe fn write<const ROWS: usize>(&self, sums: &Sums<ROWS>) {
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let lanes = self.cols.saturating_sub(vector * LANES).min(LANES);
                let mask = ((1_u32 << lanes) - 1) as u16;
                // SAFETY: lanes that are no columns of the target are masked out.
                unsafe {
                    let target = self
                        .target
                        .wrapping_add(row * self.row_stride + vector * LANES);
                    let sum = match self.replaces {
                        true => *sum,
                        false => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, target), *sum),
                    };
                    _mm512_mask_storeu_ps(target, mask, sum);
                }
            }
        }
    }
}

/// Loads a word of all columns of a panel.
///
/// # Safety
///
/// The panel has this word.
#[target_feature(enable = "avx512f")]
unsafe fn vectors(packed: *const u32, word: usize) -> [__m512i; VECTORS] {
    let mut loaded = [_mm512_setzero_si512(); VECTORS];
    for (i, loaded) in loaded.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *loaded = unsafe { _mm512_loadu_si512(packed.add(word * PANEL + i * LANES).cast()) };
    }
    loaded
}

/// Puts words together whose halves are `half_bytes` apart, for columns `col_bytes` apart.
///
/// # Safety
///
/// Both halves of all words must be readable; AVX-512 is there.
#[target_feature(enable = "avx512f")]
unsafe fn interleave(from: *const u8, col_bytes: usize, half_bytes: usize, words: &mut [u32]) {
    let mut whole = 0;
    if col_bytes == size_of::<u16>() {
        whole = words.len() / LANES * LANES;
        for col in (0..whole).step_by(LANES) {
            // SAFETY: the caller's.
            unsafe {
                let first = from.add(col * col_bytes);
                let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.cast()));
                let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.add(half_bytes).cast()));
                let word = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(words.as_mut_ptr().add(col).cast(), word);
            }
        }
    }
    for (col, word) in words.iter_mut().enumerate().skip(whole) {
        // SAFETY: the caller's.
        unsafe {
            let first = from.add(col * col_bytes);
            let low = first.cast::<u16>().read_unaligned();
            let high = first.add(half_bytes).cast::<u16>().read_unaligned();
            *word = u32::from(low) | u32::from(high) << 16;
        }
    }
}

/// Copies 16 columns of 16 words, `col_bytes` apart, to 16 rows [`PANEL`] words apart.
///
/// # Safety
///
/// The words must be readable, and the rows writable; AVX-512 is there.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: *const u8, col_bytes: usize, to: *mut u32) {
    let mut cols = [_mm512_setzero_si512(); LANES];
    for (i, col) in cols.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *col = unsafe { _mm512_loadu_si512(from.add(i * col_bytes).cast()) };
    }
    // Pairs of columns, then fours: `fours[4 g + w]` has word `w` of each quarter for columns 4 g to 4 g + 3.
    let mut pairs = cols;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(cols[i], cols[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(cols[i], cols[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // Quarters of four groups come together: words w, w + 4, w + 8 and w + 12.
    for word in 0..4 {
        let (a, b, c, d) = (
            fours[word],
            fours[4 + word],
            fours[8 + word],
            fours[12 + word],
        );
        let (low, high) = (
            [
                _mm512_shuffle_i32x4::<0x88>(a, b),
                _mm512_shuffle_i32x4::<0x88>(c, d),
            ],
            [
                _mm512_shuffle_i32x4::<0xdd>(a, b),
                _mm512_shuffle_i32x4::<0xdd>(c, d),
            ],
        );
        let rows = [
            _mm512_shuffle_i32x4::<0x88>(low[0], low[1]),
            _mm512_shuffle_i32x4::<0x88>(high[0], high[1]),
            _mm512_shuffle_i32x4::<0xdd>(low[0], low[1]),
            _mm512_shuffle_i32x4::<0xdd>(high[0], high[1]),
        ];
        for (quarter, row) in rows.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_si512(to.add((4 * quarter + word) * PANEL).cast(), row) };
        }
    }
}
