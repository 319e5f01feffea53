//! The integration tests, as one binary.
#![expect(
    clippy::disallowed_methods,
    reason = "tests prepare and damage files by hand"
)]

mod architecture;
mod bad_input;
mod determinism;
mod equivalence;
mod goldens;
mod harness;
mod interface;
mod resume;
