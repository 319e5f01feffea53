//! Plan, manifest and rejects as files that readers of a folder take for empty shards: the columns of a
//! shard, no row, and the JSON text in the footer's metadata.

use std::path::{Path, PathBuf};

use arrow_schema::SchemaRef;
use bytes::Bytes;

use super::Error;
use super::container::Container;
use super::layout::{DESCRIPTION_DIR, Description};
use super::schema::{self, ColumnSet, SEAL_KEY, ShardFormat};
use super::seal;
use super::sink::Sink;
use crate::escape::Show as _;
use crate::fs;
use crate::guard::guarded;

/// A description that was read.
#[derive(Debug)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// Its JSON.
    pub text: Vec<u8>,
}

fn paths(dir: &Path, what: Description) -> [(ShardFormat, PathBuf); 2] {
    [ShardFormat::Parquet, ShardFormat::Arrow].map(|format| (format, dir.join(what.file(format))))
}

/// Returns whether a set has a description of this kind, whatever is in it.
pub(super) fn exists(dir: &Path, what: Description) -> Result<bool, Error> {
    for (_, path) in paths(dir, what) {
        if fs::exists(&path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a description of a set; `None` when there is none.
///
/// # Errors
///
/// [`Error::Damaged`] when its file is not what was written, or there are two.
pub fn read(dir: &Path, what: Description) -> Result<Option<Found>, Error> {
    let mut found: Option<Found> = None;
    for (format, path) in paths(dir, what) {
        if !fs::exists(&path)? {
            continue;
        }
        if let Some(first) = found {
            return Err(Error::Damaged {
                path,
                reason: format!(
                    "{} is there too, and a set has one {}; were two workers started with different --format?",
                    first.path.shown(),
                    what.name()
                ),
            });
        }
        let bytes = fs::read(&path)?;
        let text = match unpack(what, format, bytes) {
            Ok(text) => text,
            Err(reason) => return Err(Error::Damaged { path, reason }),
        };
        found = Some(Found { path, text });
    }
    Ok(found)
}

/// Writes a description, atomically, unless there is one; returns whether it was written.
pub(super) fn write_new(
    dir: &Path,
    what: Description,
    format: ShardFormat,
    columns: ColumnSet,
    text: &[u8],
) -> Result<bool, Error> {
    write_new_as(dir, what, format, &schema::schema(format, columns), text)
}

/// Does the same as [`write_new`], with the columns of shards that are not a set's.
pub(super) fn write_new_as(
    dir: &Path,
    what: Description,
    format: ShardFormat,
    schema: &SchemaRef,
    text: &[u8],
) -> Result<bool, Error> {
    fs::create_dir_all(&dir.join(DESCRIPTION_DIR))?;
    let bytes = pack_as(what, format, schema, text)?;
    Ok(fs::write_new(&dir.join(what.file(format)), &bytes)?)
}

/// Makes the file of a description.
///
/// # Errors
///
/// When the text is not UTF-8.
pub fn pack(
    what: Description,
    format: ShardFormat,
    columns: impl Into<ColumnSet>,
    text: &[u8],
) -> Result<Vec<u8>, Error> {
    pack_as(what, format, &schema::schema(format, columns), text)
}

fn pack_as(
    what: Description,
    format: ShardFormat,
    schema: &SchemaRef,
    text: &[u8],
) -> Result<Vec<u8>, Error> {
    let text = str::from_utf8(text).map_err(|error| Error::Encode(error.to_string()))?;
    let sink = Sink::new(Vec::new(), format, schema)?;
    sink.finish(vec![(what.key(), text.to_owned())])
}

/// Returns the text of a description's file, or what is wrong with the file.
fn unpack(what: Description, format: ShardFormat, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let bytes = Bytes::from(bytes);
    let container = guarded(|| Container::parse(format, &bytes))
        .and_then(|parsed| parsed)
        .map_err(|reason| format!("it is not a readable {format} file: {reason}"))?;
    seal::check(&bytes, container.value(SEAL_KEY)).map_err(|broken| broken.to_string())?;
    container
        .value(what.key())
        .map(|text| text.as_bytes().to_vec())
        .ok_or_else(|| format!("its footer has no {}", what.key()))
}
