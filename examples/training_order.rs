//! Reads all rows of a set in the order of training, as remit-anneal does before it trains on them.
//!
//! ```text
//! cargo run --release --example training_order -- weights/
//! ```
//!
//! Prints seconds for opening, for the lengths of rows, and for reading; scripts/bench/reading.py compares them with
//! the Python package's.

#![allow(clippy::print_stdout, reason = "it prints its results")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use remit::batch::{Cursor, Order};
use remit::shard::read::ShardSet;

fn main() -> Result<()> {
    let dir: PathBuf = std::env::args_os()
        .nth(1)
        .context("usage: training_order SET")?
        .into();
    let started = Instant::now();
    let set = ShardSet::open(&dir)?;
    let opened = started.elapsed();
    let order = Order::new(&set, 0, None)?;
    let ordered = started.elapsed();
    let mut tokens = 0;
    for step in order.steps_from(Cursor::default(), 16384) {
        tokens += step?.num_tokens();
    }
    let read = started.elapsed();
    println!(
        "{{\"tokens\": {tokens}, \"open\": {}, \"order\": {}, \"read\": {}}}",
        opened.as_secs_f64(),
        (ordered - opened).as_secs_f64(),
        (read - ordered).as_secs_f64()
    );
    Ok(())
}
