//! Maps errors to exit codes, after sysexits.h.

use std::io;

use crate::escape::Show as _;
use crate::pipeline::inspect::BadSet;
use crate::pipeline::{Interrupted, Usage};
use crate::{checkpoint, corpus, fs, model, shard};

/// The arguments make no sense.
pub const USAGE: u8 = 2;
/// An input's content is not what it has to be.
const BAD_DATA: u8 = 65;
/// An input does not exist.
const MISSING: u8 = 66;
/// Reading or writing failed.
const IO: u8 = 74;
/// Interrupted or out of space; the same command resumes.
const RESUME: u8 = 75;
/// Anything else.
pub const OTHER: u8 = 1;
/// The reader of our output is gone (128 + SIGPIPE); not worth a message.
pub const BROKEN_PIPE: u8 = 141;

/// Lists the codes of files with problems, of which the first one counts. Damaged files can't be trusted, missing ones can be
/// made again, and those that could not be read may be intact.
const WORST_FIRST: [u8; 3] = [BAD_DATA, MISSING, IO];

/// A process for one of several GPUs ended with an error that is not its GPU's, so that the others would meet it too.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct WorkerFailed {
    /// Its exit code.
    pub code: u8,
    /// What it said.
    pub text: String,
}

/// Returns the exit code of an error: that of the innermost cause that has one.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().rev().find_map(of_cause).unwrap_or(OTHER)
}

fn of_fs(error: &fs::Error) -> u8 {
    if error.is_unfit() && error.is_of_reading() {
        BAD_DATA
    } else if error.is_missing() && error.is_of_reading() {
        MISSING
    } else if error.is_out_of_space() {
        RESUME
    } else if error.is_unsupported() {
        USAGE
    } else {
        IO
    }
}

fn of_shard(error: &shard::Error) -> u8 {
    match error {
        shard::Error::Fs(error) => of_fs(error),
        error => match error.kind() {
            shard::ErrorKind::Missing => MISSING,
            shard::ErrorKind::Io => IO,
            _ => BAD_DATA,
        },
    }
}

fn of_model(error: &model::Error) -> u8 {
    match error {
        model::Error::Fs(error) => of_fs(error),
        model::Error::Compute(_)
        | model::Error::Internal(_)
        | model::Error::Diverged { .. }
        | model::Error::NoGradient { .. }
        | model::Error::NoGpu { .. }
        | model::Error::OutOfMemory { .. } => OTHER,
        other if other.is_missing() => MISSING,
        _ => BAD_DATA,
    }
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<fs::Error>() {
        return Some(of_fs(error));
    }
    if cause.is::<Usage>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<WorkerFailed>() {
        return Some(error.code);
    }
    if cause.is::<Interrupted>() {
        return Some(RESUME);
    }
    if let Some(error) = cause.downcast_ref::<corpus::Error>() {
        return Some(match error {
            corpus::Error::Io(error) => of_fs(error),
            other => match other.kind() {
                corpus::ErrorKind::Missing => MISSING,
                corpus::ErrorKind::Io => IO,
                corpus::ErrorKind::Stopped => RESUME,
                _ => BAD_DATA,
            },
        });
    }
    if let Some(error) = cause.downcast_ref::<shard::Error>() {
        return Some(of_shard(error));
    }
    if let Some(BadSet { problems, .. }) = cause.downcast_ref::<BadSet>() {
        let codes: Vec<u8> = problems.iter().map(|(_, error)| of_shard(error)).collect();
        return WORST_FIRST
            .into_iter()
            .find(|code| codes.contains(code))
            .or(codes.first().copied());
    }
    if let Some(error) = cause.downcast_ref::<model::Error>() {
        return Some(of_model(error));
    }
    if let Some(error) = cause.downcast_ref::<checkpoint::Error>() {
        return Some(match error {
            checkpoint::Error::Fs(error) => of_fs(error),
            checkpoint::Error::Model(error) => of_model(error),
            _ => BAD_DATA,
        });
    }
    if let Some(crate::tokenize::Error::Trial { .. } | crate::tokenize::Error::NoRenderer(_)) =
        cause.downcast_ref()
    {
        return Some(IO);
    }
    if cause.is::<crate::tokenize::Error>() || cause.is::<crate::tokenize::Mismatch>() {
        return Some(BAD_DATA);
    }
    if cause.is::<crate::pipeline::BadInput>() {
        return Some(BAD_DATA);
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return Some(match error.kind() {
            io::ErrorKind::BrokenPipe => BROKEN_PIPE,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RESUME,
            _ => return None,
        });
    }
    None
}

/// Writes out the chain of an error, outermost first; a cause that its parent already spelled out is left out.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let message = match is_foreign(cause) {
            true => cause.to_string().shown().to_string(),
            false => cause.to_string(),
        };
        if text.is_empty() {
            text = message;
        } else if !text.ends_with(&message) {
            // Hints are a line of their own and stay last.
            match text.find("\nhint: ") {
                Some(at) => text.insert_str(at, &format!(": {message}")),
                None => text = format!("{text}: {message}"),
            }
        }
    }
    text
}

/// Returns whether an error is a parser's, which may quote a file: a line break in it would begin a line of ours.
fn is_foreign(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<serde_json::Error>()
        || cause.is::<parquet::errors::ParquetError>()
        || cause.is::<arrow_schema::ArrowError>()
        || cause.is::<safetensors::SafeTensorError>()
        || cause.is::<io::Error>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_hint_stays_the_last_line() {
        let error = anyhow::Error::new(io::Error::other("cause")).context("what\nhint: do this");
        assert_eq!(chain(&error), "what: cause\nhint: do this");
    }

    #[test]
    fn damage_is_worse_than_what_is_missing_and_that_than_what_can_not_be_read() {
        let problem = |what: u8| {
            let path = std::path::PathBuf::from("x");
            let error = match what {
                BAD_DATA => shard::Error::OtherPlan { path },
                MISSING => shard::Error::MissingShard { path },
                _ => shard::Error::Fs(fs::write_error(&path, io::Error::other("y"))),
            };
            (String::new(), error)
        };
        for (found, wanted) in [
            (vec![IO, MISSING, BAD_DATA], BAD_DATA),
            (vec![IO, MISSING], MISSING),
            (vec![IO, IO], IO),
        ] {
            let problems = found.into_iter().map(problem).collect();
            let dir = "set".into();
            let error = anyhow::Error::new(BadSet { dir, problems });
            assert_eq!(code(&error), wanted);
        }
    }

    #[test]
    fn a_full_disk_asks_to_resume_wherever_it_is_in_the_chain() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Err::<(), _>(fs::write_error("x".as_ref(), full))
            .context("writing")
            .unwrap_err();
        assert_eq!(code(&error), RESUME);
        assert_eq!(code(&anyhow::anyhow!("whatever")), OTHER);
    }
}
