//! The only module that touches the file system: atomic writes, hashing, mapping, and errors that
//! always name the path.
//!
//! A file is published by writing a hidden sibling, `fsync`, `rename`, and `fsync` of the folder.
//! A reader therefore sees a complete file or none, also after a power cut.
//!
//! A path may also be the URL of an object, `s3://bucket/key`, `gs://` or `az://`, where the feature
//! `object-store` is on. URLs travel as paths, since `join`, `parent` and `strip_prefix` do to them what
//! they do to paths, and the rest of the crate then needs to know of one kind of place only. An object is
//! uploaded by a put that never overwrites.
#![expect(
    clippy::disallowed_methods,
    reason = "the one module that wraps std::fs"
)]

mod atomic;
mod digest;
mod error;
#[cfg(test)]
pub(crate) mod fault;
#[cfg(not(test))]
#[path = "no_fault.rs"]
mod fault;
mod file;
mod log;
mod operation;
mod paths;
mod pattern;
mod read;
mod regular;
#[cfg(not(feature = "object-store"))]
#[path = "no_remote.rs"]
mod remote;
#[cfg(feature = "object-store")]
mod remote;
mod stamp;
mod url;
mod walk;

pub use atomic::{AtomicFile, TEMP_SUFFIX, remove_stale_temps, write_atomic, write_new};
pub use digest::{Digest, Hasher, HashingFile, HashingWriter, hash_file, hash_mapped};
pub use error::{Error, Failure, Result, is_of_system, write_error, write_failure};
pub use file::{File, MappedFile, ReadAt, Spool, StdinCopy, open};
pub use log::Log;
pub use operation::Operation;
pub use paths::{
    canonicalize, canonicalize_missing, create_dir_all, exists, expect_no_file, folder_above_with,
    identity, is_dir, lacks_bucket, list, read_list, remove_file, size_bytes,
};
pub use pattern::{GlobError, NamePattern, glob, matches};
pub use read::{MAX_READ_BYTES, read, read_at_most, read_given};
pub use regular::expect_regular;
pub use stamp::{Stamp, stamp};
pub use walk::{KeepOn, Walked, walk};
