//! Progress on stderr: a bar on a terminal, a plain line every ten seconds elsewhere, or JSON objects.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::output::log_json;
use crate::pipeline::Progress;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Time between two JSON objects.
const OBJECT_EVERY: Duration = Duration::from_secs(1);

/// Shows how far a run is.
pub struct Console {
    json: bool,
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    task: &'static str,
    total: u64,
    done: u64,
    /// Units done before the task began.
    done_before: u64,
    tokens: u64,
    started: Instant,
    last_line: Instant,
}

impl Console {
    /// Writes JSON objects, one per line, if `json` is set; else a bar if stderr is a terminal, and plain lines if
    /// not.
    pub fn new(json: bool) -> Self {
        let now = Instant::now();
        Self {
            json,
            state: Mutex::new(State {
                bar: None,
                task: "",
                total: 0,
                done: 0,
                done_before: 0,
                tokens: 0,
                started: now,
                last_line: now,
            }),
        }
    }

    fn with(&self, f: impl FnOnce(&mut State)) {
        // A poisoned lock only means that a message was cut short.
        f(&mut self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl State {
    fn object(&self, event: &str) -> Value {
        json!({
            "event": event,
            "task": self.task,
            "done": self.done.min(self.total),
            "total": self.total,
            "tokens": self.tokens,
            "tokens_per_second": self.rate(),
            "seconds_left": self.eta().map(|eta| eta.as_secs_f64()),
        })
    }

    fn rate(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn eta(&self) -> Option<Duration> {
        let before = self.done_before;
        let all = self.total.saturating_sub(before).max(1);
        let fraction = self.done.saturating_sub(before) as f64 / all as f64;
        (fraction > 0.0).then(|| {
            self.started
                .elapsed()
                .mul_f64((1.0 - fraction).max(0.0) / fraction)
        })
    }
}

impl Progress for Console {
    fn begin(&self, task: &'static str, total: u64) {
        self.with(|state| {
            state.task = task;
            (state.total, state.done, state.tokens) = (total, 0, 0);
            state.done_before = 0;
            state.started = Instant::now();
            state.last_line = state.started;
            if self.json {
                log_json(&state.object("begin"));
            } else if std::io::stderr().is_terminal() {
                let bar = ProgressBar::new(total.max(1));
                let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}");
                bar.set_style(
                    style
                        .unwrap_or_else(|_| ProgressStyle::default_bar())
                        .progress_chars("=> "),
                );
                bar.set_prefix(task);
                state.bar = Some(bar);
            }
        });
    }

    fn advance(&self, done: u64, tokens: u64, detail: &str) {
        self.with(|state| {
            // Work of an earlier run tells nothing about the speed of this one.
            if state.tokens == 0 && tokens == 0 {
                state.done_before = done;
            }
            state.done = done;
            state.tokens += tokens;
            if self.json {
                if state.last_line.elapsed() >= OBJECT_EVERY {
                    state.last_line = Instant::now();
                    log_json(&state.object("progress"));
                }
                return;
            }
            let eta = state.eta().map_or("?".to_owned(), |eta| {
                indicatif::HumanDuration(eta).to_string()
            });
            let separator = if detail.is_empty() { "" } else { " | " };
            let message = format!(
                "{:.0} tokens/s, {eta} left{separator}{detail}",
                state.rate()
            );
            if let Some(bar) = &state.bar {
                bar.set_position(done.min(state.total));
                bar.set_message(message);
            } else if state.last_line.elapsed() >= LINE_EVERY {
                state.last_line = Instant::now();
                let percent = 100.0 * done as f64 / state.total.max(1) as f64;
                tracing::info!("{}: {percent:.0} %, {message}", state.task);
            }
        });
    }

    fn finish(&self) {
        self.with(|state| {
            if self.json {
                log_json(&state.object("end"));
            }
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn note(&self, line: &str) {
        self.with(|state| match &state.bar {
            _ if self.json => log_json(&json!({"event": "note", "message": line})),
            Some(bar) => bar.suspend(|| tracing::info!("{line}")),
            None => tracing::info!("{line}"),
        });
    }

    fn warn(&self, line: &str) {
        self.with(|state| match &state.bar {
            _ if self.json => log_json(&json!({"event": "warning", "message": line})),
            Some(bar) => bar.suspend(|| tracing::warn!("{line}")),
            None => tracing::warn!("{line}"),
        });
    }
}
