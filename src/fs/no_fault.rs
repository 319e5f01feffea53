//! Stands for injected faults outside of the tests: no call fails.

use std::io::Result;
use std::path::Path;

use super::Operation;

pub(super) fn check(_: Operation, _: &Path) -> Result<()> {
    Ok(())
}

pub(super) fn writable(_: &Path, len: usize) -> Result<usize> {
    Ok(len)
}
