//! What `--version` prints.

use std::sync::LazyLock;

/// Version of the package.
pub(super) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Version, commit and features, for `--version`; `-V` prints the first alone.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| {
    let mut features = vec![
        ("cuda", cfg!(feature = "cuda")),
        ("object-store", cfg!(feature = "object-store")),
    ];
    // Of use to tests alone, which ask for it here.
    if cfg!(feature = "cuda-emulator") {
        features.push(("cuda-emulator", true));
    }
    long(SHORT, option_env!("REMIT_COMMIT"), &features)
});

fn long(version: &str, commit: Option<&str>, features: &[(&str, bool)]) -> String {
    let features: Vec<String> = features
        .iter()
        .map(|(name, is_on)| format!("{}{name}", if *is_on { '+' } else { '-' }))
        .collect();
    let commit = match commit {
        Some(commit) if !commit.is_empty() => commit,
        _ => "not known",
    };
    format!(
        "{version}\ncommit: {commit}\nfeatures: {}",
        features.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_listed_on_and_off_and_a_commit_may_be_absent() {
        let features = [("cuda", false), ("object-store", true)];
        for (commit, shown) in [
            (Some("0123456789ab"), "0123456789ab"),
            (Some(""), "not known"),
            (None, "not known"),
        ] {
            assert_eq!(
                long("1.2.3", commit, &features),
                format!("1.2.3\ncommit: {shown}\nfeatures: -cuda +object-store")
            );
        }
    }
}
