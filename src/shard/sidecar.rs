//! Sidecars: one more column of numbers for the rows of a finished set, in a folder of its own.
//!
//! A set never changes. What is scored later, by another model or another tool, goes into a sidecar, which names the
//! set by the digest of its manifest, and has a shard for each of the set's, with the same row groups and the same
//! rows. It lies beside the set's folder and not in it, where readers of the folder would take its files for shards.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Error;
use super::container::Container;
use super::description;
use super::entry_file::{self, guarded};
use super::json::{content_digest, pretty};
use super::layout::{Description, shard_name};
use super::manifest::{Manifest, ShardEntry};
use super::plan::ModelIdentity;
use super::schema::{LIST_ELEMENT, PLAN_KEY, SEAL_KEY, ShardFormat, columns};
use super::seal;
use super::sink::Sink;
use crate::fs::{Digest, MappedFile};

/// Version of sidecars. A reader refuses any other.
pub const SIDECAR_VERSION: u64 = 1;

/// The numbers of a row: one per position, null where there is no target.
pub type Values = Vec<Option<f32>>;

/// Where the numbers of a sidecar are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// Log-probs of a model, computed by remit.
    Model(ModelIdentity),
    /// Numbers that somebody else computed.
    Imported {
        /// The file as given.
        path: String,
        /// Its column.
        column: String,
        /// Digest of the file.
        blake3: Digest,
    },
}

/// Everything that decides the bytes of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarPlan {
    /// [`SIDECAR_VERSION`].
    pub sidecar_version: u64,
    /// Version of the remit that made it.
    pub tool_version: String,
    /// Its name, which is that of the column.
    pub name: String,
    /// `content_blake3` of the manifest of the set.
    pub set_blake3: Digest,
    /// Where the numbers are from.
    pub origin: Origin,
    /// Whether they keep all 23 bits of their mantissas.
    pub exact: bool,
    /// How shards are stored.
    pub format: ShardFormat,
    /// Number of shards, as of the set.
    pub num_parts: u32,
}

/// A finished sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarManifest {
    /// BLAKE3 of this text with these 64 digits written as zeros.
    pub content_blake3: Digest,
    /// What decided the shards.
    pub plan: SidecarPlan,
    /// The shards, by part.
    pub shards: Vec<ShardEntry>,
}

/// Returns the folder of the sidecar of a set with a name: `weights.NAME` beside `weights`.
pub fn sidecar_dir(set: &Path, name: &str) -> PathBuf {
    let mut file_name = set.file_name().unwrap_or_default().to_owned();
    file_name.push(".");
    file_name.push(name);
    set.with_file_name(file_name)
}

/// Checks a name of a sidecar: letters, digits and `_`, and no name of a column that sets have.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_word = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !is_word {
        return Err("a name begins with a letter, and has small letters, digits and _".to_owned());
    }
    let taken: BTreeSet<&str> = [
        "rl",
        "base",
        columns::ROW_ID,
        columns::SOURCE,
        columns::DOC_INDEX,
        columns::DOC_STARTS,
        columns::INPUT_IDS,
        columns::RL_LOGPROB,
        columns::BASE_LOGPROB,
        columns::WEIGHT,
        columns::RL_ENTROPY,
        columns::RL_TOP_IDS,
        columns::RL_TOP_LOGPROBS,
        columns::RL_TAIL_LOGPROB,
    ]
    .into();
    match taken.contains(name) {
        true => Err("a column of the set itself is called so".to_owned()),
        false => Ok(()),
    }
}

fn schema(name: &str) -> SchemaRef {
    let element = Arc::new(Field::new(LIST_ELEMENT, DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new(columns::ROW_ID, DataType::UInt64, false),
        Field::new(name, DataType::List(element), false),
    ]))
}

impl SidecarPlan {
    /// Reads the plan of a sidecar; `None` when the folder has none.
    ///
    /// # Errors
    ///
    /// When it is not what remit writes.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let Some(found) = description::read(dir, Description::SidecarPlan)? else {
            return Ok(None);
        };
        let plan: Self = serde_json::from_slice(&found.text).map_err(|source| Error::Json {
            path: found.path.clone(),
            source,
        })?;
        check_version(&plan, &found.path)?;
        Ok(Some(plan))
    }

    /// Writes the plan, unless there is one.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let text = pretty(self, Path::new(Description::SidecarPlan.name()))?;
        let schema = schema(&self.name);
        description::write_new_as(dir, Description::SidecarPlan, self.format, &schema, &text)?;
        Ok(())
    }

    /// Returns the digest of all but paths; every shard carries it.
    ///
    /// # Errors
    ///
    /// None in practice: a plan can always be written as JSON.
    pub fn identity(&self) -> Result<Digest, Error> {
        let mut plan = self.clone();
        match &mut plan.origin {
            Origin::Model(model) => model.path.clear(),
            Origin::Imported { path, .. } => path.clear(),
        }
        Ok(Digest::of(&pretty(&plan, Path::new(""))?))
    }
}

