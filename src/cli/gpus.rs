//! Scoring on several GPUs: a process of this program for each, to which this one hands out parts. One that dies leaves
//! its parts to the others.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::exit;
use crate::corpus::{self, Scans};
use crate::guard;
use crate::model::DeviceChoice;
use crate::pipeline::score::{
    FromWorker, InputOptions, ScoreOptions, ScoreReport, Share, ToWorker, scan_corpus,
};
use crate::pipeline::{Interrupted, Progress, StopFlag};
use crate::shard::manifest::Manifest;
use crate::types::TokenId;

/// How often it looks at whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Exit codes from which another GPU may go on: anything else than usage, inputs, the disk and signals to stop.
const OF_THE_GPU: [Option<i32>; 2] = [Some(exit::OTHER as i32), None];

/// Most bytes that are kept of what a process says on stderr.
const MAX_SAID_BYTES: u64 = 1 << 16;

enum Event {
    Told(FromWorker),
    /// It has ended, and said this on stderr.
    Ended(ExitStatus, String),
    /// The files of the corpus, which it asked about, are read.
    Scanned(Result<Scans, corpus::Error>),
}

/// How far the files of the corpus are read, for all processes.
enum Scan {
    /// Nobody has asked yet.
    Unasked,
    /// These wait for it.
    Running(Vec<usize>),
    Done(Scans),
}

struct Worker {
    device: DeviceChoice,
    /// `None` once it has been told all, or is gone.
    stdin: Option<ChildStdin>,
    is_running: bool,
    is_ready: bool,
    done_bytes: u64,
}

/// Starts a process for each device, with the arguments of this one, and `--threads` divided among them.
fn start(
    devices: &[DeviceChoice],
    has_threads: bool,
    events: &Sender<(usize, Event)>,
) -> Result<Vec<Worker>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / devices.len()).max(1);
    let mut workers = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        let mut arguments: Vec<OsString> = vec!["--gpu-process".into(), device.to_string().into()];
        if !has_threads {
            arguments.extend(["--threads".into(), threads.to_string().into()]);
        }
        arguments.extend(std::env::args_os().skip(1));
        let mut command = Command::new(guard::this_program()?);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Signals of the terminal are for this process, which passes them on.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .spawn()
            .with_context(|| format!("no process could be started for {device}"))?;
        workers.push(Worker {
            device: *device,
            stdin: child.stdin.take(),
            is_running: true,
            is_ready: false,
            done_bytes: 0,
        });
        let events = events.clone();
        std::thread::Builder::new().spawn(move || listen(number, child, &events))?;
    }
    Ok(workers)
}

/// Passes on what a process tells until it ends.
fn listen(number: usize, mut child: Child, events: &Sender<(usize, Event)>) {
    let stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(MAX_SAID_BYTES).read_to_end(&mut said);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(message) = serde_json::from_str(&line) {
                // Nobody listens any more when this process ends with an error.
                let _ = events.send((number, Event::Told(message)));
            }
        }
    }
    let Ok(status) = child.wait() else { return };
    let said = said.join().unwrap_or_default();
    let _ = events.send((number, Event::Ended(status, said)));
}

impl Worker {
    fn tell(&mut self, message: &ToWorker) {
        let line = serde_json::to_string(message).or_else(|_| {
            // A file may be older than what JSON has times for; each process then reads the files itself.
            let scans = Scans::default();
            serde_json::to_string(&ToWorker::Scanned { scans })
        });
        let Ok(mut line) = line else { return };
        line.push('\n');
        // One that is gone tells so by its end.
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(line.as_bytes());
        }
    }
}

/// Everything that is known while processes run.
struct Run<'a> {
    workers: Vec<Worker>,
    share: Share,
    /// Lines that were shown already, from any of them.
    shown: HashSet<String>,
    /// The error that ends the run.
    failure: Option<anyhow::Error>,
    report: ScoreReport,
    progress: &'a dyn Progress,
    has_begun: bool,
    corpus: &'a InputOptions,
    scan: Scan,
    /// Ends the reading of the corpus.
    stop_scan: Arc<AtomicBool>,
    events: Sender<(usize, Event)>,
}

