//! Small vector kernels, compiled for the widest instructions the machine has at run time.
//!
//! Sums run in [`LANES`] fixed partial sums that are added in one fixed order, so a result depends
//! on the data alone, not on the width of the machine's registers or on the number of threads.

use std::sync::LazyLock;

/// Number of partial sums of a reduction; one AVX-512 register of f32, two of AVX2.
pub(crate) const LANES: usize = 16;

/// Vocabulary entries that one step of a running log-sum-exp takes in: their exponentials are summed in f32.
pub(crate) const VOCAB_TILE: usize = 4096;

/// The instruction set found at start-up.
static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs a loop compiled for the widest instructions of this machine.
///
/// The closure has to be `#[inline(always)]`, or its body stays outside and is compiled for the
/// oldest machine, where a fused multiply-add is a function call.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnMut() -> R) -> R {
    // Not a bare closure: calling one through `FnOnce` goes through a shim that is not inlined.
    struct Inlined<F>(F);

    impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
        type Output = R;

        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }

    ARCH.dispatch(Inlined(f))
}

/// `e^x` in f32, within 2 units in the last place for `x` in [-87, 88]; 0 below that range.
///
/// Cody-Waite reduction by ln 2 and the degree-5 minimax polynomial of Cephes' `expf`. It has no
/// branch, so that a loop over it is vectorized, which the C library's function prevents.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_6e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r * r, r) + 1.0;
    // 2^n, put together from its bits. n lies in [-126, 127], so n + 127 fits the exponent field,
    // and the bits of ROUND above it are shifted out.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = p * scale;
    if x < -87.3 { 0.0 } else { value }
}

/// Hyperbolic tangent in f32, within 3e-7 of the exact value, relative to it below 0.6.
///
/// Cephes' `tanhf`: an odd polynomial near zero, where `1 - 2 / (e^2x + 1)` would cancel.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3_f32;
    p = p.mul_add(z, 2.063_909e-2);
    p = p.mul_add(z, -5.373_971_5e-2);
    p = p.mul_add(z, 1.333_144_2e-1);
    p = p.mul_add(z, -3.333_328e-1);
    let near = (p * z).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    let far = if x < 0.0 { -far } else { far };
    if z < 0.390_625 { near } else { far }
}

/// `cap * tanh(x / cap)`
#[inline(always)]
pub(crate) fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// `1 - (y / cap)^2`, the slope of [`soft_cap`] where it gave `y`.
#[inline(always)]
pub(crate) fn soft_cap_slope(y: f32, cap: f32) -> f32 {
    let t = y / cap;
    1.0 - t * t
}

/// Squeezes logits into the range of the cap.
#[inline(always)]
pub(crate) fn squeeze(logits: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        for logit in logits {
            *logit = soft_cap(*logit, cap);
        }
    }
}

/// Adds lanes in one fixed order.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Sum of `f(a_i, b_i)`.
#[inline(always)]
fn reduce2(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = f(a[i], b[i], lanes[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = f(*a, *b, lanes[i]);
    }
    total(lanes)
}

/// Dot product of two vectors of one length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce2(a, b, |a, b, sum| a.mul_add(b, sum))
}

/// Largest element; negative infinity for an empty slice, NaN elements are passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(rest) {
        largest = if value > largest { value } else { largest };
    }
    largest
}

/// Replaces every element by `e^(element - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_shifted(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in chunks.by_ref() {
        for i in 0..LANES {
            let e = exp(chunk[i] - shift);
            chunk[i] = e;
            lanes[i] += e;
        }
    }
    for (i, value) in chunks.into_remainder().iter_mut().enumerate() {
        let e = exp(*value - shift);
        *value = e;
        lanes[i] += e;
    }
    total(lanes)
}

/// Sum of `e^(element - shift)`.
#[inline(always)]
pub(crate) fn sum_exp_shifted(values: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp(chunk[i] - shift);
        }
    }
    for (i, value) in rest.iter().enumerate() {
        lanes[i] += exp(*value - shift);
    }
    total(lanes)
}

