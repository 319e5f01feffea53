//! What the page holds: numbers of a set by source, and the rows that are shown.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use serde::Serialize;

use super::extremes::Extreme;
use super::histogram::Bins;
use super::kinds::Kind;
use super::pass::Group;
use super::repeats::LongRun;
use super::sample::SampledRow;
use super::tally::{POSITION_RANGES, Sums, Tally};
use super::text::{Piece, Texts};
use crate::types::TokenId;

/// Tokens that are listed as raised, and as lowered, of each source.
const LISTED_TOKENS: usize = 12;
/// Steps of the fraction of excess-top-k weighting.
const TOP_K_STEPS: u32 = 100;
/// Parts of a nat that log-probs of rows are rounded to.
const PER_NAT: f64 = 10_000.0;

/// Numbers about some rows. Those of differences and weights are null without a base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Numbers {
    /// Rows.
    pub rows: u64,
    /// Documents that begin in them.
    pub documents: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub targets: u64,
    /// Mean log-prob of a target under the RL model, nats.
    pub rl: f64,
    /// The same under the base.
    pub base: Option<f64>,
    /// Mean of `log p_RL - log p_base`, bits: below 0 where the RL model likes the text less.
    pub liking_bits: Option<f64>,
    /// Mean of its size, bits.
    pub disagreement_bits: Option<f64>,
    /// Mean of the stored weights.
    pub weight: Option<f64>,
    /// `(sum w)² / sum w²` of the stored weights.
    pub effective: Option<f64>,
    /// Share of the targets at the lower bound.
    pub at_lower: Option<f64>,
    /// Share of the targets at the upper bound.
    pub at_upper: Option<f64>,
    /// Share of the targets in runs that the learner knows.
    pub known: f64,
    /// Number of these runs.
    pub known_runs: u64,
    /// Rows with the tokens of an earlier row of the same source; null where there were too many to tell.
    pub duplicates: Option<u64>,
}

impl Numbers {
    /// Sums up tallies.
    pub fn of(tallies: &[&Tally], has_base: bool) -> Self {
        let mut all = Tally::default();
        let mut duplicates = Some(0);
        for tally in tallies {
            all.rows += tally.rows;
            all.documents += tally.documents;
            all.tokens += tally.tokens;
            all.sums.merge(&tally.sums);
            all.distance += tally.distance;
            all.stored.merge(&tally.stored);
            all.known.merge(&tally.known);
            all.known_runs += tally.known_runs;
            duplicates = duplicates
                .zip(tally.duplicates.clone().count())
                .map(|(a, b)| a + b);
        }
        let targets = all.sums.targets.max(1) as f64;
        let with_base = |value: f64| has_base.then_some(value);
        let bits = |nats: f64| nats / targets / std::f64::consts::LN_2;
        let stored = &all.stored;
        Self {
            rows: all.rows,
            documents: all.documents,
            tokens: all.tokens,
            targets: all.sums.targets,
            rl: all.sums.rl / targets,
            base: with_base(all.sums.base / targets),
            liking_bits: with_base(bits(all.sums.rl - all.sums.base)),
            disagreement_bits: with_base(bits(all.distance)),
            weight: with_base(stored.sum / targets),
            effective: with_base(stored.effective()),
            at_lower: with_base(stored.at_lower / targets),
            at_upper: with_base(stored.at_upper / targets),
            known: all.known.targets as f64 / targets,
            known_runs: all.known_runs,
            duplicates,
        }
    }
}

/// Sums over targets, as an array: their number, and sums of log-probs under the RL model and the base, nats, and of
/// stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SumsData(u64, f64, f64, f64);

impl From<&Sums> for SumsData {
    fn from(sums: &Sums) -> Self {
        Self(sums.targets, sums.rl, sums.base, sums.weight)
    }
}

/// A token that is raised or lowered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenData {
    id: TokenId,
    text: Option<Piece>,
    kind: Option<Kind>,
    sums: SumsData,
}

/// A target with an extreme weight, in its context.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtremeData {
    centred: f64,
    row: String,
    position: usize,
    rl: f32,
    base: f32,
    before: Vec<Piece>,
    token: Vec<Piece>,
    after: Vec<Piece>,
}

/// A run of targets that the learner knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunData {
    row: String,
    position: usize,
    len: usize,
    text: Vec<Piece>,
}

