//! The learning rate as a function of the optimizer step.

use serde::{Deserialize, Serialize};

/// Shape of the fall of the learning rate after the warm-up, as a fraction of the way from the peak to the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Decay {
    /// `1 - x`, with `x` the fraction of the steps after the warm-up that are done
    #[default]
    Linear,
    /// `(1 + cos(pi x)) / 2` (Loshchilov & Hutter, arXiv 1608.03983).
    Cosine,
    /// `1 - sqrt(x)` (Hägele et al., arXiv 2405.18392).
    #[value(name = "1-sqrt")]
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
    /// `1`: it stays at the peak.
    Constant,
}

impl std::fmt::Display for Decay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::OneMinusSqrt => "1-sqrt",
            Self::Constant => "constant",
        })
    }
}

/// The learning rate of every step: linear warm-up, then decay from the peak to the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Shape of the fall.
    pub decay: Decay,
    /// Learning rate at the end of the warm-up, the peak.
    #[serde(alias = "peak")]
    pub lr: f64,
    /// Learning rate that the step after the last would have. A constant schedule ignores it.
    #[serde(alias = "floor")]
    pub min_lr: f64,
    /// Steps of linear warm-up; the first step of a warm-up of `n` steps has `lr / n`.
    pub warmup_steps: u64,
    /// Steps in all.
    pub num_steps: u64,
    /// Steps before the schedule begins, which another run took; they count among all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_step: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Schedule {
    /// Returns the learning rate of a step, counted from 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use remit::schedule::{Decay, Schedule};
    ///
    /// let schedule = Schedule { decay: Decay::Linear, lr: 1.0, min_lr: 0.0, warmup_steps: 0, num_steps: 4, first_step: 0 };
    /// let rates: Vec<f64> = (0..5).map(|step| schedule.lr_at(step)).collect();
    /// assert_eq!(rates, [1.0, 0.75, 0.5, 0.25, 0.0]);
    /// ```
    pub fn lr_at(&self, step: u64) -> f64 {
        let own_steps = self.num_steps.saturating_sub(self.first_step);
        let step = step.saturating_sub(self.first_step);
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let all = own_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        // Counted from the end, so that a linear decay to 0 is `lr * left / all` to the last bit.
        let left = own_steps.saturating_sub(step) as f64 / all;
        let fraction = match self.decay {
            Decay::Linear => left,
            Decay::Cosine => (1.0 - (std::f64::consts::PI * left).cos()) / 2.0,
            Decay::OneMinusSqrt => 1.0 - (1.0 - left).max(0.0).sqrt(),
            Decay::Constant => 1.0,
        };
        self.min_lr + (self.lr - self.min_lr) * fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, min_lr: f64) -> Vec<f64> {
        let schedule = Schedule {
            decay,
            lr: 2.0,
            min_lr,
            warmup_steps: 2,
            num_steps: 6,
            first_step: 0,
        };
        (0..7).map(|step| schedule.lr_at(step)).collect()
    }

    #[test]
    fn warm_up_reaches_the_peak_and_the_end_reaches_the_minimum() {
        assert_eq!(
            rates(Decay::Linear, 0.0),
            [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]
        );
        assert_eq!(
            rates(Decay::Linear, 1.0),
            [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0]
        );
        assert_eq!(
            rates(Decay::Constant, 0.0),
            [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
        );
        for (decay, middle) in [
            (Decay::Cosine, 1.0),
            (Decay::OneMinusSqrt, 2.0 - 2.0_f64.sqrt()),
        ] {
            let found = rates(decay, 0.0);
            assert_eq!(found[..3], [1.0, 2.0, 2.0]);
            assert!(
                (found[4] - middle).abs() < 1e-12 && found[6].abs() < 1e-12,
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_schedule_that_begins_later_is_the_same_from_there() {
        let whole = Schedule {
            decay: Decay::Cosine,
            lr: 2.0,
            min_lr: 0.1,
            warmup_steps: 2,
            num_steps: 6,
            first_step: 0,
        };
        let later = Schedule {
            num_steps: 16,
            first_step: 10,
            ..whole
        };
        for step in 0..7 {
            assert_eq!(later.lr_at(10 + step), whole.lr_at(step));
        }
    }

    #[test]
    fn rates_never_rise_after_the_warm_up_and_stay_above_the_minimum() {
        for decay in [
            Decay::Linear,
            Decay::Cosine,
            Decay::OneMinusSqrt,
            Decay::Constant,
        ] {
            let found = rates(decay, 0.5);
            assert!(found[1..].is_sorted_by(|a, b| a >= b), "{decay}: {found:?}");
            assert!(
                found[2..].iter().all(|rate| *rate >= 0.5),
                "{decay}: {found:?}"
            );
        }
    }
}
