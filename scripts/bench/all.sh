#!/usr/bin/env bash
# Runs the benchmarks of the CPU one after the other, and writes docs/benchmarks.md and docs/benchmarks.svg.
#
#   cargo build --release --bins --examples
#   scripts/bench/all.sh                        # about an hour on 2 cores, with nothing else running
#   scripts/bench/all.sh --quick                # small sizes, one round: about 15 minutes; the page goes to target/bench
#   scripts/bench/all.sh scoring streaming      # some of them; the page has what the others measured last
#   scripts/bench/all.sh --page                 # the page alone
#
# PYTHON is an interpreter with the packages of scripts/requirements.txt, REMIT_BIN the folder of the commands, LLAMA an
# interpreter with llama-cpp-python and gguf, if llama.cpp is to be a peer. What the benchmarks print goes to
# target/bench as well. The exit code is not 0 when one of them fails; a target that is missed is no failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-python3}"
export REMIT_BIN="${REMIT_BIN:-target/release}" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
out=target/bench
known=(scoring training streaming data_plane disk families report)
quick=
wanted=()
for argument in "$@"; do
    case "$argument" in
    --quick) quick=1 out=target/bench/quick ;;
    --page) wanted=(none) ;;
    *)
        [[ " ${known[*]} " == *" $argument "* ]] || {
            echo "all.sh: no benchmark is called $argument; there are ${known[*]}" >&2
            exit 2
        }
        wanted+=("$argument")
        ;;
    esac
done
[ "${#wanted[@]}" -gt 0 ] || wanted=("${known[@]}")
mkdir -p "$out"

measure() { # measure NAME FULL QUICK: the options of a script that is called as its first word says
    local name="$1" options="$2"
    [[ " ${wanted[*]} " == *" $name "* ]] || return 0
    [ -z "$quick" ] || options="$3"
    echo "all.sh: $options"
    local results="$out/$name.new"
    "$python" scripts/bench/page.py begin "${options%% --llama*}" >"$results"
    # shellcheck disable=SC2086
    REMIT_BENCH_RESULTS="$results" "$python" scripts/bench/$options 2>"$out/$name.err" | tee "$out/$name.txt" || {
        tail -n 20 "$out/$name.err" >&2
        echo "all.sh: $name failed" >&2
        exit 1
    }
    mv "$results" "$out/$name.jsonl"
}

llama="${LLAMA:+--llama $LLAMA}"
measure scoring "scoring.py $llama" "scoring.py --rounds 1 --rows equal $llama"
measure training "train_step.py --rounds 3" "train_step.py --only step --rounds 1 --steps 4"
measure streaming "streaming.py" "streaming.py --layers 24 --tokens 16384 --resident-tokens 8192 --fraction 0.6"
measure data_plane "data_plane.py --memory-gb 2" "data_plane.py --rounds 1 --mb 5"
measure disk "bytes_per_token.py" "bytes_per_token.py --kb 200"
measure families "families.py" "families.py --rounds 1 --tokens 1024"
measure report "report.py" "report.py --times 2"

if [ -n "$quick" ]; then
    "$python" scripts/bench/page.py write "$out" --page "$out/benchmarks.md" --chart "$out/benchmarks.svg"
else
    "$python" scripts/bench/page.py write "$out" --page docs/benchmarks.md --chart docs/benchmarks.svg
fi
