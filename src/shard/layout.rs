//! Where the files of a set lie, under its folder or prefix.
//!
//! Polars and datasets read every file below a folder, whatever its name, and refuse it, or fail, where
//! one is of another type. So all files of a set are of one type: what describes it stands in the
//! footers of files without rows (see [`description`](super::description)).

use super::schema::ShardFormat;

/// Names of shards begin with this.
pub const SHARD_PREFIX: &str = "part-";

/// Name of the folder that holds what describes a set.
pub const DESCRIPTION_DIR: &str = "_remit";

/// Returns the name of the shard of a part.
pub fn shard_name(part: u32, format: ShardFormat) -> String {
    format!("{SHARD_PREFIX}{part:06}.{}", format.extension())
}

/// A file that describes a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Description {
    /// The plan: what the set will be.
    Plan,
    /// The manifest: what the set is.
    Manifest,
    /// Records that could not be read.
    Rejects,
    /// The plan of a sidecar.
    SidecarPlan,
    /// The manifest of a sidecar.
    SidecarManifest,
}

impl Description {
    /// Returns the word for it, which its file is called by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Manifest => "manifest",
            Self::Rejects => "rejects",
            Self::SidecarPlan => "sidecar_plan",
            Self::SidecarManifest => "sidecar_manifest",
        }
    }

    /// Returns the key of the footer's metadata that holds it, as JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Plan => "remit.plan",
            Self::Manifest => "remit.manifest",
            Self::Rejects => "remit.rejects",
            Self::SidecarPlan => "remit.sidecar_plan",
            Self::SidecarManifest => "remit.sidecar_manifest",
        }
    }

    /// Returns the path of its file in a set of shards of this format.
    pub fn file(self, format: ShardFormat) -> String {
        format!("{DESCRIPTION_DIR}/{}.{}", self.name(), format.extension())
    }
}
