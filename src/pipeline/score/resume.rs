//! Finds what there is of a set already, and checks that a run may continue it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::super::{Progress, Usage};
use crate::corpus::{Corpus, Input, Part};
use crate::escape::Show as _;
use crate::fs;
use crate::shard;
use crate::shard::assemble::assemble;
use crate::shard::layout::{DESCRIPTION_DIR, SHARD_PREFIX, shard_name};
use crate::shard::manifest::{Manifest, ShardEntry};
use crate::shard::plan::Plan;
use crate::shard::read::ShardFile;
use crate::shard::schema::ShardFormat;
use crate::shard::verify::rejects;

/// Compares a plan with that of the folder, if there is one.
pub(in super::super) fn compare_plan(dir: &Path, plan: &Plan) -> Result<()> {
    match Plan::load(dir)? {
        Some(existing) => refuse_differences(dir, &existing, plan),
        None => Ok(()),
    }
}

/// Writes the plan, or compares with the existing one; returns the one in force.
pub(super) fn settle_plan(dir: &Path, plan: Plan) -> Result<Plan> {
    if Plan::load(dir)?.is_none() {
        // A lost plan can be restored from the manifest, which has every word of it.
        if let Some(Manifest { plan: existing, .. }) = Manifest::load_if_present(dir)? {
            refuse_differences(dir, &existing, &plan)?;
            existing.save(dir)?;
            return Ok(existing);
        }
        // Without its plan nobody can tell what these were made with.
        let orphan = fs::list(dir)?.into_iter().find(|name| is_shard(name));
        if let Some(orphan) = orphan
            && Plan::load(dir)?.is_none()
        {
            return Err(Usage(format!(
                "{} holds {}, but no plan in {DESCRIPTION_DIR}/ that says how it was made\nhint: give another -o, or \
                 an empty folder",
                dir.shown(),
                orphan.shown()
            ))
            .into());
        }
        if plan.save(dir)? {
            return Ok(plan);
        }
    }
    // There was one, or another worker was faster.
    let existing = Plan::load(dir)?.context("the plan has vanished while it was read")?;
    refuse_differences(dir, &existing, &plan)?;
    Ok(existing)
}

fn refuse_differences(dir: &Path, existing: &Plan, plan: &Plan) -> Result<()> {
    let differences = existing.difference(plan);
    if differences.is_empty() {
        return Ok(());
    }
    // A plan is not replaced even if nothing was made under it, say because the first record was bad. A worker may
    // be at its first shard under it. Workers of the new plan would keep that shard, and learn only at the end that
    // it does not belong.
    let is_begun = Manifest::is_present(dir)? || fs::list(dir)?.iter().any(|name| is_shard(name));
    let hint = if is_begun {
        "give another -o, or the options and inputs it was started with".to_owned()
    } else {
        format!(
            "no shard was made under that plan yet: if no worker runs with it any more, remove {} and \
             run this command again; else give another -o",
            existing.path(dir).shown()
        )
    };
    Err(Usage(format!(
        "{} was started with other inputs or options:\n  {}\nhint: {hint}",
        dir.shown(),
        differences
            .iter()
            .map(|difference| difference.shown().to_string())
            .collect::<Vec<_>>()
            .join("\n  ")
    ))
    .into())
}

/// Returns whether a file is a shard, by its name.
fn is_shard(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(SHARD_PREFIX.as_bytes())
}

/// Checks what can be told from places alone: the output may not be a file, and URLs have to name buckets.
pub(super) fn check_places(inputs: &[Input], output: &Path) -> Result<()> {
    let paths = inputs.iter().flat_map(|input| match input {
        Input::Path(path) => std::slice::from_ref(path),
        Input::List(paths) => paths,
    });
    for path in paths.map(PathBuf::as_path).chain([output]) {
        if fs::lacks_bucket(path) {
            let shown = path.shown();
            return Err(Usage(format!(
                "{shown} names no bucket\nhint: a URL is like {}://BUCKET/PREFIX",
                shown.to_string().split(':').next().unwrap_or_default()
            ))
            .into());
        }
    }
    Ok(fs::expect_no_file(output)?)
}

/// Refuses an output folder inside an input: the set may not become part of its own corpus.
pub(super) fn refuse_output_inside_input(inputs: &[Input], dir: &Path) -> Result<()> {
    let output = fs::canonicalize_missing(dir)?;
    let paths = inputs.iter().filter_map(|input| match input {
        Input::Path(path) => Some(path),
        _ => None,
    });
    for input in paths {
        if fs::is_dir(input)? && output.starts_with(fs::canonicalize(input)?) {
            return Err(Usage(format!(
                "-o {} lies inside the input {}, so the next run would take its shards for text\nhint: \
                 give an -o outside of it",
                dir.shown(),
                input.shown()
            ))
            .into());
        }
    }
    Ok(())
}

