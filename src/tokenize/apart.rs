//! Tries a tokenizer.json in a process of its own before it is loaded here.
//!
//! The parser reserves what a file asks for, and some files ask for gigabytes. A process with limits loads it first and
//! encodes a few letters with it (see [`process`](crate::guard::process)); what it survives can be loaded here. That
//! takes as long as loading does, so a file that was tried, by its digest, is not tried again: the two models of a run
//! share theirs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::canonical::Canonical;
use super::load::{guarded, load};
use crate::fs::Digest;
use crate::guard::process::{Failure, Kind, Session, Source, Task};
use crate::guard::{self, process};

/// How a process tries a tokenizer.
pub const TOKENIZERS: Kind = Kind {
    id: 2,
    start: |source| Box::new(Trial(source)),
};

/// Letters that are encoded.
const PROBES: [&str; 3] = ["a", "0", "the quick brown fox, 123\n"];

/// Digests of the files that were tried.
static TRIED: Mutex<Vec<Digest>> = Mutex::new(Vec::new());

/// Why a file was not survived.
pub(super) enum Refusal {
    /// It is bad.
    Bad(String),
    /// No process could try it.
    NoProcess(io::Error),
}

/// Refuses a file that can't be loaded within limits.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check(json: &[u8]) -> Result<(), Refusal> {
    if !process::has_program() {
        return Ok(());
    }
    let digest = Digest::of(json);
    let tried = || TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if tried().contains(&digest) {
        return Ok(());
    }
    let bytes = Bytes::copy_from_slice(json);
    let answer = Session::open(TOKENIZERS, Arc::new(bytes)).and_then(|mut trial| trial.call(&[]));
    match answer {
        Ok(_) => {
            tried().push(digest);
            Ok(())
        }
        Err(Failure::Refused(reason)) => {
            Err(Refusal::Bad(String::from_utf8_lossy(&reason).into_owned()))
        }
        Err(Failure::Died(death)) => Err(Refusal::Bad(death.to_string())),
        Err(Failure::Source(source) | Failure::Start(source)) => Err(Refusal::NoProcess(source)),
    }
}

struct Trial(Arc<dyn Source>);

impl Task for Trial {
    fn call(&mut self, _: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let tried = self
            .0
            .read(0..self.0.size_bytes())
            .map_err(|error| error.to_string())
            .and_then(|json| guard::guarded(|| try_out(&json)).and_then(|tried| tried));
        tried.map(|()| Vec::new()).map_err(String::into_bytes)
    }
}

fn try_out(json: &[u8]) -> Result<(), String> {
    let tokenizer = load(json)?;
    Canonical::of(&tokenizer)?;
    for probe in PROBES {
        for with_template in [false, true] {
            // What can't be encoded is an error of the document, not of the tokenizer.
            let _ = guarded(|| tokenizer.encode_fast(probe, with_template));
        }
    }
    Ok(())
}
