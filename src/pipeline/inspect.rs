//! remit-inspect: what a set says about itself, and whether it is whole.

use std::path::Path;

use anyhow::Result;

use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;

/// The manifest of a set; no shard is opened.
///
/// # Errors
///
/// When there is none, or it is damaged.
pub fn summary(dir: &Path) -> Result<Manifest> {
    Ok(Manifest::load(dir)?)
}

/// Checks a set down to the last value: digests, columns, counts, and the rules that rows keep.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn verify(dir: &Path) -> Result<Manifest> {
    let set = ShardSet::open(dir)?;
    set.verify_values()?;
    Ok(set.manifest().clone())
}
