//! Sets of version 1 of the format: every program reads them, and none adds to them.

use remit::shard::manifest::Manifest;

use crate::harness::{ANNEAL, INSPECT, SCORE, Workspace, assert_same, fixtures};

/// The corpus that the set was made of, and the set.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.copy_folder(&fixtures().join("sets/version-1"), "set");
    workspace.write(
        "corpus/a.jsonl",
        "{\"text\": \"What is 1+2? It is 3.\"}\n{\n{\"text\": \"And 2+2 is 4.\"}\n",
    );
    workspace
}

const SCORE_AGAIN: &str = "corpus --part-bytes 30 --on-bad-record skip --weight-bounds rounded -o";

#[test]
fn a_set_of_version_1_is_read_by_every_program() {
    let workspace = workspace();
    let before = workspace.snapshot("set");
    let inspect = |args: &str| workspace.command(INSPECT).args(args).ok().stdout;
    assert!(inspect("verify set").contains("every row keeps the rules"));
    assert!(inspect("set").starts_with("RL model"));
    assert!(inspect("show set --row 0").starts_with("row 0: "));
    let rejects = std::str::from_utf8(&before["rejects.jsonl".as_ref() as &std::path::Path])
        .unwrap()
        .to_owned();
    assert_eq!(inspect("rejects set"), rejects);
    inspect("export set --tokens tokens.csv");
    workspace
        .command(ANNEAL)
        .args("--weights set -o out --steps 2 --lr 1e-3")
        .ok();
    assert_same(
        &before,
        &workspace.snapshot("set"),
        "reading changes nothing",
    );
}

/// What version 2 makes of the same corpus: the same shards, the same manifest but for what names it.
#[test]
fn a_set_of_version_1_has_the_shards_and_the_manifest_of_version_2() {
    let workspace = workspace();
    workspace.command(SCORE).args(SCORE_AGAIN).arg("again").ok();
    let load = |dir: &str| Manifest::load(&workspace.path(dir)).unwrap();
    let (mut old, new) = (load("set"), load("again"));
    assert_eq!(
        old.plan.identity().unwrap(),
        new.plan.identity().unwrap(),
        "shards carry the identity of their plan"
    );
    for shard in &new.shards {
        let read = |dir: &str| workspace.read(&format!("{dir}/{}", shard.file));
        assert!(read("set") == read("again"), "{} differs", shard.file);
    }
    old.content_blake3 = new.content_blake3;
    old.rejects.clone_from(&new.rejects);
    // Version 1 had the ids alone, and names another of two models with the same tokenizer.
    old.plan.tokenizer.clone_from(&new.plan.tokenizer);
    assert_eq!(old, new);
}

#[test]
fn damage_in_a_set_of_version_1_is_found() {
    for (name, exit) in [
        ("manifest.json", 65),
        ("plan.json", 65),
        ("rejects.jsonl", 65),
        ("part-000001.parquet", 65),
    ] {
        let workspace = workspace();
        workspace.damage(&format!("set/{name}"), |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        let ended = workspace.command(INSPECT).args("verify set").run();
        ended.check(ended.status.code() == Some(exit), name);
        ended.check(ended.stderr.contains(&format!("set/{name}")), "it is named");
    }
}

#[test]
fn scoring_into_a_set_of_version_1_is_refused_whether_it_is_finished_or_not() {
    let workspace = workspace();
    for is_finished in [true, false] {
        if !is_finished {
            workspace.remove("set/manifest.json");
            workspace.remove("set/part-000001.parquet");
        }
        let before = workspace.snapshot("set");
        for more in ["", "--dry-run"] {
            let again = workspace.command(SCORE).args(SCORE_AGAIN).arg("set");
            let ended = again.args(more).run();
            ended.check(ended.status.code() == Some(65), "it is refused");
            ended.check(
                ended.stderr.contains(
                    "set holds a set of version 1 of the format, which this remit reads, but does not add \
                     to\nhint: a finished set needs nothing more, remit-anneal trains on it as it is; else give another -o, or \
                     finish it with the remit that began it\n",
                ),
                "it says what to do",
            );
        }
        assert_same(&before, &workspace.snapshot("set"), "nothing is written");
    }
    for command in [
        workspace.command(INSPECT).args("set"),
        workspace.command(ANNEAL).args("--weights set -o out"),
    ] {
        let ended = command.run();
        ended.check(ended.status.code() == Some(66), "it is not finished");
        ended.check(
            ended
                .stderr
                .contains("hint: finish it with the remit that began it, or score"),
            "it says what to do",
        );
    }
}
