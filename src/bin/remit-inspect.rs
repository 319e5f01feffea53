//! See `remit-inspect --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remit::cli::main(remit::cli::inspect::run)
}
