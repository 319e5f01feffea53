//! The manifest of a set, made from its finished shards.

use std::path::Path;

use rayon::prelude::*;

use super::description;
use super::json::{content_digest, pretty};
use super::layout::{Description, shard_name};
use super::manifest::{Manifest, RejectsEntry, ShardEntry};
use super::plan::Plan;
use super::read::ShardFile;
use super::statistics::{Accumulator, BySource};
use super::{Error, ErrorKind};
use crate::fs::{self, Digest};
use crate::pack::PackStats;
use crate::types::Reject;
use crate::weight::WeightFormula;

/// Shards whose numbers are gathered at a time.
const PARTS_AT_A_TIME: usize = 64;

/// A manifest that is not written yet, and what goes with it.
#[derive(Debug)]
pub struct Assembly {
    manifest: Manifest,
    rejects_json: Vec<u8>,
}

impl Assembly {
    /// Writes the list of records that could not be read, if there are any, and then the manifest.
    pub fn save(self, dir: &Path) -> Result<Manifest, Error> {
        self.save_rejects(dir)?;
        save(self.manifest, dir)
    }

    /// Writes the list of records that could not be read, if there are any.
    pub fn save_rejects(&self, dir: &Path) -> Result<(), Error> {
        if self.manifest.rejects.is_some() {
            write_new(
                dir,
                Description::Rejects,
                &self.manifest,
                &self.rejects_json,
            )?;
        }
        Ok(())
    }
}

fn write_new(
    dir: &Path,
    what: Description,
    manifest: &Manifest,
    text: &[u8],
) -> Result<bool, Error> {
    let plan = &manifest.plan;
    description::write_new(dir, what, plan.format, plan.columns(), text)
}

/// Writes a manifest, atomically, with its own digest in it, unless there is one; returns it as it was
/// written.
pub(super) fn save(mut manifest: Manifest, dir: &Path) -> Result<Manifest, Error> {
    let path = dir.join(Description::Manifest.file(manifest.plan.format));
    let damaged = |reason| Error::Damaged {
        path: path.clone(),
        reason,
    };
    manifest.validate().map_err(damaged)?;
    let draft = pretty(&manifest, &path)?;
    manifest.content_blake3 = content_digest(&draft, manifest.content_blake3)
        .ok_or_else(|| damaged("it does not hold its own digest once".to_owned()))?;
    // Another worker may have been faster, with the same bytes.
    let text = pretty(&manifest, &path)?;
    write_new(dir, Description::Manifest, &manifest, &text)?;
    Ok(manifest)
}

/// Makes the manifest of a set whose shards are all there, by reading every one of them.
///
/// # Errors
///
/// When a shard is missing, is not what was written, or breaks a rule of the format; all of the shards
/// are read before, so that one message names all that have to be made again.
pub fn assemble(dir: &Path, plan: Plan) -> Result<Assembly, Error> {
    let formula = plan.formula.unwrap_or_default();
    let identity = plan.identity()?;
    let mut documents = PackStats::default();
    let mut by_source = BySource::new();
    let mut shards = Vec::new();
    let mut all_rejects = Vec::new();
    let mut bad = Vec::new();
    let numbers: Vec<u32> = (0..plan.num_parts).collect();
    // Some at a time, so that memory does not hold what all of them say.
    for numbers in numbers.chunks(PARTS_AT_A_TIME) {
        let parts: Vec<_> = numbers
            .par_iter()
            .map(|part| describe(dir, *part, &plan, identity, &formula))
            .collect();
        for described in parts {
            let (entry, stats, sources, rejects) = match described {
                Ok(described) => described,
                Err(error) if error.kind() == ErrorKind::BadData => {
                    bad.push(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            shards.push(entry);
            all_rejects.extend(rejects);
            documents += stats;
            for (source, accumulator) in sources {
                by_source.entry(source).or_default().merge(&accumulator);
            }
        }
    }
    Error::of_several(dir, bad)?;
    let mut totals = Accumulator::default();
    by_source
        .values()
        .for_each(|accumulator| totals.merge(accumulator));
    let rejects_json = pretty(&all_rejects, Path::new(Description::Rejects.name()))?;
    let rejects = (!all_rejects.is_empty()).then(|| RejectsEntry {
        file: Description::Rejects.file(plan.format),
        records: documents.rejected_records,
        size_bytes: rejects_json.len() as u64,
        blake3: Digest::of(&rejects_json),
    });
    let manifest = Manifest {
        content_blake3: Digest::of(b""),
        shards,
        documents,
        rejects,
        totals: totals.statistics(&formula),
        sources: by_source
            .into_iter()
            .map(|(source, accumulator)| (source, accumulator.statistics(&formula)))
            .collect(),
        plan,
    };
    Ok(Assembly {
        manifest,
        rejects_json,
    })
}

/// Reads a finished shard for what the manifest says of it.
fn describe(
    dir: &Path,
    part: u32,
    plan: &Plan,
    identity: Digest,
    formula: &WeightFormula,
) -> Result<(ShardEntry, PackStats, BySource, Vec<Reject>), Error> {
    let file = shard_name(part, plan.format);
    let path = dir.join(&file);
    if !fs::exists(&path)? {
        return Err(Error::MissingShard { path });
    }
    let shard = ShardFile::open(&path, plan.format, part, plan.columns())?;
    shard.expect_plan(identity)?;
    let mut sources = BySource::new();
    let mut counts = (0, 0, 0);
    for group in 0..shard.num_row_groups() {
        for row in shard.read_row_group(group)? {
            counts.0 += 1;
            counts.1 += row.num_tokens() as u64;
            counts.2 += row.num_targets() as u64;
            let source = &*row.scored.source;
            if !sources.contains_key(source) {
                sources.insert(source.to_owned(), Accumulator::default());
            }
            if let Some(accumulator) = sources.get_mut(source) {
                accumulator.add(&row.scored, formula);
            }
        }
    }
    let entry = ShardEntry {
        file,
        part,
        rows: counts.0,
        tokens: counts.1,
        targets: counts.2,
        size_bytes: shard.size_bytes(),
        blake3: shard.digest(),
    };
    let stats = shard.pack_stats()?;
    let rejects = shard.rejects()?;
    shard.expect_count(
        "records that could not be read",
        stats.rejected_records,
        rejects.len() as u64,
    )?;
    Ok((entry, stats, sources, rejects))
}
