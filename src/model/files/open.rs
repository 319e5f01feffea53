//! A model as a run uses it: opened once, checked, and held open.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::source::{ModelFile, ModelSource};
use super::weights::ModelWeights;
use crate::fs::Digest;
use crate::model::Error;
use crate::model::architecture::Architecture;

/// Name of the description of a model.
const CONFIG_FILE: &str = "config.json";

/// A model that is open: config.json is read, and every tensor is found and checked, but none is loaded.
///
/// Each of its files is opened once, however often it is asked for. The bytes that a fingerprint is made of
/// are those that are loaded, exported and parsed, also if another file takes a file's place meanwhile.
///
/// # Examples
///
/// ```
/// use remit::demo;
/// use remit::model::{Compute, Decoder, OpenModel};
///
/// let model = OpenModel::open(&demo::rl_model())?;
/// let fingerprint = model.fingerprint();
/// let decoder = Decoder::from_open(&model, &Compute::default())?;
/// assert_eq!(decoder.architecture(), model.architecture());
/// # let _ = fingerprint;
/// # Ok::<(), remit::model::Error>(())
/// ```
#[derive(Debug)]
pub struct OpenModel {
    source: ModelSource,
    config: ModelFile,
    architecture: Architecture,
    /// Fields of config.json that were not understood, and accepted all the same.
    ignored_fields: Vec<String>,
    weights: ModelWeights,
    /// Made when it is first asked for: it takes reading all weights, and some mistakes show before.
    fingerprint: OnceLock<Digest>,
    /// Files besides config.json and the weights that were asked for; `None` where there is none.
    others: Mutex<BTreeMap<String, Option<ModelFile>>>,
}

/// As the source: the path as given, or the name of a built-in model.
impl fmt::Display for OpenModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl OpenModel {
    /// Opens a model and checks it, without loading a tensor.
    ///
    /// # Errors
    ///
    /// When config.json or a weight file is absent or damaged, when config.json asks for something that is
    /// not implemented, and when the tensors do not fit it.
    pub fn open(source: &ModelSource) -> Result<Self, Error> {
        Self::open_ignoring(source, &[])
    }

    /// Opens a model as [`OpenModel::open`] does, and accepts fields of config.json that are not understood if they
    /// are among `ignored`.
    ///
    /// # Errors
    ///
    /// Those of [`OpenModel::open`], and when a field that is read is to be ignored.
    pub fn open_ignoring(source: &ModelSource, ignored: &[String]) -> Result<Self, Error> {
        let config = ModelFile::from(source.require(CONFIG_FILE)?);
        let (mut architecture, ignored_fields) =
            Architecture::from_json_ignoring(&config, &source.to_string(), ignored)?;
        let weights = ModelWeights::open(source, &mut architecture)?;
        Ok(Self {
            source: source.clone(),
            config,
            architecture,
            ignored_fields,
            weights,
            fingerprint: OnceLock::new(),
            others: Mutex::default(),
        })
    }

    /// Returns the path as given, or the name of a built-in model, as files have it.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// Returns where the model comes from.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// Returns the description that config.json gives.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns the fields of config.json that were not understood, and accepted since they were to be ignored.
    pub fn ignored_fields(&self) -> &[String] {
        &self.ignored_fields
    }

    /// Returns the weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// Returns the digest of what decides the model's output: config.json and the weight files. The first call
    /// reads all of them.
    pub fn fingerprint(&self) -> Digest {
        *self.fingerprint.get_or_init(|| {
            let mut listing = format!("{CONFIG_FILE} {}\n", self.config.digest());
            for (name, digest) in self.weights.digests() {
                listing.push_str(&format!("{name} {digest}\n"));
            }
            Digest::of(listing.as_bytes())
        })
    }

    /// Returns a file of the model by its name; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When it can't be opened.
    pub fn file(&self, name: &str) -> Result<Option<ModelFile>, Error> {
        if name == CONFIG_FILE {
            return Ok(Some(self.config.clone()));
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match others.entry(name.to_owned()) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => entry.insert(self.source.open(name)?).clone(),
        })
    }

    /// Returns a file that every model has.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`] when it is not there.
    pub fn require(&self, name: &str) -> Result<ModelFile, Error> {
        self.file(name)?.ok_or_else(|| self.source.missing(name))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::fs;
    use crate::model::{Compute, Decoder};

    fn fixture(name: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join("fixtures/models").join(name)
    }

    /// A copy of a model that a test may change.
    fn copy(name: &str) -> (tempfile::TempDir, ModelSource) {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::list(&fixture(name)).unwrap() {
            let bytes = fs::read(&fixture(name).join(&file)).unwrap();
            fs::write_atomic(&dir.path().join(&file), &bytes).unwrap();
        }
        let source = ModelSource::Directory(dir.path().to_owned());
        (dir, source)
    }

    #[test]
    fn a_fingerprint_is_that_of_config_json_and_of_the_weight_files_in_their_order() {
        let names = [
            "config.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
        ];
        let lines = names.map(|name| {
            let (_, digest) = fs::hash_file(&fixture("odd-youtu").join(name), |_| {}).unwrap();
            format!("{name} {digest}\n")
        });
        let model = OpenModel::open(&ModelSource::Directory(fixture("odd-youtu"))).unwrap();
        assert_eq!(model.fingerprint(), Digest::of(lines.concat().as_bytes()));
    }

    #[test]
    fn files_that_are_replaced_while_a_model_is_open_change_nothing_of_it() {
        let (dir, source) = copy("tiny-llama");
        let rows: [&[u32]; 2] = [&[5, 6, 7, 8], &[9, 10]];
        let expected = OpenModel::open(&source).unwrap().fingerprint();
        let log_probs = Decoder::load(&source)
            .unwrap()
            .target_log_probs(&rows)
            .unwrap();

        let model = OpenModel::open(&source).unwrap();
        let tokenizer = model.require("tokenizer.json").unwrap().to_vec();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::write_atomic(&dir.path().join(name), b"something else").unwrap();
        }
        assert_eq!(model.fingerprint(), expected);
        let decoder = Decoder::from_open(&model, &Compute::default()).unwrap();
        assert_eq!(decoder.target_log_probs(&rows).unwrap(), log_probs);
        assert_eq!(*model.require("tokenizer.json").unwrap(), *tokenizer);
        let config = fs::read(&fixture("tiny-llama").join("config.json")).unwrap();
        assert_eq!(*model.require("config.json").unwrap(), *config);
        OpenModel::open(&source).unwrap_err();
    }

    #[test]
    fn a_file_that_is_not_there_is_not_looked_for_twice() {
        let (dir, source) = copy("tiny-llama");
        let model = OpenModel::open(&source).unwrap();
        assert!(model.file("chat_template.jinja").unwrap().is_none());
        fs::write_atomic(&dir.path().join("chat_template.jinja"), b"new").unwrap();
        assert!(model.file("chat_template.jinja").unwrap().is_none());
        let error = model.require("chat_template.jinja").unwrap_err();
        assert!(error.is_missing());
    }
}