/// A source, or all that are not told apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceData {
    /// Null for all that are not told apart.
    pub name: Option<String>,
    /// Number of sources that it stands for.
    pub sources: usize,
    /// Numbers of its rows.
    pub numbers: Numbers,
    /// Differences less the mean of their row.
    pub centred: Bins,
    /// Differences as they are.
    pub raw: Bins,
    /// Targets that excess-top-k weighting selects, for 1 % to 100 %.
    pub top_k: Vec<u64>,
    /// By range of positions: 1, 2 to 3, 4 to 7 and so on.
    pub positions: Vec<SumsData>,
    /// By kind of token, with the number of different tokens; empty without a tokenizer.
    pub kinds: Vec<(Kind, usize, SumsData)>,
    /// Sums over the targets in runs that the learner knows.
    pub known: SumsData,
    /// Tokens that gain most weight in all.
    pub raised: Vec<TokenData>,
    /// Tokens that lose most.
    pub lowered: Vec<TokenData>,
    /// Targets that are raised most, in context.
    pub raised_most: Vec<ExtremeData>,
    /// Targets that are lowered most, in context.
    pub lowered_most: Vec<ExtremeData>,
    /// The longest runs that the learner knows.
    pub longest: Vec<RunData>,
}

/// A row that is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowData {
    /// As text, since JavaScript's numbers do not hold all of them.
    pub id: String,
    /// Index of its source.
    pub source: usize,
    /// Its own source, where that is not told apart.
    pub source_name: Option<String>,
    /// Number of its document in the file.
    pub doc: u64,
    /// Positions at which documents begin.
    pub starts: Vec<u32>,
    /// Tokens of the whole row.
    pub tokens: usize,
    /// Targets of the whole row.
    pub targets: usize,
    /// Mean difference over the whole row, nats.
    pub mean: f64,
    /// Ids.
    pub ids: Vec<TokenId>,
    /// For each position after the first `-log p_RL`, in 10,000ths of a nat.
    pub rl: Vec<i64>,
    /// The same under the base.
    pub base: Option<Vec<i64>>,
    /// Positions that are no targets, the first of the row aside.
    pub others: Vec<usize>,
    /// For each position after the first the rank of its difference among the row's targets; empty without a base.
    pub ranks: Vec<u32>,
    /// Its text.
    pub text: Option<Vec<Piece>>,
}

/// What the page holds of the groups of a set.
pub struct GroupsData {
    /// The sources.
    pub sources: Vec<SourceData>,
    /// Tokens that gain most weight in all sources together.
    pub raised: Vec<TokenData>,
    /// Tokens that lose most.
    pub lowered: Vec<TokenData>,
    /// Number of different tokens.
    pub num_tokens: usize,
    /// The rows that are shown, and their ranks.
    pub rows: Vec<(u64, RowData)>,
}

/// Turns the groups of a set into what the page holds.
///
/// # Errors
///
/// When the tokenizer can't decode ids.
pub fn of_groups(
    groups: Vec<Group>,
    num_sources: usize,
    has_base: bool,
    texts: &mut Texts<'_>,
) -> Result<GroupsData> {
    let mut sources = Vec::new();
    let mut rows = Vec::new();
    let mut by_token: HashMap<TokenId, Sums> = HashMap::new();
    let told_apart = groups.iter().filter(|group| group.source.is_some()).count();
    for group in groups {
        let is_rest = group.source.is_none();
        for sampled in &group.rows {
            let row = row_of(sampled, sources.len(), is_rest, texts)?;
            rows.push((sampled.rank, row));
        }
        for (id, sums) in &group.tally.by_token {
            by_token.entry(*id).or_default().merge(sums);
        }
        let count = match is_rest {
            true => num_sources.saturating_sub(told_apart),
            false => 1,
        };
        sources.push(source_of(group, count, has_base, texts)?);
    }
    let num_tokens = by_token.len();
    let [raised, lowered] = listed(&by_gain(&by_token), has_base, texts)?;
    Ok(GroupsData {
        sources,
        raised,
        lowered,
        num_tokens,
        rows,
    })
}

/// Returns how much weight the targets of a token gain in all.
fn gain(sums: &Sums) -> f64 {
    sums.weight - sums.targets as f64
}

/// Sorts tokens by the weight they gain, most first.
fn by_gain(by_token: &HashMap<TokenId, Sums>) -> Vec<(TokenId, Sums)> {
    let mut tokens: Vec<(TokenId, Sums)> = by_token.iter().map(|(id, s)| (*id, *s)).collect();
    tokens.sort_by(|(a, x), (b, y)| gain(y).total_cmp(&gain(x)).then(a.cmp(b)));
    tokens
}

