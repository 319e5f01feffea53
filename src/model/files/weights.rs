//! The weights of a model: finds and maps their files, and checks that they hold what config.json asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use half::bf16;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::layout::{self, Layout};
use super::names::{INDEX_FILE, SINGLE_FILE};
use super::read::{self, width};
use super::source::{ModelFile, ModelSource};
use crate::escape::Show as _;
use crate::fs::Digest;
use crate::model::Error;
use crate::model::architecture::{Architecture, EMBEDDING, LM_HEAD};
use crate::model::kernels::tensor::{CHUNK, rounded};

/// Most problems of tensors that are listed one by one.
const MAX_LISTED: usize = 20;

/// Bytes of a tensor that are rounded at a time: elements are not cut.
const PIECE_BYTES: usize = 32 << 20;

/// Place of a tensor in a file.
#[derive(Debug, Clone)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The weight files of a model: open, indexed, and checked against its architecture. Cheap to clone but for the index.
#[derive(Clone)]
pub struct ModelWeights {
    model: String,
    files: Vec<(String, ModelFile)>,
    /// By the names that a model of text has them under.
    tensors: BTreeMap<String, Place>,
    /// How the names in the files differ from these; `None` if they do not.
    layout: Option<&'static Layout>,
    /// Tensors of other parts of a multimodal model, by the names in the files.
    others: BTreeMap<String, Place>,
}

/// A tensor that is no part of the decoder, as it is stored.
pub(crate) struct OtherTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

impl fmt::Debug for ModelWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ModelWeights({}, {} tensors)",
            self.model,
            self.tensors.len()
        )
    }
}

impl ModelWeights {
    /// Opens model.safetensors, or the shards that model.safetensors.index.json names, and checks presence,
    /// shape and dtype of every tensor before any is read. A multimodal model that stores a head of its own has one,
    /// whatever `architecture` says, which is set accordingly.
    ///
    /// # Errors
    ///
    /// When a file is absent or damaged, and [`Error::Tensors`] with every problem of a tensor.
    pub(crate) fn open(
        source: &ModelSource,
        architecture: &mut Architecture,
    ) -> Result<Self, Error> {
        let mut weights = Self::index(source)?;
        if architecture.multimodal.is_some() {
            weights.use_names_of_text();
            // transformers gives a default of its own to a config that does not say whether they are tied, and
            // unties what differs in the files.
            let tied = architecture.tied_head;
            architecture.tied_head = tied && weights.second_head_is_the_same(architecture)?;
        }
        weights.check(architecture)?;
        Ok(weights)
    }

    /// Finds the text part of a multimodal model, and sets the other tensors aside.
    fn use_names_of_text(&mut self) {
        let Some(layout) = Layout::find(|name| self.tensors.contains_key(name)) else {
            return;
        };
        self.layout = Some(layout);
        for (name, place) in std::mem::take(&mut self.tensors) {
            match layout.of_text(&name) {
                Some(text) => self.tensors.insert(text, place),
                None => self.others.insert(name, place),
            };
        }
    }

    /// Returns the name that a tensor has in the files.
    pub(crate) fn stored_name(&self, name: &str) -> String {
        self.layout
            .map_or_else(|| name.to_owned(), |layout| layout.stored(name))
    }

