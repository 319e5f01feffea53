//! Differences of log-probs, binned so that what a formula makes of them can be read off.
//!
//! Bins end where weights reach their bounds for any epsilon of two decimals and any of [`TEMPERATURES`], so for those the
//! shares at the bounds are exact. For others a threshold lies inside of a bin, below which is as large a share of its
//! count as of its width. Other ends keep bins narrow: less than a thousandth of a nat near 0, a few hundredths of their
//! distance farther out. Each bin has a count and the place of its mean, from which sums of weights follow. `formula.js` reads
//! numbers off the same bins by the same steps.

use std::sync::LazyLock;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::weight::shortest_decimal;

/// Temperatures for which shares at the bounds are exact, nats; the page's slider has them.
pub const TEMPERATURES: [f64; 20] = [
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0,
    7.0, 10.0,
];
/// Parts of 1 that an epsilon has two decimals for.
const EPSILON_STEPS: u32 = 100;
/// Differences beyond this are counted as this: every weight is at its bound long before.
const MOST_NATS: f64 = 100.0;
/// Other ends of bins are equally far apart in `asinh(nats / SCALE_NATS)`, and this many per unit.
const ENDS_PER_UNIT: u32 = 64;
const SCALE_NATS: f64 = 0.05;
/// Places of a mean in its bin that are told apart.
const PLACES: f64 = 256.0;
/// Ends that are nearer to each other than this share of them are one, and a threshold as near to one is there.
const SAME: f64 = 2e-6;

/// Ends of the bins, ascending, as they are written: the first bin lies between the first two.
static ENDS: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let mut positive = vec![MOST_NATS];
    for step in 1..EPSILON_STEPS {
        let epsilon = f64::from(step) / f64::from(EPSILON_STEPS);
        positive.extend(TEMPERATURES.map(|temperature| -lower_threshold(epsilon, temperature)));
    }
    let units = (MOST_NATS / SCALE_NATS).asinh();
    let step = 1.0 / f64::from(ENDS_PER_UNIT);
    let others = (1..).map(|end| f64::from(end) * step);
    positive.extend(
        others
            .take_while(|u| *u < units)
            .map(|u| SCALE_NATS * u.sinh()),
    );
    for end in &mut positive {
        *end = shortest_decimal(*end as f32);
    }
    positive.retain(|end| *end <= MOST_NATS);
    positive.sort_by(f64::total_cmp);
    positive.dedup_by(|end, before| *end - *before < SAME * *before);
    let negative = positive.iter().rev().map(|end| -end);
    negative
        .chain([0.0])
        .chain(positive.iter().copied())
        .collect()
});

/// Returns the ends of all bins, nats.
pub fn ends() -> &'static [f64] {
    &ENDS
}

/// Returns the difference below which a weight is at its lower bound; above its negative it is at the upper.
fn lower_threshold(epsilon: f64, temperature: f64) -> f64 {
    temperature * ((1.0 - epsilon) / (1.0 + epsilon)).ln()
}

/// Returns the end of a bin that a threshold is at, or the threshold where it is at none.
fn at_end(threshold: f64) -> f64 {
    let above = ENDS.partition_point(|end| *end < threshold);
    let near = [above.checked_sub(1), Some(above)];
    let near = near
        .into_iter()
        .flatten()
        .filter_map(|index| ENDS.get(index));
    let mut near = near.filter(|end| (*end - threshold).abs() < 2.0 * SAME * threshold.abs());
    near.next().copied().unwrap_or(threshold)
}

/// Counts differences of log-probs.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// Count and sum of each bin; none before the first value.
    bins: Vec<(u64, f64)>,
}

impl Histogram {
    /// Adds a difference, nats.
    pub fn add(&mut self, nats: f64) {
        let nats = nats.clamp(-MOST_NATS, MOST_NATS);
        let num_bins = ENDS.len().saturating_sub(1);
        if self.bins.is_empty() {
            self.bins = vec![(0, 0.0); num_bins];
        }
        // A difference at an end is in the bin above it; at the last end there is none.
        let index = ENDS.partition_point(|end| *end <= nats).saturating_sub(1);
        if let Some((count, sum)) = self.bins.get_mut(index.min(num_bins.saturating_sub(1))) {
            *count += 1;
            *sum += nats;
        }
    }

