//! How files are compressed, and how far they may unpack.

use std::fmt;

/// A compressed file may unpack to this many times its size, once it is beyond 64 MiB. Text
/// compresses to a third or a tenth.
pub const MAX_EXPANSION: u64 = 256;

/// Times its size that a compressed file counts when the default part size is chosen, before anything
/// is unpacked.
pub const ASSUMED_EXPANSION: u64 = 4;

/// How a file is compressed, whatever it does inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, with one or several members.
    Gzip,
    /// Zstandard, with one or several frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}
