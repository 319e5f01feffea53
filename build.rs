//! Names the commit for `--version`: REMIT_COMMIT of the environment where it is set, else that of the git
//! checkout this package is the root of, else the one that a packaged copy was made from, else none.
//!
//! Runs again only when that commit may have changed.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script has no use of the library that it is built before"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "REMIT_COMMIT";
/// Digits of a commit, as `git log` would show more than enough of.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let commit = match std::env::var(VARIABLE) {
        Ok(given) => given,
        Err(_) => of_checkout().or_else(of_package).unwrap_or_default(),
    };
    println!("cargo:rustc-env={VARIABLE}={commit}");
}

/// Returns the commit that is checked out here, and has cargo watch the files that tell of another.
fn of_checkout() -> Option<String> {
    // A package that was unpacked inside of another repository is not of that repository's commit.
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    if top.canonicalize().ok()? != package.canonicalize().ok()? {
        return None;
    }
    // The log of HEAD grows with every commit and checkout. Where logs are off, HEAD and what it points to tell.
    let mut watched = vec!["logs/HEAD".to_owned(), "HEAD".to_owned()];
    watched.extend(git(&["symbolic-ref", "--quiet", "HEAD"]));
    watched.push("packed-refs".to_owned());
    for name in watched {
        // Cargo takes a path that does not exist for one that changed.
        if let Some(path) = git(&["rev-parse", "--git-path", &name])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", &format!("--short={DIGITS}"), "HEAD"])
}

/// Returns the commit that `cargo package` noted.
fn of_package() -> Option<String> {
    let note = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let digits = note.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    digits.get(..DIGITS).map(str::to_owned)
}

/// Returns the one line that git prints; `None` where there is no git, no repository, or nothing to print.
fn git(args: &[&str]) -> Option<String> {
    let done = Command::new("git").args(args).output().ok()?;
    let line = String::from_utf8(done.stdout).ok()?.trim().to_owned();
    (done.status.success() && !line.is_empty()).then_some(line)
}
