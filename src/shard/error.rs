//! Errors of reading and writing sets of shards.

use std::io;
use std::path::{Path, PathBuf};

use arrow_schema::ArrowError;
use parquet::errors::ParquetError;

use super::layout::DESCRIPTION_DIR;
use super::schema::{RowProblem, ShardFormat};
use crate::escape::Show as _;
use crate::fs::{self, Digest};

/// The class of an error, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that should be there is not.
    Missing,
    /// Something is there, but is not what it has to be.
    BadData,
    /// The operating system failed.
    Io,
}

/// Why a set can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The folder of a set does not exist.
    #[error("no such folder: {}\nhint: remit-score INPUT -o {} makes it", dir.shown(), dir.shown())]
    NoFolder {
        /// The folder as given.
        dir: PathBuf,
    },
    /// A file was given for the folder of a set.
    #[error("{} is a file, and a set is a folder\nhint: {hint}", path.shown())]
    NotAFolder {
        /// The file as given.
        path: PathBuf,
        /// The folder to give, if it is that of a set.
        hint: String,
    },
    /// The folder holds no set.
    #[error("{} has no {DESCRIPTION_DIR}/manifest, so it is not a set of shards\nhint: {hint}", dir.shown())]
    NoManifest {
        /// The folder.
        dir: PathBuf,
        /// What it is instead, if that can be told, and the way out.
        hint: String,
    },
    /// The folder holds a set that is not finished.
    #[error("the set in {} is not finished: it has a plan in {DESCRIPTION_DIR}/, but no manifest yet\nhint: run the same remit-score command again to finish it", dir.shown())]
    Unfinished {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds a set of version 1 that is not finished.
    #[error("the set in {} is not finished, and of version 1 of the format: it has a plan.json, but no manifest.json\nhint: finish it with the remit that began it, or score the corpus again into another folder", dir.shown())]
    Version1Unfinished {
        /// The folder.
        dir: PathBuf,
    },
    /// Shards were to be added to a set of version 1.
    #[error("{} holds a set of version 1 of the format, which this remit reads, but does not add to\nhint: a finished set needs nothing more, remit-anneal trains on it as it is; else give another -o, or finish it with the remit that began it", dir.shown())]
    Version1 {
        /// The folder.
        dir: PathBuf,
    },
    /// A plan or a manifest can't be parsed.
    #[error("{} is not what remit writes", path.shown())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A plan or a manifest was written by another version of the format.
    #[error("{} has format version {found}; this remit reads version {expected}", path.shown())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u64,
        /// The version that is understood.
        expected: u64,
    },
    /// A description of a set is not what was written, or contradicts itself.
    #[error("{} is damaged: {reason}\nhint: remove it and run the same remit-score command again; it makes what is missing", path.shown())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what.
        reason: String,
    },
    /// A folder holds no finished sidecar.
    #[error(
        "{} holds no {}\nhint: remit-score --add SET --rl-model DIR --as NAME {} it",
        dir.shown(),
        if *is_begun { "finished sidecar" } else { "sidecar" },
        if *is_begun { "finishes" } else { "makes" }
    )]
    NoSidecar {
        /// The folder.
        dir: PathBuf,
        /// Whether there is a plan of one.
        is_begun: bool,
    },
    /// A file of numbers can't be imported.
    #[error("{} can't be imported: {reason}\nhint: give a Parquet file with a column row_id as in the set, and a column of lists with one number per token, null for the first", path.shown())]
    Import {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A sidecar was made for another set.
    #[error("the sidecar in {} was made for the set whose manifest has the digest {found}, and this one has {expected}\nhint: remit-score --add makes one for this set", dir.shown())]
    ForeignSidecar {
        /// Its folder.
        dir: PathBuf,
        /// Digest of the set's manifest.
        expected: Digest,
        /// Digest in the sidecar.
        found: Digest,
    },
    /// A row of a sidecar is not that of the set.
    #[error("row {row_id} of the set and of the sidecar {} do not fit together: {reason}{DAMAGED_HINT}", path.shown())]
    SidecarRow {
        /// The sidecar's shard.
        path: PathBuf,
        /// The set's row.
        row_id: u64,
        /// In what.
        reason: &'static str,
    },
    /// A shard of the manifest is not there.
    #[error("the shard {} is missing\nhint: run the same remit-score command again; it makes what is missing", path.shown())]
    MissingShard {
        /// Its path.
        path: PathBuf,
    },
    /// The list of records that could not be read is not there.
    #[error("{} is missing\nhint: run the same remit-score command again; it makes the list from the shards", path.shown())]
    MissingRejects {
        /// Its path.
        path: PathBuf,
    },
    /// A shard has another size than the manifest says.
    #[error("the shard {} has {found} bytes; the manifest says {expected}{DAMAGED_HINT}", path.shown())]
    Size {
        /// Its path.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A shard has another content than the manifest says.
    #[error("the shard {} is damaged: its BLAKE3 is {found}, the manifest says {expected}{DAMAGED_HINT}", path.shown())]
    Hash {
        /// Its path.
        path: PathBuf,
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of the file.
        found: Digest,
    },
    /// A shard has another content than its own footer says.
    #[error("the shard {} is damaged: its BLAKE3 is {found}, its footer says {expected}{DAMAGED_HINT}", path.shown())]
    Seal {
        /// Its path.
        path: PathBuf,
        /// Digest in the footer.
        expected: Digest,
        /// Digest of the file.
        found: Digest,
    },
    /// Several shards can't become part of a set.
    #[error(
        "{} shards in {} are not what they should be:{}\nhint: remove these files and run the same \
         remit-score command again; it makes what is missing",
        problems.len(),
        dir.shown(),
        problems.iter().map(|error| format!("\n  {}", error.first_line())).collect::<String>()
    )]
    Several {
        /// The folder.
        dir: PathBuf,
        /// What is wrong, by part.
        problems: Vec<Self>,
    },
    /// A shard can't be parsed.
    #[error("the shard {} is not a readable {format} file: {reason}{DAMAGED_HINT}", path.shown())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What it should be.
        format: ShardFormat,
        /// What the parser says.
        reason: String,
    },
    /// A shard has other columns than the format.
    #[error("the shard {} is not one of this format: {reason}{DAMAGED_HINT}", path.shown())]
    Schema {
        /// Its path.
        path: PathBuf,
        /// Expected and found.
        reason: String,
    },
    /// A shard does not belong to the set's plan.
    #[error("the shard {} was made under another plan than that of its folder\nhint: remove it and run the same remit-score command again; it makes what is missing", path.shown())]
    OtherPlan {
        /// Its path.
        path: PathBuf,
    },
    /// A shard holds other numbers of things than the manifest or its own footer says.
    #[error("the shard {} holds {found} {what}; {expected} were expected", path.shown())]
    Count {
        /// Its path.
        path: PathBuf,
        /// What is counted.
        what: &'static str,
        /// The number that was expected.
        expected: u64,
        /// The number that was found.
        found: u64,
    },
    /// A row breaks a rule of the format.
    #[error("the shard {}, row {row}: {reason}", path.shown())]
    Row {
        /// Its path.
        path: PathBuf,
        /// Number of the row in the shard, from 0.
        row: u64,
        /// Which rule, with the numbers.
        reason: RowProblem,
    },
    /// A row that was to be written breaks a rule of the format.
    #[error("a row of {source_name} can't be written: {reason}")]
    BadRow {
        /// The row's source.
        source_name: String,
        /// Which rule, with the numbers.
        reason: RowProblem,
    },
    /// Writing failed.
    #[error("writing failed")]
    Write(#[source] io::Error),
    /// Making Parquet or Arrow of rows failed.
    #[error("encoding failed: {0}")]
    Encode(String),
}