fn check_version(plan: &SidecarPlan, path: &Path) -> Result<(), Error> {
    match plan.sidecar_version {
        SIDECAR_VERSION => Ok(()),
        found => Err(Error::FormatVersion {
            path: path.to_owned(),
            found,
            expected: SIDECAR_VERSION,
        }),
    }
}

/// Writes the shard of a part.
pub struct SidecarWriter<W: Write + Send> {
    sink: Sink<W>,
    schema: SchemaRef,
    identity: Digest,
}

impl<W: Write + Send> SidecarWriter<W> {
    /// A writer of a shard without rows.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn new(writer: W, plan: &SidecarPlan) -> Result<Self, Error> {
        let schema = schema(&plan.name);
        Ok(Self {
            sink: Sink::new(writer, plan.format, &schema)?,
            identity: plan.identity()?,
            schema,
        })
    }

    /// Writes a row group.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn push_group(&mut self, rows: &[(u64, Values)]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let element = Arc::new(Field::new(LIST_ELEMENT, DataType::Float32, true));
        let mut ids = UInt64Builder::new();
        let mut lists = ListBuilder::new(Float32Builder::new()).with_field(element);
        for (id, values) in rows {
            ids.append_value(*id);
            values
                .iter()
                .for_each(|value| lists.values().append_option(*value));
            lists.append(true);
        }
        let columns: Vec<ArrayRef> = vec![Arc::new(ids.finish()), Arc::new(lists.finish())];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.sink.write(&batch)
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn finish(self) -> Result<W, Error> {
        self.sink
            .finish(vec![(PLAN_KEY, self.identity.to_string())])
    }
}

/// A shard of a sidecar, mapped into memory.
#[derive(Debug)]
pub struct SidecarFile {
    path: PathBuf,
    map: MappedFile,
    bytes: Bytes,
    format: ShardFormat,
    container: Container,
    name: String,
    group_rows: Vec<u64>,
}

impl SidecarFile {
    /// Opens a shard; with an `entry` of the manifest, size and digest are compared before a byte is parsed, else the
    /// digest in its footer.
    fn open(
        path: PathBuf,
        plan: &SidecarPlan,
        identity: Digest,
        entry: Option<&ShardEntry>,
    ) -> Result<Self, Error> {
        let map = entry_file::map(&path)?;
        if let Some(entry) = entry {
            entry_file::check(&path, &map, entry)?;
        }
        let bytes = Bytes::from_owner(map.clone());
        let format = plan.format;
        let container = guarded(&path, format, || Container::parse(format, &bytes))?;
        if entry.is_none() {
            seal::check(&bytes, container.value(SEAL_KEY)).map_err(|broken| Error::Damaged {
                path: path.clone(),
                reason: broken.to_string(),
            })?;
        }
        if container.value(PLAN_KEY) != Some(identity.to_string().as_str()) {
            return Err(Error::OtherPlan { path });
        }
        if container.schema().fields() != schema(&plan.name).fields() {
            return Err(Error::Schema {
                path,
                reason: format!("expected row_id and {}", plan.name),
            });
        }
        let group_rows = guarded(&path, format, || Ok(container.group_rows()))?;
        Ok(Self {
            group_rows: group_rows.unwrap_or_default(),
            path,
            map,
            bytes,
            format,
            container,
            name: plan.name.clone(),
        })
    }

