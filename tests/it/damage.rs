//! Bits that flip and files that are cut short: in shards and in the manifest, every one of them is
//! found before a value is used.

use std::path::Path;

use remit::shard::ErrorKind;
use remit::shard::assemble::assemble;
use remit::shard::manifest::Manifest;
use remit::shard::plan::Plan;
use remit::shard::read::{ShardFile, ShardSet};
use remit::shard::row::StoredRow;

use crate::harness::{INSPECT, Run, SCORE, Workspace, assert_same, visit};

const FLIPS: usize = 5_000;
const TRUNCATIONS: usize = 500;
const FORMATS: [&str; 2] = ["parquet", "arrow"];

fn scored(format: &str) -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 24);
    workspace.write("corpus/b.jsonl", "{\n{\"text\": \"2+2 is 4.\"}\n");
    score(&workspace, format).ok();
    workspace
}

fn score<'a>(workspace: &'a Workspace, format: &str) -> Run<'a> {
    workspace
        .command(SCORE)
        .args("corpus -o set --part-bytes 1500 --on-bad-record skip --format")
        .arg(format)
}

fn read(dir: &Path) -> Result<Vec<StoredRow>, remit::shard::Error> {
    let set = ShardSet::open(dir)?;
    let mut rows = Vec::new();
    for shard in set.shards() {
        for group in 0..shard.num_row_groups() {
            rows.extend(shard.read_row_group(group)?);
        }
    }
    Ok(rows)
}

/// The high bits of a linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * n as u128) >> 64) as usize
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    for format in FORMATS {
        let workspace = scored(format);
        let dir = workspace.path("set");
        let intact = read(&dir).unwrap();
        assert!(intact.len() > 20);
        let mut files = Vec::new();
        visit(&dir, &mut |path| {
            let name = path.file_stem().unwrap();
            if name != "plan" && name != "rejects" {
                files.push((path.to_owned(), std::fs::read(path).unwrap()));
            }
        });
        assert!(files.len() >= 3, "{} files", files.len());
        let mut numbers = Numbers(3);
        for attempt in 0..FLIPS + TRUNCATIONS {
            let (path, bytes) = &files[attempt % files.len()];
            let mut damaged = bytes.clone();
            let what = if attempt < FLIPS {
                let bit = numbers.below(bytes.len() * 8);
                damaged[bit / 8] ^= 1 << (bit % 8);
                format!("bit {bit} of {}", path.display())
            } else {
                damaged.truncate(numbers.below(bytes.len()));
                format!("{} cut to {}", path.display(), damaged.len())
            };
            std::fs::write(path, &damaged).unwrap();
            let outcome = read(&dir);
            std::fs::write(path, bytes).unwrap();
            let Err(error) = outcome else {
                panic!("{what} went unnoticed");
            };
            let error = error.to_string();
            assert!(error.contains(path.to_str().unwrap()), "{what}: {error}");
        }
        assert_eq!(read(&dir).unwrap(), intact);
    }
}

/// Scoring takes days, and until it is done no manifest has the digests of the shards: what had flipped by
/// then became part of the set. Of 40 flips at random, 27 did.
#[test]
fn no_damage_gets_into_a_manifest_that_is_not_made_yet() {
    for format in FORMATS {
        let workspace = scored(format);
        let dir = workspace.path("set");
        let manifest_file = format!("set/_remit/manifest.{format}");
        let manifest = workspace.read(&manifest_file);
        let mut shards = Vec::new();
        visit(&dir, &mut |path| {
            if path
                .file_name()
                .unwrap()
                .as_encoded_bytes()
                .starts_with(b"part-")
            {
                shards.push((path.to_owned(), std::fs::read(path).unwrap()));
            }
        });
        assert!(shards.len() >= 2, "{} shards", shards.len());
        workspace.remove(&manifest_file);
        let plan = Plan::load(&dir).unwrap().unwrap();
        let mut numbers = Numbers(11);
        for attempt in 0..1_000 {
            let (path, bytes) = &shards[attempt % shards.len()];
            let mut damaged = bytes.clone();
            let what = if attempt % 10 == 9 {
                damaged.truncate(numbers.below(bytes.len()));
                format!("{} cut to {}", path.display(), damaged.len())
            } else {
                let bit = numbers.below(bytes.len() * 8);
                damaged[bit / 8] ^= 1 << (bit % 8);
                format!("bit {bit} of {}", path.display())
            };
            std::fs::write(path, &damaged).unwrap();
            let outcome = assemble(&dir, plan.clone());
            std::fs::write(path, bytes).unwrap();
            let Err(error) = outcome else {
                panic!("{what} went unnoticed");
            };
            assert_eq!(error.kind(), ErrorKind::BadData, "{what}");
            let error = error.to_string();
            let hint = "\nhint: remove this file and run the same remit-score command again; it makes what \
                        is missing";
            assert!(error.contains(path.to_str().unwrap()), "{what}: {error}");
            assert!(error.ends_with(hint), "{what}: {error}");
        }
        score(&workspace, format).ok();
        assert!(workspace.read(&manifest_file) == manifest);
    }
}

