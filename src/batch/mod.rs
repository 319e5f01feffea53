//! The order in which training sees the rows of a set, and how they form steps and micro-batches.
//!
//! The order is a pure function of (set, seed, epoch): not of the micro-batch size or the number of
//! threads. The row groups of the whole set are permuted, consecutive ones are gathered into windows
//! of at most [`SHUFFLE_WINDOW_TOKENS`], and all rows of a window are shuffled together. A set that
//! fits one window is shuffled as a whole; a larger one needs memory for one window only.
//!
//! No generator has a state that lives from step to step: each is made anew from (seed, epoch, window). So a
//! [`Cursor`] is all that a run needs to go on where it stopped.

mod stream;

use serde::{Deserialize, Serialize};

use crate::shard::Error;
use crate::shard::read::{ShardSet, StoredRow};
use stream::Stream;

/// Most tokens of a shuffle window, unless a single row group has more. At 12 bytes a token (id,
/// RL log-prob, weight) and 4 more with a base, this is what bounds the memory for data: 128 MiB.
pub const SHUFFLE_WINDOW_TOKENS: u64 = 8 << 20;

/// Bytes of a token's id, log-probs and weight in memory.
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

/// Where a run is in its order: between two steps.
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
    /// Number of its tokens.
    pub fn num_tokens(&self) -> u64 {
        self.rows.iter().map(|row| row_tokens(row) as u64).sum()
    }
}

/// Number of tokens of a row.
pub fn row_tokens(row: &StoredRow) -> usize {
    row.scored.row.input_ids.len()
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
        let places: Vec<(usize, usize)> = set
            .shards()
            .iter()
            .enumerate()
            .flat_map(|(shard, file)| (0..file.num_row_groups()).map(move |group| (shard, group)))
            .collect();
        let groups = places
            .into_par_iter()
            .map(|(shard, group)| {
                let file = &set.shards()[shard];
                let (lengths, held_out) = match holdout {
                    None => (file.row_lengths(group)?, Vec::new()),
                    Some(fraction) => {
                        let rows = file.read_row_group(group)?;
                        let lengths = rows.iter().map(|row| row_tokens(row) as u32).collect();
                        let held = (0..)
                            .zip(&rows)
                            .filter(|(_, row)| is_held_out(row, fraction));
                        (lengths, held.map(|(number, _)| number).collect())
                    }
                };
                let mut group = Group {
                    shard,
                    group,
                    lengths,
                    held_out,
                    tokens: 0,
                };
                group.tokens = group
                    .trained()
                    .map(|row| u64::from(group.lengths[row]))
                    .sum();
                Ok(group)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            set,
            seed,
            groups,
            window_tokens,
        })
    }

    /// Tokens of the longest row that is trained on.
    pub fn longest_row(&self) -> u32 {
        let longest = |group: &Group| group.trained().map(|row| group.lengths[row]).max();
        self.groups.iter().filter_map(longest).max().unwrap_or(0)
    }

    /// Number of tokens of an epoch.
    pub fn num_tokens(&self) -> u64 {
        self.groups.iter().map(|group| group.tokens).sum()
    }

    /// Number of rows that are held out.
    pub fn num_held_out(&self) -> u64 {
        self.groups.iter().map(|g| g.held_out.len() as u64).sum()
    }

    /// Tokens of the longest window, of any epoch: no window has more, unless a row group has.
    pub fn largest_window_tokens(&self) -> u64 {
        let largest_group = self.groups.iter().map(|group| group.tokens).max();
        self.num_tokens()
            .min(self.window_tokens.max(largest_group.unwrap_or(0)))
    }

    /// The rows that are held out, in the order of the set, row group by row group.
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
        Stream::new(self.seed, epoch, u64::MAX).shuffle(&mut order);
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
        Stream::new(self.seed, epoch, number as u64).shuffle(&mut places);
        places
    }

    fn length(&self, (group, row): Place) -> usize {
        self.groups[group].lengths[row] as usize
    }

    /// Tokens of every step of an epoch, in order.
    pub fn step_tokens(&self, epoch: u64, batch_tokens: usize) -> Vec<u64> {
        let mut packer = StepPacker::new(batch_tokens);
        let mut steps = Vec::new();
        let mut tokens = 0;
        for (number, window) in self.windows(epoch).iter().enumerate() {
            for place in self.places(epoch, number, window) {
                if packer.starts_new_step(self.length(place)) {
                    steps.push(std::mem::take(&mut tokens));
                }
                tokens += self.length(place) as u64;
            }
        }
        steps.extend((tokens > 0).then_some(tokens));
        steps
    }

    /// The row ids of the steps of an epoch, without decoding a row.
    pub fn row_ids(&self, epoch: u64, batch_tokens: usize) -> Vec<Vec<u64>> {
        let mut packer = StepPacker::new(batch_tokens);
        let mut steps = Vec::new();
        let mut open = Vec::new();
        for (number, window) in self.windows(epoch).iter().enumerate() {
            for place in self.places(epoch, number, window) {
                if packer.starts_new_step(self.length(place)) {
                    steps.push(std::mem::take(&mut open));
                }
                let Group { shard, group, .. } = self.groups[place.0];
                open.push(self.set.shards()[shard].row_id(group, place.1));
            }
        }
        steps.extend((!open.is_empty()).then_some(open));
        steps
    }

    /// The steps of an epoch from a cursor's row on: rows in order, as many as fit `batch_tokens`, at least
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

    /// Numbers of the rows that are not held out.
    fn trained(&self) -> impl Iterator<Item = usize> + '_ {
        (0..)
            .zip(&self.lengths)
            .filter(|(row, _)| self.held_out.is_empty() || !self.is_held_out(*row))
            .map(|(row, _)| row as usize)
    }
}

