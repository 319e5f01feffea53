//! The modules of src/ depend on each other in one direction, so do its files, and files keep their size.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use self::imports::{Crate, Graph, circles};
use crate::harness::visit;

mod imports;

/// Who may use whom, bottom up: a group may use only itself and groups above its line.
const ALLOWED: &[(&[&str], &[&str])] = &[
    (&["escape"], &[]),
    (&["types"], &[]),
    (&["fs"], &["escape"]),
    (&["guard"], &[]),
    (&["corpus"], &["escape", "types", "fs", "guard"]),
    (&["tokenize"], &["escape", "types", "fs", "guard"]),
    (&["pack"], &["types"]),
    (&["model"], &["escape", "types", "fs", "guard"]),
    (&["demo"], &["model"]),
    (&["weight"], &["types"]),
    (&["loss"], &["types", "weight"]),
    (&["distill"], &["types", "loss", "model"]),
    (&["optim"], &["model"]),
    (&["schedule"], &[]),
    (&["checkpoint"], &["escape", "fs", "model", "optim"]),
    (&["tensorboard"], &["fs"]),
    (&["shard::row"], &["types"]),
    (&["shard::schema"], &["types"]),
    (&["shard::layout"], &["shard::schema"]),
    (
        &["shard::error"],
        &["escape", "fs", "shard::layout", "shard::schema"],
    ),
    (&["shard::seal"], &["fs", "shard::schema"]),
    (&["shard::json"], &["fs", "shard::error"]),
    (
        &["shard::columns"],
        &["types", "shard::row", "shard::schema"],
    ),
    (&["shard::distributions"], &["types", "shard::schema"]),
    (&["shard::container"], &["guard", "shard::schema"]),
    (
        &["shard::sink"],
        &["shard::error", "shard::schema", "shard::seal"],
    ),
    (
        &["shard::description"],
        &[
            "escape",
            "fs",
            "guard",
            "shard::error",
            "shard::layout",
            "shard::schema",
            "shard::seal",
            "shard::container",
            "shard::sink",
        ],
    ),
    (&["shard::version1"], &["fs", "shard::error"]),
    (
        &["shard::plan"],
        &[
            "types",
            "fs",
            "pack",
            "tokenize",
            "weight",
            "shard::description",
            "shard::error",
            "shard::json",
            "shard::layout",
            "shard::schema",
            "shard::version1",
        ],
    ),
    (&["shard::statistics"], &["types", "weight"]),
    (
        &["shard::manifest"],
        &[
            "escape",
            "fs",
            "pack",
            "shard::description",
            "shard::error",
            "shard::json",
            "shard::layout",
            "shard::plan",
            "shard::schema",
            "shard::statistics",
            "shard::version1",
        ],
    ),
    (
        &["shard::entry_file"],
        &[
            "fs",
            "guard",
            "shard::error",
            "shard::manifest",
            "shard::schema",
        ],
    ),
    (
        &["shard::sidecar"],
        &[
            "fs",
            "shard::container",
            "shard::description",
            "shard::entry_file",
            "shard::error",
            "shard::json",
            "shard::layout",
            "shard::manifest",
            "shard::plan",
            "shard::schema",
            "shard::seal",
            "shard::sink",
        ],
    ),
    (
        &["shard::import"],
        &[
            "fs",
            "guard",
            "shard::container",
            "shard::error",
            "shard::schema",
            "shard::sidecar",
        ],
    ),
    (
        &["shard::read"],
        &[
            "types",
            "fs",
            "pack",
            "shard::columns",
            "shard::container",
            "shard::entry_file",
            "shard::error",
            "shard::manifest",
            "shard::plan",
            "shard::row",
            "shard::schema",
            "shard::seal",
            "shard::sidecar",
        ],
    ),
    (
        &["shard::verify"],
        &[
            "types",
            "fs",
            "shard::description",
            "shard::error",
            "shard::layout",
            "shard::manifest",
            "shard::read",
            "shard::version1",
        ],
    ),
    (
        &["shard::assemble"],
        &[
            "types",
            "fs",
            "pack",
            "weight",
            "shard::description",
            "shard::error",
            "shard::json",
            "shard::layout",
            "shard::manifest",
            "shard::plan",
            "shard::read",
            "shard::statistics",
        ],
    ),
    (
        &["shard::write"],
        &[
            "types",
            "fs",
            "pack",
            "shard::distributions",
            "shard::error",
            "shard::schema",
            "shard::sink",
        ],
    ),
    (&["batch"], &["shard::error", "shard::read", "shard::row"]),
    (
        &["pipeline"],
        &[
            "escape",
            "types",
            "fs",
            "corpus",
            "tokenize",
            "pack",
            "model",
            "demo",
            "weight",
            "loss",
            "distill",
            "optim",
            "schedule",
            "checkpoint",
            "tensorboard",
            "shard::assemble",
            "shard::error",
            "shard::import",
            "shard::layout",
            "shard::manifest",
            "shard::plan",
            "shard::read",
            "shard::row",
            "shard::schema",
            "shard::sidecar",
            "shard::sink",
            "shard::statistics",
            "shard::verify",
            "shard::version1",
            "shard::write",
            "batch",
        ],
    ),
    // Besides the pipeline: types and defaults of options, errors, and the manifest that is shown.
    (
        &["cli"],
        &[
            "escape",
            "guard",
            "types",
            "pipeline",
            "fs",
            "corpus",
            "tokenize",
            "pack",
            "model",
            "demo",
            "weight",
            "loss",
            "optim",
            "schedule",
            "checkpoint",
            "shard::error",
            "shard::schema",
            "shard::manifest",
            "shard::statistics",
        ],
    ),
    (&["bin"], &["cli"]),
];

