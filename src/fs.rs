//! The only module that touches the file system: atomic writes, hashing, mapping, and errors that
//! always name the path.
//!
//! A file is published by writing a hidden sibling, `fsync`, `rename`, and `fsync` of the folder.
//! A reader therefore sees a whole file or none, also after a power cut.
#![expect(
    clippy::disallowed_methods,
    reason = "the one module that wraps std::fs"
)]

use std::ffi::OsString;
use std::fmt;
pub use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Suffix of a file that is being written and is not yet published.
pub const TEMP_SUFFIX: &str = ".remit-tmp";

/// Bytes read at a time where a file is streamed.
const STREAM_BUFFER_BYTES: usize = 1 << 20;

/// An I/O failure, with what was attempted on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
#[non_exhaustive]
pub struct Error {
    /// What was attempted, as a verb phrase: "open", "write".
    pub action: &'static str,
    /// The path as given.
    pub path: PathBuf,
    /// The operating system's answer.
    pub source: io::Error,
}

impl Error {
    /// Whether the cause is that the path does not exist.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether the cause is a full disk or an exhausted quota.
    pub fn is_out_of_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

trait Context<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

/// A BLAKE3 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of bytes in memory, on all threads of the current rayon pool.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(hex: String) -> std::result::Result<Self, &'static str> {
        hex.parse()
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(hex: &str) -> std::result::Result<Self, &'static str> {
        blake3::Hash::from_hex(hex)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| "a BLAKE3 digest must be 64 hexadecimal digits")
    }
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).during("open", path)
}

/// Size of a file in bytes.
pub fn size_bytes(path: &Path) -> Result<u64> {
    std::fs::metadata(path)
        .map(|meta| meta.len())
        .during("read the size of", path)
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).during("read", path)
}

/// Reads a list of paths, one a line; `-` is stdin. Blank lines are left out.
pub fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin()).during("read the list from", Path::new("stdin"))?
    } else {
        std::fs::read_to_string(path).during("read", path)?
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Whether anything exists at the path; an error other than "not found" is reported.
pub fn exists(path: &Path) -> Result<bool> {
    path.try_exists().during("look at", path)
}

/// Whether the path is a folder; `false` when nothing is there.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// The absolute path without links, `.` and `..`.
pub fn canonicalize(path: &Path) -> Result<PathBuf> {
    path.canonicalize().during("resolve", path)
}

/// Creates a folder and its parents.
pub fn create_dir_all(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).during("create the folder", path)
}

/// Removes a file.
pub fn remove_file(path: &Path) -> Result<()> {
    std::fs::remove_file(path).during("remove", path)
}

/// Names in a folder, in byte order.
pub fn list(dir: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).during("list", dir)? {
        names.push(entry.during("list", dir)?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Every regular file below a folder, as paths that start with `dir`, in byte order of the path.
///
/// Symbolic links to files and folders are followed; names that begin with a dot are left out. A
/// folder that is reached again through a link inside itself is an error, not an endless walk.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    fn visit(dir: &Path, above: &mut Vec<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
        let real = dir.canonicalize().during("resolve", dir)?;
        if above.contains(&real) {
            return Err(Error {
                action: "walk",
                path: dir.to_owned(),
                source: io::Error::other("the folder contains a link to itself"),
            });
        }
        above.push(real);
        for name in list(dir)? {
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = dir.join(&name);
            let meta = std::fs::metadata(&path).during("look at", &path)?;
            if meta.is_dir() {
                visit(&path, above, found)?;
            } else if meta.is_file() {
                found.push(path);
            }
        }
        above.pop();
        Ok(())
    }
    let mut found = Vec::new();
    visit(dir, &mut Vec::new(), &mut found)?;
    found.sort_by(|a, b| {
        a.as_os_str()
            .as_encoded_bytes()
            .cmp(b.as_os_str().as_encoded_bytes())
    });
    Ok(found)
}

/// Why a pattern gives no paths.
#[derive(Debug)]
pub enum GlobError {
    /// It isn't a pattern.
    Pattern(&'static str),
    /// A folder can't be read.
    Io(Error),
}

/// What a pattern of `*`, `?`, `[...]` and `**` matches; names that begin with a dot only where the
/// pattern spells the dot out.
pub fn glob(pattern: &str) -> std::result::Result<Vec<PathBuf>, GlobError> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let paths = glob::glob_with(pattern, options).map_err(|error| GlobError::Pattern(error.msg))?;
    paths
        .map(|path| {
            path.map_err(|error| {
                GlobError::Io(Error {
                    action: "list",
                    path: error.path().to_owned(),
                    source: error.into(),
                })
            })
        })
        .collect()
}

/// Size and BLAKE3 digest of a file, streamed: memory does not grow with the file.
///
/// `observe` sees every block once, in order, so that a caller can count records in the same pass.
pub fn hash_file(path: &Path, mut observe: impl FnMut(&[u8])) -> Result<(u64, Digest)> {
    let mut file = open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0_u8; STREAM_BUFFER_BYTES];
    let mut size_bytes = 0_u64;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).during("read", path),
        };
        let block = buffer.get(..read).unwrap_or_default();
        hasher.update_rayon(block);
        observe(block);
        size_bytes += read as u64;
    }
    Ok((size_bytes, Digest(*hasher.finalize().as_bytes())))
}

/// A file that is read from its start and hashed as it is read.
pub struct HashingFile {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    size_bytes: u64,
}

impl HashingFile {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            hasher: blake3::Hasher::new(),
            size_bytes: 0,
        })
    }

    /// Reads what is left; size and digest of the whole file.
    pub fn finish(mut self) -> Result<(u64, Digest)> {
        io::copy(&mut self, &mut io::sink()).during("read", &self.path.clone())?;
        Ok((self.size_bytes, Digest(*self.hasher.finalize().as_bytes())))
    }
}

