//! A process of remit-score that works for another, on one GPU: it is handed its parts on stdin, and tells how far it
//! is on stdout, an object of JSON per line.

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::corpus::Scans;
use crate::pipeline::score::{self, FromWorker, ScoreOptions, ToWorker};
use crate::pipeline::stages::PartQueue;
use crate::pipeline::{Progress, StopFlag};
use crate::types::TokenId;

/// How often one that waits looks at whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Tells something to the process that hands out parts.
fn tell(message: &FromWorker) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Progress that is told to the process that hands out parts.
struct Told;

impl Told {
    /// Tells a message; if that process is gone, stdin says so too, and ends the run.
    fn tell(&self, message: &FromWorker) {
        let _ = tell(message);
    }
}

impl Progress for Told {
    fn begin(&self, _task: &'static str, _total: u64) {}

    fn advance(&self, done: u64, tokens: u64, _detail: &str) {
        self.tell(&FromWorker::Advanced { done, tokens });
    }

    fn finish(&self) {}

    fn note(&self, line: &str) {
        let line = line.to_owned();
        self.tell(&FromWorker::Note { line });
    }

    fn warn(&self, line: &str) {
        let line = line.to_owned();
        self.tell(&FromWorker::Warning { line });
    }
}

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<ToWorker>,
    is_closed: bool,
    completes: bool,
}

/// The parts that another process hands out.
#[derive(Debug, Default)]
struct Remote {
    state: Mutex<State>,
    changed: Condvar,
    stop: Arc<AtomicBool>,
}

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next answer; `None` where there will be none.
    fn answer(&self) -> Option<ToWorker> {
        let mut state = self.state();
        loop {
            if state.is_closed || self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(answer) = state.answers.pop_front() {
                return Some(answer);
            }
            let waited = self.changed.wait_timeout(state, LOOK_EVERY);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads answers until there are no more; then that process is gone, and this one has to stop.
    fn listen(&self) {
        for line in std::io::stdin().lock().lines() {
            match line.map(|line| serde_json::from_str(&line)) {
                Ok(Ok(ToWorker::Stop)) | Ok(Err(_)) | Err(_) => break,
                Ok(Ok(answer)) => {
                    self.state().answers.push_back(answer);
                    self.changed.notify_all();
                }
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

impl PartQueue for Remote {
    fn scans(&self, num_ids: u64, separator: Option<TokenId>) -> Result<Scans> {
        tell(&FromWorker::Scan { num_ids, separator })?;
        Ok(match self.answer() {
            Some(ToWorker::Scanned { scans }) => scans,
            _ => Scans::default(),
        })
    }

    fn begin(&self, parts: Vec<(u32, u64)>) -> Result<()> {
        tell(&FromWorker::Ready { parts })
    }

    fn next(&self) -> Result<Option<u32>> {
        tell(&FromWorker::Want)?;
        Ok(match self.answer() {
            Some(ToWorker::Part { part }) => Some(part),
            answer => {
                self.state().completes = answer == Some(ToWorker::Complete);
                None
            }
        })
    }

    fn published(&self, part: u32) -> Result<()> {
        tell(&FromWorker::Published { part })
    }

    fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn completes(&self) -> bool {
        self.state().completes
    }
}

/// Scores the parts that are handed to this process.
pub(super) fn run(options: &ScoreOptions, stop: &StopFlag) -> Result<()> {
    let remote = Arc::new(Remote {
        stop: stop.shared(),
        ..Remote::default()
    });
    let listener = Arc::clone(&remote);
    // It waits for input when all is done, and ends with the process.
    std::thread::Builder::new().spawn(move || listener.listen())?;
    let report = score::run_from(options, &*remote, stop, &Told)?;
    tell(&FromWorker::Finished {
        num_parts: report.num_parts,
        seconds: report.seconds,
        missing_parts: report.missing_parts,
    })
}
