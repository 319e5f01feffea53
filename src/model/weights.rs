//! Where a model's files come from, and its tensors.
//!
//! A model is a Hugging Face directory or one of the pair compiled into the program. Its weights are
//! mapped into memory and widened to f32 tensor by tensor; pages that were read are given back at
//! once, so loading needs the f32 model and next to nothing beside it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::Error;
use super::architecture::{Architecture, EMBEDDING, LM_HEAD};
use crate::fs::{self, Digest, MappedFile};

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes of a tensor that are widened before their pages are given back.
const WIDEN_BYTES: usize = 8 << 20;

/// A model that is compiled into the program.
#[derive(Debug)]
pub struct Builtin {
    /// How the model is called in a manifest.
    pub name: &'static str,
    /// File names and contents, as in a Hugging Face directory.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// Where a model comes from.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A model of this program.
    Builtin(&'static Builtin),
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Builtin(builtin) => f.write_str(builtin.name),
        }
    }
}

impl ModelSource {
    /// A file of the model; `None` when it has no such file.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, Error> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                if !fs::exists(&path)? {
                    return Ok(None);
                }
                Ok(Some(Cow::Owned(fs::read(&path)?)))
            }
            Self::Builtin(builtin) => Ok(builtin
                .files
                .iter()
                .find(|(file, _)| *file == name)
                .map(|(_, content)| Cow::Borrowed(*content))),
        }
    }

    /// A file that every model has.
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
            });
        }
        self.read(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, file: &str) -> Error {
        Error::MissingFile {
            model: self.to_string(),
            file: file.to_owned(),
            hint: "",
        }
    }

    /// Names of the model's files, in byte order.
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

    /// Reads config.json.
    pub fn architecture(&self) -> Result<Architecture, Error> {
        Architecture::from_json(&self.require("config.json")?, &self.to_string())
    }

    fn open(&self, name: &str) -> Result<Bytes, Error> {
        match self {
            Self::Directory(dir) => Ok(Bytes::Mapped(MappedFile::open(&dir.join(name))?)),
            Self::Builtin(_) => match self.read(name)? {
                Some(Cow::Borrowed(content)) => Ok(Bytes::Static(content)),
                _ => Err(self.missing(name)),
            },
        }
    }
}

enum Bytes {
    Static(&'static [u8]),
    Mapped(MappedFile),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// A tensor as it lies in a file.
#[derive(Debug, Clone)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The weight files of a model, opened and indexed.
pub struct Checkpoint {
    source: ModelSource,
    files: Vec<(String, Bytes)>,
    tensors: BTreeMap<String, Stored>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Checkpoint({}, {} tensors)",
            self.source,
            self.tensors.len()
        )
    }
}

impl Checkpoint {
    /// Opens model.safetensors, or the shards that model.safetensors.index.json names.
    pub fn open(source: &ModelSource) -> Result<Self, Error> {
        let names = weight_files(source)?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut problems = Vec::new();
        for name in names {
            let bytes = source.open(&name)?;
            let container = |error| Error::Container {
                model: source.to_string(),
                file: name.clone(),
                source: error,
            };
            // Validates the header against the length of the file.
            let content = SafeTensors::deserialize(&bytes).map_err(container)?;
            let (header_bytes, _) = SafeTensors::read_metadata(&bytes).map_err(container)?;
            let data_start = header_bytes + size_of::<u64>();
            for (tensor, view) in content.iter() {
                let (data, origin) = (view.data().as_ptr() as usize, bytes.as_ptr() as usize);
                let start = data - origin;
                debug_assert!(start >= data_start);
                let stored = Stored {
                    file: files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    range: start..start + view.data().len(),
                };
                if tensors.insert(tensor.to_owned(), stored).is_some() {
                    problems.push(format!("{tensor} is in more than one file"));
                }
            }
            files.push((name, bytes));
        }
        let checkpoint = Self {
            source: source.clone(),
            files,
            tensors,
        };
        if problems.is_empty() {
            Ok(checkpoint)
        } else {
            Err(checkpoint.unfit(problems))
        }
    }

