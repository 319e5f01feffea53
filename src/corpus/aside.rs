//! Files that lie beside data and are none: what says what a data set is, who may use it, and how it was stored.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::format::Format;

/// What names of such texts begin with, up to their end or a character that is no letter.
const TEXTS: &[&str] = &[
    "authors",
    "changelog",
    "citation",
    "code_of_conduct",
    "contributing",
    "copying",
    "datacard",
    "data_card",
    "dataset_card",
    "datasheet",
    "licence",
    "license",
    "notice",
    "readme",
    "security",
];

/// Names of JSON files that the datasets library and others write beside data.
const DESCRIPTIONS: &[&str] = &[
    "croissant.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "datapackage.json",
    "state.json",
];

/// Returns whether a file of this name would be such a file, if data lay beside it. Without a format it is of no
/// type that can be read.
pub(super) fn may_be(path: &Path, format: Option<Format>) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let name = name.to_lowercase();
    let is_text = || {
        let name = name.replace('-', "_");
        TEXTS.iter().any(|text| {
            name.strip_prefix(text)
                .is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
        })
    };
    match format {
        Some(Format::Text) => is_text(),
        Some(Format::Jsonl) => DESCRIPTIONS.contains(&name.as_str()),
        Some(_) => false,
        None => is_text() || name == "_success",
    }
}

/// The folders that have data files in them or below.
#[derive(Debug, Default)]
pub(super) struct DataFolders(BTreeSet<PathBuf>);

impl DataFolders {
    /// Takes in a data file: one of many documents, unless it may be one of those that lie beside.
    pub(super) fn add(&mut self, path: &Path, format: Format) {
        if format == Format::Text || may_be(path, Some(format)) {
            return;
        }
        for folder in path.ancestors().skip(1) {
            if !self.0.insert(folder.to_owned()) {
                return;
            }
        }
    }

    /// Returns whether there are data files in the file's folder or below.
    pub(super) fn hold(&self, path: &Path) -> bool {
        path.parent().is_some_and(|folder| self.0.contains(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::format::classify;

    #[test]
    fn names_are_told_apart_from_those_that_only_begin_alike() {
        for (name, expected) in [
            ("README.md", true),
            ("readme_zh-CN.md", true),
            ("README.txt.gz", true),
            ("LICENSE", true),
            ("LICENSE-APACHE.txt", true),
            ("Dataset-Card.md", true),
            ("_SUCCESS", true),
            ("dataset_info.json", true),
            ("readmes.jsonl", false),
            ("license.jsonl", false),
            ("licensed.txt", false),
            ("state.jsonl", false),
            ("info.json", false),
            ("readme.parquet", false),
        ] {
            let path = Path::new(name);
            let format = classify(path, &[]).map(|(format, _)| format);
            assert_eq!(may_be(path, format), expected, "{name}");
        }
    }
}
