//! A file system that fills up, where the tests may mount one.

use std::process::Command;

use crate::harness::{SCORE, Workspace, assert_same};

/// Unmounts what it names.
struct Mount(String);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_a_run_with_75_and_with_more_room_it_completes() {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 100);
    std::fs::create_dir(workspace.path("disk")).unwrap();
    let disk = workspace.path("disk").to_str().unwrap().to_owned();
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs", &disk]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !mount("size=64k") {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let _mount = Mount(disk.clone());
    let score = |output: &str| {
        workspace
            .command(SCORE)
            .args("corpus --part-bytes 2000 --threads 1 -o")
            .arg(output)
    };
    score("whole").ok();
    let whole = workspace.snapshot("whole");

    let mut stops = 0;
    for kilobytes in [64, 96, 128, 1024] {
        if !mount(&format!("remount,size={kilobytes}k")) {
            panic!("the file system can't be made larger");
        }
        let ended = score("disk/set").run();
        for (name, bytes) in workspace.snapshot("disk/set") {
            let hidden = name.to_string_lossy().starts_with('.');
            assert!(!hidden, "{} was left behind", name.display());
            assert!(
                whole.get(&name) == Some(&bytes),
                "{} is partial",
                name.display()
            );
        }
        if ended.status.success() {
            break;
        }
        stops += 1;
        ended.check(ended.status.code() == Some(75), "it asks to be run again");
        ended.check(
            ended.stderr.contains("disk/set") && ended.stderr.contains("No space left on device"),
            "the path and the reason are named",
        );
    }
    assert!(stops > 0, "the disk never was full");
    assert_same(&whole, &workspace.snapshot("disk/set"), "after a full disk");
}