const MAX_LINES: usize = 600;
const MAX_MAIN_LINES: usize = 40;

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// A source file without its tests and line comments.
struct Source {
    /// Path relative to src/.
    path: String,
    num_lines: usize,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = source_root();
    let mut sources = Vec::new();
    visit(&root, &mut |path| {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap();
        if path.ends_with("tests.rs") {
            return;
        }
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        sources.push(Source {
            path: path.to_owned(),
            num_lines: text.lines().count(),
            code: code
                .lines()
                .map(|line| match line.trim_start().starts_with("//") {
                    true => "\n".to_owned(),
                    false => format!("{line}\n"),
                })
                .collect(),
        });
    });
    assert!(sources.len() > 30);
    sources
}

/// The module path of a file: `shard/read.rs` is `[shard, read]`, `shard/mod.rs` is `[shard]`.
fn module_path(file: &str) -> Vec<&str> {
    let mut path: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if path.last() == Some(&"mod") {
        path.pop();
    }
    path
}

/// The module of the table that a path belongs to; `None` for the crate's root.
fn module_of(path: &[&str]) -> Option<String> {
    match path {
        [] | ["lib"] => None,
        ["shard"] => Some("shard::error".to_owned()),
        ["shard", item, ..] => {
            let is_module = source_root().join(format!("shard/{item}.rs")).exists();
            // shard/mod.rs only re-exports the error.
            Some(format!("shard::{}", if is_module { item } else { "error" }))
        }
        [first, ..] => Some((*first).to_owned()),
    }
}

/// The paths that follow `prefix` in the code, with braces spelled out: `a::{b, c::d}` gives
/// `[a, b]` and `[a, c, d]`.
fn paths_after(code: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || "_:$".contains(before) {
            continue;
        }
        let mut rest = &code[at + prefix.len()..];
        read_tree(&mut rest, &mut Vec::new(), &mut found);
    }
    found
}

fn read_tree(rest: &mut &str, stem: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let depth = stem.len();
    loop {
        *rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            *rest = inside;
            loop {
                read_tree(rest, stem, found);
                // What is left of an item: `as name`.
                let end = rest.find([',', '}']).unwrap_or(rest.len());
                let closes = rest[end..].starts_with('}') || rest[end..].is_empty();
                *rest = rest.get(end + 1..).unwrap_or_default();
                if closes || rest.trim_start().starts_with('}') {
                    break;
                }
            }
            break;
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        stem.push(rest[..end].to_owned());
        *rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(more) => *rest = more,
            None => {
                found.push(stem.clone());
                break;
            }
        }
    }
    stem.truncate(depth);
}

/// Modules that a file uses, each with the path by which it does.
fn uses(source: &Source) -> BTreeMap<String, String> {
    let own = module_path(&source.path);
    let parent = &own[..own.len() - 1];
    let (root, name) = match source.path.starts_with("bin/") {
        true => ("remit::", "bin"),
        false => ("crate::", ""),
    };
    let absolute = paths_after(&source.code, root).into_iter();
    let relative = paths_after(&source.code, "super::")
        .into_iter()
        .map(|path| {
            parent
                .iter()
                .map(|part| (*part).to_owned())
                .chain(path)
                .collect()
        });
    let mut used = BTreeMap::new();
    for path in absolute.chain(relative) {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Some(module) = module_of(&path)
            && Some(&module) != module_of(&own).as_ref()
            && module != name
        {
            used.entry(module).or_insert_with(|| path.join("::"));
        }
    }
    used
}