impl Read for HashingFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buf)?;
        self.hasher
            .update_rayon(buf.get(..read).unwrap_or_default());
        self.size_bytes += read as u64;
        Ok(read)
    }
}

/// A read-only memory map of a whole file; dereferences to its bytes. Cheap to clone.
#[derive(Clone)]
pub struct MappedFile {
    path: Arc<Path>,
    map: Option<Arc<memmap2::Mmap>>,
}

impl MappedFile {
    /// Maps a file. An empty file gives an empty slice.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path)?;
        let size = file.metadata().during("read the size of", path)?.len();
        let map = if size == 0 {
            None
        } else {
            // SAFETY: the bytes are only ever read, through `&[u8]`. Another process that shortens
            // or rewrites the file while it is mapped could still change them under us; published
            // files are never rewritten by remit, and inputs are documented as read-only while a
            // command runs.
            let map = unsafe { memmap2::Mmap::map(&file) }.during("map", path)?;
            Some(Arc::new(map))
        };
        Ok(Self {
            path: path.into(),
            map,
        })
    }

    /// The path as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the operating system that these bytes will not be read again soon, so that pages of
    /// a large file do not count as this process's memory. Harmless when it can't be honoured.
    pub fn release(&self, offset: usize, len: usize) {
        let Some(map) = &self.map else { return };
        let end = offset.saturating_add(len).min(map.len());
        if offset >= end {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the map is a read-only view of a file, so dropped pages are read back from
            // that file with the same content; nothing is lost by it.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, end - offset)
            };
            if let Err(error) = advised {
                tracing::debug!(path = %self.path.display(), %error, "madvise was refused");
            }
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| map)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFile({})", self.path.display())
    }
}

/// A file that appears under its name only when it is complete.
///
/// Dropped without [`AtomicFile::publish`], it leaves nothing behind.
pub struct AtomicFile {
    target: PathBuf,
    temp: tempfile::NamedTempFile,
}

impl AtomicFile {
    /// Opens a hidden temporary sibling of `target` for writing.
    pub fn create(target: &Path) -> Result<Self> {
        let dir = parent(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temp = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(TEMP_SUFFIX)
            .tempfile_in(dir)
            .during("create a temporary file beside", target)?;
        Ok(Self {
            target: target.to_owned(),
            temp,
        })
    }

    /// Where the temporary file is, for a writer that opens files by path.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Makes what was written durable and visible under the target name, replacing a file there.
    pub fn publish(self) -> Result<()> {
        let target = self.target.clone();
        self.make_durable()?
            .persist(&target)
            .map_err(|error| error.error)
            .during("publish", &target)?;
        sync_dir(parent(&target))
    }

    /// As [`AtomicFile::publish`], but leaves a file that is there already as it is; whether the new
    /// one was published.
    pub fn publish_new(self) -> Result<bool> {
        let target = self.target.clone();
        let published = self.make_durable().and_then(|temp| {
            temp.persist_noclobber(&target)
                .map_err(|error| error.error)
                .during("publish", &target)
        });
        match published {
            Ok(_) => sync_dir(parent(&target)).map(|()| true),
            // Somebody was faster, and may even have swept our temporary file away.
            Err(_) if exists(&target)? => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn make_durable(self) -> Result<tempfile::NamedTempFile> {
        let Self { target, temp } = self;
        // By path, since a writer that was handed the path may have put another file there.
        let path = temp.path();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile creates 0600; a published file follows the usual 0644 so that others on a
            // cluster can read it.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
                .during("set the permissions of", &target)?;
        }
        File::open(path)
            .and_then(|file| file.sync_all())
            .during("sync", &target)?;
        Ok(temp)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.temp.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temp.flush()
    }
}

/// Writes bytes to a file atomically.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).during("write", path)?;
    file.publish()
}

/// Writes bytes to a file atomically, unless a file is there already; whether it was written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).during("write", path)?;
    file.publish_new()
}

/// Names the path in an error of a writer that wraps a file of this module.
pub fn write_error(path: &Path, source: io::Error) -> Error {
    Error {
        action: "write",
        path: path.to_owned(),
        source,
    }
}

/// Opens a file for writing from its start, for logs that are read while they grow.
pub fn create_log(path: &Path) -> Result<BufWriter<File>> {
    File::create(path)
        .map(BufWriter::new)
        .during("create", path)
}

/// Removes temporary files of targets whose names begin with `prefix`, left by interrupted runs, and
/// says how many.
///
/// Only to be called when all those targets are published: whoever still writes one of them finds it
/// there (see [`AtomicFile::publish_new`]).
pub fn remove_stale_temps(dir: &Path, prefix: &str) -> Result<usize> {
    let mut removed = 0;
    let beginning = format!(".{prefix}");
    for name in list(dir)? {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(beginning.as_bytes()) && bytes.ends_with(TEMP_SUFFIX.as_bytes()) {
            match remove_file(&dir.join(&name)) {
                Err(error) if error.is_missing() => {}
                outcome => {
                    outcome?;
                    removed += 1;
                }
            }
        }
    }
    Ok(removed)
}

/// The absolute path without links, of something that need not exist: its folders that do exist are
/// resolved.
pub fn canonicalize_missing(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).during("resolve", path)?;
    for ancestor in absolute.ancestors() {
        if exists(ancestor)? {
            let rest = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return Ok(canonicalize(ancestor)?.join(rest));
        }
    }
    Ok(absolute)
}

/// The folder that holds a path; the current folder for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    // Windows can't open a folder as a file, and needs no such call.
    if cfg!(unix) {
        open(dir)?.sync_all().during("sync the folder", dir)?;
    }
    Ok(())
}
