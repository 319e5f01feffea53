//! Errors of models.

use super::no_gpu::NoGpu;
use crate::fs;

/// A model that can't be read or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The path given as a model is not a folder.
    #[error("{model} is not a model folder; give a Hugging Face directory with config.json{hint}")]
    NotAFolder {
        /// The path as given.
        model: String,
        /// The way out, as a line that begins with `hint:`; empty if there is none to name.
        hint: String,
    },
    /// A file that every model has is absent.
    #[error(
        "the model {model} has no {file}; a Hugging Face directory holds config.json, tokenizer.json and model.safetensors (or model.safetensors.index.json with its shards){hint}"
    )]
    MissingFile {
        /// The model as given.
        model: String,
        /// The absent file.
        file: String,
        /// The way out, as a line that begins with `hint:`; empty if there is none to name.
        hint: String,
    },
    /// A file holds something else than its name says: what stands for it elsewhere, or an error page.
    #[error("{file} of the model {model} is {found}\nhint: {hint}")]
    Placeholder {
        /// The model as given.
        model: String,
        /// The file in it.
        file: String,
        /// What it is instead.
        found: String,
        /// The way out.
        hint: String,
    },
    /// A JSON file of the model is not valid.
    #[error("{file} of the model {model} is not valid JSON")]
    Json {
        /// The model as given.
        model: String,
        /// The file in it.
        file: String,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// config.json asks for something that is not implemented, or lacks something.
    #[error("config.json of the model {model}: {problem}")]
    Config {
        /// The model as given.
        model: String,
        /// Field, expected and actual.
        problem: String,
    },
    /// The safetensors container is damaged.
    #[error("{file} of the model {model} is not a readable safetensors file; is it complete?")]
    Container {
        /// The model as given.
        model: String,
        /// The file in it.
        file: String,
        /// The parser's reason.
        source: safetensors::SafeTensorError,
    },
    /// Tensors are absent, superfluous, or of another shape or dtype. All problems are listed.
    #[error("the tensors of the model {model} do not fit its config.json:\n  {}", problems.join("\n  "))]
    Tensors {
        /// The model as given.
        model: String,
        /// One line each.
        problems: Vec<String>,
    },
    /// The tensors are there, but under other names.
    #[error("the tensors of the model {model} {problem}\nhint: {hint}")]
    TensorNames {
        /// The model as given.
        model: String,
        /// How the names differ.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// A weight is NaN or infinite.
    #[error("the tensor {tensor} of the model {model} holds {value} at element {element}")]
    NotFinite {
        /// The model as given.
        model: String,
        /// The tensor's name.
        tensor: String,
        /// Offset of the first such element, row-major.
        element: usize,
        /// The value found.
        value: f32,
    },
    /// A token id has no embedding.
    #[error(
        "token id {id} at position {position} of a row is outside the model's vocabulary of {vocab_size}; the tokenizer does not belong to this model"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its position in the row.
        position: usize,
        /// Number of embeddings.
        vocab_size: usize,
    },
    /// The model computed a non-finite log-prob.
    #[error(
        "the model {model} gives {value} as the log-probability of token {position} of a row; its weights are damaged or overflow in this dtype"
    )]
    NotFiniteLogProb {
        /// The model as given.
        model: String,
        /// Number of the row in its batch.
        row: usize,
        /// Position in the row.
        position: usize,
        /// The value found.
        value: f32,
    },
    /// A parameter took no part in the loss, so training would leave it as it is.
    #[error("no gradient reached the parameter {parameter}")]
    NoGradient {
        /// The parameter's name.
        parameter: String,
    },
    /// The gradient's norm is not finite.
    #[error(
        "training diverged: the gradient's norm is {norm}, and nothing was changed with it\nhint: a lower --lr, a longer --warmup-steps or a smaller --clip"
    )]
    Diverged {
        /// Norm of the gradient, infinite or NaN.
        norm: f64,
    },
    /// A GPU was asked for, and can't be used.
    #[error(
        "the GPU cuda:{number} can't be used: {problem}\nhint: {}; --device cpu computes without one",
        problem.way_out()
    )]
    NoGpu {
        /// Number of the GPU.
        number: usize,
        /// Why.
        problem: NoGpu,
    },
    /// The device has too little memory left.
    #[error("out of memory: {} kB more were asked for, and {} kB are free", wanted_bytes / 1000, free_bytes / 1000)]
    OutOfMemory {
        /// Bytes that were asked for.
        wanted_bytes: u64,
        /// Bytes that were free.
        free_bytes: u64,
    },
    /// A product would have more elements than memory can address.
    #[error("a matrix of {rows} x {cols} is too large for this machine; lower --batch-tokens")]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// The tensor library refused an operation.
    #[error("a tensor operation failed")]
    Compute(#[from] candle_core::Error),
    /// A broken assumption of this crate; always a bug.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl Error {
    /// Returns whether the device's memory was too small, so that less at a time may do.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            // The tensor library passes on CUDA's errors as texts.
            Self::Compute(error) => tells_of_memory(&error.to_string()),
            _ => false,
        }
    }

    /// Returns whether the cause is a file or folder that does not exist.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Fs(error) => error.is_missing(),
            Self::MissingFile { .. } | Self::NotAFolder { .. } => true,
            _ => false,
        }
    }
}

/// Returns whether a text of CUDA's or of one of its libraries says that memory is short.
pub(super) fn tells_of_memory(text: &str) -> bool {
    text.contains("CUDA_ERROR_OUT_OF_MEMORY") || text.contains("CUBLAS_STATUS_ALLOC_FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_is_told_apart_from_other_errors_of_a_gpu() {
        let compute = |text: &str| Error::Compute(candle_core::Error::Msg(text.to_owned()));
        let texts = [
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                true,
            ),
            ("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", true),
            (
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")",
                false,
            ),
        ];
        for (text, is_memory) in texts {
            assert_eq!(compute(text).is_out_of_memory(), is_memory, "{text}");
        }
    }
}
