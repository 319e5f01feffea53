//! Writes a set that has the rows of another several times over, to see what commands make of large sets.
//!
//! ```text
//! cargo run --release --example repeated_set -- weights/ large/ 20
//! ```
//!
//! Each copy is a part, and its sources begin with the number of the copy. scripts/bench/report.py measures with it.

#![allow(clippy::print_stdout, reason = "it prints its results")]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use remit::fs::{self, AtomicFile};
use remit::pack::PackStats;
use remit::shard::assemble::assemble;
use remit::shard::layout::shard_name;
use remit::shard::read::ShardSet;
use remit::shard::write::{ShardOptions, ShardWriter};

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [input, output, times] = args.as_slice() else {
        bail!("usage: repeated_set SET OUTPUT TIMES");
    };
    let times: u32 = times.to_str().context("a number")?.parse()?;
    let set = ShardSet::open(input)?;
    let mut plan = set.manifest().plan.clone();
    plan.num_parts = times;
    fs::create_dir_all(output)?;
    plan.save(output)?;
    for part in 0..times {
        let path = output.join(shard_name(part, plan.format));
        let options = ShardOptions {
            part,
            format: plan.format,
            columns: plan.columns(),
            exact: plan.exact,
            exact_weights: None,
            lowest_entropy: None,
            plan: plan.identity()?,
        };
        let mut writer = ShardWriter::new(AtomicFile::create(&path)?, options)?;
        let mut stats = PackStats::default();
        for shard in set.shards() {
            for group in 0..shard.num_row_groups() {
                for mut row in shard.read_row_group(group)? {
                    row.scored.source = format!("{part:03}/{}", row.scored.source).into();
                    stats.rows += 1;
                    stats.tokens += row.num_tokens() as u64;
                    writer.push(&row.scored)?;
                }
            }
        }
        stats.documents = stats.rows;
        writer.finish(&stats)?.0.publish()?;
    }
    let manifest = assemble(output, plan)?.save(output)?;
    println!(
        "{} tokens in {} rows",
        manifest.totals.tokens, manifest.totals.rows
    );
    Ok(())
}
