//! Which file takes names of which: every `use` and every path in the code, followed through re-exports
//! to the file that defines the name.
//!
//! A `mod.rs` that only re-exports is therefore never an arrow's end. What is called as a method is not
//! seen, and needs no import.

use std::collections::{BTreeMap, BTreeSet};

/// Longest chain of re-exports that is followed.
const MAX_HOPS: usize = 8;

/// Arrows from a file to the files that define what it uses.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// A path of names, such as `[crate, fs, read]`.
type Names = Vec<String>;

/// What a file says at its top level.
struct File {
    path: String,
    /// Its module, such as `[shard, read]`; of lib.rs `[]`.
    module: Names,
    /// Items that it defines.
    defines: BTreeSet<String>,
    /// Modules that it declares and that have files of their own.
    children: BTreeSet<String>,
    /// Names that it brings into scope, each with the path as it is written.
    imports: BTreeMap<String, Names>,
    /// Paths of which everything is brought into scope.
    globs: Vec<Names>,
    /// Every path that is written in it.
    paths: Vec<Names>,
}

/// All files of a crate.
pub struct Crate {
    files: Vec<File>,
    by_module: BTreeMap<Names, usize>,
}

impl Crate {
    /// Takes files as their paths below src/ and their code without comments and tests.
    pub fn new<'a>(sources: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let files: Vec<File> = sources
            .map(|(path, code)| File::parse(path, code))
            .collect();
        let by_module = (0..)
            .zip(&files)
            .map(|(i, file)| (file.module.clone(), i))
            .collect();
        Self { files, by_module }
    }

    /// The arrows between the files.
    pub fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for file in &self.files {
            let used: BTreeSet<String> = file
                .paths
                .iter()
                .filter_map(|path| self.resolve(file, path, MAX_HOPS))
                .filter(|used| *used != file.path)
                .collect();
            graph.insert(file.path.clone(), used);
        }
        graph
    }

    fn file(&self, module: &[String]) -> Option<&File> {
        self.by_module.get(module).map(|&i| &self.files[i])
    }

    /// The file that defines what a path in a file names; `None` outside of the crate, and for a folder's
    /// module that is only named.
    fn resolve(&self, file: &File, path: &[String], hops: usize) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" | "remit" => self.descend(&[], rest, hops),
            "self" => self.descend(&file.module, rest, hops),
            "super" => {
                let mut module = &file.module[..file.module.len().checked_sub(1)?];
                let mut rest = rest;
                while let Some((_, more)) = rest.split_first().filter(|(name, _)| *name == "super")
                {
                    module = &module[..module.len().checked_sub(1)?];
                    rest = more;
                }
                self.descend(module, rest, hops)
            }
            name if file.children.contains(name) => self.descend(&file.module, path, hops),
            name => {
                let target = file.imports.get(name)?;
                // `use serde::Serialize` is no path into the crate, and `use a::{self}` no chain.
                if target.first() == Some(first) {
                    return None;
                }
                let whole: Names = target.iter().chain(rest).cloned().collect();
                self.resolve(file, &whole, hops.checked_sub(1)?)
            }
        }
    }

    /// Follows names down from a module.
    fn descend(&self, module: &[String], names: &[String], hops: usize) -> Option<String> {
        let mut module = module.to_vec();
        let mut names = names;
        while let Some((name, rest)) = names.split_first() {
            module.push(name.clone());
            if !self.by_module.contains_key(&module) {
                module.pop();
                break;
            }
            names = rest;
        }
        let file = self.file(&module)?;
        let Some(name) = names.first() else {
            // Of a folder, what is taken from it counts, not that it is named.
            return (!file.path.ends_with("mod.rs")).then(|| file.path.clone());
        };
        if !file.defines.contains(name) && name != "*" {
            if let Some(target) = file.imports.get(name) {
                let whole: Names = target.iter().chain(&names[1..]).cloned().collect();
                return self.resolve(file, &whole, hops.checked_sub(1)?);
            }
            for glob in &file.globs {
                let whole: Names = glob.iter().chain(names).cloned().collect();
                let found = self.resolve(file, &whole, hops.checked_sub(1)?);
                if found.is_some() {
                    return found;
                }
            }
        }
        Some(file.path.clone())
    }
}

