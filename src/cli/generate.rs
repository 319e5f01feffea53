//! Man pages and shell completions, made from the definitions of the command lines.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Command, ValueEnum};
use clap_complete::{Generator, Shell};

use crate::fs;

/// Writes `man/NAME.1` and `completions/SHELL/...` for each program and, of the man pages, for each of its
/// subcommands, over files of these names that are there. Returns their paths.
pub(super) fn write(dir: &Path, programs: Vec<Command>) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for mut program in programs {
        program.build();
        let name = program.get_name().to_owned();
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut program, &name, &mut script);
            let file = Path::new("completions")
                .join(shell.to_string())
                .join(shell.file_name(&name));
            written.push((file, script));
        }
        man_pages(&program, &mut written)?;
    }
    let mut paths = Vec::new();
    for (file, content) in written {
        let path = dir.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write_atomic(&path, &content)?;
        paths.push(path);
    }
    Ok(paths)
}

/// Adds the page of a command, and those of its subcommands but `help`.
fn man_pages(command: &Command, pages: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render(&mut page)?;
    pages.push((Path::new("man").join(man.get_filename()), page));
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            man_pages(subcommand, pages)?;
        }
    }
    Ok(())
}
