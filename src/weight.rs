//! Log-probs to weights: the formula of ReMiT (arXiv 2602.03075), for one context at a time.
//!
//! With `delta = rl - current` for every target of a row, and its mean over that row's targets:
//!
//! ```text
//! weight = clamp(2 * sigmoid((delta - mean) / temperature), 1 - epsilon, 1 + epsilon)
//! ```
//!
//! Where both models agree, the weight is 1. At the default epsilon of 0.2 and temperature of 1 it
//! saturates at a centred difference of ln 1.5 = 0.405 nats.

use serde::{Deserialize, Serialize};

use crate::types::{NO_TARGET, round_mantissa, selected_of};

/// Default half-width of the interval that weights are clamped to.
pub const DEFAULT_EPSILON: f32 = 0.2;
/// Default divisor of the centred difference, nats.
pub const DEFAULT_TEMPERATURE: f32 = 1.0;

/// Offset that is subtracted from the differences of a row before they become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Center {
    /// Their mean over the targets of the row, as in the paper
    #[default]
    Row,
    /// Nothing: a row that the RL model finds likelier throughout weighs more throughout.
    None,
}

/// The two numbers of the formula.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", deny_unknown_fields)]
pub struct WeightFormula {
    #[serde(serialize_with = "shortest")]
    epsilon: f32,
    #[serde(serialize_with = "shortest")]
    temperature: f32,
}

/// Returns 0.2 for 0.2, where a plain conversion to f64 would give 0.20000000298.
pub(crate) fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn shortest<S: serde::Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(shortest_decimal(*value))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    epsilon: f32,
    temperature: f32,
}

impl TryFrom<Unchecked> for WeightFormula {
    type Error = FormulaError;

    fn try_from(unchecked: Unchecked) -> Result<Self, FormulaError> {
        Self::new(unchecked.epsilon, unchecked.temperature)
    }
}

/// A number that the formula can't be used with.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormulaError {
    /// Weights would be negative or unbounded.
    #[error("epsilon is {0}; it must be at least 0 and less than 1")]
    Epsilon(f32),
    /// The difference can't be divided by it.
    #[error("temperature is {0}; it must be a positive number")]
    Temperature(f32),
}

impl Default for WeightFormula {
    fn default() -> Self {
        Self {
            epsilon: DEFAULT_EPSILON,
            temperature: DEFAULT_TEMPERATURE,
        }
    }
}

impl WeightFormula {
    /// Makes a formula of an `epsilon` in [0, 1) and a positive, finite `temperature`.
    ///
    /// # Errors
    ///
    /// [`FormulaError`] outside these ranges.
    pub fn new(epsilon: f32, temperature: f32) -> Result<Self, FormulaError> {
        if !(0.0..1.0).contains(&epsilon) {
            return Err(FormulaError::Epsilon(epsilon));
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(FormulaError::Temperature(temperature));
        }
        Ok(Self {
            epsilon,
            temperature,
        })
    }

    /// Returns the half-width of the interval that weights are clamped to.
    pub fn epsilon(&self) -> f32 {
        self.epsilon
    }

    /// Returns the divisor of the centred difference, nats.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// Returns the smallest and the largest weight.
    pub fn bounds(&self) -> (f32, f32) {
        (1.0 - self.epsilon, 1.0 + self.epsilon)
    }

    /// Fills `weights` for the targets of one row, from as many log-probs (nats) of the RL
    /// model and of the model being weighted. Differences and their mean are taken in f64.
    ///
    /// # Examples
    ///
    /// ```
    /// use remit::weight::WeightFormula;
    ///
    /// let mut weights = [0.0; 3];
    /// // The differences are 1, 0 and -1; their mean is 0.
    /// WeightFormula::default().weights(&[-1.0, -2.0, -4.0], &[-2.0, -2.0, -3.0], &mut weights);
    /// assert_eq!(weights, [1.2, 1.0, 0.8]);
    /// ```
    pub fn weights(&self, rl: &[f32], current: &[f32], weights: &mut [f32]) {
        self.weights_from(Center::Row, rl, current, weights);
    }

