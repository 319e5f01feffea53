//! run.json: everything that is needed to repeat a run, and how one that is finished is recognized.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Usage;
use super::export::{self, LAST_FILE};
use super::{AnnealOptions, EVAL_FILE, METRICS_FILE, Settings};
use crate::checkpoint::CHECKPOINTS_DIR;
use crate::fs;
use crate::model::ModelSource;
use crate::shard::layout::DESCRIPTION_DIR;
use crate::shard::version1;
use crate::tensorboard::EVENTS_DIR;

/// Name of the file in the output folder that says how to repeat the run.
pub const RUN_FILE: &str = "run.json";

/// What run.json holds.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    tool_version: String,
    /// Program and arguments of the last start.
    command: Vec<String>,
    /// Its options, as --print-config prints them.
    config: Value,
    /// The model to begin with.
    model: String,
    /// What decides the result, in numbers.
    settings: Settings,
    /// Every time that the run was started, and after which step.
    starts: Vec<Start>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Start {
    after_step: u64,
    /// Seconds since 1970.
    unix_time: u64,
    os: String,
    architecture: String,
    threads: usize,
}

/// run.json of a folder; `None` if there is none that can be read.
fn load(output: &Path) -> Result<Option<RunFile>> {
    let path = output.join(RUN_FILE);
    if !fs::exists(&path)? {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&fs::read(&path)?).ok())
}

/// An error if a folder holds files of names that a run writes, or a set, and no run.json that says that they are a
/// run's.
pub(super) fn refuse_foreign_files(output: &Path) -> Result<()> {
    if !fs::is_dir(output)? || load(output)?.is_some() {
        return Ok(());
    }
    if fs::exists(&output.join(LAST_FILE))? {
        return Err(holds_a_model(output, ""));
    }
    for name in fs::list(output)? {
        let name = name.to_string_lossy();
        // A run that was killed at its start leaves an empty log.
        let is_empty = || Ok::<bool, fs::Error>(fs::size_bytes(&output.join(&*name))? == 0);
        if is_written(&name) && !(name == METRICS_FILE && is_empty()?) {
            return Err(Usage(format!(
                "{} holds {name}, but no {RUN_FILE} that says it is of a run of remit-anneal\nhint: give another -o, or an \
                 empty folder",
                output.display()
            ))
            .into());
        }
    }
    Ok(())
}

/// Whether a run writes a file of this name, or another command of remit does.
fn is_written(name: &str) -> bool {
    const LOGS: [&str; 4] = [METRICS_FILE, EVAL_FILE, CHECKPOINTS_DIR, EVENTS_DIR];
    const SETS: [&str; 3] = [
        DESCRIPTION_DIR,
        version1::MANIFEST_FILE,
        version1::PLAN_FILE,
    ];
    LOGS.contains(&name) || SETS.contains(&name) || export::is_exported(name)
}

/// Whether a folder holds the finished model of a run with these settings.
///
/// # Errors
///
/// [`Usage`] when it holds that of another run.
pub(super) fn is_finished(output: &Path, settings: &Settings) -> Result<bool> {
    if !fs::exists(&output.join(LAST_FILE))? || !export::has_weights(output)? {
        return Ok(false);
    }
    let Some(run) = load(output)? else {
        return Err(holds_a_model(output, ""));
    };
    let differences = run.settings.differences(settings);
    if differences.is_empty() {
        return Ok(true);
    }
    let differences = format!(
        ", made with other settings:\n  {}",
        differences.join("\n  ")
    );
    Err(holds_a_model(output, &differences))
}

fn holds_a_model(output: &Path, differences: &str) -> anyhow::Error {
    Usage(format!(
        "{} holds a model already{differences}\nhint: remit never writes over one; give another -o, or remove it",
        output.display()
    ))
    .into()
}

/// Writes run.json. Earlier starts with the same settings are kept.
pub(super) fn write(
    options: &AnnealOptions,
    settings: &Settings,
    source: &ModelSource,
    after_step: u64,
) -> Result<()> {
    let earlier = load(&options.output)?.filter(|run| run.settings == *settings);
    let mut starts = earlier.map_or(Vec::new(), |run| run.starts);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    starts.push(Start {
        after_step,
        unix_time: since.map_or(0, |since| since.as_secs()),
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        threads: rayon::current_num_threads(),
    });
    let run = RunFile {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        command: options.typed.command.clone(),
        config: options.typed.config.clone(),
        model: source.to_string(),
        settings: settings.clone(),
        starts,
    };
    let mut text = serde_json::to_vec_pretty(&run)?;
    text.push(b'\n');
    fs::write_atomic(&options.output.join(RUN_FILE), &text)?;
    Ok(())
}
