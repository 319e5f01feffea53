//! The one pass over the rows of a set.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::super::{Progress, StopFlag};
use super::sample::{MAX_ROW_TOKENS, MAX_WANTED_ROW_TOKENS, Sample, SampledRow, quotas, rank};
use super::tally::{Detail, Tally};
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardFile;
use crate::shard::row::StoredRow;

/// What is asked of a pass.
#[derive(Debug, Clone)]
pub struct PassOptions {
    /// What is counted.
    pub detail: Detail,
    /// Sources that are told apart; the others are one.
    pub max_sources: usize,
    /// Tokens of rows that are kept.
    pub sample_tokens: usize,
    /// Seed of what is drawn.
    pub seed: u64,
    /// Rows that are kept besides.
    pub wanted: BTreeSet<u64>,
}

/// The rows of a source, or of all that are not told apart.
#[derive(Debug)]
pub struct Group {
    /// Its source; `None` for all that are not told apart.
    pub source: Option<String>,
    /// Sums over its rows.
    pub tally: Tally,
    /// Rows that were drawn from it.
    pub rows: Vec<SampledRow>,
}

/// Chooses the sources that are told apart: those of most tokens, and those that the RL model likes least against the base.
fn chosen(manifest: &Manifest, max_sources: usize) -> BTreeSet<&str> {
    let all: Vec<_> = manifest.sources.iter().collect();
    if all.len() <= max_sources {
        return all.iter().map(|(name, _)| name.as_str()).collect();
    }
    let mut by_tokens = all.clone();
    by_tokens.sort_by_key(|(_, statistics)| std::cmp::Reverse(statistics.tokens));
    let mut by_delta = all;
    by_delta.sort_by(|(_, a), (_, b)| {
        let delta = |s: &crate::shard::statistics::Statistics| {
            s.rl_logprob_mean.unwrap_or(0.0) - s.base_logprob_mean.unwrap_or(0.0)
        };
        delta(a).total_cmp(&delta(b))
    });
    let disliked = max_sources / 4;
    let mut chosen: BTreeSet<&str> = by_delta
        .iter()
        .take(disliked)
        .map(|(name, _)| name.as_str())
        .collect();
    for (name, _) in by_tokens {
        if chosen.len() < max_sources {
            chosen.insert(name);
        }
    }
    chosen
}

struct Collected {
    tally: Tally,
    sample: Sample,
}