#[test]
fn imports_follow_the_table() {
    let mut problems = Vec::new();
    let mut unused: BTreeSet<(&str, &str)> = ALLOWED
        .iter()
        .flat_map(|(group, may_use)| may_use.iter().map(|used| (group[0], *used)))
        .collect();
    for source in sources() {
        let Some(module) = module_of(&module_path(&source.path)) else {
            continue;
        };
        let Some((group, may_use)) = ALLOWED.iter().find(|(group, _)| group.contains(&&*module))
        else {
            problems.push(format!("src/{}: {module} is not in the table", source.path));
            continue;
        };
        for (used, path) in uses(&source) {
            unused.retain(|edge| *edge != (group[0], &*used));
            if !may_use.contains(&&*used) && !group.contains(&&*used) {
                problems.push(format!(
                    "src/{} uses {path}, but {module} may not use {used}",
                    source.path
                ));
            }
        }
    }
    for (module, used) in unused {
        problems.push(format!(
            "the table lets {module} use {used}, and it does not"
        ));
    }
    assert!(
        problems.is_empty(),
        "imports and the table in {} disagree:\n  {}",
        file!(),
        problems.join("\n  ")
    );
}

#[test]
fn the_table_has_one_direction() {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for (group, may_use) in ALLOWED {
        for used in *may_use {
            assert!(
                known.contains(used),
                "{group:?} may use {used}, which is not above it"
            );
        }
        known.extend(*group);
    }
    let (_, read) = ALLOWED
        .iter()
        .find(|(group, _)| group.contains(&"shard::read"))
        .unwrap();
    assert!(!read.contains(&"shard::write"));
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources();
    let files = sources
        .iter()
        .map(|source| (source.path.as_str(), source.code.as_str()));
    let graph = Crate::new(files).graph();
    let mut problems: Vec<String> = circles(&graph)
        .iter()
        .map(|circle| {
            let arrows = arrows(&graph, circle);
            format!("these use each other in a circle:{arrows}")
        })
        .collect();
    // What comes in through a glob can't be followed.
    for source in &sources {
        let lines = source.code.lines().map(str::trim);
        let is_own_glob = |line: &&str| {
            let own = ["use crate::", "use super::", "use self::"];
            line.ends_with("::*;") && own.iter().any(|prefix| line.starts_with(prefix))
        };
        for glob in lines.filter(is_own_glob) {
            problems.push(format!("src/{} has {glob} name what is used", source.path));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The arrows within a circle, one a line.
fn arrows(graph: &Graph, circle: &[String]) -> String {
    let mut text = String::new();
    for file in circle {
        let used = graph[file].iter().filter(|used| circle.contains(used));
        for used in used {
            text.push_str(&format!("\n  src/{file} uses src/{used}"));
        }
    }
    text
}

#[test]
fn braces_in_imports_are_spelled_out() {
    let code = "use crate::{a, b::{c, d as e}, f::g};\nfn x() { crate::h::i(mycrate::j); }";
    let found: Vec<String> = paths_after(code, "crate::")
        .into_iter()
        .map(|path| path.join("::"))
        .collect();
    assert_eq!(found, ["a", "b::c", "b::d", "f::g", "h::i"]);
}

#[test]
fn only_the_file_module_touches_files_and_only_the_command_line_prints() {
    let mut problems = Vec::new();
    for source in sources() {
        let prints = source.path.starts_with("cli/") || source.path.starts_with("bin/");
        for (i, line) in source.code.lines().enumerate() {
            let mut refuse = |what: &str| {
                problems.push(format!("src/{}:{}: {what}: {line}", source.path, i + 1));
            };
            // A parameter may be an open file; who opens it is what counts.
            let opens = line.replace("&std::fs::File", "").contains("std::fs");
            if !source.path.starts_with("fs/") && opens {
                refuse("only src/fs/ may use std::fs");
            }
            if !prints
                && ["print!(", "println!(", "dbg!("]
                    .iter()
                    .any(|m| line.contains(m))
            {
                refuse("only cli/ and bin/ may print");
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn files_are_short() {
    // A .txt is a table that a script wrote.
    let problems: Vec<String> = sources()
        .iter()
        .filter(|source| !source.path.ends_with(".txt"))
        .filter_map(|source| {
            let most = match source.path.starts_with("bin/") {
                true => MAX_MAIN_LINES,
                false => MAX_LINES,
            };
            (source.num_lines > most).then(|| {
                format!(
                    "src/{} has {} lines, over {most}",
                    source.path, source.num_lines
                )
            })
        })
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