    /// Returns the rows of a row group: `row_id` and the numbers.
    ///
    /// # Errors
    ///
    /// When it can't be decoded.
    pub fn read_group(&self, group: usize) -> Result<Vec<(u64, Values)>, Error> {
        let mut rows = Vec::new();
        let mut batches = guarded(&self.path, self.format, || {
            self.container.batches(&self.bytes, group, None)
        })?;
        while let Some(batch) = guarded(&self.path, self.format, || {
            batches
                .next()
                .transpose()
                .map_err(|error| error.to_string())
        })? {
            let wrong = || Error::Schema {
                path: self.path.clone(),
                reason: format!("{} or row_id is missing or of another type", self.name),
            };
            let ids = batch
                .column_by_name(columns::ROW_ID)
                .and_then(|ids| ids.as_primitive_opt::<UInt64Type>())
                .ok_or_else(wrong)?;
            let lists = batch
                .column_by_name(&self.name)
                .and_then(|lists| lists.as_list_opt::<i32>())
                .ok_or_else(wrong)?;
            for (id, list) in ids.iter().zip(lists.iter()) {
                let (Some(id), Some(list)) = (id, list) else {
                    return Err(wrong());
                };
                let list = list.as_primitive_opt::<Float32Type>().ok_or_else(wrong)?;
                rows.push((id, list.iter().collect()));
            }
        }
        Ok(rows)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the manifest of a sidecar whose shards are all there, by reading every one of them, and writes it.
///
/// # Errors
///
/// When a shard is damaged, or has other rows than the set's.
pub fn assemble(dir: &Path, plan: SidecarPlan, set: &Manifest) -> Result<SidecarManifest, Error> {
    let identity = plan.identity()?;
    let mut shards = Vec::with_capacity(set.shards.len());
    for of_set in &set.shards {
        let path = dir.join(shard_name(of_set.part, plan.format));
        let file = SidecarFile::open(path, &plan, identity, None)?;
        let mut entry = ShardEntry {
            file: shard_name(of_set.part, plan.format),
            part: of_set.part,
            rows: 0,
            tokens: 0,
            targets: 0,
            size_bytes: file.map.len() as u64,
            blake3: Digest::of(&file.map),
        };
        for group in 0..file.group_rows.len() {
            for (_, values) in file.read_group(group)? {
                entry.rows += 1;
                entry.tokens += values.len() as u64;
                entry.targets += values.iter().flatten().count() as u64;
            }
        }
        expect_counts(&file.path, of_set, &entry)?;
        shards.push(entry);
    }
    let mut manifest = SidecarManifest {
        content_blake3: Digest::of(b""),
        plan,
        shards,
    };
    let name = Path::new(Description::SidecarManifest.name());
    let draft = pretty(&manifest, name)?;
    manifest.content_blake3 =
        content_digest(&draft, manifest.content_blake3).ok_or_else(|| Error::Damaged {
            path: dir.to_owned(),
            reason: "its manifest does not hold its own digest once".to_owned(),
        })?;
    let text = pretty(&manifest, name)?;
    let (what, format) = (Description::SidecarManifest, manifest.plan.format);
    description::write_new_as(dir, what, format, &schema(&manifest.plan.name), &text)?;
    Ok(manifest)
}

fn expect_counts(path: &Path, of_set: &ShardEntry, own: &ShardEntry) -> Result<(), Error> {
    for (what, expected, found) in [
        ("rows", of_set.rows, own.rows),
        ("tokens", of_set.tokens, own.tokens),
        ("targets", of_set.targets, own.targets),
    ] {
        if expected != found {
            return Err(Error::Count {
                path: path.to_owned(),
                what,
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// A finished sidecar of a set, every shard verified and mapped.
#[derive(Debug)]
pub struct Sidecar {
    manifest: SidecarManifest,
    files: Vec<SidecarFile>,
}

impl Sidecar {
    /// Opens a sidecar: its own digest, that it is this set's, then size, BLAKE3 and columns of every shard.
    ///
    /// # Errors
    ///
    /// When it is missing, unfinished, damaged, or another set's.
    pub fn open(dir: &Path, set: &Manifest) -> Result<Self, Error> {
        let Some(found) = description::read(dir, Description::SidecarManifest)? else {
            return Err(Error::NoSidecar {
                dir: dir.to_owned(),
                is_begun: description::exists(dir, Description::SidecarPlan)?,
            });
        };
        let manifest: SidecarManifest =
            serde_json::from_slice(&found.text).map_err(|source| Error::Json {
                path: found.path.clone(),
                source,
            })?;
        check_version(&manifest.plan, &found.path)?;
        let digest = content_digest(&found.text, manifest.content_blake3);
        if digest != Some(manifest.content_blake3) {
            return Err(Error::Damaged {
                path: found.path,
                reason: "it was changed after it was written".to_owned(),
            });
        }
        let plan = &manifest.plan;
        if plan.set_blake3 != set.content_blake3 || manifest.shards.len() != set.shards.len() {
            return Err(Error::ForeignSidecar {
                dir: dir.to_owned(),
                expected: set.content_blake3,
                found: plan.set_blake3,
            });
        }
        let identity = plan.identity()?;
        let mut files = Vec::with_capacity(manifest.shards.len());
        for (entry, of_set) in manifest.shards.iter().zip(&set.shards) {
            let path = dir.join(shard_name(of_set.part, plan.format));
            expect_counts(&path, of_set, entry)?;
            files.push(SidecarFile::open(path, plan, identity, Some(entry))?);
        }
        Ok(Self { manifest, files })
    }

    /// The manifest.
    pub fn manifest(&self) -> &SidecarManifest {
        &self.manifest
    }

    /// Returns the shards, by part.
    pub fn into_files(self) -> Vec<SidecarFile> {
        self.files
    }
}
