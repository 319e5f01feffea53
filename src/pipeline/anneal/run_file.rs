//! run.json: everything that is needed to repeat a run, and to recognize one that is finished.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Usage;
use super::extend::ExtendedRun;
use super::files::{COMPLETION_MARKER, METRICS_FILE, RUN_FILE, holds_finished_model, is_written};
use super::plan::Plan;
use super::settings::Settings;
use crate::escape::Show as _;
use crate::fs;

/// Content of run.json.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    tool_version: String,
    /// Program and arguments of the last start.
    command: Vec<String>,
    /// Its options, as --print-config prints them.
    config: Value,
    /// The initial model.
    model: String,
    /// Everything that decides the result, in numbers.
    settings: Settings,
    /// The run that this one goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extends: Option<ExtendedRun>,
    /// Every start of the run, and the step after which it was.
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

/// Reads run.json of a folder; `None` if there is none that can be read.
fn load(output: &Path) -> Result<Option<RunFile>> {
    let path = output.join(RUN_FILE);
    if !fs::exists(&path)? {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&fs::read(&path)?).ok())
}

/// Refuses a folder that holds a set, or files with names that a run writes, and no run.json that says that they
/// are a run's.
pub(super) fn refuse_foreign_files(output: &Path) -> Result<()> {
    if !fs::is_dir(output)? || load(output)?.is_some() {
        return Ok(());
    }
    if fs::exists(&output.join(COMPLETION_MARKER))? {
        return Err(holds_a_model(output, ""));
    }
    for name in fs::list(output)? {
        let name = name.to_string_lossy();
        // A run that was killed at its start leaves an empty log.
        let is_empty = || Ok::<bool, fs::Error>(fs::size_bytes(&output.join(&*name))? == 0);
        if is_written(&name) && !(name == METRICS_FILE && is_empty()?) {
            return Err(holds_foreign_file(output, &name));
        }
    }
    Ok(())
}

/// Refuses a folder that holds one of the files that an export is going to write, and no run.json that says that it is
/// a run's.
pub(super) fn refuse_overwriting<'a>(
    output: &Path,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    if !fs::is_dir(output)? || load(output)?.is_some() {
        return Ok(());
    }
    names.try_for_each(|name| match fs::exists(&output.join(name))? {
        true => Err(holds_foreign_file(output, name)),
        false => Ok(()),
    })
}

fn holds_foreign_file(output: &Path, name: &str) -> anyhow::Error {
    Usage(format!(
        "{} holds {name}, but no {RUN_FILE} that says it is of a run of remit-anneal\nhint: give another -o, or an empty \
         folder",
        output.shown()
    ))
    .into()
}

/// Returns whether a folder holds the finished model of a run with these settings.
///
/// # Errors
///
/// [`Usage`] when it holds that of another run.
pub(super) fn is_finished(output: &Path, settings: &Settings) -> Result<bool> {
    if !holds_finished_model(output)? {
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
    let output = output.shown();
    let go_on = match differences {
        "" => String::new(),
        _ => format!("; to go on with it, --resume-from {output} --extend-steps N and another -o"),
    };
    Usage(format!(
        "{output} holds a model already{differences}\nhint: remit never writes over one; give another -o, or remove it{go_on}"
    ))
    .into()
}

/// Writes run.json, with one more start, after `after_step`. Earlier starts with the same settings are kept.
pub(super) fn write(plan: &Plan<'_>, after_step: u64) -> Result<()> {
    let dir = &plan.output.dir;
    let earlier = load(dir)?.filter(|run| run.settings == plan.settings);
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
        command: plan.invocation.command.clone(),
        config: plan.invocation.config.clone(),
        model: plan.initial.name(),
        settings: plan.settings.clone(),
        extends: plan.extended_run.clone(),
        starts,
    };
    let mut text = serde_json::to_vec_pretty(&run)?;
    text.push(b'\n');
    fs::write_atomic(&dir.join(RUN_FILE), &text)?;
    Ok(())
}
