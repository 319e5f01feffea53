//! A temporary folder and the programs that run in it. A run that does not end as a test expects
//! panics with the command, the folder's listing, the exit status and both streams.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use remit::shard::description;
use remit::shard::layout::Description;
use remit::shard::manifest::Manifest;
use remit::shard::schema::ShardFormat;
use serde_json::Value;
use tempfile::TempDir;

pub const SCORE: &str = env!("CARGO_BIN_EXE_remit-score");
pub const ANNEAL: &str = env!("CARGO_BIN_EXE_remit-anneal");
pub const INSPECT: &str = env!("CARGO_BIN_EXE_remit-inspect");

/// The repository's fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Folder of a model of the repository's fixtures.
pub fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// Files below a folder by their relative paths, with their contents.
pub type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

/// A temporary folder.
pub struct Workspace {
    dir: TempDir,
}

impl Workspace {
    pub fn new() -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("remit-it-")
                .tempdir()
                .unwrap(),
        }
    }

    /// Another folder with the same content.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        copy_folder(self.dir.path(), copy.dir.path());
        copy
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }

    pub fn read(&self, relative: &str) -> Vec<u8> {
        let path = self.path(relative);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn remove(&self, relative: &str) {
        let path = self.path(relative);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Reads a file, changes its bytes, and writes it again.
    pub fn damage(&self, relative: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = self.read(relative);
        change(&mut content);
        self.write(relative, content);
    }

    /// Reads a JSON file, changes its value, and writes it again.
    pub fn edit_json(&self, relative: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(relative)).unwrap();
        change(&mut value);
        self.write(relative, serde_json::to_vec_pretty(&value).unwrap());
    }

    /// The plan, manifest or rejects of a set of Parquet or Arrow shards.
    pub fn description(&self, set: &str, what: Description) -> Value {
        let found = description::read(&self.path(set), what).unwrap();
        let found = found.unwrap_or_else(|| panic!("{set} has no {}", what.name()));
        serde_json::from_slice(&found.text).unwrap()
    }

    /// Whether a set is complete.
    pub fn has_manifest(&self, set: &str) -> bool {
        Manifest::is_present(&self.path(set)).unwrap()
    }

    /// Reads a description of a set, changes its text, and writes it again.
    pub fn edit_description(
        &self,
        set: &str,
        what: Description,
        change: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut found = description::read(&self.path(set), what).unwrap().unwrap();
        change(&mut found.text);
        let format = match found.path.extension() {
            Some(extension) if extension == "arrow" => ShardFormat::Arrow,
            _ => ShardFormat::Parquet,
        };
        let file = description::pack(what, format, true, &found.text).unwrap();
        fs::write(&found.path, file).unwrap();
    }

    /// Copies a model of the fixtures to a folder of this workspace.
    pub fn copy_model(&self, name: &str, to: &str) {
        fs::create_dir_all(self.path(to)).unwrap();
        copy_folder(&model(name), &self.path(to));
    }

    /// Copies a folder to one of this workspace.
    pub fn copy_folder(&self, from: &Path, to: &str) {
        copy_folder(from, &self.path(to));
    }

    /// A JSONL corpus of the first `num_documents` documents of a fixture.
    pub fn write_corpus(&self, relative: &str, num_documents: usize) {
        let text = fs::read_to_string(fixtures().join("corpus/solutions/train-00.jsonl")).unwrap();
        let mut lines: String = text
            .lines()
            .take(num_documents)
            .flat_map(|line| [line, "\n"])
            .collect();
        lines.shrink_to_fit();
        self.write(relative, lines);
    }

    pub fn snapshot(&self, relative: &str) -> Snapshot {
        let mut snapshot = Snapshot::new();
        let root = self.path(relative);
        visit(&root, &mut |path| {
            let name = path.strip_prefix(&root).unwrap().to_owned();
            snapshot.insert(name, fs::read(path).unwrap());
        });
        snapshot
    }

    /// metrics.jsonl of an annealed model, without what a clock decides.
    pub fn metrics(&self, dir: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(&format!("{dir}/metrics.jsonl"))).unwrap();
        text.lines()
            .map(|line| {
                let mut step: Value = serde_json::from_str(line).unwrap();
                let speed = step.as_object_mut().unwrap().remove("tokens_per_second");
                assert!(speed.unwrap().as_f64().unwrap() > 0.0);
                step
            })
            .collect()
    }

    /// A program that runs in this folder.
    pub fn command(&self, program: &str) -> Run<'_> {
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .env("COLUMNS", "100")
            .stdin(Stdio::null());
        Run {
            workspace: self,
            command,
        }
    }

    fn listing(&self) -> String {
        let mut listing = String::new();
        visit(self.dir.path(), &mut |path| {
            let name = path.strip_prefix(self.dir.path()).unwrap();
            let size = fs::metadata(path).map_or(0, |meta| meta.len());
            let _ = writeln!(listing, "{size:>10} {}", name.display());
        });
        listing
    }
}

/// Calls `each` with every file below a folder, in order; a missing folder has none.
pub fn visit(dir: &Path, each: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            visit(&path, each);
        } else {
            each(&path);
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    visit(from, &mut |path| {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    });
}

/// Panics unless both have the same files with the same bytes.
pub fn assert_same(left: &Snapshot, right: &Snapshot, what: &str) {
    assert!(!left.is_empty(), "{what}: nothing to compare");
    let names = |snapshot: &Snapshot| snapshot.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right), "{what}: other files");
    for (name, bytes) in left {
        assert!(bytes == &right[name], "{what}: {} differs", name.display());
    }
}

/// A command that is being put together.
pub struct Run<'a> {
    workspace: &'a Workspace,
    command: Command,
}

impl Run<'_> {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments that are separated by spaces.
    pub fn args(mut self, args: &str) -> Self {
        self.command.args(args.split_whitespace());
        self
    }

    /// `--rl-model` and `--base-model` with two models of the fixtures.
    pub fn models(self, rl: &str, base: &str) -> Self {
        self.arg("--rl-model")
            .arg(model(rl))
            .arg("--base-model")
            .arg(model(base))
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Starts the program and lets it run.
    pub fn spawn(mut self) -> Child {
        self.command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs the program to its end.
    pub fn run(mut self) -> Ended {
        let output = self.command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = format!(
            "\ncommand: {:?}\ncwd: {}\n{}status: {}\nstdout:\n{stdout}\nstderr:\n{stderr}\n",
            self.command,
            self.workspace.dir.path().display(),
            self.workspace.listing(),
            output.status
        );
        Ended {
            status: output.status,
            stdout,
            stderr,
            report,
        }
    }

    /// Runs the program; returns its exit code and stderr, without looking at the folder, which may hold links to
    /// nothing.
    pub fn output(mut self) -> (Option<i32>, String) {
        let output = self.command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    }

    /// Runs the program, which must succeed.
    pub fn ok(self) -> Ended {
        let ended = self.run();
        ended.check(ended.status.success(), "it should have succeeded");
        ended
    }
}

/// How a run ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    report: String,
}

impl Ended {
    /// Panics with everything about the run unless the claim holds.
    #[track_caller]
    pub fn check(&self, holds: bool, claim: &str) {
        assert!(holds, "{claim}\n{}", self.report);
    }

    /// What to say when a claim does not hold, for tests that collect several.
    pub fn report(&self) -> &str {
        &self.report
    }
}
