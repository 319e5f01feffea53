//! The order in which training sees the rows of a set, and how they form steps and micro-batches.
//!
//! The order is a pure function of (set, seed, epoch): not of the micro-batch size or the number of
//! threads. The row groups of the whole set are permuted, consecutive ones are gathered into windows
//! of at most [`SHUFFLE_WINDOW_TOKENS`], and all rows of a window are shuffled together. A set that
//! fits one window is shuffled as a whole; a larger one needs memory for one window only.
//!
//! No generator has a state that lives from step to step: each is made anew from (seed, epoch, window). So a
//! [`Cursor`] is all that a run needs to resume.

mod rng;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::shard::Error;
use crate::shard::read::{ShardFile, ShardSet};
use crate::shard::row::StoredRow;
use rng::SplitMix64;

/// Most tokens of a shuffle window, unless a single row group has more. At 12 bytes per token (id,
/// RL log-prob, weight) and 4 more with a base, this is what bounds the memory for data: 128 MiB.
pub const SHUFFLE_WINDOW_TOKENS: u64 = 8 << 20;

/// Bytes in memory per token: its id, log-probs and weight.
pub const TOKEN_BYTES: u64 = 16;

/// A row group of the set: shard and group in it.
#[derive(Debug, Clone)]
struct Group {
    shard: usize,
    group: usize,
    /// Tokens of each of its rows.
    lengths: Vec<u32>,
    /// Numbers of the rows that are held out, ascending.
    held_out: Vec<u32>,
    /// Numbers of the rows that are neither held out nor trained on, ascending.
    left_out: Vec<u32>,
    tokens: u64,
}

/// A row's group, as an index into [`Order`]'s, and its number there.
type Place = (usize, usize);

/// The rows of a set in their shuffled order.
#[derive(Debug)]
pub struct Order<'a> {
    set: &'a ShardSet,
    seed: u64,
    groups: Vec<Group>,
    window_tokens: u64,
}

/// Position of a run in its order: between two steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Rows of this epoch that were trained on.
    pub rows: u64,
}

/// The rows of one optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Epoch, from 0. A step never mixes epochs.
    pub epoch: u64,
    /// Its rows, in order.
    pub rows: Vec<StoredRow>,
    /// Where the next step begins.
    pub end: Cursor,
}

impl Step {
    /// Returns the number of its tokens.
    pub fn num_tokens(&self) -> u64 {
        self.rows.iter().map(|row| row.num_tokens() as u64).sum()
    }
}

impl<'a> Order<'a> {
    /// Learns the length of every row, by decoding the id column of every shard once. Of the documents, the
    /// share `holdout` is left out (see [`is_held_out`]), for which every column is decoded once.
    ///
    /// # Errors
    ///
    /// When a shard can't be decoded.
    pub fn new(set: &'a ShardSet, seed: u64, holdout: Option<f64>) -> Result<Self, Error> {
        Self::with_window(set, seed, holdout, SHUFFLE_WINDOW_TOKENS)
    }

    fn with_window(
        set: &'a ShardSet,
        seed: u64,
        holdout: Option<f64>,
        window_tokens: u64,
    ) -> Result<Self, Error> {
        use rayon::prelude::*;
        let groups: Vec<Vec<Group>> = set
            .shards()
            .par_iter()
            .enumerate()
            .map(|(shard, file)| {
                let mut groups = Vec::with_capacity(file.num_row_groups());
                for group in 0..file.num_row_groups() {
                    groups.push(Group {
                        shard,
                        group,
                        lengths: file.row_lengths(group)?,
                        held_out: Vec::new(),
                        left_out: Vec::new(),
                        tokens: 0,
                    });
                }
                if let Some(fraction) = holdout {
                    hold_out(&mut groups, file, fraction)?;
                }
                for group in &mut groups {
                    group.tokens = group.trained().map(|row| group.length(row)).sum();
                }
                Ok(groups)
            })
            .collect::<Result<_, Error>>()?;
        let groups = groups.concat();
        Ok(Self {
            set,
            seed,
            groups,
            window_tokens,
        })
    }