    /// Returns the tensors that are no part of the decoder, which is all but those of the text of a multimodal model.
    pub(crate) fn others(&self) -> impl Iterator<Item = OtherTensor<'_>> {
        self.others.iter().map(|(name, place)| {
            let (_, file) = &self.files[place.file];
            OtherTensor {
                name,
                dtype: place.dtype,
                shape: &place.shape,
                bytes: &file[place.range.clone()],
            }
        })
    }

    fn index(source: &ModelSource) -> Result<Self, Error> {
        let names = weight_files(source)?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut problems = Vec::new();
        for name in names {
            let bytes = source.open(&name)?.ok_or_else(|| source.missing(&name))?;
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
                let place = Place {
                    file: files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    range: start..start + view.data().len(),
                };
                if tensors.insert(tensor.to_owned(), place).is_some() {
                    problems.push(format!("{} is in more than one file", tensor.shown()));
                }
            }
            files.push((name, bytes));
        }
        let weights = Self {
            model: source.to_string(),
            files,
            tensors,
            layout: None,
            others: BTreeMap::new(),
        };
        weights.fit(problems)?;
        Ok(weights)
    }

    /// Returns an error if there are problems.
    fn fit(&self, mut problems: Vec<String>) -> Result<(), Error> {
        if problems.is_empty() {
            return Ok(());
        }
        if problems.len() > MAX_LISTED {
            let more = problems.len() - MAX_LISTED;
            problems.truncate(MAX_LISTED);
            problems.push(format!("and {more} more"));
        }
        Err(Error::Tensors {
            model: self.model.clone(),
            problems,
        })
    }

    fn place(&self, name: &str) -> Result<&Place, Error> {
        self.tensors.get(name).ok_or_else(|| Error::Tensors {
            model: self.model.clone(),
            problems: vec![format!("{name} is missing")],
        })
    }

    fn check(&self, architecture: &Architecture) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut expected = BTreeSet::new();
        let mut asked = architecture.tensors();
        // A tied checkpoint may store the shared matrix twice.
        if architecture.tied_head && self.tensors.contains_key(LM_HEAD) {
            let shape = vec![architecture.vocab_size, architecture.hidden_size];
            asked.push((LM_HEAD.to_owned(), shape));
        }
        let names: Vec<&str> = asked.iter().map(|(name, _)| name.as_str()).collect();
        let has = |name: &str| self.tensors.contains_key(name);
        let stored: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        if !names.iter().any(|name| *name != LM_HEAD && has(name))
            && let Some((problem, hint)) = layout::other_names(&names, &stored)
        {
            return Err(Error::TensorNames {
                model: self.model.clone(),
                problem,
                hint,
            });
        }
        for (name, shape) in asked {
            match self.tensors.get(&name) {
                None => problems.push(format!("{name} is missing; expected {shape:?}")),
                Some(place) if place.shape != shape => problems.push(format!(
                    "{name} has the shape {:?}; config.json asks for {shape:?}",
                    place.shape
                )),
                Some(place) if width(place.dtype).is_none() => problems.push(format!(
                    "{name} is {:?}; F32, F16 and BF16 can be read",
                    place.dtype
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
                    "{} has no place in a {} model as config.json describes it",
                    name.shown(),
                    architecture.model_type
                ));
            }
        }
        if problems.is_empty() && !self.second_head_is_the_same(architecture)? {
            problems.push(format!(
                "{LM_HEAD} differs from {EMBEDDING}, though config.json ties them; remove one or set tie_word_embeddings to false"
            ));
        }
        self.fit(problems)
    }

    /// Returns whether a tied checkpoint that stores the head as well stores the same twice. transformers
    /// does not tie them otherwise.
    fn second_head_is_the_same(&self, architecture: &Architecture) -> Result<bool, Error> {
        let stored = (self.tensors.get(EMBEDDING), self.tensors.get(LM_HEAD));
        let (true, (Some(embedding), Some(head))) = (architecture.tied_head, stored) else {
            return Ok(true);
        };
        if embedding.dtype != head.dtype {
            return Ok(self.load(EMBEDDING)? == self.load(LM_HEAD)?);
        }
        let [embedding, head] = [embedding, head].map(|place| {
            let (_, file) = &self.files[place.file];
            (file, place.range.clone())
        });
        let is_same = embedding.0[embedding.1.clone()] == head.0[head.1.clone()];
        for (file, range) in [embedding, head] {
            file.release(range);
        }
        Ok(is_same)
    }

    /// Reads a tensor's elements as f32, row-major.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] when one is NaN or infinite.
    pub fn load(&self, name: &str) -> Result<Vec<f32>, Error> {
        let place = self.place(name)?;
        self.load_range(name, place, place.range.clone())
    }

    /// Reads a tensor and rounds it to bf16, a piece at a time.
    ///
    /// # Errors
    ///
    /// As [`ModelWeights::load`].
    pub(crate) fn load_bf16(&self, name: &str) -> Result<Vec<bf16>, Error> {
        let place = self.place(name)?;
        let mut values = Vec::with_capacity(place.shape.iter().product());
        let mut start = place.range.start;
        while start < place.range.end {
            let end = place.range.end.min(start + PIECE_BYTES);
            let piece = self.load_range(name, place, start..end)?;
            values.extend_from_slice(&rounded(&piece));
            start = end;
        }
        Ok(values)
    }

    /// Reads what lies in a range of the tensor's file.
    fn load_range(
        &self,
        name: &str,
        place: &Place,
        range: Range<usize>,
    ) -> Result<Vec<f32>, Error> {
        let (_, file) = &self.files[place.file];
        let first = (range.start - place.range.start) / width(place.dtype).unwrap_or(1);
        let values = read::read(file, range, place.dtype)
            .ok_or(Error::Internal("a tensor that was not checked"))?;
        // Without a way out of the loop, so that it is one of vectors.
        let is_bad = |piece: &[f32]| piece.iter().fold(false, |bad, v| bad | !v.is_finite());
        if !values.par_chunks(CHUNK).any(is_bad) {
            return Ok(values);
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(element) => Err(Error::NotFinite {
                model: self.model.clone(),
                tensor: name.to_owned(),
                element: first + element,
                value: values[element],
            }),
        }
    }

    /// Returns a tensor's stored dtype: F32, F16 or BF16.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|place| place.dtype)
    }

    /// Returns the digests of the weight files, by name, in byte order of the names.
    pub(super) fn digests(&self) -> impl Iterator<Item = (&str, Digest)> {
        let files = self.files.iter();
        files.map(|(name, file)| (name.as_str(), file.digest()))
    }

    /// Returns the names of the weight files and their bytes, in byte order of the names.
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

    /// Returns the dtypes that occur, for people: "bf16", "f32 and bf16".
    pub fn dtype_names(&self) -> String {
        let names: BTreeSet<String> = self
            .tensors
            .values()
            .map(|place| format!("{:?}", place.dtype).to_lowercase())
            .collect();
        names.into_iter().collect::<Vec<_>>().join(" and ")
    }
}

/// Finds the files that hold the weights; returns their names in byte order.
fn weight_files(source: &ModelSource) -> Result<Vec<String>, Error> {
    let names = source.list()?;
    let has = |name: &str| names.iter().any(|n| n == name);
    if has("adapter_config.json") && (has(SINGLE_FILE) || has(INDEX_FILE)) {
        return Err(Error::TensorNames {
            model: source.to_string(),
            problem: "stand beside an adapter, adapter_config.json, which transformers would apply if peft is installed"
                .to_owned(),
            hint: "merge the adapter, or remove its files if the weights have it merged".to_owned(),
        });
    }
    if has(SINGLE_FILE) {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    }
    let Some(text) = source.read(INDEX_FILE)? else {
        return Err(source.missing(SINGLE_FILE));
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
                file: file.shown().to_string(),
                hint: "\nhint: model.safetensors.index.json names it; is the download complete?"
                    .to_owned(),
            });
        }
    }
    Ok(files.into_iter().collect())
}