impl File {
    fn parse(path: &str, code: &str) -> Self {
        let mut module: Names = path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        if ["mod", "lib"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        let mut file = Self {
            path: path.to_owned(),
            module,
            defines: BTreeSet::new(),
            children: BTreeSet::new(),
            imports: BTreeMap::new(),
            globs: Vec::new(),
            paths: Vec::new(),
        };
        for line in code.lines() {
            file.declaration(line);
        }
        let mut rest = code;
        // Statements first: what they bring into scope begins paths elsewhere.
        while let Some(at) = find_use(rest) {
            let statement = &rest[at..];
            let end = statement.find(';').unwrap_or(statement.len());
            file.import(&statement[..end]);
            rest = &statement[end..];
        }
        file.inline_paths(code);
        file
    }

    /// Notes what a line at the top level declares.
    fn declaration(&mut self, line: &str) {
        let mut line = line;
        if let Some(rest) = line.strip_prefix("pub") {
            line = match rest.strip_prefix('(') {
                Some(inside) => inside
                    .split_once(')')
                    .map_or("", |(_, rest)| rest)
                    .trim_start(),
                None => rest.trim_start(),
            };
        }
        let words: Vec<&str> = line.split(' ').collect();
        let kind = words.iter().position(|word| {
            let kinds = [
                "fn",
                "struct",
                "enum",
                "trait",
                "type",
                "static",
                "const",
                "union",
                "mod",
                "macro_rules!",
            ];
            kinds.contains(word)
        });
        let Some(mut kind) = kind.filter(|&kind| {
            let before = ["const", "unsafe", "async", "extern", "\"C\""];
            words[..kind].iter().all(|word| before.contains(word))
        }) else {
            return;
        };
        if words[kind] == "const" && words.get(kind + 1) == Some(&"fn") {
            kind += 1;
        }
        let Some(name) = words.get(kind + 1) else {
            return;
        };
        let end = name.find(|c: char| !is_of_name(c)).unwrap_or(name.len());
        let is_child = words[kind] == "mod" && line.ends_with(';');
        let names = match is_child {
            true => &mut self.children,
            false => &mut self.defines,
        };
        names.insert(name[..end].to_owned());
    }

    /// Notes what a `use` brings into scope.
    fn import(&mut self, tree: &str) {
        let mut rest = tree;
        let mut leaves = Vec::new();
        read_tree(&mut rest, &mut Vec::new(), &mut leaves);
        for (mut path, alias) in leaves {
            if path.last().is_some_and(|name| name == "self") {
                path.pop();
            }
            let Some(last) = path.last().cloned() else {
                continue;
            };
            self.paths.push(path.clone());
            if last == "*" {
                path.pop();
                self.globs.push(path);
            } else {
                self.imports.insert(alias.unwrap_or(last), path);
            }
        }
    }

    /// Notes paths that begin with `crate`, `super`, `self`, a child or an imported name.
    fn inline_paths(&mut self, code: &str) {
        for (at, _) in code.match_indices("::") {
            let start = code[..at]
                .rfind(|c: char| !is_of_name(c))
                .map_or(0, |before| before + 1);
            let first = &code[start..at];
            let continues = code[..start].ends_with("::") || code[..start].ends_with('$');
            if first.is_empty() || continues {
                continue;
            }
            let begins = ["crate", "super", "self", "remit"].contains(&first)
                || self.children.contains(first)
                || self.imports.contains_key(first);
            if begins {
                let mut rest = &code[start..];
                let mut leaves = Vec::new();
                read_tree(&mut rest, &mut Vec::new(), &mut leaves);
                self.paths.extend(leaves.into_iter().map(|(path, _)| path));
            }
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where the tree of the next `use` begins.
fn find_use(code: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = code[from..].find("use ").map(|at| at + from) {
        let line = code[..at].rfind('\n').map_or(0, |line| line + 1);
        let before = code[line..at].trim();
        if before.is_empty() || before == "pub" || before.starts_with("pub(") {
            return Some(at + "use ".len());
        }
        from = at + 1;
    }
    None
}

/// The leaves of a tree of names, each with its alias: `a::{b, c::d as e}` gives `a::b` and `a::c::d`.
fn read_tree(rest: &mut &str, stem: &mut Names, leaves: &mut Vec<(Names, Option<String>)>) {
    let depth = stem.len();
    loop {
        *rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            *rest = inside;
            loop {
                *rest = rest.trim_start();
                if let Some(after) = rest.strip_prefix('}') {
                    *rest = after;
                    break;
                }
                let before = rest.len();
                read_tree(rest, stem, leaves);
                *rest = rest.trim_start();
                *rest = rest.strip_prefix(',').unwrap_or(rest);
                if rest.is_empty() || rest.len() == before {
                    break;
                }
            }
            break;
        }
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            stem.push("*".to_owned());
            leaves.push((stem.clone(), None));
            break;
        }
        let end = rest.find(|c: char| !is_of_name(c)).unwrap_or(rest.len());
        if end == 0 {
            // A turbofish or the like ends a path; `::name` begins one outside of the crate.
            if stem.len() > depth {
                leaves.push((stem.clone(), None));
            }
            *rest = rest.strip_prefix("::").unwrap_or(rest);
            break;
        }
        stem.push(rest[..end].to_owned());
        *rest = &rest[end..];
        if let Some(more) = rest.strip_prefix("::") {
            *rest = more;
            continue;
        }
        let mut alias = None;
        if let Some(named) = rest.trim_start().strip_prefix("as ") {
            let end = named.find(|c: char| !is_of_name(c)).unwrap_or(named.len());
            alias = Some(named[..end].to_owned());
            *rest = &named[end..];
        }
        leaves.push((stem.clone(), alias));
        break;
    }
    stem.truncate(depth);
}

/// Groups of files that use each other in a circle: the strongly connected components of more than one.
pub fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reach = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&String> = graph.get(from).into_iter().flatten().collect();
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(graph.get(file).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|file| (file, reach(file))).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for (file, below) in &reached {
        if !below.contains(file) || !done.insert(*file) {
            continue;
        }
        let circle: Vec<String> = below
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|back| back.contains(file)))
            .map(|other| (*other).clone())
            .collect();
        done.extend(below.iter().filter(|other| circle.contains(other)));
        found.push(circle);
    }
    found
}

