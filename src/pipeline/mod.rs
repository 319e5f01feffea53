//! The visible loops: the only place where the stages meet.

pub mod anneal;
pub mod compare;
mod device;
pub mod estimate;
pub mod export;
pub mod inspect;
pub mod report;
pub mod score;
mod signals;
mod special;
pub mod stages;
mod tokenizer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::escape::Show as _;
use crate::fs;
use crate::model::{self, OpenModel};
use crate::shard::layout::DESCRIPTION_DIR;

/// Receives progress.
pub trait Progress: Sync {
    /// Begins a task of `total` units of work.
    fn begin(&self, task: &'static str, total: u64);
    /// Advances to `done` units in all, with `tokens` more tokens since the last call. A first call without
    /// tokens tells what was done before the task began.
    fn advance(&self, done: u64, tokens: u64, detail: &str);
    /// Ends the task.
    fn finish(&self);
    /// Shows a line of its own.
    fn note(&self, line: &str);
    /// Shows a warning that everyone should see.
    fn warn(&self, line: &str);
}

/// Asks the loops to stop; they look at it between batches.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Returns a flag that SIGINT, SIGTERM and SIGXCPU (the soft limit of `ulimit -t`) set. A second signal ends the
    /// process at once.
    pub fn on_signals() -> std::io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM, SIGXCPU};
        let flag = Self::default();
        for signal in [SIGINT, SIGTERM, SIGXCPU] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag.0))?;
            signal_hook::flag::register(signal, Arc::clone(&flag.0))?;
        }
        Ok(flag)
    }

    /// Returns the flag itself, for stages that look at it on their own.
    pub(crate) fn shared(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Fails once the flag is set, with what the same command will do next time.
    pub(crate) fn check(&self, next_time: &'static str) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) {
            Err(Interrupted(next_time))
        } else {
            Ok(())
        }
    }
}

/// A signal asked the run to stop.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted\nhint: run the same command again; {0}")]
pub struct Interrupted(pub(crate) &'static str);

/// Arguments that contradict each other or the inputs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Inputs that are fine one by one, but not together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Refuses an output inside the folder of a set, where readers of the folder would take it for shards.
fn refuse_inside_set(output: &Path, set: &Path) -> anyhow::Result<()> {
    if fs::canonicalize_missing(output)?.starts_with(fs::canonicalize(set)?) {
        return Err(Usage(format!(
            "{} lies in the set itself, where a reader would take it for a shard\nhint: write it elsewhere",
            output.shown()
        ))
        .into());
    }
    Ok(())
}

/// Refuses an output below the folder of any set: readers of that folder would take it for shards.
fn refuse_below_a_set(output: &Path) -> anyhow::Result<()> {
    match fs::folder_above_with(output, DESCRIPTION_DIR)? {
        None => Ok(()),
        Some(set) => Err(Usage(format!(
            "{} lies in {}, the folder of a set, whose readers would take it for shards\nhint: write it elsewhere",
            output.shown(),
            set.shown()
        ))
        .into()),
    }
}

/// Parses a JSON file of a model; `None` when it has none of that name.
pub(crate) fn json_of(
    model: &OpenModel,
    file: &str,
) -> Result<Option<serde_json::Value>, model::Error> {
    let Some(text) = model.file(file)? else {
        return Ok(None);
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| model::Error::Json {
            model: model.to_string(),
            file: file.to_owned(),
            source: error,
        })
}
