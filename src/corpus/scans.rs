//! What reading all files of a corpus found, for other processes of the same run, which then need not read them.

use serde::{Deserialize, Serialize};

use super::parts::Cuts;
use crate::fs::{Digest, Stamp};

/// What was found in the files of a corpus by reading them, in byte order of their sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scans(pub(super) Vec<Scan>);

/// What was found in a file, for the options that it was read with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scan {
    pub source: String,
    /// What the file looked like.
    pub stamp: Stamp,
    pub digest: Digest,
    pub may_hold_messages: bool,
    pub cuts: Cuts,
}

impl Scans {
    /// Returns what was found in a file, if it looks as it did then.
    pub(super) fn of(&self, source: &str, stamp: &Stamp) -> Option<&Scan> {
        let index = self.0.binary_search_by(|scan| (*scan.source).cmp(source));
        let scan = self.0.get(index.ok()?)?;
        (scan.stamp == *stamp).then_some(scan)
    }
}
