//! Version 1 of the format: what its sets are read by.
//!
//! Its shards are those of version 2. Plan, manifest and rejects were JSON files beside the shards, and
//! the RL model was called `reference`.

use std::path::Path;

use serde_json::Value;

use super::Error;
use crate::fs;

/// The version.
pub(super) const FORMAT_VERSION: u64 = 1;
/// Name of the plan in a set's folder.
pub const PLAN_FILE: &str = "plan.json";
/// Name of the manifest in a set's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the list of records that could not be read, in a set's folder.
pub const REJECTS_FILE: &str = "rejects.jsonl";

/// The lines that tell plans as JSON apart, of version 2 and of version 1. Within a value no line breaks
/// occur, so they are found at the top level alone.
const LINES: [(&str, &str); 2] = [
    (
        "\n  \"format_version\": 2,\n",
        "\n  \"format_version\": 1,\n",
    ),
    ("\n  \"rl\": {\n", "\n  \"reference\": {\n"),
];

/// Returns whether a folder holds a set of this version, finished or not.
pub(super) fn is_present(dir: &Path) -> Result<bool, Error> {
    Ok(fs::exists(&dir.join(PLAN_FILE))? || fs::exists(&dir.join(MANIFEST_FILE))?)
}

/// Makes a plan of version 2 of one of version 1.
pub(super) fn upgrade(plan: &mut Value, to_version: u64) {
    if let Value::Object(plan) = plan {
        if let Some(rl) = plan.remove("reference") {
            plan.insert("rl".to_owned(), rl);
        }
        plan.insert("format_version".to_owned(), to_version.into());
    }
}

/// Returns a plan as this version wrote it, given how it is written now.
pub(super) fn plan_text(text: &[u8]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(text).into_owned();
    for (now, before) in LINES {
        text = text.replacen(now, before, 1);
    }
    text.into_bytes()
}