    /// Returns what was counted.
    pub fn bins(&self) -> Bins {
        let filled = self.bins.iter().enumerate().filter(|(_, (n, _))| *n > 0);
        let bins = filled.map(|(index, (count, sum))| {
            let (low, high) = between(index);
            let place = (sum / *count as f64 - low) / (high - low) * PLACES;
            Bin {
                index,
                count: *count,
                place: place.clamp(0.0, PLACES - 1.0) as u8,
            }
        });
        Bins(bins.collect())
    }
}

/// Returns the ends of a bin, nats.
fn between(index: usize) -> (f64, f64) {
    let end = |index: usize| ENDS.get(index).copied().unwrap_or(MOST_NATS);
    (end(index), end(index + 1))
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bin {
    index: usize,
    count: u64,
    place: u8,
}

/// The bins of a histogram that are not empty. In JSON a flat array: for each bin, how many bins it is after the one
/// before (the first: its index), its count, and the place of its mean in 256ths of its width.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bins(Vec<Bin>);

impl Serialize for Bins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut flat = serializer.serialize_seq(Some(3 * self.0.len()))?;
        let mut before = 0;
        for bin in &self.0 {
            flat.serialize_element(&(bin.index - before))?;
            flat.serialize_element(&bin.count)?;
            flat.serialize_element(&bin.place)?;
            before = bin.index;
        }
        flat.end()
    }
}

/// Sums over the weights that a formula gives to some targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WeightTotals {
    /// Number of targets.
    pub targets: f64,
    /// Sum of the weights.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
    /// Targets at the lower bound.
    pub at_lower: f64,
    /// Targets at the upper bound.
    pub at_upper: f64,
}

impl WeightTotals {
    /// Returns the sums over `selected` of `targets` that have the weight 1 while the others have 0.
    pub fn of_selection(targets: u64, selected: u64) -> Self {
        Self {
            targets: targets as f64,
            sum: selected as f64,
            squares: selected as f64,
            at_lower: (targets - selected.min(targets)) as f64,
            at_upper: selected as f64,
        }
    }

    /// Adds the sums of other targets.
    pub fn merge(&mut self, other: &Self) {
        self.targets += other.targets;
        self.sum += other.sum;
        self.squares += other.squares;
        self.at_lower += other.at_lower;
        self.at_upper += other.at_upper;
    }

    /// Returns the number of equally weighted targets whose mean is as well known (Kish): `sum² / squares`.
    pub fn effective(&self) -> f64 {
        if self.squares > 0.0 {
            self.sum * self.sum / self.squares
        } else {
            0.0
        }
    }
}