impl Run<'_> {
    /// Has all processes stop where they are.
    fn stop(&mut self) {
        self.stop_scan.store(true, Ordering::Relaxed);
        for worker in &mut self.workers {
            worker.tell(&ToWorker::Stop);
        }
    }

    fn show(&mut self, number: usize, line: String, show: fn(&dyn Progress, &str)) {
        let device = self.workers[number].device;
        let shown = format!("{device}: {line}");
        if self.shown.insert(line) {
            show(self.progress, &shown);
        }
    }

    /// Answers a process that has come to the files of the corpus: reads them when the first one has.
    fn scan(&mut self, number: usize, num_ids: u64, separator: Option<TokenId>) -> Result<()> {
        match &mut self.scan {
            Scan::Unasked => {
                let (corpus, stop) = (self.corpus.clone(), Arc::clone(&self.stop_scan));
                let events = self.events.clone();
                std::thread::Builder::new().spawn(move || {
                    let scans = scan_corpus(&corpus, num_ids, separator, stop);
                    // Nobody listens any more when this process ends with an error.
                    let _ = events.send((number, Event::Scanned(scans)));
                })?;
                self.scan = Scan::Running(vec![number]);
            }
            Scan::Running(waiting) => waiting.push(number),
            Scan::Done(scans) => {
                let scans = scans.clone();
                self.workers[number].tell(&ToWorker::Scanned { scans });
            }
        }
        Ok(())
    }

    fn scanned(&mut self, scans: Result<Scans, corpus::Error>) {
        match scans {
            Ok(scans) => {
                let scan = std::mem::replace(&mut self.scan, Scan::Done(scans.clone()));
                let scanned = ToWorker::Scanned { scans };
                if let Scan::Running(waiting) = scan {
                    for number in waiting {
                        self.workers[number].tell(&scanned);
                    }
                }
            }
            Err(error) => {
                self.failure.get_or_insert(error.into());
                self.stop();
            }
        }
    }

    fn told(&mut self, number: usize, message: FromWorker) {
        match message {
            FromWorker::Scan { num_ids, separator } => {
                if let Err(error) = self.scan(number, num_ids, separator) {
                    self.failure.get_or_insert(error);
                    self.stop();
                }
            }
            FromWorker::Ready { parts } => {
                self.workers[number].is_ready = true;
                if self.share.ready(&parts) && self.share.total_bytes() > 0 {
                    self.has_begun = true;
                    self.progress.begin("scoring", self.share.total_bytes());
                }
            }
            FromWorker::Want => self.share.want(number),
            FromWorker::Published { part } => self.share.published(part),
            FromWorker::Advanced { done, tokens } => {
                self.workers[number].done_bytes = done;
                self.report.scored_tokens += tokens;
                // What one that died had done of its last parts is done again.
                let done: u64 = self.workers.iter().map(|worker| worker.done_bytes).sum();
                let done = done.min(self.share.total_bytes());
                self.progress.advance(done, tokens, "");
            }
            FromWorker::Note { line } => {
                self.show(number, line, |progress, line| progress.note(line))
            }
            FromWorker::Warning { line } => {
                self.show(number, line, |progress, line| progress.warn(line));
            }
            FromWorker::Finished {
                num_parts,
                seconds,
                missing_parts,
            } => {
                self.report.num_parts = num_parts;
                self.report.seconds = self.report.seconds.max(seconds);
                self.report.missing_parts = missing_parts;
            }
        }
    }

    fn ended(&mut self, number: usize, status: ExitStatus, said: &str) {
        let left = self.share.gone(number, status.success());
        let worker = &mut self.workers[number];
        worker.is_running = false;
        worker.stdin = None;
        let (device, is_ready) = (worker.device, worker.is_ready);
        if status.success() || self.failure.is_some() {
            return;
        }
        let said = said.trim();
        let said = said.split_once("error: ").map_or(said, |(_, error)| error);
        let why = match said.is_empty() {
            true => status.to_string(),
            false => said.to_owned(),
        };
        let others = self
            .workers
            .iter()
            .filter(|worker| worker.is_running)
            .count();
        if others > 0 && is_ready && OF_THE_GPU.contains(&status.code()) {
            let why = why.lines().next().unwrap_or_default();
            self.progress.warn(&format!(
                "the process of {device} has ended ({why}): its {left} unfinished parts go to the {others} others"
            ));
            return;
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        self.failure = Some(
            exit::WorkerFailed {
                code: code.unwrap_or(exit::OTHER),
                text: match code {
                    Some(_) => format!("{device}: {why}"),
                    None => format!(
                        "the process of {device} has ended ({why}), and there is no other GPU\nhint: run the same command \
                         again; finished parts are kept, and it does the rest"
                    ),
                },
            }
            .into(),
        );
        self.stop();
    }

    /// Goes on until all processes have ended.
    fn go(&mut self, events: &Receiver<(usize, Event)>, stop: &StopFlag) {
        let mut is_stopped = false;
        while self.workers.iter().any(|worker| worker.is_running) {
            match events.recv_timeout(LOOK_EVERY) {
                Ok((number, Event::Told(message))) => self.told(number, message),
                Ok((number, Event::Ended(status, said))) => self.ended(number, status, &said),
                Ok((_, Event::Scanned(scans))) => self.scanned(scans),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !is_stopped && stop.shared().load(Ordering::Relaxed) {
                is_stopped = true;
                let error = Interrupted("finished parts are kept, and it does the rest");
                self.failure.get_or_insert(error.into());
                self.stop();
            }
            for (number, answer) in self.share.answers() {
                self.workers[number].tell(&answer);
            }
        }
    }
}

/// Scores on several devices.
///
/// # Errors
///
/// That of a process which the others would meet too, and when none is left.
pub(super) fn run(
    options: &ScoreOptions,
    devices: &[DeviceChoice],
    has_threads: bool,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<ScoreReport> {
    let (send, events) = channel();
    let mut run = Run {
        workers: start(devices, has_threads, &send)?,
        share: Share::default(),
        shown: HashSet::new(),
        failure: None,
        report: ScoreReport::default(),
        progress,
        has_begun: false,
        corpus: &options.corpus,
        scan: Scan::Unasked,
        stop_scan: Arc::default(),
        events: send,
    };
    run.go(&events, stop);
    if run.has_begun {
        progress.finish();
    }
    if let Some(failure) = run.failure {
        return Err(failure);
    }
    if !run.share.is_complete() {
        bail!(
            "the processes of all GPUs have ended, and the set is not complete\nhint: run the same command again"
        );
    }
    let mut report = run.report;
    report.scored_parts = run.share.num_published();
    report.manifest = Manifest::load_if_present(&options.shards.output)?;
    Ok(report)
}
