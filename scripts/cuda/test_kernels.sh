#!/usr/bin/env bash
# Checks the CUDA kernels on the CPU: compiles them for the emulator and compares each with plain loops in f64.
#
#   scripts/cuda/test_kernels.sh [--sanitize] [--full] [--only PART_OF_A_NAME] [--seeds N]
#
# --sanitize compiles with the sanitizers of addresses and undefined behaviour. Needs g++ 9 or later; no GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."

sources=src/model/kernels/cuda/sources
out="${CARGO_TARGET_DIR:-target}/kernels"
flags=(-std=c++17 -O2 -Wall -Wextra -Wno-unused-function -ffp-contract=off -Werror)
if [ "${1:-}" = --sanitize ]; then
    shift
    out+=-sanitized
    flags+=(-g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all)
fi
mkdir -p "$out"
rm -f "$out"/*.o
compile() { # compile FILE
    case "$1" in
        *.cu) g++ "${flags[@]}" -x c++ -include "$sources/emulator/shim.h" -c "$1" -o "$out/$(basename "$1").o" ;;
        *) g++ "${flags[@]}" -c "$1" -o "$out/$(basename "$1").o" ;;
    esac
}
jobs=()
for file in "$sources"/*.cu "$sources"/emulator/*.cpp; do
    compile "$file" &
    jobs+=($!)
    if [ "${#jobs[@]}" -ge "$(nproc)" ]; then
        wait "${jobs[0]}"
        jobs=("${jobs[@]:1}")
    fi
done
for job in "${jobs[@]}"; do wait "$job"; done
g++ "${flags[@]}" "$out"/*.o -o "$out/test_kernels"
# Fibers have stacks of their own, which the detection of leaks does not know.
ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0" exec "$out/test_kernels" "$@"
