//! The state of a training run on disk, so that it resumes after an interruption as if there had been none.
//!
//! A checkpoint is two files: `step-00000100.safetensors`, which holds f32 weights and both moments of every
//! parameter, with everything else as JSON in its header's metadata; and `step-00000100.safetensors.b3`,
//! its BLAKE3 as `b3sum` writes and checks it. The second is published last, so without it the first does
//! not count, and one flipped bit in either makes the pair invalid.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::escape::Show as _;
use crate::fs::{self, Digest, MappedFile};
use crate::model::{self, Content, Entry, Parameters};
use crate::optim::AdamW;

/// Folder of the checkpoints in an output folder.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Key of the JSON in the header's metadata.
const STATE_KEY: &str = "remit";

const PREFIX: &str = "step-";
const TENSORS: &str = ".safetensors";
const DIGEST: &str = ".safetensors.b3";

/// Prefixes of the names of a parameter's weights and of its first and second moment.
const KINDS: [&str; 3] = ["weight.", "first_moment.", "second_moment."];

/// Errors of checkpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The model's tensors could not be read or set.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A checkpoint is not what was written.
    #[error("the checkpoint {} is damaged: {reason}", path.shown())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        reason: String,
    },
    /// A checkpoint is intact, but of another model.
    #[error("the checkpoint {} does not fit the model: {reason}", path.shown())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The mismatch.
        reason: String,
    },
}

impl Error {
    /// Returns whether a checkpoint is not, or no longer, what was written.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Fs(error) => error.is_missing(),
            _ => false,
        }
    }
}

/// A checkpoint whose digest was checked.
#[derive(Debug)]
pub struct TrainingCheckpoint {
    path: PathBuf,
    step: u64,
    map: MappedFile,
    state: String,
}

/// The result of [`TrainingCheckpoint::newest`].
#[derive(Debug)]
pub struct Newest {
    /// The newest that is intact.
    pub intact: Option<TrainingCheckpoint>,
    /// Steps of those that are newer, newest first, and what is wrong with each.
    pub damaged: Vec<(u64, Error)>,
}

fn tensors_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{step:08}{TENSORS}"))
}

fn digest_path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{step:08}{DIGEST}"))
}