/// Reads all rows of a set once, in order. Memory holds one row group, the rows that are kept, and for each source
/// that is told apart sums and the tokens of its vocabulary. Groups come in byte order of their sources, the rest last.
///
/// # Errors
///
/// When a shard is missing or damaged.
pub fn pass(
    dir: &std::path::Path,
    manifest: &Manifest,
    options: &PassOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Vec<Group>> {
    let chosen = chosen(manifest, options.max_sources);
    let rest: u64 = manifest.totals.tokens
        - chosen
            .iter()
            .filter_map(|name| manifest.sources.get(*name))
            .map(|statistics| statistics.tokens)
            .sum::<u64>()
            .min(manifest.totals.tokens);
    let mut available: Vec<u64> = chosen
        .iter()
        .filter_map(|name| manifest.sources.get(*name))
        .map(|statistics| statistics.tokens)
        .collect();
    available.push(rest);
    let quotas = quotas(options.sample_tokens, &available);
    let index: BTreeMap<&str, usize> = chosen.iter().copied().zip(0..).collect();
    let mut all: Vec<Collected> = quotas
        .into_iter()
        .map(|quota_tokens| Collected {
            tally: Tally::default(),
            sample: Sample::new(quota_tokens),
        })
        .collect();
    let formula = manifest.plan.formula.as_ref();
    let identity = manifest.plan.identity()?;
    progress.begin("reading", manifest.totals.tokens);
    let mut done = 0;
    for entry in &manifest.shards {
        let shard = ShardFile::open_verified(dir, entry, &manifest.plan, identity)?;
        for group in 0..shard.num_row_groups() {
            stop.check("it starts over")?;
            let mut tokens = 0;
            for stored in shard.read_row_group(group)? {
                tokens += stored.num_tokens() as u64;
                let of_rest = all.len() - 1;
                let at = index.get(&*stored.scored.source).copied();
                let Some(collected) = all.get_mut(at.unwrap_or(of_rest)) else {
                    continue;
                };
                let mean = collected.tally.add(&stored, formula, options.detail);
                if options.detail == Detail::All {
                    collected.offer(stored, mean, options);
                }
            }
            done += tokens;
            progress.advance(done, tokens, "");
        }
    }
    progress.finish();
    let names = chosen.iter().map(|name| Some((*name).to_owned()));
    let groups = names.chain([None]).zip(all);
    let groups = groups.map(|(source, collected)| Group {
        source,
        tally: collected.tally,
        rows: collected.sample.rows(),
    });
    Ok(groups.filter(|group| group.tally.rows > 0).collect())
}

impl Collected {
    fn offer(&mut self, mut stored: StoredRow, delta_mean: f64, options: &PassOptions) {
        let is_wanted = options.wanted.contains(&stored.row_id);
        let (rank, most) = match is_wanted {
            true => (0, MAX_WANTED_ROW_TOKENS),
            false => (rank(options.seed, stored.row_id), MAX_ROW_TOKENS),
        };
        if !is_wanted && !self.sample.has_room(rank) {
            return;
        }
        let (num_tokens, num_targets) = (stored.num_tokens(), stored.num_targets());
        let mut ranks = excess_ranks(&stored);
        ranks.truncate(most - 1);
        cut(&mut stored, most);
        self.sample.add(SampledRow {
            rank,
            row: stored,
            num_tokens,
            num_targets,
            delta_mean,
            ranks,
        });
    }
}

/// Ranks the differences of a row, the largest first; among equals the earlier one is first. What is no target is last.
fn excess_ranks(stored: &StoredRow) -> Vec<u32> {
    let row = &stored.scored;
    let Some(base) = &row.base_logprobs else {
        return Vec::new();
    };
    let delta = |target: usize| f64::from(row.rl_logprobs[target]) - f64::from(base[target]);
    let mut order: Vec<usize> = (0..base.len().min(row.rl_logprobs.len())).collect();
    order.sort_by(|&a, &b| {
        let is_other = |target: usize| !row.is_target(target);
        is_other(a)
            .cmp(&is_other(b))
            .then(delta(b).total_cmp(&delta(a)))
    });
    let mut ranks = vec![0; order.len()];
    for (rank, target) in (0..).zip(order) {
        ranks[target] = rank;
    }
    ranks
}

fn cut(stored: &mut StoredRow, tokens: usize) {
    let row = &mut stored.scored;
    row.input_ids.truncate(tokens);
    let targets = tokens.saturating_sub(1);
    row.rl_logprobs.truncate(targets);
    for values in [&mut row.base_logprobs, &mut row.weights]
        .into_iter()
        .flatten()
    {
        values.truncate(targets);
    }
    if let Some(mask) = &mut row.target_mask {
        mask.truncate(targets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ScoredRow;

    #[test]
    fn targets_are_ranked_by_their_difference_and_others_come_last() {
        let mut stored = StoredRow {
            row_id: 0,
            scored: ScoredRow {
                source: "a".into(),
                doc_index: 0,
                doc_starts: vec![0],
                input_ids: vec![1, 2, 3, 4, 5],
                rl_logprobs: vec![-1.0, 0.0, -1.0, -2.0],
                base_logprobs: Some(vec![-2.0, 0.0, -2.0, -9.0]),
                weights: Some(vec![1.0, 0.0, 1.0, 1.0]),
                target_mask: Some(vec![true, false, true, true]),
                distributions: crate::types::Distributions::default(),
            },
        };
        assert_eq!(excess_ranks(&stored), [1, 3, 2, 0]);
        cut(&mut stored, 3);
        assert_eq!((stored.num_tokens(), stored.num_targets()), (3, 1));
    }
}
