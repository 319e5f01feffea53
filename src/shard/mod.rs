//! The shard format: one row of a shard is one attention context.
//!
//! schemas/README.md at the root of the repository is the normative text. [`mod@write`] and [`read`] share
//! [`schema`] and where a shard's own digest lies, and nothing else: what one of them takes for granted,
//! the other checks.

pub mod assemble;
mod columns;
mod container;
pub mod description;
#[cfg(test)]
mod distribution_tests;
mod distributions;
mod entry_file;
mod error;
#[cfg(test)]
mod format_tests;
pub mod import;
mod json;
pub mod layout;
pub mod manifest;
pub mod plan;
pub mod read;
pub mod row;
pub mod schema;
mod seal;
pub mod sidecar;
pub mod sink;
pub mod statistics;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
pub mod version1;
pub mod write;

pub use error::{Error, ErrorKind};
