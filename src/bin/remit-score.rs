//! See `remit-score --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remit::cli::main(remit::cli::score::run)
}