impl Bins {
    /// Returns what `clamp(2 sigmoid(x / temperature), 1 - epsilon, 1 + epsilon)` makes of the differences.
    pub fn weights(&self, epsilon: f64, temperature: f64) -> WeightTotals {
        let mut totals = WeightTotals::default();
        let lower = at_end(lower_threshold(epsilon, temperature));
        let upper = -lower;
        for bin in &self.0 {
            let count = bin.count as f64;
            totals.targets += count;
            if epsilon == 0.0 {
                totals.at_lower += count;
                totals.at_upper += count;
                totals.sum += count;
                totals.squares += count;
                continue;
            }
            let (low, high) = between(bin.index);
            let width = high - low;
            let below = ((lower - low) / width).clamp(0.0, 1.0);
            let above = ((high - upper) / width).clamp(0.0, 1.0);
            let within = 1.0 - below - above;
            let middle = if below == 0.0 && above == 0.0 {
                low + (f64::from(bin.place) + 0.5) / PLACES * width
            } else {
                0.5 * (low.max(lower) + high.min(upper))
            };
            let weight = 2.0 / (1.0 + (-middle / temperature).exp());
            let (at_lower, at_upper) = (below * count, above * count);
            totals.at_lower += at_lower;
            totals.at_upper += at_upper;
            let (l, u) = (1.0 - epsilon, 1.0 + epsilon);
            totals.sum += at_lower * l + at_upper * u + within * count * weight;
            totals.squares +=
                at_lower * l * l + at_upper * u * u + within * count * weight * weight;
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::{Center, WeightFormula};

    /// Differences that are nothing like uniform: many small ones, a heavy tail, ties.
    fn differences() -> Vec<f32> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let spread = (0..40_000).map(|i| next() * next() * if i % 20 == 0 { 40.0 } else { 3.0 });
        spread.collect()
    }

    #[test]
    fn what_is_read_off_the_bins_is_what_the_formula_gives() {
        let deltas = differences();
        let mut histogram = Histogram::default();
        deltas.iter().for_each(|d| histogram.add(f64::from(*d)));
        let bins = histogram.bins();
        let num = deltas.len() as f64;
        for (epsilon, temperature) in [
            (0.2, 1.0),
            (0.05, 1.0),
            (0.5, 0.25),
            (0.9, 0.1),
            (0.0, 1.0),
            (0.99, 4.0),
            (0.123, 0.9),
        ] {
            let formula = WeightFormula::new(epsilon, temperature).unwrap();
            let mut weights = vec![0.0; deltas.len()];
            let zeros = vec![0.0; deltas.len()];
            formula.weights_from(Center::None, &deltas, &zeros, &mut weights);
            let wide = || weights.iter().map(|w| f64::from(*w));
            let (lower, upper) = formula.bounds();
            let at = |bound: f32| weights.iter().filter(|w| **w == bound).count() as f64;
            let found = bins.weights(shortest_decimal(epsilon), shortest_decimal(temperature));
            let near = |found: f64, wanted: f64, what: &str, most: f64| {
                let apart = (found - wanted).abs() / num;
                assert!(apart <= most, "{what} at {epsilon}, {temperature}: {apart}");
            };
            assert_eq!(found.targets, num);
            near(found.sum, wide().sum(), "sum", 1e-5);
            near(found.squares, wide().map(|w| w * w).sum(), "squares", 2e-5);
            let is_of_bins = epsilon != 0.123;
            let most = if is_of_bins { 1e-9 } else { 2e-4 };
            near(found.at_lower, at(lower), "lower", most);
            near(found.at_upper, at(upper), "upper", most);
        }
    }

    #[test]
    fn differences_of_any_size_have_a_bin() {
        let mut histogram = Histogram::default();
        for nats in [0.0, 1e-12, -1e-12, 1e300, -1e300, 99.999, -100.0] {
            histogram.add(nats);
        }
        assert_eq!(histogram.bins().weights(0.2, 1.0).targets, 7.0);
        assert_eq!(Histogram::default().bins(), Bins::default());
    }

    #[test]
    fn bins_are_narrow_and_symmetric() {
        let ends = ends();
        assert!(ends.len() < 6500, "{}", ends.len());
        for (pair, mirrored) in ends.windows(2).zip(ends.windows(2).rev()) {
            let &[low, high] = pair else { panic!() };
            assert!(low < high);
            assert_eq!(mirrored, [-high, -low]);
            let middle = (0.5 * (low + high)).abs();
            assert!(high - low < 0.0008 + 0.0162 * middle, "{low}, {high}");
        }
    }

    #[test]
    fn in_json_bins_follow_each_other() {
        let mut histogram = Histogram::default();
        histogram.add(0.0);
        histogram.add(0.0);
        histogram.add(-MOST_NATS);
        let json = serde_json::to_string(&histogram.bins()).unwrap();
        let zero = ENDS.iter().position(|end| *end == 0.0).unwrap();
        assert_eq!(json, format!("[0,1,0,{zero},2,0]"));
    }
}