    /// Does the same as [`WeightFormula::weights`], with a choice of what is subtracted from the differences.
    pub fn weights_from(&self, center: Center, rl: &[f32], current: &[f32], weights: &mut [f32]) {
        let pairs = || rl.iter().zip(current);
        let mean = match center {
            Center::Row => pairs().map(delta).sum::<f64>() / pairs().len().max(1) as f64,
            Center::None => 0.0,
        };
        let (lower, upper) = self.bounds();
        let temperature = f64::from(self.temperature);
        for (weight, pair) in weights.iter_mut().zip(pairs()) {
            let centred = (delta(pair) - mean) / temperature;
            let unclamped = 2.0 / (1.0 + (-centred).exp());
            *weight = (unclamped as f32).clamp(lower, upper);
        }
    }

    /// Counts the weights at the lower and at the upper bound, whether they are rounded for storage or not.
    pub fn at_bounds(&self, weights: &[f32]) -> (usize, usize) {
        let (lower, upper) = self.bounds();
        let (lower, upper) = (
            lower.max(round_mantissa(lower)),
            upper.min(round_mantissa(upper)),
        );
        weights.iter().fold((0, 0), |(low, high), &weight| {
            (
                low + usize::from(weight <= lower),
                high + usize::from(weight >= upper),
            )
        })
    }
}

/// Fills `weights` by a formula that sees the targets alone, as the mask tells them; without one, all of them are.
/// The others get [`NO_TARGET`].
pub fn of_targets(
    mask: Option<&[bool]>,
    rl: &[f32],
    current: &[f32],
    weights: &mut [f32],
    formula: impl FnOnce(&[f32], &[f32], &mut [f32]),
) {
    let Some(mask) = mask else {
        return formula(rl, current, weights);
    };
    let chosen = |values: &[f32]| -> Vec<f32> {
        let pairs = values.iter().zip(mask);
        pairs.filter(|(_, is)| **is).map(|(v, _)| *v).collect()
    };
    let (rl, current) = (chosen(rl), chosen(current));
    let mut of_chosen = vec![0.0; rl.len()];
    formula(&rl, &current, &mut of_chosen);
    let mut of_chosen = of_chosen.into_iter();
    for (weight, is_target) in weights.iter_mut().zip(mask) {
        let next = if *is_target { of_chosen.next() } else { None };
        *weight = next.unwrap_or(NO_TARGET);
    }
}

/// Returns `log p_rl - log p_current`, nats.
fn delta((rl, current): (&f32, &f32)) -> f64 {
    f64::from(*rl) - f64::from(*current)
}

