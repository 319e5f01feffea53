//! Objects in S3, Google Cloud Storage and Azure Blob Storage, through calls that wait.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;

use super::url::Url;

/// Most bytes of an object that is put at once: what S3 allows.
const MAX_PUT_BYTES: u64 = 5 << 30;

/// Longest time of one request, its body included: a shard is put at once, and lines may be slow.
const TIMEOUT: &str = "30 minutes";

/// Longest time that a store may say nothing to a request that sends it nothing.
const READ_TIMEOUT: &str = "1 minute";

/// What a store is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Listing and reading: silence means that it hangs.
    Reading,
    /// Sending: while it listens, it says nothing.
    Writing,
}

/// Returns the longest time of one request.
fn request_timeout(store: &str) -> String {
    std::env::var(format!("{store}_TIMEOUT")).unwrap_or_else(|_| TIMEOUT.to_owned())
}

impl Use {
    /// Returns the longest time that a store may say nothing.
    fn read_timeout(self, store: &str) -> String {
        match self {
            Self::Reading => std::env::var(format!("{store}_READ_TIMEOUT"))
                .unwrap_or_else(|_| READ_TIMEOUT.to_owned()),
            Self::Writing => request_timeout(store),
        }
    }
}

type Stores = BTreeMap<(&'static str, String, Use), Arc<dyn ObjectStore>>;

/// Runs a request to its end.
fn wait<T>(request: impl Future<Output = object_store::Result<T>>) -> Result<T> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = match RUNTIME.get() {
        Some(runtime) => runtime,
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("object-store")
                .enable_all()
                .build()?;
            RUNTIME.get_or_init(|| runtime)
        }
    };
    runtime.block_on(request).map_err(io_error)
}

fn io_error(error: object_store::Error) -> Error {
    let kind = match &error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            ErrorKind::AlreadyExists
        }
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    Error::new(kind, StoreError { error })
}

/// An error of a store, and which variables it takes credentials from if there are none.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", hint(error))]
struct StoreError {
    error: object_store::Error,
}

/// Schemes of the stores, as their errors name them, variables of which one gives credentials, and all to name.
const CREDENTIALS: [(&str, &[&str], &str); 3] = [
    (
        "S3",
        &[
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ],
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL where they \
         are needed (profiles in ~/.aws are not read)",
    ),
    (
        "GCS",
        &[
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_PATH",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ],
        "GOOGLE_SERVICE_ACCOUNT, the path of a service account's key",
    ),
    (
        "MicrosoftAzure",
        &[
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_CLIENT_ID",
            "AZURE_STORAGE_TOKEN",
        ],
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
];

/// Returns the hint of an error that comes from missing credentials, as a line that begins with `hint:`.
fn hint(error: &object_store::Error) -> String {
    // Without any it asks the machine that it runs on, and that request fails.
    let object_store::Error::Generic { store, .. } = error else {
        return String::new();
    };
    let is_set = |variable: &&str| std::env::var_os(variable).is_some();
    let lacking = CREDENTIALS
        .iter()
        .filter(|(name, ..)| store == name)
        .find(|(_, variables, _)| !variables.iter().any(is_set));
    lacking.map_or_else(String::new, |(_, _, named)| {
        format!("\nhint: no credentials are in the environment; set {named}")
    })
}

pub(super) fn is_error_of_store(error: &Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<StoreError>())
}

/// The store of a bucket; credentials and the endpoint are from the environment.
fn store(url: &Url, purpose: Use) -> Result<Arc<dyn ObjectStore>> {
    if url.bucket.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the URL names no bucket",
        ));
    }
    static STORES: Mutex<Stores> = Mutex::new(BTreeMap::new());
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (url.scheme, url.bucket.clone(), purpose);
    if let Some(store) = stores.get(&key) {
        return Ok(Arc::clone(store));
    }
    let bucket = url.bucket.as_str();
    let store: Arc<dyn ObjectStore> = match url.scheme {
        "s3" => Arc::new(
            AmazonS3Builder::from_env()
                .with_config(
                    AmazonS3ConfigKey::Client(ClientConfigKey::Timeout),
                    request_timeout("AWS"),
                )
                .with_config(
                    AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout),
                    purpose.read_timeout("AWS"),
                )
                .with_bucket_name(bucket)
                .build()
                .map_err(io_error)?,
        ),
        "gs" => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_config(
                    GoogleConfigKey::Client(ClientConfigKey::Timeout),
                    request_timeout("GOOGLE"),
                )
                .with_config(
                    GoogleConfigKey::Client(ClientConfigKey::ReadTimeout),
                    purpose.read_timeout("GOOGLE"),
                )
                .with_bucket_name(bucket)
                .build()
                .map_err(io_error)?,
        ),
        _ => Arc::new(
            MicrosoftAzureBuilder::from_env()
                .with_config(
                    AzureConfigKey::Client(ClientConfigKey::Timeout),
                    request_timeout("AZURE"),
                )
                .with_config(
                    AzureConfigKey::Client(ClientConfigKey::ReadTimeout),
                    purpose.read_timeout("AZURE"),
                )
                .with_container_name(bucket)
                .build()
                .map_err(io_error)?,
        ),
    };
    stores.insert(key, Arc::clone(&store));
    Ok(store)
}

