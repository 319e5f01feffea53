//! Differences of log-probs, binned so finely that what a formula makes of them can be read off.
//!
//! Bins are equally wide in `asinh(nats / 0.25)`: a thousandth of a nat wide at 0, a hundred times that at 25. Each has a
//! count and the place of its mean. Below a threshold inside of a bin lies as large a share of its count as of its width;
//! of all other bins, sums follow from count and mean. `report.js` reads numbers off the same bins by the same steps.

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

/// Where bins begin to widen, nats.
const SCALE_NATS: f64 = 0.25;
/// Bins per unit of `asinh(nats / SCALE_NATS)`.
const BINS_PER_UNIT: f64 = 256.0;
/// Differences beyond this are counted as this: every weight is at its bound long before.
const MOST_NATS: f64 = 100.0;
/// Bins on either side of 0: `asinh(400) * 256`, and one for the end.
const HALF: i32 = 1712;
/// Places of a mean in its bin that are told apart.
const PLACES: f64 = 256.0;

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
        let index = ((nats / SCALE_NATS).asinh() * BINS_PER_UNIT).floor() as i32 + HALF;
        if self.bins.is_empty() {
            self.bins = vec![(0, 0.0); 2 * HALF as usize];
        }
        let index = usize::try_from(index).unwrap_or(0);
        if let Some((count, sum)) = self.bins.get_mut(index) {
            *count += 1;
            *sum += nats;
        }
    }

    /// Returns what was counted.
    pub fn bins(&self) -> Bins {
        let filled = (-HALF..).zip(&self.bins).filter(|(_, (n, _))| *n > 0);
        let bins = filled.map(|(index, (count, sum))| {
            let (low, high) = (edge(index), edge(index + 1));
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

/// Returns the lower edge of a bin, nats.
fn edge(index: i32) -> f64 {
    SCALE_NATS * (f64::from(index) / BINS_PER_UNIT).sinh()
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bin {
    index: i32,
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
        let lower = temperature * ((1.0 - epsilon) / (1.0 + epsilon)).ln();
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
            let (low, high) = (edge(bin.index), edge(bin.index + 1));
            let width = high - low;
            let below = ((lower - low) / width).clamp(0.0, 1.0);
            let above = ((high - upper) / width).clamp(0.0, 1.0);
            let between = 1.0 - below - above;
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
            totals.sum += at_lower * l + at_upper * u + between * count * weight;
            totals.squares +=
                at_lower * l * l + at_upper * u * u + between * count * weight * weight;
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
        ] {
            let formula = WeightFormula::new(epsilon, temperature).unwrap();
            let mut weights = vec![0.0; deltas.len()];
            let zeros = vec![0.0; deltas.len()];
            formula.weights_from(Center::None, &deltas, &zeros, &mut weights);
            let wide = || weights.iter().map(|w| f64::from(*w));
            let (lower, upper) = formula.bounds();
            let at = |bound: f32| weights.iter().filter(|w| **w == bound).count() as f64;
            let found = bins.weights(f64::from(epsilon), f64::from(temperature));
            let near = |found: f64, wanted: f64, what: &str| {
                let apart = (found - wanted).abs() / num;
                assert!(apart < 5e-5, "{what} at {epsilon}, {temperature}: {apart}");
            };
            assert_eq!(found.targets, num);
            near(found.sum, wide().sum(), "sum");
            near(found.squares, wide().map(|w| w * w).sum(), "squares");
            near(found.at_lower, at(lower), "lower");
            near(found.at_upper, at(upper), "upper");
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
    fn in_json_bins_follow_each_other() {
        let mut histogram = Histogram::default();
        histogram.add(0.0);
        histogram.add(0.0);
        histogram.add(-MOST_NATS);
        let json = serde_json::to_string(&histogram.bins()).unwrap();
        assert_eq!(json, "[-1712,1,53,1712,2,0]");
    }
}