    /// Returns the number of tokens of the longest row that is trained on; 0 if there is none.
    pub fn longest_row(&self) -> u32 {
        let longest = |group: &Group| group.trained().map(|row| group.lengths[row]).max();
        self.groups.iter().filter_map(longest).max().unwrap_or(0)
    }

    /// Returns the number of tokens of the longest row that is held out; 0 if there is none.
    pub fn longest_held_out_row(&self) -> u32 {
        let lengths = |group: &Group| -> Option<u32> {
            let held = group.held_out.iter();
            held.map(|&row| group.lengths[row as usize]).max()
        };
        self.groups.iter().filter_map(lengths).max().unwrap_or(0)
    }

    /// Returns the number of tokens of an epoch.
    pub fn num_tokens(&self) -> u64 {
        self.groups.iter().map(|group| group.tokens).sum()
    }

    /// Returns the number of rows that are held out.
    pub fn num_held_out(&self) -> u64 {
        self.groups.iter().map(|g| g.held_out.len() as u64).sum()
    }

    /// Returns the number of rows that are neither trained on nor held out, since they hold a part of a document of which
    /// another part is on the other side.
    pub fn num_left_out(&self) -> u64 {
        self.groups.iter().map(|g| g.left_out.len() as u64).sum()
    }

    /// Returns the number of tokens of the longest window, of any epoch: no window has more, unless a row group has.
    pub fn largest_window_tokens(&self) -> u64 {
        let largest_group = self.groups.iter().map(|group| group.tokens).max();
        self.num_tokens()
            .min(self.window_tokens.max(largest_group.unwrap_or(0)))
    }

    /// Returns the rows that are held out, in the order of the set, row group by row group.
    pub fn held_out(&self) -> impl Iterator<Item = Result<Vec<StoredRow>, Error>> + '_ {
        let groups = self
            .groups
            .iter()
            .filter(|group| !group.held_out.is_empty());
        groups.map(|group| {
            let rows = self.set.shards()[group.shard].read_row_group(group.group)?;
            let held = (0..)
                .zip(rows)
                .filter(|(number, _)| group.is_held_out(*number));
            Ok(held.map(|(_, row)| row).collect())
        })
    }

    /// The permuted row groups of an epoch, as windows of indices into `groups`.
    fn windows(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        SplitMix64::new(self.seed, epoch, u64::MAX).shuffle(&mut order);
        let mut windows: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for group in order {
            let more = self.groups[group].tokens;
            match windows.last_mut() {
                Some(window) if tokens + more <= self.window_tokens => {
                    window.push(group);
                    tokens += more;
                }
                _ => {
                    windows.push(vec![group]);
                    tokens = more;
                }
            }
        }
        windows
    }

    /// The shuffled rows of a window.
    fn places(&self, epoch: u64, number: usize, window: &[usize]) -> Vec<Place> {
        let mut places: Vec<Place> = window
            .iter()
            .flat_map(|&group| self.groups[group].trained().map(move |row| (group, row)))
            .collect();
        SplitMix64::new(self.seed, epoch, number as u64).shuffle(&mut places);
        places
    }

    fn length(&self, (group, row): Place) -> usize {
        self.groups[group].lengths[row] as usize
    }

    /// Calls `each` with the rows of every step of an epoch, in order.
    fn each_step(&self, epoch: u64, batch_tokens: usize, mut each: impl FnMut(&[Place])) {
        let mut packer = StepPacker::new(batch_tokens);
        let mut open = Vec::new();
        for (number, window) in self.windows(epoch).iter().enumerate() {
            for place in self.places(epoch, number, window) {
                if packer.starts_new_step(self.length(place)) {
                    each(&open);
                    open.clear();
                }
                open.push(place);
            }
        }
        if !open.is_empty() {
            each(&open);
        }
    }

    /// Returns the number of tokens of every step of an epoch, in order.
    pub fn step_tokens(&self, epoch: u64, batch_tokens: usize) -> Vec<u64> {
        let mut steps = Vec::new();
        self.each_step(epoch, batch_tokens, |places| {
            let tokens: usize = places.iter().map(|&place| self.length(place)).sum();
            steps.push(tokens as u64);
        });
        steps
    }

    /// Returns the row ids of the steps of an epoch, without decoding a row.
    pub fn row_ids(&self, epoch: u64, batch_tokens: usize) -> Vec<Vec<u64>> {
        let mut steps = Vec::new();
        self.each_step(epoch, batch_tokens, |places| {
            let id = |&(group, row): &Place| {
                let Group { shard, group, .. } = self.groups[group];
                self.set.shards()[shard].row_id(group, row)
            };
            steps.push(places.iter().map(id).collect());
        });
        steps
    }

    /// Returns the steps of an epoch from a cursor's row on: rows in order, as many as fit `batch_tokens`, at least
    /// one. Row groups are decoded window by window; windows before the cursor are not.
    pub fn steps_from(
        &self,
        cursor: Cursor,
        batch_tokens: usize,
    ) -> impl Iterator<Item = Result<Step, Error>> + '_ {
        let Cursor {
            epoch,
            rows: skipped,
        } = cursor;
        let windows = self.windows(epoch);
        let mut skip = usize::try_from(skipped).unwrap_or(usize::MAX);
        let rows = (0..windows.len()).flat_map(move |number| {
            let places = self.places(epoch, number, &windows[number]);
            let skipped_here = skip.min(places.len());
            skip -= skipped_here;
            let (rows, failure) = match self.load(&places[skipped_here..]) {
                Ok(rows) => (rows, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            failure.into_iter().map(Err).chain(rows.into_iter().map(Ok))
        });
        Steps {
            rows,
            end: cursor,
            packer: StepPacker::new(batch_tokens),
            open: Vec::new(),
            ended: false,
        }
    }

    /// Decodes rows of a window.
    fn load(&self, places: &[Place]) -> Result<Vec<StoredRow>, Error> {
        use rayon::prelude::*;
        let mut groups: Vec<usize> = places.iter().map(|place| place.0).collect();
        groups.sort_unstable();
        groups.dedup();
        let decoded: Vec<Vec<Option<StoredRow>>> = groups
            .par_iter()
            .map(|&group| {
                let Group { shard, group, .. } = self.groups[group];
                let rows = self.set.shards()[shard].read_row_group(group)?;
                Ok(rows.into_iter().map(Some).collect())
            })
            .collect::<Result<_, Error>>()?;
        let mut by_group: std::collections::BTreeMap<usize, Vec<Option<StoredRow>>> =
            groups.into_iter().zip(decoded).collect();
        Ok(places
            .iter()
            .filter_map(|(group, row)| by_group.get_mut(group)?.get_mut(*row)?.take())
            .collect())
    }
}

