//! run.json: everything that is needed to repeat a run, and how one that is finished is recognized.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Usage;
use super::export::LAST_FILE;
use super::{AnnealOptions, Settings};
use crate::fs;
use crate::model::ModelSource;

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

/// An error if a folder holds a model that no run of remit-anneal made.
pub(super) fn refuse_foreign_model(output: &Path) -> Result<()> {
    if fs::exists(&output.join(LAST_FILE))? && load(output)?.is_none() {
        return Err(holds_a_model(output, ""));
    }
    Ok(())
}

/// Whether a folder holds the finished model of a run with these settings.
///
/// # Errors
///
/// [`Usage`] when it holds that of another run.
pub(super) fn is_finished(output: &Path, settings: &Settings) -> Result<bool> {
    if !fs::exists(&output.join(LAST_FILE))? {
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

/// Writes run.json. Of a run that goes on, earlier starts are kept.
pub(super) fn write(
    options: &AnnealOptions,
    settings: &Settings,
    source: &ModelSource,
    after_step: u64,
) -> Result<()> {
    let mut starts = match after_step {
        0 => Vec::new(),
        _ => load(&options.output)?.map_or(Vec::new(), |run| run.starts),
    };
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