/// Steps with a finished checkpoint in a folder, ascending; none if there is no such folder.
///
/// # Errors
///
/// When the folder can't be listed.
pub fn steps(dir: &Path) -> Result<Vec<u64>, Error> {
    let mut steps = Vec::new();
    if fs::is_dir(dir)? {
        for name in fs::list(dir)? {
            let name = name.to_string_lossy();
            let digits = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.strip_suffix(DIGEST));
            steps.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Writes the checkpoint of a step: the parameters, the optimizer's state, and `state` as JSON.
///
/// # Errors
///
/// When writing fails; there is then no checkpoint of this step.
pub fn save(
    dir: &Path,
    step: u64,
    state: &impl Serialize,
    parameters: &Parameters,
    optimizer: &AdamW,
) -> Result<(), Error> {
    fs::create_dir_all(dir)?;
    remove(dir, step)?;
    let state = serde_json::to_string(state).map_err(|_| {
        model::Error::Internal("the state of a training run can't be written as JSON")
    })?;
    let mut entries = Vec::with_capacity(3 * parameters.len());
    for (index, parameter) in parameters.iter().enumerate() {
        let [first, second] = optimizer.moments(index)?;
        for (kind, tensor) in KINDS.iter().zip([parameter.value(), first, second]) {
            entries.push(Entry {
                name: format!("{kind}{}", parameter.name),
                dtype: Dtype::F32,
                content: Content::Tensor(tensor),
            });
        }
    }
    let path = tensors_path(dir, step);
    let digest = model::write_tensors(&path, (STATE_KEY, state), &entries)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    fs::write_atomic(
        &digest_path(dir, step),
        format!("{digest}  {name}\n").as_bytes(),
    )?;
    Ok(())
}

/// Removes the checkpoint of a step, or what there is of it; the digest first, so that it never counts in
/// between.
///
/// # Errors
///
/// When a file is there and can't be removed.
pub fn remove(dir: &Path, step: u64) -> Result<(), Error> {
    for path in [digest_path(dir, step), tensors_path(dir, step)] {
        match fs::remove_file(&path) {
            Err(error) if error.is_missing() => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` checkpoints, and what interrupted writes left behind.
///
/// # Errors
///
/// When the folder can't be listed or a file can't be removed.
pub fn prune(dir: &Path, keep: usize) -> Result<(), Error> {
    let steps = steps(dir)?;
    for &step in steps.iter().rev().skip(keep) {
        remove(dir, step)?;
    }
    sweep(dir)
}

/// Removes what interrupted writes left behind: temporary files, and tensors without a digest.
fn sweep(dir: &Path) -> Result<(), Error> {
    if !fs::is_dir(dir)? {
        return Ok(());
    }
    fs::remove_stale_temps(dir, PREFIX)?;
    let finished = steps(dir)?;
    for name in fs::list(dir)? {
        let name = name.to_string_lossy();
        let digits = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_suffix(TENSORS));
        let step = digits.and_then(|digits| digits.parse::<u64>().ok());
        if let Some(step) = step.filter(|step| !finished.contains(step)) {
            remove(dir, step)?;
        }
    }
    Ok(())
}

/// Returns the digest of the checkpoint of a step, as the file beside it has it.
///
/// # Errors
///
/// When it can't be read, or holds no digest.
pub fn recorded_digest(dir: &Path, step: u64) -> Result<Digest, Error> {
    let sums = fs::read(&digest_path(dir, step))?;
    str::from_utf8(&sums)
        .ok()
        .and_then(|text| text.split_whitespace().next())
        .and_then(|hex| hex.parse().ok())
        .ok_or_else(|| Error::Damaged {
            path: tensors_path(dir, step),
            reason: format!("its {DIGEST} file holds no BLAKE3"),
        })
}

impl TrainingCheckpoint {
    /// Opens the checkpoint of a step, and compares it with its digest before parsing a byte of it.
    ///
    /// # Errors
    ///
    /// When it can't be read, or is not what was written.
    pub fn open(dir: &Path, step: u64) -> Result<Self, Error> {
        let path = tensors_path(dir, step);
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let expected = recorded_digest(dir, step)?;
        if !fs::exists(&path)? {
            return Err(damaged("it is missing, but its digest is there".to_owned()));
        }
        let map = MappedFile::open(&path)?;
        let found = Digest::of(&map);
        if found != expected {
            return Err(damaged(format!(
                "its BLAKE3 is {found}, and {expected} was written"
            )));
        }
        let state = SafeTensors::read_metadata(&map)
            .ok()
            .and_then(|(_, header)| header.metadata().as_ref()?.get(STATE_KEY).cloned())
            .ok_or_else(|| damaged(format!("its header has no {STATE_KEY}")))?;
        Ok(Self {
            path,
            step,
            map,
            state,
        })
    }

    /// Returns the newest checkpoint of a folder that is intact, and why each newer one is not.
    ///
    /// # Errors
    ///
    /// When the folder can't be listed, and when a checkpoint can't be read for another reason than that it is
    /// damaged: it may be intact.
    pub fn newest(dir: &Path) -> Result<Newest, Error> {
        let mut damaged = Vec::new();
        for step in steps(dir)?.into_iter().rev() {
            match Self::open(dir, step) {
                Ok(checkpoint) => {
                    return Ok(Newest {
                        intact: Some(checkpoint),
                        damaged,
                    });
                }
                Err(error) if error.is_damage() => damaged.push((step, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(Newest {
            intact: None,
            damaged,
        })
    }

    /// The step after which it was written.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The file with its tensors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the state that [`save`] was given.
    ///
    /// # Errors
    ///
    /// When it can't be read as that, which another version of remit may have written.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(&self.state).map_err(|error| Error::Damaged {
            path: self.path.clone(),
            reason: format!(
                "its state can't be read ({error}); was it written by another version?"
            ),
        })
    }

    /// Sets the parameters of a model and the state of their optimizer.
    ///
    /// # Errors
    ///
    /// When the tensors are not those of the model.
    pub fn restore(
        &self,
        parameters: &mut Parameters,
        optimizer: &mut AdamW,
        optimizer_steps: u64,
    ) -> Result<(), Error> {
        let tensors = SafeTensors::deserialize(&self.map).map_err(|error| Error::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        let mut moments = Vec::with_capacity(parameters.len());
        for index in 0..parameters.len() {
            let parameter = &parameters[index];
            let values = |kind: &str| {
                let name = format!("{kind}{}", parameter.name);
                let tensor = tensors.tensor(&name).ok();
                tensor
                    .filter(|tensor| {
                        tensor.dtype() == Dtype::F32 && tensor.shape() == parameter.shape()
                    })
                    .map(|tensor| model::widened(tensor.data(), Dtype::F32))
                    .ok_or_else(|| Error::OtherModel {
                        path: self.path.clone(),
                        reason: format!("it has no {name} of shape {:?} in f32", parameter.shape()),
                    })
            };
            let [weight, first, second] = KINDS.map(values);
            let (weight, first, second) = (weight?, first?, second?);
            parameters.set(index, weight)?;
            moments.push([first, second]);
        }
        optimizer.restore(optimizer_steps, moments)?;
        self.map.release(0, self.map.len());
        Ok(())
    }
}