impl Group {
    fn is_held_out(&self, row: u32) -> bool {
        self.held_out.binary_search(&row).is_ok()
    }

    /// Numbers of the rows that are trained on.
    fn trained(&self) -> impl Iterator<Item = usize> + '_ {
        let is_left_out = |row: &u32| self.left_out.binary_search(row).is_ok();
        (0..)
            .take(self.lengths.len())
            .filter(move |row| !self.is_held_out(*row) && !is_left_out(row))
            .map(|row| row as usize)
    }

    fn length(&self, row: usize) -> u64 {
        u64::from(self.lengths[row])
    }
}

/// Divides the rows of a shard into those that are trained on, held out, and left out of both: a row with a part
/// of a document of which another part is on the other side, in the row before or after it, would give
/// away what the model is tested on.
fn hold_out(groups: &mut [Group], file: &ShardFile, fraction: f64) -> Result<(), Error> {
    // Whether a row is held out, and whether it continues the document of the row before.
    let mut rows = Vec::new();
    let mut starts = Vec::new();
    for group in 0..groups.len() {
        starts.push(rows.len());
        for row in file.read_row_group(group)? {
            let continues = row.scored.doc_starts.first() != Some(&0);
            rows.push((is_held_out(&row, fraction), continues));
        }
    }
    for (group, start) in groups.iter_mut().zip(starts) {
        for number in 0..group.lengths.len() {
            let at = start + number;
            let (is_held, continues) = rows[at];
            let before = at.checked_sub(1).map(|before| rows[before].0);
            let shares =
                (continues && before == Some(true)) || rows.get(at + 1) == Some(&(true, true));
            let number = number as u32;
            match is_held {
                true => group.held_out.push(number),
                false if shares => group.left_out.push(number),
                false => {}
            }
        }
    }
    Ok(())
}

