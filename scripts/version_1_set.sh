#!/usr/bin/env bash
# Makes fixtures/sets/version-1, a set of version 1 of the format.
#
#   git worktree add /tmp/remit-v1 3a23939 && (cd /tmp/remit-v1 && cargo build --release --locked)
#   scripts/version_1_set.sh /tmp/remit-v1/target/release/remit-score
#
# No later remit-score writes that version. The bytes are the same every time.
set -euo pipefail
score="$(realpath "$1")"
out="$(realpath "$(dirname "$0")/..")/fixtures/sets/version-1"
work="$(mktemp -d)"
trap 'rm -r "$work"' EXIT
mkdir "$work/corpus"
printf '%s\n' '{"text": "What is 1+2? It is 3."}' '{' '{"text": "And 2+2 is 4."}' > "$work/corpus/a.jsonl"
rm -rf "$out"
mkdir -p "$(dirname "$out")"
(cd "$work" && "$score" corpus -o "$out" --part-bytes 30 --on-bad-record skip)
