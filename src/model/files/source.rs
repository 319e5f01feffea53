//! Where a model's files come from: a Hugging Face directory, or one of the pair compiled into the program.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;

use super::hints;
use crate::escape::Show as _;
use crate::fs::{self, Digest, MappedFile};
use crate::model::Error;

/// Most bytes of a tokenizer.json. The largest have some 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// Most bytes of a file besides that and the weights: descriptions, an index, a template. The index of a model of a
/// trillion parameters has 10 MB.
const MAX_SMALL_BYTES: u64 = 64 << 20;

/// A model that is compiled into the program.
#[derive(Debug)]
pub struct Builtin {
    /// Name of the model in a manifest.
    pub name: &'static str,
    /// File names and contents, as in a Hugging Face directory.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Builtin {
    fn file(&self, name: &str) -> Option<&'static [u8]> {
        let mut files = self.files.iter();
        files
            .find(|(file, _)| *file == name)
            .map(|(_, bytes)| *bytes)
    }
}

/// Where a model comes from.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A model of this program.
    Builtin(&'static Builtin),
}

/// As messages have it: what a terminal would take for something else is escaped.
impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.shown().fmt(f),
            Self::Builtin(builtin) => f.write_str(builtin.name),
        }
    }
}

/// Returns how many bytes a file of this name may have.
fn most_bytes(name: &str) -> u64 {
    if name.ends_with(".safetensors") {
        u64::MAX
    } else if name == "tokenizer.json" {
        MAX_TOKENIZER_BYTES
    } else {
        MAX_SMALL_BYTES
    }
}

impl ModelSource {
    /// Returns the path as given, or the name of a built-in model, as files have it.
    pub fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Builtin(builtin) => builtin.name.to_owned(),
        }
    }

    /// Reads a file of the model; `None` when it has no such file.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, Error> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                if !fs::exists(&path)? {
                    return Ok(None);
                }
                let content = fs::read_at_most(&path, most_bytes(name))?;
                self.check_content(name, &content)?;
                Ok(Some(Cow::Owned(content)))
            }
            Self::Builtin(builtin) => Ok(builtin.file(name).map(Cow::Borrowed)),
        }
    }

    /// Reads a file that every model has.
    ///
    /// # Errors
    ///
    /// [`Error::NotAFolder`] or [`Error::MissingFile`] when it is not there.
    pub fn require(&self, name: &str) -> Result<Cow<'static, [u8]>, Error> {
        if let Self::Directory(dir) = self
            && !fs::is_dir(dir)?
        {
            return Err(Error::NotAFolder {
                model: self.to_string(),
                hint: hints::of_no_folder(dir),
            });
        }
        self.read(name)?.ok_or_else(|| self.missing(name))
    }

    /// Lists the names of the model's files, in byte order.
    pub fn list(&self) -> Result<Vec<String>, Error> {
        Ok(match self {
            Self::Directory(dir) => fs::list(dir)?
                .into_iter()
                .filter_map(|name| name.into_string().ok())
                .collect(),
            Self::Builtin(builtin) => {
                let mut names: Vec<String> = builtin
                    .files
                    .iter()
                    .map(|(name, _)| (*name).to_owned())
                    .collect();
                names.sort();
                names
            }
        })
    }

    /// Lists the names in a folder of the model, in byte order; none if it has no such folder.
    pub fn list_in(&self, folder: &str) -> Result<Vec<String>, Error> {
        match self {
            Self::Directory(dir) if fs::is_dir(&dir.join(folder))? => {
                Ok(fs::list(&dir.join(folder))?
                    .into_iter()
                    .filter_map(|name| name.into_string().ok())
                    .collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Opens a file of the model, to be read at random; `None` when it has no such file.
    pub(super) fn open(&self, name: &str) -> Result<Option<ModelFile>, Error> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                if !fs::exists(&path)? {
                    return Ok(None);
                }
                let content = MappedFile::open_at_most(&path, most_bytes(name))?;
                self.check_content(name, &content)?;
                Ok(Some(ModelFile(Bytes::Mapped(content))))
            }
            Self::Builtin(builtin) => Ok(builtin
                .file(name)
                .map(|bytes| ModelFile(Bytes::Static(bytes)))),
        }
    }

    /// Returns the error of a file that is not there.
    pub(super) fn missing(&self, file: &str) -> Error {
        Error::MissingFile {
            model: self.to_string(),
            file: file.to_owned(),
            hint: match self {
                Self::Directory(dir) => hints::of_missing(dir, file),
                Self::Builtin(_) => String::new(),
            },
        }
    }

    /// Refuses what stands in place of a file that was not downloaded: a pointer of Git LFS, or a page of a web
    /// site.
    fn check_content(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        const MAX_POINTER_BYTES: usize = 1024;
        let placeholder = |found: String, hint: String| {
            Err(Error::Placeholder {
                model: self.to_string(),
                file: name.to_owned(),
                found,
                hint,
            })
        };
        if content.len() <= MAX_POINTER_BYTES && content.starts_with(b"version https://git-lfs") {
            let text = String::from_utf8_lossy(content);
            let size = text.lines().find_map(|line| line.strip_prefix("size "));
            let size = size.map_or(String::new(), |size| format!(" (size {size})"));
            return placeholder(
                format!("a pointer of Git LFS, which stands for a file{size}"),
                format!("run git lfs pull in {self}, or download it with hf download"),
            );
        }
        let start = content.get(..100).unwrap_or(content).trim_ascii_start();
        let is_page = [&b"<!doctype"[..], b"<html"].iter().any(|tag| {
            start
                .get(..tag.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(tag))
        });
        if is_page {
            return placeholder(
                "a page of a web site, and not the file".to_owned(),
                "download it with hf download, after hf auth login if the model asks for that"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// A file of a model that stays open: what is read of it later is what was there when it was opened, also
/// if another file has taken its place since. Dereferences to its bytes; cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelFile(Bytes);

#[derive(Debug, Clone)]
enum Bytes {
    Static(&'static [u8]),
    Read(Arc<[u8]>),
    Mapped(MappedFile),
}

impl ModelFile {
    /// Returns the digest of the bytes. Pages of a mapped file are given back as they are hashed.
    pub fn digest(&self) -> Digest {
        match &self.0 {
            Bytes::Mapped(map) => fs::hash_mapped(map),
            Bytes::Static(_) | Bytes::Read(_) => Digest::of(self),
        }
    }

    /// Gives back the pages of a range that will not be read again soon.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.0 {
            map.release(range.start, range.len());
        }
    }
}

impl Deref for ModelFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Static(bytes) => bytes,
            Bytes::Read(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

impl From<Cow<'static, [u8]>> for ModelFile {
    fn from(content: Cow<'static, [u8]>) -> Self {
        Self(match content {
            Cow::Borrowed(bytes) => Bytes::Static(bytes),
            Cow::Owned(bytes) => Bytes::Read(bytes.into()),
        })
    }
}