impl From<ParquetError> for Error {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(source) => Self::Write(*source),
                Err(source) => Self::Encode(source.to_string()),
            },
            error => Self::Encode(error.to_string()),
        }
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, source) => Self::Write(source),
            error => Self::Encode(error.to_string()),
        }
    }
}

/// The manifest stays where there is one: what is made again has to be what it says.
const DAMAGED_HINT: &str =
    "\nhint: remove this file and run the same remit-score command again; it makes what is missing";

impl Error {
    /// Returns the message without the hint.
    pub fn first_line(&self) -> String {
        let text = self.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Fails if there are problems with shards of a set: with the one, or with [`Error::Several`].
    pub(super) fn of_several(dir: &Path, mut problems: Vec<Self>) -> Result<(), Self> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Self::Several {
                dir: dir.to_owned(),
                problems,
            }),
        }
    }

    /// Returns the class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Several { problems, .. } => {
                let kinds = || problems.iter().map(Self::kind);
                let all = |wanted| kinds().all(|kind| kind == wanted);
                match () {
                    () if all(ErrorKind::Io) => ErrorKind::Io,
                    () if all(ErrorKind::Missing) => ErrorKind::Missing,
                    () => ErrorKind::BadData,
                }
            }
            Self::Fs(error) if error.is_missing() => ErrorKind::Missing,
            Self::Fs(_) | Self::Write(_) | Self::Encode(_) => ErrorKind::Io,
            Self::NoFolder { .. }
            | Self::NoManifest { .. }
            | Self::Unfinished { .. }
            | Self::Version1Unfinished { .. }
            | Self::MissingShard { .. }
            | Self::NoSidecar { .. }
            | Self::MissingRejects { .. } => ErrorKind::Missing,
            _ => ErrorKind::BadData,
        }
    }
}
