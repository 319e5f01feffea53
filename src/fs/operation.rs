//! The operations that may fail on a path.

use std::fmt;

/// An operation on a path, which may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Open a file.
    Open,
    /// Read from a file.
    Read,
    /// Ask for a size.
    ReadSize,
    /// Read a list of paths.
    ReadList,
    /// Map a file into memory.
    Map,
    /// Ask what is at a path.
    LookAt,
    /// Resolve links.
    Resolve,
    /// List a folder.
    List,
    /// List a folder and all below it.
    Walk,
    /// Create a hidden file beside another.
    CreateTemp,
    /// Create a folder.
    CreateFolder,
    /// Create a file.
    Create,
    /// Write to a file.
    Write,
    /// Make a file durable.
    Sync,
    /// Make a folder's names durable.
    SyncFolder,
    /// Set permissions.
    SetPermissions,
    /// Give a file its name.
    Publish,
    /// Remove a file.
    Remove,
    /// Copy to a temporary file what can only be read in a line.
    Spool,
    /// Start a process that parses a file.
    StartParser,
}

impl Operation {
    /// Returns whether it reads, rather than writes: what it fails on is an input.
    pub fn reads(self) -> bool {
        match self {
            Self::Open
            | Self::Read
            | Self::ReadSize
            | Self::ReadList
            | Self::Map
            | Self::LookAt
            | Self::Resolve
            | Self::List
            | Self::Walk => true,
            Self::CreateTemp
            | Self::CreateFolder
            | Self::Create
            | Self::Write
            | Self::Sync
            | Self::SyncFolder
            | Self::SetPermissions
            | Self::Publish
            | Self::Remove
            | Self::Spool
            | Self::StartParser => false,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::ReadSize => "read the size of",
            Self::ReadList => "read the list from",
            Self::Map => "map",
            Self::LookAt => "look at",
            Self::Resolve => "resolve",
            Self::List => "list",
            Self::Walk => "walk",
            Self::CreateTemp => "create a temporary file beside",
            Self::CreateFolder => "create the folder",
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncFolder => "sync the folder",
            Self::SetPermissions => "set the permissions of",
            Self::Publish => "publish",
            Self::Remove => "remove",
            Self::Spool => "make a temporary copy of",
            Self::StartParser => "start a process to read",
        })
    }
}