/// Returns whether a row belongs to the held-out share of the documents, in [0, 1).
///
/// The choice is a hash of source and number of the row's first document, so that it does not depend on the seed,
/// and all rows of a document that stands in rows of its own are held out, or none. Where rows hold several
/// documents, [`Order`] leaves out what stands on both sides.
pub fn is_held_out(row: &StoredRow, fraction: f64) -> bool {
    let row = &row.scored;
    let mut key = Vec::from(*b"remit holdout 1");
    key.extend(row.doc_index.to_le_bytes());
    key.extend(row.source.as_bytes());
    // 53 bits, which f64 holds exactly.
    let draw = SplitMix64::of_key(&key).next() >> 11;
    (draw as f64) < fraction * (1_u64 << 53) as f64
}

/// Decides where one step ends and the next begins.
struct StepPacker {
    batch_tokens: usize,
    tokens: usize,
}

impl StepPacker {
    fn new(batch_tokens: usize) -> Self {
        Self {
            batch_tokens,
            tokens: 0,
        }
    }

    /// Takes a row of `len` tokens in; whether the rows before it form a complete step.
    fn starts_new_step(&mut self, len: usize) -> bool {
        let full = self.tokens > 0 && self.tokens + len > self.batch_tokens;
        self.tokens = if full { len } else { self.tokens + len };
        full
    }
}

struct Steps<I> {
    rows: I,
    /// Where the step that is open begins.
    end: Cursor,
    packer: StepPacker,
    open: Vec<StoredRow>,
    ended: bool,
}

impl<I: Iterator<Item = Result<StoredRow, Error>>> Iterator for Steps<I> {
    type Item = Result<Step, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let rows = loop {
            match self.rows.next() {
                Some(Ok(row)) => {
                    if self.packer.starts_new_step(row.num_tokens()) {
                        break std::mem::replace(&mut self.open, vec![row]);
                    }
                    self.open.push(row);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    break std::mem::take(&mut self.open);
                }
            }
        };
        self.end.rows += rows.len() as u64;
        (!rows.is_empty()).then_some(Ok(Step {
            epoch: self.end.epoch,
            rows,
            end: self.end,
        }))
    }
}

/// Splits the rows of a step, in order, into runs of at most `micro_batch_tokens`, each of at least
/// one row. Runs end only where `units` of at most `unit_tokens` do, unless `micro_batch_tokens` is less.
///
/// # Examples
///
/// ```
/// let lengths = [3, 3, 5, 9, 1];
/// let runs = remit::batch::micro_batches(&lengths, 8, 8, |len| *len);
/// assert_eq!(runs, [&[3, 3][..], &[5], &[9], &[1]]);
/// // Units of 6 tokens: [3, 3], [5], [9], [1].
/// let runs = remit::batch::micro_batches(&lengths, 15, 6, |len| *len);
/// assert_eq!(runs, [&[3, 3, 5][..], &[9, 1]]);
/// ```
pub fn micro_batches<T>(
    rows: &[T],
    micro_batch_tokens: usize,
    unit_tokens: usize,
    length: impl Fn(&T) -> usize,
) -> Vec<&[T]> {
    let mut runs = Vec::new();
    let mut of_run = StepPacker::new(micro_batch_tokens);
    let mut start = 0;
    let mut end = 0;
    for unit in runs_of(rows, unit_tokens.min(micro_batch_tokens), &length) {
        if of_run.starts_new_step(unit.iter().map(&length).sum()) {
            runs.push(&rows[start..end]);
            start = end;
        }
        end += unit.len();
    }
    if start < rows.len() {
        runs.push(&rows[start..]);
    }
    runs
}

/// Runs of consecutive rows of at most `limit` tokens, each of at least one row.
fn runs_of<'a, T>(rows: &'a [T], limit: usize, length: &impl Fn(&T) -> usize) -> Vec<&'a [T]> {
    let mut packer = StepPacker::new(limit);
    let mut runs = Vec::new();
    let mut start = 0;
    for (i, row) in rows.iter().enumerate() {
        if packer.starts_new_step(length(row)) {
            runs.push(&rows[start..i]);
            start = i;
        }
    }
    if start < rows.len() {
        runs.push(&rows[start..]);
    }
    runs
}