/// Circles of a small tree with one in each way of writing an import, and with none where a folder's
/// module only re-exports.
#[test]
fn a_circle_is_found_however_it_is_imported() {
    let clean = [
        ("lib.rs", "pub mod a;\npub mod b;\npub mod c;\n"),
        (
            "a/mod.rs",
            "mod one;\nmod two;\npub use one::One;\npub use two::{Two, read as read_two};\n",
        ),
        (
            "a/one.rs",
            "use super::Two;\nuse crate::c::{self, Deep};\npub struct One(Two);\nfn f() { c::g() }\n",
        ),
        ("a/two.rs", "pub struct Two;\npub fn read() {}\n"),
        (
            "b.rs",
            "use crate::a::{One, read_two};\npub fn f() -> One { read_two(); One::new() }\n",
        ),
        ("c.rs", "use std::fmt;\npub struct Deep;\npub fn g() {}\n"),
    ];
    let found = |changed: &[(&'static str, &'static str)]| {
        let files = clean.iter().map(|(path, code)| {
            let change = changed.iter().find(|(changed, _)| changed == path);
            (*path, change.map_or(*code, |(_, code)| *code))
        });
        circles(&Crate::new(files).graph())
    };
    let none: [[&str; 0]; 0] = [];
    assert_eq!(found(&[]), none);
    let two_and_one = ["a/one.rs", "a/two.rs"];
    for code in [
        "use super::One;\n",
        "use super::one::One;\n",
        "use super::one;\n",
        "use crate::a::{One as Other};\n",
        "use crate::{a::{one::{self}}};\n",
        "use crate::a::one::*;\n",
        "fn f() -> super::One { todo!() }\n",
        "fn f() { let x: Vec<crate::a::One> = Vec::new(); }\n",
        "    pub(crate) use crate::a::One;\n",
        "use crate::a;\nfn f(_: a::One) {}\n",
        "use super::super::a::One;\n",
    ] {
        assert_eq!(found(&[("a/two.rs", code)]), [two_and_one], "{code}");
    }
    // Something that the folder's module defines itself, and not only re-exports.
    let parent =
        "mod one;\nmod two;\npub use one::One;\npub use two::Two;\npub const MOST: usize = 3;\n";
    let child = "use super::MOST;\npub struct Two;\n";
    assert_eq!(found(&[("a/mod.rs", parent)]), none);
    assert_eq!(
        found(&[("a/mod.rs", parent), ("a/two.rs", child)]),
        [["a/mod.rs", "a/one.rs", "a/two.rs"]]
    );
    // A path that begins with a child of the module.
    let parent =
        "mod one;\nmod two;\npub use one::One;\npub use two::Two;\npub fn f() { two::read(); }\n";
    let child = "pub struct Two;\npub fn read() { super::f(); }\n";
    assert_eq!(
        found(&[("a/mod.rs", parent), ("a/two.rs", child)])[0],
        ["a/mod.rs", "a/one.rs", "a/two.rs"]
    );
    // Folders that meet: b uses a, which uses c.
    assert_eq!(
        found(&[("c.rs", "pub struct Deep;\npub fn g() { crate::b::f(); }\n")]),
        [["a/one.rs", "b.rs", "c.rs"]]
    );
}