fn location(url: &Url) -> Result<Path> {
    Path::parse(&url.key).map_err(|error| Error::new(ErrorKind::InvalidInput, error))
}

/// Size of an object; "not found" when there is none.
pub(super) fn size_bytes(url: &Url) -> Result<u64> {
    if url.key.is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    let (store, path) = (store(url, Use::Reading)?, location(url)?);
    Ok(wait(async move { store.head(&path).await })?.size)
}

/// Size of an object, and what its store changes whenever the object is written.
pub(super) fn version(url: &Url) -> Result<(u64, String)> {
    if url.key.is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    let (store, path) = (store(url, Use::Reading)?, location(url)?);
    let meta = wait(async move { store.head(&path).await })?;
    let version = meta.version.unwrap_or_default();
    let tag = meta.e_tag.unwrap_or_default();
    Ok((
        meta.size,
        format!("{version} {tag} {}", meta.last_modified.timestamp_millis()),
    ))
}

/// The bytes of a range that lies within the object.
pub(super) fn read_range(url: &Url, range: Range<u64>) -> Result<Bytes> {
    let (store, path) = (store(url, Use::Reading)?, location(url)?);
    let len = range.end.saturating_sub(range.start);
    let bytes = wait(async move { store.get_range(&path, range).await })?;
    if bytes.len() as u64 != len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Names of the objects and prefixes directly below a prefix.
pub(super) fn list(url: &Url) -> Result<Vec<String>> {
    let (store, prefix) = (store(url, Use::Reading)?, location(url)?);
    let listed = wait(async move { store.list_with_delimiter(Some(&prefix)).await })?;
    let paths = listed.objects.into_iter().map(|object| object.location);
    Ok(paths
        .chain(listed.common_prefixes)
        .filter_map(|path| Some(path.filename()?.to_owned()))
        .collect())
}

/// Keys of all objects below a prefix.
pub(super) fn walk(url: &Url) -> Result<Vec<String>> {
    let store = store(url, Use::Reading)?;
    let mut prefixes = vec![location(url)?];
    let mut keys = Vec::new();
    while let Some(prefix) = prefixes.pop() {
        let store = Arc::clone(&store);
        let listed = wait(async move { store.list_with_delimiter(Some(&prefix)).await })?;
        prefixes.extend(listed.common_prefixes);
        keys.extend(
            listed
                .objects
                .into_iter()
                .map(|object| object.location.as_ref().to_owned()),
        );
    }
    Ok(keys)
}

/// Sends a file; with `only_new`, an object that is there stays as it is. Whether it was stored.
pub(super) fn put(url: &Url, file: &File, only_new: bool) -> Result<bool> {
    let size_bytes = file.metadata()?.len();
    if size_bytes > MAX_PUT_BYTES {
        return Err(Error::new(
            ErrorKind::FileTooLarge,
            format!("{size_bytes} bytes are more than the {MAX_PUT_BYTES} that can be put at once"),
        ));
    }
    let bytes = if size_bytes == 0 {
        Bytes::new()
    } else {
        // SAFETY: the file has no name, and nobody writes to it any more: no other process can change
        // it while it is mapped.
        Bytes::from_owner(unsafe { memmap2::Mmap::map(file) }?)
    };
    let (store, path) = (store(url, Use::Writing)?, location(url)?);
    let options = PutOptions::from(if only_new {
        PutMode::Create
    } else {
        PutMode::Overwrite
    });
    let payload = PutPayload::from_bytes(bytes);
    match wait(async move { store.put_opts(&path, payload, options).await }) {
        Ok(_) => Ok(true),
        Err(error) if only_new && error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an object.
pub(super) fn delete(url: &Url) -> Result<()> {
    let (store, path) = (store(url, Use::Reading)?, location(url)?);
    wait(async move { store.delete(&path).await })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_says_nothing_is_given_up_sooner_than_one_that_listens() {
        let bucket = |purpose: Use| {
            MicrosoftAzureBuilder::new()
                .with_config(
                    AzureConfigKey::Client(ClientConfigKey::ReadTimeout),
                    purpose.read_timeout("NO_SUCH_STORE"),
                )
                .get_config_value(&AzureConfigKey::Client(ClientConfigKey::ReadTimeout))
        };
        assert_eq!(bucket(Use::Reading).as_deref(), Some("1 minute"));
        assert_eq!(bucket(Use::Writing).as_deref(), Some("30 minutes"));
    }
}