/// Sum of `e^(element - shift)`, the same bits as [`sum_exp_shifted`]; and of that times `element - shift`.
#[inline(always)]
pub(crate) fn sums_exp_shifted(values: &[f32], shift: f32) -> (f32, f32) {
    sums_exp(values, |value| value - shift)
}

/// As [`sums_exp_shifted`], of `(element - shift) * factor` for `element - shift`. Elements may be negative infinity,
/// and count for nothing then.
#[inline(always)]
pub(crate) fn sums_exp_scaled(values: &[f32], shift: f32, factor: f32) -> (f32, f32) {
    sums_exp(values, |value| (value - shift) * factor)
}

#[inline(always)]
fn sums_exp(values: &[f32], exponent: impl Fn(f32) -> f32) -> (f32, f32) {
    let mut sums = [0.0_f32; LANES];
    let mut weighted = [0.0_f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            let d = exponent(chunk[i]);
            let e = exp(d);
            sums[i] += e;
            // Below, e is 0, and d may be infinite.
            weighted[i] = e.mul_add(d.max(-1000.0), weighted[i]);
        }
    }
    for (i, value) in rest.iter().enumerate() {
        let d = exponent(*value);
        let e = exp(d);
        sums[i] += e;
        weighted[i] = e.mul_add(d.max(-1000.0), weighted[i]);
    }
    (total(sums), total(weighted))
}

/// Index of the first element that exceeds a bound.
#[inline(always)]
pub(crate) fn first_above(values: &[f32], bound: f32) -> Option<usize> {
    let mut at = 0;
    for chunk in values.chunks(4 * LANES) {
        let mut any = false;
        for value in chunk {
            any |= *value > bound;
        }
        if any {
            return chunk
                .iter()
                .position(|value| *value > bound)
                .map(|i| at + i);
        }
        at += chunk.len();
    }
    None
}

/// Seeded standard normal-ish numbers for tests (a sum of uniforms), the same on every machine.
#[cfg(test)]
pub(crate) struct Noise(u64);

#[cfg(test)]
impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn uniform(&mut self) -> f32 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }

    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.73
    }

    pub fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0_f32;
        while x < 88.0 {
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!(
                ((got - want) / want).abs() < 2.4e-7,
                "exp({x}) = {got}, not {want}"
            );
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_agrees_with_f64() {
        let mut x = -30.0_f32;
        while x < 30.0 {
            let want = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - want).abs();
            let allowed = if x.abs() < 0.6 {
                3e-7 * want.abs()
            } else {
                3e-7
            };
            assert!(error <= allowed, "tanh({x}) is off by {error}");
            x += 0.003_7;
        }
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(1e9), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sums_agree_with_f64() {
        let mut noise = Noise::new(3);
        for len in [0, 1, 15, 16, 17, 1000] {
            let a = noise.vector(len);
            let b = noise.vector(len);
            let want: f64 = a
                .iter()
                .zip(&b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(dot(&a, &b)) - want).abs() < 1e-4);
            let want: f64 = a.iter().map(|a| f64::from(*a - 1.5).exp()).sum();
            assert!((f64::from(sum_exp_shifted(&a, 1.5)) - want).abs() < 1e-4);
            let mut replaced = a.clone();
            assert_eq!(exp_shifted(&mut replaced, 1.5), sum_exp_shifted(&a, 1.5));
            let (sum, weighted) = sums_exp_shifted(&a, 1.5);
            assert_eq!(sum.to_bits(), sum_exp_shifted(&a, 1.5).to_bits());
            let exponents = || a.iter().map(|a| f64::from(*a - 1.5));
            let want: f64 = exponents().map(|d| d * d.exp()).sum();
            assert!((f64::from(weighted) - want).abs() < 1e-4);
            let (sum, weighted) = sums_exp_scaled(&a, 1.5, 0.5);
            let want: f64 = exponents().map(|d| (d / 2.0).exp()).sum();
            assert!((f64::from(sum) - want).abs() < 1e-4);
            let want: f64 = exponents().map(|d| d / 2.0 * (d / 2.0).exp()).sum();
            assert!((f64::from(weighted) - want).abs() < 1e-4);
            let above = a.iter().position(|a| *a > 0.5);
            assert_eq!(first_above(&a, 0.5), above);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