    fn unfit(&self, problems: Vec<String>) -> Error {
        Error::Tensors {
            model: self.source.to_string(),
            problems,
        }
    }

    /// Checks presence, shape and dtype of every tensor before any is read; lists every problem.
    pub fn verify(&self, architecture: &Architecture) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut expected = BTreeSet::new();
        let mut asked = architecture.tensors();
        // A tied checkpoint may store the shared matrix twice.
        if architecture.tied_head && self.tensors.contains_key(LM_HEAD) {
            let shape = vec![architecture.vocab_size, architecture.hidden_size];
            asked.push((LM_HEAD.to_owned(), shape));
        }
        for (name, shape) in asked {
            match self.tensors.get(&name) {
                None => problems.push(format!("{name} is missing; expected {shape:?}")),
                Some(stored) if stored.shape != shape => problems.push(format!(
                    "{name} has the shape {:?}; config.json asks for {shape:?}",
                    stored.shape
                )),
                Some(stored) if width(stored.dtype).is_none() => problems.push(format!(
                    "{name} is {:?}; F32, F16 and BF16 can be read",
                    stored.dtype
                )),
                Some(_) => {}
            }
            expected.insert(name);
        }
        for name in self.tensors.keys() {
            // Older checkpoints store the rotary frequencies, which follow from config.json.
            let redundant = name.ends_with("rotary_emb.inv_freq");
            if !expected.contains(name) && !redundant {
                problems.push(format!(
                    "{name} has no place in a {} model as config.json describes it",
                    architecture.model_type
                ));
            }
        }
        if problems.is_empty() && !self.second_head_is_the_same(architecture)? {
            problems.push(format!(
                "{LM_HEAD} differs from {EMBEDDING}, though config.json ties them; remove one or set tie_word_embeddings to false"
            ));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(self.unfit(problems))
        }
    }

    /// Whether a tied checkpoint that stores the head as well stores the same twice. transformers does
    /// not tie them otherwise.
    fn second_head_is_the_same(&self, architecture: &Architecture) -> Result<bool, Error> {
        let stored = (self.tensors.get(EMBEDDING), self.tensors.get(LM_HEAD));
        let (true, (Some(embedding), Some(head))) = (architecture.tied_head, stored) else {
            return Ok(true);
        };
        let bytes = |stored: &Stored| &self.files[stored.file].1[stored.range.clone()];
        Ok(if embedding.dtype == head.dtype {
            bytes(embedding) == bytes(head)
        } else {
            self.load(EMBEDDING)? == self.load(LM_HEAD)?
        })
    }

    /// A tensor's elements as f32, row-major.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] when one is NaN or infinite.
    pub fn load(&self, name: &str) -> Result<Vec<f32>, Error> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| self.unfit(vec![format!("{name} is missing")]))?;
        let bytes_each = width(stored.dtype).ok_or(Error::Internal("an unverified dtype"))?;
        let (_, file) = &self.files[stored.file];
        let mut values = vec![0.0_f32; stored.range.len() / bytes_each];
        let mut offset = stored.range.start;
        for values in values.chunks_mut(WIDEN_BYTES / bytes_each) {
            let len = values.len() * bytes_each;
            widen(values, &file[offset..offset + len], stored.dtype);
            if let Bytes::Mapped(map) = file {
                map.release(offset, len);
            }
            offset += len;
        }
        match values.par_iter().position_first(|value| !value.is_finite()) {
            None => Ok(values),
            Some(element) => Err(Error::NotFinite {
                model: self.source.to_string(),
                tensor: name.to_owned(),
                element,
                value: values[element],
            }),
        }
    }

    /// Name of a tensor's stored dtype: F32, F16 or BF16.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|stored| stored.dtype)
    }

    /// Digest of what decides the model's output: config.json and the weight files.
    pub fn fingerprint(&self) -> Result<Digest, Error> {
        let mut listing = String::new();
        let config = Digest::of(&self.source.require("config.json")?);
        listing.push_str(&format!("config.json {config}\n"));
        for (name, bytes) in &self.files {
            let digest = match bytes {
                Bytes::Static(bytes) => Digest::of(bytes),
                Bytes::Mapped(map) => fs::hash_file(map.path(), |_| {})?.1,
            };
            listing.push_str(&format!("{name} {digest}\n"));
        }
        Ok(Digest::of(listing.as_bytes()))
    }

    /// Names of the weight files and their bytes, in byte order of the names.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.len() as u64))
    }

    /// Reads every tensor of the architecture and checks that all of its elements are numbers.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] for the first that holds NaN or an infinity, in the order of the forward pass.
    pub fn check_values(&self, architecture: &Architecture) -> Result<(), Error> {
        for (name, _) in architecture.tensors() {
            self.load(&name)?;
        }
        Ok(())
    }

    /// The dtypes that occur, for people: "bf16", "f32 and bf16".
    pub fn dtype_names(&self) -> String {
        let names: BTreeSet<String> = self
            .tensors
            .values()
            .map(|stored| format!("{:?}", stored.dtype).to_lowercase())
            .collect();
        names.into_iter().collect::<Vec<_>>().join(" and ")
    }
}

