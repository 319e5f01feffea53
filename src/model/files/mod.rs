//! The files of a model: a Hugging Face directory is opened, its tensors are read, and another is written.

mod export;
mod hints;
mod layout;
mod names;
mod open;
mod read;
mod source;
mod weights;
mod write;

pub(crate) use export::{check_exportable, write_weights};
pub use open::OpenModel;
pub(crate) use read::widened;
pub use source::{Builtin, ModelFile, ModelSource};
pub use weights::ModelWeights;
pub(crate) use write::{Content, Entry, write as write_tensors};