#[test]
fn a_damaged_shard_is_made_again_once_it_is_removed_with_a_manifest_or_without() {
    for format in FORMATS {
        let workspace = scored(format);
        let intact = workspace.snapshot("set");
        let shard = format!("set/part-000001.{format}");
        for has_manifest in [false, true] {
            if !has_manifest {
                workspace.remove(&format!("set/_remit/manifest.{format}"));
            }
            workspace.damage(&shard, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            });
            let ended = if has_manifest {
                workspace.command(INSPECT).args("verify set").run()
            } else {
                score(&workspace, format).run()
            };
            ended.check(ended.status.code() == Some(65), "damage is bad data");
            ended.check(
                ended
                    .stderr
                    .contains(&format!("the shard {shard} is damaged: ")),
                "the shard is named",
            );
            ended.check(
                workspace.has_manifest("set") == has_manifest,
                "no manifest is made of it",
            );
            workspace.remove(&shard);
            score(&workspace, format).ok();
            assert_same(&intact, &workspace.snapshot("set"), format);
        }
        for name in ["plan", "rejects"] {
            workspace.remove(&format!("set/_remit/{name}.{format}"));
            score(&workspace, format).ok();
            assert_same(&intact, &workspace.snapshot("set"), name);
        }
    }
}

#[test]
fn all_damaged_shards_are_named_before_a_manifest_is_made() {
    let workspace = scored("parquet");
    workspace.remove("set/_remit/manifest.parquet");
    let last = std::fs::read_dir(workspace.path("set"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("part-"))
        .max()
        .unwrap();
    for name in ["part-000000.parquet", &*last] {
        workspace.damage(&format!("set/{name}"), |bytes| bytes[9] ^= 1);
    }
    let ended = score(&workspace, "parquet").run();
    ended.check(ended.status.code() == Some(65), "damage is bad data");
    for part in [
        "error: 2 shards in set are not what they should be:\n".to_owned(),
        "\n  the shard set/part-000000.parquet is damaged: its BLAKE3 is ".to_owned(),
        format!("\n  the shard set/{last} is damaged: its BLAKE3 is "),
        "\nhint: remove these files and run the same remit-score command again;".to_owned(),
    ] {
        ended.check(ended.stderr.contains(&part), &part);
    }
}

#[test]
fn what_readers_do_not_need_is_checked_by_verify() {
    let workspace = scored("parquet");
    let dir = workspace.path("set");
    let problems = || {
        let found = remit::pipeline::inspect::verify(&dir).unwrap().problems;
        let names = found.iter().map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    assert_eq!(problems(), "");
    let mut numbers = Numbers(7);
    for name in ["_remit/plan.parquet", "_remit/rejects.parquet"] {
        let bytes = workspace.read(&format!("set/{name}"));
        for attempt in 0..200 {
            let mut damaged = bytes.clone();
            if attempt % 4 == 3 {
                damaged.truncate(numbers.below(bytes.len()));
            } else {
                let bit = numbers.below(bytes.len() * 8);
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
            workspace.write(&format!("set/{name}"), &damaged);
            assert_eq!(problems(), name, "attempt {attempt}");
        }
        workspace.write(&format!("set/{name}"), &bytes);
    }
    assert_eq!(problems(), "");
}

#[test]
fn verify_prints_an_object_where_the_manifest_is_damaged_too() {
    let workspace = scored("arrow");
    workspace.damage("set/_remit/manifest.arrow", |bytes| bytes[200] ^= 1);
    let ended = workspace.command(INSPECT).args("verify set --json").run();
    ended.check(ended.status.code() == Some(65), "damage is bad data");
    let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(object["ok"], false);
    assert_eq!(object["problems"][0]["file"], "_remit/manifest");
    let problem = object["problems"][0]["problem"].as_str().unwrap();
    assert!(ended.stderr.starts_with(&format!("error: {problem}")));
}

#[test]
fn a_shard_whose_digest_fits_its_damage_gives_an_error_or_a_row_that_keeps_the_rules() {
    for format in FORMATS {
        let workspace = scored(format);
        let dir = workspace.path("set");
        let path = dir.join(format!("part-000000.{format}"));
        let bytes = std::fs::read(&path).unwrap();
        let manifest = Manifest::load(&dir).unwrap();
        let identity = manifest.plan.identity().unwrap();
        let mut entry = manifest.shards[0].clone();
        let mut numbers = Numbers(5);
        let mut errors = 0;
        for _ in 0..2_000 {
            let mut damaged = bytes.clone();
            let bit = numbers.below(bytes.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            entry.size_bytes = damaged.len() as u64;
            entry.blake3 = remit::fs::Digest::of(&damaged);
            // No panic gets out of it; rules of a row are kept by whatever does.
            let outcome = ShardFile::open_verified(&dir, &entry, &manifest.plan, identity)
                .and_then(|shard| {
                    for group in 0..shard.num_row_groups() {
                        for row in shard.read_row_group(group)? {
                            remit::shard::schema::validate(&row.scored).unwrap();
                        }
                    }
                    Ok(())
                });
            errors += usize::from(outcome.is_err());
        }
        assert!(errors > 100, "{format}: {errors} errors");
    }
}

#[test]
fn verify_lists_every_file_with_a_problem_and_prints_nothing_else() {
    for format in FORMATS {
        let workspace = scored(format);
        let ended = workspace.command(INSPECT).args("verify set").ok();
        ended.check(
            ended.stdout.contains("every row keeps the rules"),
            "all is well",
        );
        let flip = |bytes: &mut Vec<u8>| bytes[50] ^= 2;
        workspace.damage(&format!("set/part-000000.{format}"), flip);
        workspace.damage(&format!("set/_remit/rejects.{format}"), flip);
        std::fs::remove_file(workspace.path(&format!("set/part-000001.{format}"))).unwrap();
        let before = workspace.snapshot("set");
        let ended = workspace.command(INSPECT).args("verify set").run();
        ended.check(ended.status.code() == Some(65), "damage is bad data");
        ended.check(ended.stdout.is_empty(), "nothing is on stdout");
        ended.check(
            ended
                .stderr
                .starts_with("error: 3 files of set are not what they should be:\n"),
            "it begins with how many",
        );
        for part in [
            &format!("\n  the shard set/part-000000.{format} is damaged: "),
            &format!("\n  the shard set/part-000001.{format} is missing\n"),
            "set/_remit/rejects.",
        ] {
            ended.check(ended.stderr.contains(part), part);
        }
        ended.check(!ended.stderr.contains("panicked"), "no panic is printed");
        let ended = workspace.command(INSPECT).args("verify set --json").run();
        ended.check(ended.status.code() == Some(65), "damage is bad data");
        let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(object["ok"], false);
        let files: Vec<&str> = object["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["file"].as_str().unwrap())
            .collect();
        let expected = [
            &*format!("part-000000.{format}"),
            &*format!("part-000001.{format}"),
            &*format!("_remit/rejects.{format}"),
        ];
        assert_eq!(files, expected);
        let kinds = object["problems"].as_array().unwrap().iter();
        assert!(
            kinds
                .map(|problem| problem["kind"].as_str().unwrap())
                .eq(["damaged", "missing", "damaged"])
        );
        assert_same(
            &before,
            &workspace.snapshot("set"),
            "verify changes nothing",
        );
    }
}
