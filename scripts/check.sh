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
# With what scripts/test.sh installed.
venv="${REMIT_CACHE:-$HOME/.cache/remit}/oracle-$(cat scripts/requirements.txt scripts/requirements-trainers.txt | sha256sum | cut -c1-12)"
if [ -e "$venv/ready" ]; then
    "$venv/bin/ruff" check --quiet
    "$venv/bin/ruff" format --check --quiet
    "$venv/bin/mypy"
else
    echo "check.sh: skipped mypy and ruff: scripts/test.sh installs them" >&2
fi