/// Returns the tokens that gain most weight, and those that lose most.
fn listed(
    by_gain: &[(TokenId, Sums)],
    has_base: bool,
    texts: &mut Texts<'_>,
) -> Result<[Vec<TokenData>; 2]> {
    let mut first = |tokens: &mut dyn Iterator<Item = &(TokenId, Sums)>| {
        tokens
            .take(if has_base { LISTED_TOKENS } else { 0 })
            .map(|(id, sums)| {
                Ok(TokenData {
                    id: *id,
                    text: texts.of_id(*id)?,
                    kind: texts.kind(*id)?,
                    sums: sums.into(),
                })
            })
            .collect::<Result<Vec<_>>>()
    };
    Ok([
        first(&mut by_gain.iter().take_while(|(_, s)| gain(s) > 0.0))?,
        first(&mut by_gain.iter().rev().take_while(|(_, s)| gain(s) < 0.0))?,
    ])
}

fn source_of(
    group: Group,
    sources: usize,
    has_base: bool,
    texts: &mut Texts<'_>,
) -> Result<SourceData> {
    let tally = group.tally;
    let numbers = Numbers::of(&[&tally], has_base);
    let by_token = by_gain(&tally.by_token);
    let mut kinds: BTreeMap<Kind, (usize, Sums)> = BTreeMap::new();
    for (id, sums) in &by_token {
        if let Some(kind) = texts.kind(*id)? {
            let (tokens, of_kind) = kinds.entry(kind).or_default();
            *tokens += 1;
            of_kind.merge(sums);
        }
    }
    let [raised, lowered] = listed(&by_token, has_base, texts)?;
    let last = (0..POSITION_RANGES).rfind(|range| tally.positions[*range].targets > 0);
    let positions = tally.positions.iter().take(last.map_or(0, |last| last + 1));
    let top_k = (1..=TOP_K_STEPS).map(|step| f64::from(step) / f64::from(TOP_K_STEPS));
    let top_k = top_k.map(|fraction| tally.selected(fraction)).collect();
    let contexts = |extremes: Vec<Extreme>| -> Result<Vec<ExtremeData>> {
        let extremes = extremes.iter();
        extremes.map(|extreme| context(extreme, texts)).collect()
    };
    Ok(SourceData {
        name: group.source,
        sources,
        numbers,
        centred: tally.centred.bins(),
        raw: tally.raw.bins(),
        top_k,
        positions: positions.map(SumsData::from).collect(),
        kinds: kinds
            .into_iter()
            .map(|(kind, (tokens, sums))| (kind, tokens, (&sums).into()))
            .collect(),
        known: (&tally.known).into(),
        raised,
        lowered,
        raised_most: contexts(tally.raised.all())?,
        lowered_most: contexts(tally.lowered.all())?,
        longest: tally
            .longest
            .all()
            .iter()
            .map(|run| run_of(run, texts))
            .collect::<Result<_>>()?,
    })
}

fn context(extreme: &Extreme, texts: &Texts<'_>) -> Result<ExtremeData> {
    let (before, rest) = extreme.ids.split_at(extreme.at.min(extreme.ids.len()));
    let (token, after) = rest.split_at(rest.len().min(1));
    let [rl, base] = extreme.log_probs;
    Ok(ExtremeData {
        centred: extreme.centred,
        row: extreme.row_id.to_string(),
        position: extreme.position,
        rl,
        base,
        before: texts.pieces(before)?,
        token: texts.pieces(token)?,
        after: texts.pieces(after)?,
    })
}

fn run_of(run: &LongRun, texts: &Texts<'_>) -> Result<RunData> {
    Ok(RunData {
        row: run.row_id.to_string(),
        position: run.run.position,
        len: run.run.len,
        text: texts.pieces(&run.ids)?,
    })
}

fn row_of(
    sampled: &SampledRow,
    source: usize,
    is_rest: bool,
    texts: &Texts<'_>,
) -> Result<RowData> {
    let row = &sampled.row.scored;
    let rounded = |values: &[f32]| -> Vec<i64> {
        let values = values.iter().map(|v| -f64::from(*v) * PER_NAT);
        values.map(|v| v.round() as i64).collect()
    };
    let others = (0..row.rl_logprobs.len()).filter(|target| !row.is_target(*target));
    Ok(RowData {
        id: sampled.row.row_id.to_string(),
        source,
        source_name: is_rest.then(|| row.source.to_string()),
        doc: row.doc_index,
        starts: row.doc_starts.clone(),
        tokens: sampled.num_tokens,
        targets: sampled.num_targets,
        mean: sampled.delta_mean,
        ids: row.input_ids.clone(),
        rl: rounded(&row.rl_logprobs),
        base: row.base_logprobs.as_deref().map(rounded),
        others: others.map(|target| target + 1).collect(),
        ranks: sampled.ranks.clone(),
        text: texts.of_row(&row.input_ids)?,
    })
}
