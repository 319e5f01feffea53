#!/usr/bin/env bash
# Measures and checks remit on a GPU against its targets, in under 9 minutes: one table, and gpu.json.
#
#   scripts/bench/gpu.sh --pack FILE.tar.xz             # here: all that the GPU machine needs, 60 MiB at most
#   python3 -m tarfile -e FILE.tar.xz remit-gpu         # there, where Python has PyTorch and transformers
#   remit-gpu/scripts/bench/gpu.sh --out results
#   scripts/bench/gpu.sh --emulated                     # on a CPU, tiny shapes: no speed is measured
#
# PYTHON is the interpreter, REMIT_BIN the folder of the commands. The exit code is 0 when every target is met. See
# docs/gpu.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu" "$@"
