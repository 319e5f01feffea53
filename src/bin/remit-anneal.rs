//! See `remit-anneal --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remit::cli::main(remit::cli::anneal::run)
}
