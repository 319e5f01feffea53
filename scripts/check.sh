#!/usr/bin/env bash
# Formatting, lints and documentation; nothing is run.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --release --locked --all-targets --features object-store -- -D warnings
cargo clippy --release --locked -- -D warnings
cargo clippy --release --locked -p remit-fuzz -- -D warnings
if command -v g++ >/dev/null; then
    cargo clippy --release --locked --all-targets --features object-store,cuda-emulator -- -D warnings
fi
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --features object-store