/// Whether a row belongs to the held-out share of the documents, in [0, 1).
///
/// What is held out are documents, not rows: all rows of a document are, or none. The choice is a hash of
/// source and number of the document, so it depends neither on the seed nor on the packing's other
/// documents. A row of several documents goes with its first.
pub fn is_held_out(row: &StoredRow, fraction: f64) -> bool {
    let row = &row.scored.row;
    let mut key = Vec::from(*b"remit holdout 1");
    key.extend(row.doc_index.to_le_bytes());
    key.extend(row.source.as_bytes());
    // 53 bits, which f64 holds exactly.
    let draw = Stream::of_key(&key).next() >> 11;
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
                    if self.packer.starts_new_step(row_tokens(&row)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::tests::finished_set;
    use proptest::prelude::*;

    fn ids(rows: &[StoredRow]) -> Vec<u32> {
        rows.iter().map(|row| row.scored.row.input_ids[0]).collect()
    }

    fn epoch(order: &Order<'_>, epoch: u64, batch_tokens: usize) -> Vec<Step> {
        order
            .steps_from(Cursor { epoch, rows: 0 }, batch_tokens)
            .collect::<Result<_, _>>()
            .unwrap()
    }

    #[test]
    fn every_row_comes_once_an_epoch_and_every_epoch_in_another_order() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 3, 40);
        for window_tokens in [1, 200, SHUFFLE_WINDOW_TOKENS] {
            let order = Order::with_window(&set, 1, None, window_tokens).unwrap();
            let rows = |e, seed_order: &Order<'_>| {
                let steps = epoch(seed_order, e, 64);
                assert_eq!(
                    steps.iter().map(Step::num_tokens).collect::<Vec<_>>(),
                    seed_order.step_tokens(e, 64)
                );
                let row_ids =
                    |step: &Step| step.rows.iter().map(|row| row.row_id).collect::<Vec<_>>();
                assert_eq!(
                    steps.iter().map(row_ids).collect::<Vec<_>>(),
                    seed_order.row_ids(e, 64)
                );
                assert!(steps.iter().all(|step| step.epoch == e));
                ids(&steps
                    .into_iter()
                    .flat_map(|step| step.rows)
                    .collect::<Vec<_>>())
            };
            let first = rows(0, &order);
            let mut sorted = first.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..120).collect::<Vec<_>>());
            assert_eq!(first, rows(0, &order));
            assert_ne!(first, rows(1, &order));
            let other = Order::with_window(&set, 2, None, window_tokens).unwrap();
            assert_ne!(first, rows(0, &other));
        }
    }

    #[test]
    fn the_order_does_not_depend_on_the_step_size() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 2, 30);
        let order = Order::new(&set, 9, None).unwrap();
        let rows = |batch_tokens| -> Vec<StoredRow> {
            epoch(&order, 0, batch_tokens)
                .into_iter()
                .flat_map(|step| step.rows)
                .collect()
        };
        assert_eq!(rows(1), rows(100));
        assert_eq!(rows(1), rows(1_000_000));
        assert_eq!(epoch(&order, 0, 1).len(), 60);
        assert_eq!(epoch(&order, 0, 1_000_000).len(), 1);
    }

    #[test]
    fn a_cursor_leads_to_the_very_steps_that_would_have_followed() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 3, 40);
        for window_tokens in [1, 200, SHUFFLE_WINDOW_TOKENS] {
            let order = Order::with_window(&set, 5, Some(0.1), window_tokens).unwrap();
            let all = epoch(&order, 1, 64);
            for (i, step) in all.iter().enumerate() {
                let rest: Vec<Step> = order
                    .steps_from(step.end, 64)
                    .collect::<Result<_, _>>()
                    .unwrap();
                assert_eq!(rest, all[i + 1..]);
            }
        }
    }

    #[test]
    fn documents_are_held_out_whole_whatever_the_seed_and_never_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 3, 400);
        let order = Order::new(&set, 0, Some(0.25)).unwrap();
        let held = order
            .held_out()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
            .concat();
        assert_eq!(held.len() as u64, order.num_held_out());
        let documents = |rows: &[StoredRow]| -> std::collections::BTreeSet<(String, u64)> {
            let document =
                |r: &StoredRow| (r.scored.row.source.to_string(), r.scored.row.doc_index);
            rows.iter().map(document).collect()
        };
        let held_documents = documents(&held);
        for seed in [0, 1] {
            let order = Order::new(&set, seed, Some(0.25)).unwrap();
            let trained: Vec<StoredRow> = epoch(&order, 0, 64)
                .into_iter()
                .flat_map(|step| step.rows)
                .collect();
            assert_eq!(trained.len() + held.len(), 1200);
            assert!(documents(&trained).is_disjoint(&held_documents));
            assert_eq!(
                order.num_tokens(),
                trained
                    .iter()
                    .map(|row| row_tokens(row) as u64)
                    .sum::<u64>()
            );
        }
        let share = held_documents.len() as f64
            / documents(&epoch(&Order::new(&set, 0, None).unwrap(), 0, 1_000_000)[0].rows).len()
                as f64;
        assert!((0.15..0.35).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn micro_batches_cover_the_step_in_order_fit_and_split_no_unit(
            lengths in proptest::collection::vec(1_usize..50, 0..40),
            limit in 1_usize..100,
            unit in 1_usize..60,
        ) {
            let runs = micro_batches(&lengths, limit, unit, |len| *len);
            prop_assert_eq!(runs.concat(), lengths.as_slice());
            for run in &runs {
                prop_assert!(run.len() == 1 || run.iter().sum::<usize>() <= limit);
            }
            let units = |rows: &[usize]| -> Vec<Vec<usize>> {
                runs_of(rows, unit.min(limit), &|len| *len).into_iter().map(<[_]>::to_vec).collect()
            };
            prop_assert_eq!(runs.iter().flat_map(|run| units(run)).collect::<Vec<_>>(), units(&lengths));
        }
    }
}