/// Refuses the folder or the files of a set as a corpus: their rows begin and end with special tokens already.
pub(super) fn refuse_sets(inputs: &[Input]) -> Result<()> {
    for input in inputs {
        let Input::Path(path) = input else { continue };
        let within = match fs::is_dir(path)? {
            true => path.join(DESCRIPTION_DIR),
            false => path.clone(),
        };
        if fs::exists(path)?
            && let Some(set) = fs::folder_above_with(&within, DESCRIPTION_DIR)?
        {
            return Err(Usage(format!(
                "{} is a set that was scored, not a corpus: {} holds its description\nhint: give the corpus that it \
                 was made from",
                path.shown(),
                set.join(DESCRIPTION_DIR).shown()
            ))
            .into());
        }
    }
    Ok(())
}

/// Refuses the folder of a model as output.
pub(super) fn refuse_model_as_output(dir: &Path) -> Result<()> {
    let names = match fs::is_dir(dir)? {
        true => fs::list(dir)?,
        false => Vec::new(),
    };
    let is_of_model = |name: &&OsString| {
        let name = Path::new(name);
        name == "config.json" || name.extension().is_some_and(|ext| ext == "safetensors")
    };
    if let Some(name) = names.iter().find(is_of_model) {
        return Err(Usage(format!(
            "-o {} is the folder of a model: it has a {}\nhint: give another -o",
            dir.shown(),
            name.shown()
        ))
        .into());
    }
    Ok(())
}

/// Refuses an output folder among the files that patterns and lists come to.
pub(super) fn refuse_output_in_corpus(
    inputs: &[Input],
    dir: &Path,
    format: ShardFormat,
    corpus: &Corpus,
) -> Result<()> {
    let output = fs::canonicalize_missing(dir)?;
    let refuse = |what: &str| {
        Usage(format!(
            "-o {} lies among the inputs: {what}, so shards would be taken for text\nhint: give an -o \
             outside of them, or a pattern that leaves it out",
            dir.shown()
        ))
    };
    let shard = dir.join(shard_name(0, format));
    for input in inputs {
        if let Input::Path(pattern) = input
            && fs::matches(pattern, &shard)
        {
            return Err(refuse(&format!("{} matches its shards", pattern.shown())).into());
        }
    }
    for file in corpus.files() {
        if fs::canonicalize(&file.path)?.starts_with(&output) {
            return Err(refuse(&format!("{} is one of them", file.path.shown())).into());
        }
    }
    Ok(())
}

/// Lists the parts without a shard.
pub(in super::super) fn missing_parts(
    dir: &Path,
    format: ShardFormat,
    parts: &[Part],
) -> Result<Vec<u32>> {
    let names: BTreeSet<OsString> = fs::list(dir)?.into_iter().collect();
    let is_missing = |part: &u32| !names.contains(OsStr::new(&shard_name(*part, format)));
    Ok(parts
        .iter()
        .map(|part| part.index)
        .filter(is_missing)
        .collect())
}

/// What was compared with the manifest of a set that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    /// The sizes of all shards.
    Sizes,
    /// Sizes and digests: every byte.
    Digests,
}

/// Makes the manifest from the shards, or reads the existing one. In that case shards of the parts that were
/// `made` just now have to be those that it lists, and the others have to have their sizes or, with `verify`, their
/// digests.
pub(super) fn complete(
    dir: &Path,
    plan: Plan,
    made: &[&Part],
    verify: bool,
    progress: &dyn Progress,
) -> Result<(Manifest, Checked)> {
    if let Some(manifest) = Manifest::load_if_present(dir)? {
        refuse_differences(dir, &manifest.plan, &plan)?;
        let identity = plan.identity()?;
        let is_made = |part: u32| made.iter().any(|made| made.index == part);
        if verify {
            progress.note("reading and hashing all shards");
        }
        let check = |entry: &ShardEntry| {
            if verify || is_made(entry.part) {
                ShardFile::open_verified(dir, entry, &plan, identity).map(drop)
            } else {
                entry.expect_size(dir)
            }
        };
        shard::verify::all(dir, &manifest.shards, check)?;
        if let Some(list) = &manifest.rejects
            && !fs::exists(&dir.join(&list.file))?
        {
            assemble(dir, plan)?.save_rejects(dir)?;
            rejects(dir, &manifest)?;
        }
        sweep(dir)?;
        let checked = match verify {
            true => Checked::Digests,
            false => Checked::Sizes,
        };
        return Ok((manifest, checked));
    }
    progress.note("reading back and hashing all shards");
    let manifest = assemble(dir, plan)?.save(dir)?;
    // What was there when it was read may be gone.
    shard::verify::all(dir, &manifest.shards, |entry| entry.expect_size(dir))?;
    sweep(dir)?;
    Ok((manifest, Checked::Digests))
}

/// Removes what killed runs left behind in a complete set.
fn sweep(dir: &Path) -> Result<()> {
    fs::remove_stale_temps(dir, SHARD_PREFIX)?;
    fs::remove_stale_temps(&dir.join(DESCRIPTION_DIR), "")?;
    Ok(())
}
