//! The targets of a step that learn the RL model's distribution, and what the others count for.
//!
//! Switch Distillation (arXiv 2609.01532) takes two means over a step: of `T² KL` over the targets where the RL model's
//! entropy is lowest, and of `-log p` over the others. With `n` targets of which `q` are selected, that is the sum of
//! `T² n/q KL` and `-n/(n - q) log p`, divided once by `n`: so micro-batches can be added up as in every other weighting.

use crate::loss::Distillation;
use crate::model::SoftTargets;
use crate::types::{NO_TARGET, ScoredRow, selected_of};

/// What each target of an optimizer step counts for, decided before the learner has seen it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTargets {
    distillation: Distillation,
    /// Of each row, the indices among its stored distributions of those that are learnt.
    learnt: Vec<Vec<usize>>,
    /// Factor on the divergence of those.
    coefficient: f64,
    /// Weight of their next token, and of the others'.
    weights: (f32, f32),
}

impl StepTargets {
    /// Decides for the rows of a step. Switch weighting selects among the targets whose distribution is stored; among
    /// equal entropies the earlier goes first.
    pub fn new<'a>(
        distillation: Distillation,
        rows: impl Iterator<Item = &'a ScoredRow> + Clone,
    ) -> Self {
        let num_targets: usize = rows.clone().map(ScoredRow::num_targets).sum();
        let squared = distillation.temperature * distillation.temperature;
        let all = |row: &ScoredRow| -> Vec<usize> {
            let top = row.distributions.top.as_ref();
            (0..top.map_or(0, |top| top.targets.len())).collect()
        };
        if let Some(alpha) = distillation.alpha {
            let weight = (1.0 - alpha) as f32;
            return Self {
                distillation,
                learnt: rows.map(all).collect(),
                coefficient: alpha * squared,
                weights: (weight, weight),
            };
        }
        let mut ranked: Vec<(f32, usize, usize)> = Vec::new();
        let mut num_rows = 0;
        for (number, row) in rows.enumerate() {
            num_rows = number + 1;
            let stored = &row.distributions;
            if let (Some(entropies), Some(top)) = (&stored.entropies, &stored.top) {
                let indices = top.targets.iter().enumerate();
                ranked.extend(indices.map(|(i, &target)| (entropies[target as usize], number, i)));
            }
        }
        // A stable sort: among equals the earlier stays first.
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked.truncate(selected_of(
            distillation.fraction.unwrap_or(1.0),
            num_targets,
        ));
        let selected = ranked.len();
        let mut learnt = vec![Vec::new(); num_rows];
        for (_, row, i) in ranked {
            learnt[row].push(i);
        }
        learnt
            .iter_mut()
            .for_each(|indices| indices.sort_unstable());
        let share = |part: usize| num_targets as f64 / part.max(1) as f64;
        Self {
            distillation,
            learnt,
            coefficient: squared * share(selected),
            weights: (0.0, share(num_targets - selected) as f32),
        }
    }

    /// Fills the weights of the next tokens of a row, which has this number in the step.
    pub fn fill_weights(&self, number: usize, row: &ScoredRow, weights: &mut [f32]) {
        let (learnt, other) = self.weights;
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = match row.is_target(i) {
                true => other,
                false => NO_TARGET,
            };
        }
        if let Some(top) = &row.distributions.top {
            for &i in &self.learnt[number] {
                weights[top.targets[i] as usize] = learnt;
            }
        }
    }

    /// Returns the distributions that the rows of a micro-batch learn, the first of which has the number `first` in the
    /// step.
    pub fn soft_targets<'a>(
        &self,
        first: usize,
        rows: impl Iterator<Item = &'a ScoredRow>,
    ) -> SoftTargets {
        let mut soft = SoftTargets {
            divergence: self.distillation.divergence,
            temperature: self.distillation.temperature,
            coefficient: self.coefficient,
            k: 0,
            targets: Vec::new(),
            ids: Vec::new(),
            log_probs: Vec::new(),
            tail_log_probs: Vec::new(),
        };
        let mut before = 0;
        for (number, row) in rows.enumerate() {
            if let Some(top) = &row.distributions.top {
                soft.k = top.k;
                for &i in &self.learnt[first + number] {
                    let range = i * top.k..(i + 1) * top.k;
                    soft.targets.push(before + top.targets[i] as usize);
                    soft.ids.extend(&top.ids[range.clone()]);
                    soft.log_probs.extend(&top.log_probs[range]);
                    soft.tail_log_probs.push(top.tail_log_probs[i]);
                }
            }
            before += row.num_tokens().saturating_sub(1);
        }
        soft
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Distributions, Divergence, TopTokens, is_of_target};

    /// A row with these entropies, and distributions stored for some of its targets.
    fn row(entropies: &[f32], stored: &[u32], mask: Option<Vec<bool>>) -> ScoredRow {
        let of = |value: f32, n: usize| vec![value; n];
        ScoredRow {
            source: "a".into(),
            doc_index: 0,
            doc_starts: vec![0],
            input_ids: (0..=entropies.len() as u32).collect(),
            rl_logprobs: of(-1.0, entropies.len()),
            base_logprobs: None,
            weights: None,
            target_mask: mask,
            distributions: Distributions {
                entropies: Some(entropies.to_vec()),
                top: Some(TopTokens {
                    k: 2,
                    targets: stored.to_vec(),
                    ids: stored.iter().flat_map(|t| [*t, t + 100]).collect(),
                    log_probs: of(-0.8, 2 * stored.len()),
                    tail_log_probs: of(-2.0, stored.len()),
                }),
            },
        }
    }

    fn distillation(fraction: Option<f64>, alpha: Option<f64>) -> Distillation {
        Distillation {
            divergence: Divergence::Reverse,
            temperature: 2.0,
            fraction,
            alpha,
        }
    }

    #[test]
    fn switch_selects_the_lowest_entropies_of_the_step_and_takes_two_means() {
        // 5 targets: 40 % are 2, of those stored the ones with 0.1 and 0.2.
        let rows = [
            row(&[0.5, 0.1, 0.3], &[0, 1, 2], Some(vec![true, true, true])),
            row(&[0.2, 0.05, 9.0], &[0], Some(vec![true, true, false])),
        ];
        let step = StepTargets::new(distillation(Some(0.4), None), rows.iter());
        let mut weights = [[7.0; 3]; 2];
        for (number, weights) in weights.iter_mut().enumerate() {
            step.fill_weights(number, &rows[number], weights);
        }
        let other = 5.0 / 3.0;
        assert_eq!(weights[0], [other, 0.0, other]);
        assert_eq!(weights[1][..2], [0.0, other]);
        assert!(!is_of_target(weights[1][2]) && is_of_target(weights[0][1]));
        let soft = step.soft_targets(0, rows.iter());
        assert_eq!((soft.targets, soft.ids), (vec![1, 3], vec![1, 101, 0, 100]));
        assert_eq!(soft.coefficient, 4.0 * 5.0 / 2.0);
        // A micro-batch of the second row alone.
        let soft = step.soft_targets(1, rows[1..].iter());
        assert_eq!((soft.targets, soft.ids), (vec![0], vec![0, 100]));
    }

    #[test]
    fn kd_learns_every_distribution_and_every_next_token() {
        let rows = [row(&[0.5, 0.1], &[0, 1], None)];
        let step = StepTargets::new(distillation(None, Some(0.25)), rows.iter());
        let mut weights = [0.0; 2];
        step.fill_weights(0, &rows[0], &mut weights);
        assert_eq!(weights, [0.75; 2]);
        let soft = step.soft_targets(0, rows.iter());
        assert_eq!((soft.targets, soft.coefficient), (vec![0, 1], 1.0));
    }
}
