//! Sharing of a run's parts among processes, one for each GPU: who does which part, and what happens with those of a
//! process that is gone. One process hands them out, and does nothing else.
//!
//! ```text
//!   worker  Scan  -->                Ready {parts}  -->  Want  -->               Published {part}  -->
//!   share             <-- Scanned                                  <-- Part {part}                    ...  <-- Complete, or End
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::corpus::Scans;
use crate::types::TokenId;

/// What a worker tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// It has come to the files of the corpus, which are read once, for all.
    Scan {
        /// Ids that its models have.
        num_ids: u64,
        /// The separator of token files where none is given.
        separator: Option<TokenId>,
    },
    /// It can begin.
    Ready {
        /// Parts that were missing when it looked, and their bytes.
        parts: Vec<(u32, u64)>,
    },
    /// It asks for a part.
    Want,
    /// A part's shard is there.
    Published {
        /// The part.
        part: u32,
    },
    /// It came further.
    Advanced {
        /// Bytes of text that it has scored in all.
        done: u64,
        /// Tokens since it last told.
        tokens: u64,
    },
    /// A line of its own.
    Note {
        /// The line.
        line: String,
    },
    /// A warning.
    Warning {
        /// The line.
        line: String,
    },
    /// It is done.
    Finished {
        /// Parts of the corpus in all.
        num_parts: usize,
        /// Seconds with the models loaded.
        seconds: f64,
        /// Parts that are still missing.
        missing_parts: Vec<u32>,
    },
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// What is in the files of the corpus.
    Scanned {
        /// What reading them found.
        scans: Scans,
    },
    /// To do a part.
    Part {
        /// The part.
        part: u32,
    },
    /// That nothing is left, and to complete the set.
    Complete,
    /// That nothing is left, and others complete the set.
    End,
    /// To stop where it is.
    Stop,
}

/// Parts, and who does them. Workers have numbers.
#[derive(Debug, Default)]
pub struct Share {
    /// All that there are, and their bytes.
    parts: BTreeMap<u32, u64>,
    /// Those that nobody does yet.
    free: BTreeSet<u32>,
    /// Those that somebody does.
    taken: BTreeMap<u32, usize>,
    /// Workers that asked, and have no answer yet.
    waiting: BTreeSet<usize>,
    /// Who completes the set.
    completing: Option<usize>,
    is_complete: bool,
}

impl Share {
    /// Takes the parts that a worker found missing; returns whether they are the first.
    pub fn ready(&mut self, parts: &[(u32, u64)]) -> bool {
        let is_first = self.parts.is_empty();
        for (part, bytes) in parts {
            if self.parts.insert(*part, *bytes).is_none() {
                self.free.insert(*part);
            }
        }
        is_first
    }

    /// Takes a worker's question for a part.
    pub fn want(&mut self, worker: usize) {
        self.waiting.insert(worker);
    }

    /// Takes notice of a shard.
    pub fn published(&mut self, part: u32) {
        self.taken.remove(&part);
        self.free.remove(&part);
    }

    /// Takes notice that a worker is gone; its parts are for the others. Returns their number.
    pub fn gone(&mut self, worker: usize, was_well: bool) -> usize {
        self.waiting.remove(&worker);
        let left: Vec<u32> = self
            .taken
            .iter()
            .filter(|(_, of)| **of == worker)
            .map(|(part, _)| *part)
            .collect();
        for part in &left {
            self.taken.remove(part);
            self.free.insert(*part);
        }
        if self.completing == Some(worker) {
            self.completing = None;
            self.is_complete |= was_well;
        }
        left.len()
    }

    /// Returns the answers that there are by now, to workers that asked.
    pub fn answers(&mut self) -> Vec<(usize, ToWorker)> {
        let mut answers = Vec::new();
        while let Some(worker) = self.waiting.first().copied() {
            let answer = match self.free.pop_first() {
                Some(part) => {
                    self.taken.insert(part, worker);
                    ToWorker::Part { part }
                }
                None if self.is_complete => ToWorker::End,
                None if self.taken.is_empty() && self.completing.is_none() => {
                    self.completing = Some(worker);
                    ToWorker::Complete
                }
                // Parts of others may come back, or completing may fail.
                None => break,
            };
            self.waiting.remove(&worker);
            answers.push((worker, answer));
        }
        answers
    }

    /// Returns the bytes of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.parts.values().sum()
    }

    /// Returns the number of parts that were to do and whose shards are there.
    pub fn num_published(&self) -> usize {
        self.parts.len() - self.free.len() - self.taken.len()
    }

    /// Returns whether a worker completed the set.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(part: u32) -> ToWorker {
        ToWorker::Part { part }
    }

    fn share() -> Share {
        let mut share = Share::default();
        assert!(share.ready(&[(0, 10), (1, 10), (2, 10)]));
        share
    }

    #[test]
    fn parts_go_to_whoever_asks_and_one_worker_completes_the_set() {
        let mut share = share();
        assert!(!share.ready(&[(1, 10), (2, 10)]));
        share.want(1);
        assert_eq!(share.answers(), [(1, part(0))]);
        share.want(0);
        share.want(1);
        assert_eq!(share.answers(), [(0, part(1)), (1, part(2))]);
        share.published(0);
        share.published(2);
        share.want(1);
        // Worker 0 might die.
        assert_eq!(share.answers(), []);
        share.published(1);
        assert_eq!(share.answers(), [(1, ToWorker::Complete)]);
        share.want(0);
        assert_eq!(share.answers(), []);
        share.gone(1, true);
        assert_eq!(share.answers(), [(0, ToWorker::End)]);
        assert!(share.is_complete());
        assert_eq!((share.num_published(), share.total_bytes()), (3, 30));
    }

    #[test]
    fn the_parts_of_a_worker_that_is_gone_go_to_those_that_wait() {
        let mut share = share();
        for worker in [0, 0, 1] {
            share.want(worker);
            share.answers();
        }
        share.published(2);
        share.want(1);
        assert_eq!(share.answers(), []);
        assert_eq!(share.gone(0, false), 2);
        assert_eq!(share.answers(), [(1, part(0))]);
        share.want(1);
        assert_eq!(share.answers(), [(1, part(1))]);
        share.published(0);
        share.published(1);
        share.want(1);
        assert_eq!(share.answers(), [(1, ToWorker::Complete)]);
        assert!(!share.is_complete());
    }

    #[test]
    fn another_completes_the_set_where_the_first_one_dies_of_it() {
        let mut share = Share::default();
        share.ready(&[]);
        share.want(0);
        share.want(1);
        assert_eq!(share.answers(), [(0, ToWorker::Complete)]);
        share.gone(0, false);
        assert_eq!(share.answers(), [(1, ToWorker::Complete)]);
    }
}