/// Selects targets of one row as Rho-1 does (Lin et al., arXiv 2404.07965): weight 1 for the `fraction` of
/// them with the largest excess loss `log p_rl - log p_current`, 0 for the others. The number selected
/// is rounded up; among equals the earlier target goes first.
///
/// Rho-1 ranks the targets of a batch together. Here each row is ranked by itself, so that a row's weights
/// depend neither on its neighbours nor on the size of a batch.
///
/// # Examples
///
/// ```
/// let mut weights = [0.0; 4];
/// // The excess losses are 1, 0, 3 and -1 nats.
/// remit::weight::excess_top_k(0.5, &[-1.0, -2.0, -1.0, -4.0], &[-2.0, -2.0, -4.0, -3.0], &mut weights);
/// assert_eq!(weights, [1.0, 0.0, 1.0, 0.0]);
/// ```
pub fn excess_top_k(fraction: f64, rl: &[f32], current: &[f32], weights: &mut [f32]) {
    let excess: Vec<f64> = rl.iter().zip(current).map(delta).collect();
    let mut order: Vec<usize> = (0..excess.len()).collect();
    order.sort_by(|&a, &b| excess[b].total_cmp(&excess[a]));
    let selected = selected_of(fraction, excess.len());
    weights.fill(0.0);
    for &target in order.iter().take(selected) {
        weights[target] = 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights(formula: WeightFormula, rl: &[f32], current: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; rl.len()];
        formula.weights(rl, current, &mut out);
        out
    }

    #[test]
    fn agreement_gives_exactly_one() {
        let log_probs = [-0.123_456, -7.89, -1e-7];
        assert_eq!(
            weights(WeightFormula::default(), &log_probs, &log_probs),
            [1.0; 3]
        );
    }

    #[test]
    fn a_single_target_is_its_own_mean() {
        assert_eq!(weights(WeightFormula::default(), &[-1.0], &[-9.0]), [1.0]);
    }

    #[test]
    fn the_slope_at_zero_is_half_a_nat() {
        let out = weights(WeightFormula::default(), &[-1.0, -1.0], &[-1.1, -0.9]);
        let want = 2.0 / (1.0 + (-0.1_f64).exp());
        assert!((f64::from(out[0]) - want).abs() < 1e-6);
        assert!((want - 1.05).abs() < 1e-4);
    }

    #[test]
    fn a_fraction_of_a_round_number_is_not_rounded_up() {
        for (fraction, targets, expected) in [(0.07, 100, 7.0), (0.55, 100, 55.0), (1e-9, 3, 1.0)] {
            let mut out = vec![0.0; targets];
            excess_top_k(
                fraction,
                &vec![-1.0; targets],
                &vec![-2.0; targets],
                &mut out,
            );
            assert_eq!(out.iter().sum::<f32>(), expected, "{fraction}");
        }
    }

    #[test]
    fn without_centring_a_row_keeps_its_mean() {
        let mut out = [0.0; 2];
        let formula = WeightFormula::new(0.9, 1.0).unwrap();
        formula.weights_from(Center::None, &[-1.0, -1.0], &[-2.0, -2.0], &mut out);
        let want = 2.0 / (1.0 + (-1.0_f64).exp());
        assert!(out.iter().all(|w| (f64::from(*w) - want).abs() < 1e-6));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for epsilon in [-0.1, 1.0, f32::NAN, f32::INFINITY] {
            assert!(WeightFormula::new(epsilon, 1.0).is_err());
        }
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(WeightFormula::new(0.2, temperature).is_err());
        }
    }

    proptest! {
        #[test]
        fn weights_stay_within_bounds_and_follow_the_difference(
            pairs in proptest::collection::vec((-20.0_f32..0.0, -20.0_f32..0.0), 1..40),
            epsilon in 0.0_f32..0.99,
            temperature in 0.1_f32..10.0,
        ) {
            let formula = WeightFormula::new(epsilon, temperature).unwrap();
            let (rl, current): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let out = weights(formula, &rl, &current);
            let (lower, upper) = formula.bounds();
            for (i, a) in out.iter().enumerate() {
                prop_assert!((lower..=upper).contains(a));
                for (j, b) in out.iter().enumerate() {
                    let delta = |i: usize| f64::from(rl[i]) - f64::from(current[i]);
                    if delta(i) > delta(j) {
                        prop_assert!(a >= b);
                    }
                }
            }
        }

        #[test]
        fn the_selected_have_the_largest_excess(
            pairs in proptest::collection::vec((-20.0_f32..0.0, -20.0_f32..0.0), 1..40),
            fraction in 0.01_f64..1.0,
        ) {
            let (rl, current): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let mut out = vec![0.5; rl.len()];
            excess_top_k(fraction, &rl, &current, &mut out);
            let selected = out.iter().filter(|w| **w == 1.0).count();
            prop_assert_eq!(selected, ((fraction * out.len() as f64 - 1e-9).ceil() as usize).max(1));
            prop_assert!(out.iter().all(|w| *w == 0.0 || *w == 1.0));
            let excess = |i: usize| f64::from(rl[i]) - f64::from(current[i]);
            for (i, a) in out.iter().enumerate() {
                for (j, b) in out.iter().enumerate() {
                    prop_assert!(!(a > b && excess(i) < excess(j)));
                }
            }
        }

        #[test]
        fn a_shift_of_all_log_probs_of_a_row_changes_nothing(
            pairs in proptest::collection::vec((-20.0_f32..0.0, -20.0_f32..0.0), 1..40),
            shift in -5.0_f32..0.0,
        ) {
            let (rl, current): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let shifted: Vec<f32> = rl.iter().map(|v| v + shift).collect();
            let formula = WeightFormula::default();
            let a = weights(formula, &rl, &current);
            let b = weights(formula, &shifted, &current);
            for (a, b) in a.iter().zip(&b) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }
}
