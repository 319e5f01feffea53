//! The integration tests, as one binary.
#![expect(
    clippy::disallowed_methods,
    reason = "tests prepare and damage files by hand"
)]
#![expect(
    clippy::print_stderr,
    reason = "a tolerance is worth little without the difference that was found"
)]

mod architecture;
mod bad_input;
mod damage;
mod determinism;
mod equivalence;
mod formats;
mod full_disk;
mod goldens;
#[cfg(feature = "cuda-emulator")]
mod gpus;
mod harness;
mod hostile;
mod inspect_model;
mod interface;
mod regressions;
mod report;
mod resume;
mod second_implementation;
mod signals;
mod silence;
mod tokens;
mod training;
mod version_1;
mod worker_mix;
