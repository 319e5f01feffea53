//! Calls that fail when a test wants them to: the N-th one below a folder. And a record of files that are
//! opened.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Operation;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whatever is done, once, fails with EIO.
    Io,
    /// From some moment on the disk is full; a write there takes half of its bytes.
    Full,
    /// A write takes half of its bytes, and the next one writes the rest.
    ShortWrite,
    /// A rename fails with EIO.
    Rename,
    /// An fsync, of a file or a folder, fails with EIO.
    Sync,
}

pub(crate) const ALL: [Fault; 5] = [
    Fault::Io,
    Fault::Full,
    Fault::ShortWrite,
    Fault::Rename,
    Fault::Sync,
];

struct State {
    root: PathBuf,
    fault: Fault,
    left: u64,
    tripped: bool,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
static TURN: Mutex<()> = Mutex::new(());

/// As long as it lives, the `nth` call (from 1) of its kind below a folder fails. One test has its turn
/// at a time.
pub(crate) struct Injection(#[expect(dead_code)] MutexGuard<'static, ()>);

impl Injection {
    pub(crate) fn new(root: &Path, fault: Fault, nth: u64) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        *state() = Some(State {
            root: root.to_owned(),
            fault,
            left: nth,
            tripped: false,
        });
        Self(turn)
    }

    /// Returns whether the call came and failed.
    pub(crate) fn tripped(&self) -> bool {
        state().as_ref().is_some_and(|state| state.tripped)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        *state() = None;
    }
}

/// Folder that is watched, and how often files below it were opened.
type Opened = Option<(PathBuf, BTreeMap<PathBuf, usize>)>;

static OPENED: Mutex<Opened> = Mutex::new(None);
static WATCH: Mutex<()> = Mutex::new(());

/// As long as it lives, counts how often each file below a folder is opened. One test has its turn at a time.
pub(crate) struct OpenCounter(#[expect(dead_code)] MutexGuard<'static, ()>);

impl OpenCounter {
    pub(crate) fn new(root: &Path) -> Self {
        let turn = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
        *opened() = Some((root.to_owned(), BTreeMap::new()));
        Self(turn)
    }

    /// Returns how often each file was opened, by its path relative to the folder.
    pub(crate) fn counts(&self) -> BTreeMap<PathBuf, usize> {
        opened()
            .as_ref()
            .map_or_else(BTreeMap::new, |(_, counts)| counts.clone())
    }
}

impl Drop for OpenCounter {
    fn drop(&mut self) {
        *opened() = None;
    }
}

fn opened() -> MutexGuard<'static, Opened> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count_opened(path: &Path) {
    if let Some((root, counts)) = &mut *opened()
        && let Ok(relative) = path.strip_prefix(root)
    {
        *counts.entry(relative.to_owned()).or_default() += 1;
    }
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Counts a call; whether it is the one.
    fn trips(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let now = self.left == 0 && !self.tripped;
        self.tripped |= now;
        now
    }
}

pub(super) fn check(operation: Operation, path: &Path) -> Result<()> {
    if operation == Operation::Open {
        count_opened(path);
    }
    let mut state = state();
    let Some(state) = state.as_mut().filter(|state| path.starts_with(&state.root)) else {
        return Ok(());
    };
    let grows = matches!(
        operation,
        Operation::CreateTemp
            | Operation::CreateFolder
            | Operation::Create
            | Operation::Publish
            | Operation::Sync
    );
    let syncs = matches!(operation, Operation::Sync | Operation::SyncFolder);
    let fault = state.fault;
    match fault {
        Fault::Full if grows && (state.tripped || state.trips()) => {
            Err(Error::from_raw_os_error(ENOSPC))
        }
        Fault::Io if state.trips() => Err(Error::from_raw_os_error(EIO)),
        Fault::Rename if operation == Operation::Publish && state.trips() => {
            Err(Error::from_raw_os_error(EIO))
        }
        Fault::Sync if syncs && state.trips() => Err(Error::from_raw_os_error(EIO)),
        _ => Ok(()),
    }
}

/// Returns how many of `len` bytes a write takes.
pub(super) fn writable(path: &Path, len: usize) -> Result<usize> {
    let mut state = state();
    let Some(state) = state.as_mut().filter(|state| path.starts_with(&state.root)) else {
        return Ok(len);
    };
    let fault = state.fault;
    match fault {
        Fault::Full if state.tripped => Err(Error::from_raw_os_error(ENOSPC)),
        Fault::Full | Fault::ShortWrite if state.trips() && len > 1 => Ok(len / 2),
        Fault::Io if state.trips() => Err(Error::from_raw_os_error(EIO)),
        _ => Ok(len),
    }
}