/// Names of the files that hold the weights, in byte order.
fn weight_files(source: &ModelSource) -> Result<Vec<String>, Error> {
    let names = source.list()?;
    let has = |name: &str| names.iter().any(|n| n == name);
    if has(SINGLE_FILE) {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    }
    let Some(text) = source.read(INDEX_FILE)? else {
        let pickled = names.iter().any(|n| {
            [".bin", ".pt", ".pth"]
                .iter()
                .any(|ending| n.ends_with(ending))
        });
        return Err(Error::MissingFile {
            model: source.to_string(),
            file: SINGLE_FILE.to_owned(),
            hint: if pickled {
                "\nhint: .bin and .pt files are Python pickles, which can run code; load the model with transformers and save it again, which writes safetensors"
            } else {
                ""
            },
        });
    };
    let json_error = |source_error| Error::Json {
        model: source.to_string(),
        file: INDEX_FILE.to_owned(),
        source: source_error,
    };
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&text).map_err(json_error)?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    for file in &files {
        let is_plain_name = Path::new(file)
            .file_name()
            .is_some_and(|name| name == file.as_str());
        if !is_plain_name || !has(file) {
            return Err(Error::MissingFile {
                model: source.to_string(),
                file: file.clone(),
                hint: "\nhint: model.safetensors.index.json names it; is the download complete?",
            });
        }
    }
    Ok(files.into_iter().collect())
}

/// Bytes an element, of the dtypes that weights may have.
pub(crate) fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Largest value of a dtype that weights may have.
pub(crate) fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::MAX.to_f32(),
        Dtype::BF16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}

/// Elements of a dtype that weights may have, as f32.
pub(crate) fn widened(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / width(dtype).unwrap_or(1)];
    widen(&mut values, bytes, dtype);
    values
}

fn widen(values: &mut [f32], bytes: &[u8], dtype: Dtype) {
    const CHUNK: usize = 1 << 16;
    let bytes_each = width(dtype).unwrap_or(1);
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * bytes_each))
        .for_each(|(values, bytes)| match dtype {
            Dtype::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::BF16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
        });
}

/// f32 elements as the bytes of another dtype, rounded to nearest even.
pub(crate) fn narrow(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * width(dtype).unwrap_or(4)];
    match dtype {
        Dtype::BF16 => {
            for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *bytes = bf16::from_f32(*value).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *bytes = f16::from_f32(*value).to_le_bytes();
            }
        }
        _ => {
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
    }
    bytes
}
