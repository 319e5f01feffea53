//! Checks of a set, down to the last value.

use std::path::Path;

use rayon::prelude::*;

use super::Error;
use super::description;
use super::layout::Description;
use super::manifest::{Manifest, ShardEntry};
use super::read::ShardFile;
use super::version1;
use crate::fs::{self, Digest};
use crate::types::Reject;

/// Runs a check on all shards, in parallel.
///
/// # Errors
///
/// What is wrong with the one that is damaged or missing, or [`Error::Several`].
pub fn all(
    dir: &Path,
    shards: &[ShardEntry],
    check: impl Fn(&ShardEntry) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let problems: Vec<Error> = shards
        .par_iter()
        .filter_map(|entry| check(entry).err())
        .collect();
    Error::of_several(dir, problems)
}

/// Checks every file of a set, shards in parallel; returns those that are not what they should be, shards
/// first, and why.
///
/// # Errors
///
/// None in practice: a plan can always be written as JSON.
pub fn check(dir: &Path, manifest: &Manifest) -> Result<Vec<(String, Error)>, Error> {
    let mut problems = check_shards(dir, manifest)?;
    if let Some(entry) = &manifest.rejects
        && let Err(error) = rejects(dir, manifest)
    {
        problems.push((entry.file.clone(), error));
    }
    problems.extend(check_plan(dir, manifest)?);
    Ok(problems)
}

/// Returns the records that could not be read, in the order of the corpus.
///
/// # Errors
///
/// When the list is missing or is not what the manifest says.
pub fn rejects(dir: &Path, manifest: &Manifest) -> Result<Vec<Reject>, Error> {
    let Some(entry) = &manifest.rejects else {
        return Ok(Vec::new());
    };
    let path = dir.join(&entry.file);
    if !fs::exists(&path)? {
        return Err(Error::MissingRejects { path });
    }
    let is_version_1 = entry.file == version1::REJECTS_FILE;
    let text = if is_version_1 {
        fs::read(&path)?
    } else {
        match description::read(dir, Description::Rejects)? {
            Some(found) => found.text,
            None => return Err(Error::MissingRejects { path }),
        }
    };
    let found = Digest::of(&text);
    if found != entry.blake3 {
        return Err(Error::Damaged {
            path,
            reason: format!(
                "its list has the BLAKE3 {found}, the manifest says {}",
                entry.blake3
            ),
        });
    }
    let parsed = if is_version_1 {
        let lines = serde_json::Deserializer::from_slice(&text);
        lines.into_iter().collect()
    } else {
        serde_json::from_slice(&text)
    };
    parsed.map_err(|source| Error::Json { path, source })
}

/// Compares the plan beside the manifest, where there is one, with that in the manifest, byte for byte.
/// Readers of a finished set do not need it; whoever resumes scoring does.
fn check_plan(dir: &Path, manifest: &Manifest) -> Result<Option<(String, Error)>, Error> {
    let plan = manifest.plan.to_json()?;
    let file = Description::Plan.file(manifest.plan.format);
    let old = dir.join(version1::PLAN_FILE);
    let (file, path, found, expected) = match description::read(dir, Description::Plan) {
        Err(error) => return Ok(Some((file, error))),
        Ok(Some(found)) => (file, found.path, found.text, plan),
        Ok(None) if fs::exists(&old)? => {
            let text = fs::read(&old)?;
            let expected = version1::plan_text(&plan);
            (version1::PLAN_FILE.to_owned(), old, text, expected)
        }
        Ok(None) => return Ok(None),
    };
    let reason = "it is not the plan in the manifest".to_owned();
    Ok((found != expected).then_some((file, Error::Damaged { path, reason })))
}

fn check_shards(dir: &Path, manifest: &Manifest) -> Result<Vec<(String, Error)>, Error> {
    let identity = manifest.plan.identity()?;
    let check = |entry: &ShardEntry| {
        let shard = ShardFile::open_verified(dir, entry, &manifest.plan, identity)?;
        let (mut tokens, mut targets) = (0_u64, 0_u64);
        for group in 0..shard.num_row_groups() {
            for row in shard.read_row_group(group)? {
                tokens += row.num_tokens() as u64;
                targets += row.num_targets() as u64;
            }
        }
        shard.expect_count("tokens", entry.tokens, tokens)?;
        shard.expect_count("targets", entry.targets, targets)?;
        let stats = shard.pack_stats()?;
        shard.expect_count("rows by its footer", stats.rows, entry.rows)?;
        let rejects = shard.rejects()?.len() as u64;
        shard.expect_count("rejected records", stats.rejected_records, rejects)
    };
    Ok(manifest
        .shards
        .par_iter()
        .filter_map(|entry| Some((entry.file.clone(), check(entry).err()?)))
        .collect())
}
