//! Names of the files that hold weights.

/// All tensors in one file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// The list of shards, where there are several.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
