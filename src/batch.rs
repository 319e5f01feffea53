//! The order in which training sees the rows of a set, and how they form steps and micro-batches.
//!
//! The order is a pure function of (set, seed, epoch): not of the micro-batch size or the number of
//! threads. The row groups of the whole set are permuted, consecutive ones are gathered into windows
//! of at most [`SHUFFLE_WINDOW_TOKENS`], and all rows of a window are shuffled together. A set that
//! fits one window is shuffled as a whole; a larger one needs memory for one window only.

use crate::shard::Error;
use crate::shard::read::ShardSet;
use crate::types::ScoredRow;

/// Most tokens of a shuffle window, unless a single row group has more. At 12 bytes a token (id,
/// RL log-prob, weight) and 4 more with a base, this is what bounds the memory for data: 128 MiB.
pub const SHUFFLE_WINDOW_TOKENS: u64 = 8 << 20;

/// A row group of the set: shard and group in it.
#[derive(Debug, Clone)]
struct Group {
    shard: usize,
    group: usize,
    /// Tokens of each of its rows.
    lengths: Vec<u32>,
    tokens: u64,
}

/// The rows of a set in their shuffled order.
#[derive(Debug)]
pub struct Order<'a> {
    set: &'a ShardSet,
    seed: u64,
    groups: Vec<Group>,
    window_tokens: u64,
}

/// The rows of one optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Epoch, from 0. A step never mixes epochs.
    pub epoch: u64,
    /// Its rows, in order.
    pub rows: Vec<ScoredRow>,
}

impl<'a> Order<'a> {
    /// Learns the length of every row, by decoding the id column of every shard once.
    ///
    /// # Errors
    ///
    /// When a shard can't be decoded.
    pub fn new(set: &'a ShardSet, seed: u64) -> Result<Self, Error> {
        Self::with_window(set, seed, SHUFFLE_WINDOW_TOKENS)
    }

    fn with_window(set: &'a ShardSet, seed: u64, window_tokens: u64) -> Result<Self, Error> {
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
                let lengths = set.shards()[shard].row_lengths(group)?;
                Ok(Group {
                    shard,
                    group,
                    tokens: lengths.iter().map(|&len| u64::from(len)).sum(),
                    lengths,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            set,
            seed,
            groups,
            window_tokens,
        })
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> u32 {
        self.groups
            .iter()
            .flat_map(|group| &group.lengths)
            .copied()
            .max()
            .unwrap_or(0)
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

    /// The shuffled rows of a window: index into `groups`, row in it.
    fn rows(&self, epoch: u64, number: usize, window: &[usize]) -> Vec<(usize, usize)> {
        let mut rows: Vec<(usize, usize)> = window
            .iter()
            .flat_map(|&group| (0..self.groups[group].lengths.len()).map(move |row| (group, row)))
            .collect();
        Stream::new(self.seed, epoch, number as u64).shuffle(&mut rows);
        rows
    }

    /// Number of steps of an epoch.
    pub fn num_steps(&self, epoch: u64, batch_tokens: usize) -> u64 {
        let mut packer = StepPacker::new(batch_tokens);
        let mut steps = 0;
        for (number, window) in self.windows(epoch).iter().enumerate() {
            for (group, row) in self.rows(epoch, number, window) {
                steps +=
                    u64::from(packer.starts_new_step(self.groups[group].lengths[row] as usize));
            }
        }
        steps + u64::from(packer.tokens > 0)
    }

    /// The steps of an epoch: rows in order, as many as fit `batch_tokens`, at least one. Row groups
    /// are decoded window by window.
    pub fn steps(
        &self,
        epoch: u64,
        batch_tokens: usize,
    ) -> impl Iterator<Item = Result<Step, Error>> + '_ {
        let windows = self.windows(epoch);
        let rows = (0..windows.len()).flat_map(move |number| {
            let (rows, failure) = match self.load(epoch, number, &windows[number]) {
                Ok(rows) => (rows, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            failure.into_iter().map(Err).chain(rows.into_iter().map(Ok))
        });
        Steps {
            rows,
            epoch,
            packer: StepPacker::new(batch_tokens),
            open: Vec::new(),
            ended: false,
        }
    }

    fn load(&self, epoch: u64, number: usize, window: &[usize]) -> Result<Vec<ScoredRow>, Error> {
        use rayon::prelude::*;
        let decoded: Vec<Vec<Option<ScoredRow>>> = window
            .par_iter()
            .map(|&group| {
                let Group { shard, group, .. } = self.groups[group];
                let rows = self.set.shards()[shard].read_row_group(group)?;
                Ok(rows.into_iter().map(|row| Some(row.scored)).collect())
            })
            .collect::<Result<_, Error>>()?;
        let place: std::collections::BTreeMap<usize, usize> = window
            .iter()
            .enumerate()
            .map(|(i, &group)| (group, i))
            .collect();
        let mut decoded = decoded;
        Ok(self
            .rows(epoch, number, window)
            .into_iter()
            .filter_map(|(group, row)| decoded[place[&group]][row].take())
            .collect())
    }
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
    epoch: u64,
    packer: StepPacker,
    open: Vec<ScoredRow>,
    ended: bool,
}

impl<I: Iterator<Item = Result<ScoredRow, Error>>> Iterator for Steps<I> {
    type Item = Result<Step, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let rows = loop {
            match self.rows.next() {
                Some(Ok(row)) => {
                    if self.packer.starts_new_step(row.row.input_ids.len()) {
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
        (!rows.is_empty()).then_some(Ok(Step {
            epoch: self.epoch,
            rows,
        }))
    }
}

/// Splits the rows of a step, in order, into runs of at most `micro_batch_tokens`, each of at least
/// one row.
///
/// # Examples
///
/// ```
/// let lengths = [3, 3, 5, 9, 1];
/// let runs = remit::batch::micro_batches(&lengths, 8, |len| *len);
/// assert_eq!(runs, [&[3, 3][..], &[5], &[9], &[1]]);
/// ```
pub fn micro_batches<T>(
    rows: &[T],
    micro_batch_tokens: usize,
    length: impl Fn(&T) -> usize,
) -> Vec<&[T]> {
    let mut runs = Vec::new();
    let mut packer = StepPacker::new(micro_batch_tokens);
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

/// A stream of random numbers: SplitMix64 (Steele, Lea & Flood, 2014) from a BLAKE3 of its purpose.
struct Stream(u64);

impl Stream {
    fn new(seed: u64, epoch: u64, window: u64) -> Self {
        let mut key = Vec::from(*b"remit shuffle 1");
        for number in [seed, epoch, window] {
            key.extend(number.to_le_bytes());
        }
        let digest = blake3::hash(&key);
        let (first, _) = digest
            .as_bytes()
            .split_first_chunk::<8>()
            .unwrap_or((&[0; 8], &[]));
        Self(u64::from_le_bytes(*first))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, each equally likely (Lemire, arXiv 1805.10941).
    fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            // The low half of the product says whether this draw belongs to the uneven rest.
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// Fisher-Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::tests::finished_set;
    use proptest::prelude::*;

    fn ids(rows: &[ScoredRow]) -> Vec<u32> {
        rows.iter().map(|row| row.row.input_ids[0]).collect()
    }

    fn epoch(order: &Order<'_>, epoch: u64, batch_tokens: usize) -> Vec<Step> {
        order
            .steps(epoch, batch_tokens)
            .collect::<Result<_, _>>()
            .unwrap()
    }

    #[test]
    fn every_row_comes_once_an_epoch_and_every_epoch_in_another_order() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 3, 40);
        for window_tokens in [1, 200, SHUFFLE_WINDOW_TOKENS] {
            let order = Order::with_window(&set, 1, window_tokens).unwrap();
            let rows = |e, seed_order: &Order<'_>| {
                let steps = epoch(seed_order, e, 64);
                assert_eq!(steps.len() as u64, seed_order.num_steps(e, 64));
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
            let other = Order::with_window(&set, 2, window_tokens).unwrap();
            assert_ne!(first, rows(0, &other));
        }
    }

    #[test]
    fn the_order_does_not_depend_on_the_step_size() {
        let dir = tempfile::tempdir().unwrap();
        let set = finished_set(dir.path(), 2, 30);
        let order = Order::new(&set, 9).unwrap();
        let rows = |batch_tokens| -> Vec<ScoredRow> {
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

    proptest! {
        #[test]
        fn micro_batches_cover_the_step_in_order_and_fit(
            lengths in proptest::collection::vec(1_usize..50, 0..40),
            limit in 1_usize..100,
        ) {
            let runs = micro_batches(&lengths, limit, |len| *len);
            prop_assert_eq!(runs.concat(), lengths.as_slice());
            for run in runs {
                prop_assert!(run.len() == 1 || run.iter().sum::<usize>() <= limit);
            }
        }

        #[test]
        fn a_shuffle_is_a_permutation(n in 0_usize..200, seed in any::<u64>()) {
            let mut items: Vec<usize> = (0..n).collect();
            Stream::new(seed, 0, 0).shuffle(&mut items);
            items.sort_unstable();
            prop_assert_eq!(items, (0..n).collect::<Vec<_>>());
        }
    }
}
