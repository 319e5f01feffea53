#!/usr/bin/env bash
# Installs what the tests need and runs all of them: Rust's own, then those that compare with
# transformers, PyTorch, DuckDB, pandas, polars, datasets, pyarrow and TensorBoard, and with an S3-compatible server.
#
#   scripts/test.sh            # about 20 minutes on 2 cores when nothing is compiled yet
#
# The Python packages go into a virtual environment outside the repository, made once for each content
# of scripts/requirements*.txt (about 5 GB, mostly PyTorch's CUDA libraries): $REMIT_CACHE, or
# ~/.cache/remit. Only the tests that need it wait for it. Tests of the report in a browser are skipped without the
# system's chromium.
#
# Where g++ is on the PATH, the CUDA backend is tested as well, on a GPU that is emulated on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${REMIT_CACHE:-$HOME/.cache/remit}"
target="${CARGO_TARGET_DIR:-target}"
venv="$cache/oracle-$(cat scripts/requirements.txt scripts/requirements-trainers.txt | sha256sum | cut -c1-12)"
summary=()
skipped=()
begin=$SECONDS
# With object stores, so that everything is compiled once and with all that the tests need.
features=object-store
if command -v g++ >/dev/null; then
    features+=,cuda-emulator
else
    skipped+=("the CUDA backend and its kernels on an emulated GPU: there is no g++ on the PATH")
fi

stage() { # stage NAME COMMAND...: runs it, notes its time, ends the script when it fails
    local name="$1" started=$SECONDS
    shift
    echo "test.sh: $name"
    if ! "$@"; then
        echo "test.sh: FAILED: $name" >&2
        exit 1
    fi
    summary+=("$(printf '%-28s %4d s' "$name" $((SECONDS - started)))")
}

make_venv() { # under a lock, so that two runs at a time don't build the same environment
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    [ -e "$venv/ready" ] && return
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r scripts/requirements.txt
    # Trainers, without the gigabytes that they ask for and what is tested does not need.
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r scripts/requirements-trainers.txt
    touch "$venv/ready"
}

make_venv &
venv_job=$!
trap 'kill "$venv_job" 2>/dev/null || true' EXIT

stage "build" cargo build --release --locked --all-targets --features "$features"
stage "Rust tests" cargo test --release --locked --features "$features"
[[ "$features" != *cuda* ]] || stage "CUDA kernels, emulated" scripts/cuda/test_kernels.sh
[[ "$features" != *cuda* ]] || stage "CUDA kernels, mutated" python3 scripts/cuda/mutate.py --seconds 60 --seed 1
stage "kills at random" env REMIT_BIN="$target/release" python3 scripts/kill.py 30
stage "kills of training at random" env REMIT_BIN="$target/release" python3 scripts/kill_anneal.py 10
stage "wait for Python packages" wait "$venv_job"
trap - EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false REMIT_FEATURES="$features"
stage "goldens, made again" "$venv/bin/python" scripts/goldens/make.py --check
# 3,000 damaged files, always the same.
stage "build of the harness" cargo build --release --locked -p remit-fuzz
stage "damaged files" env REMIT_BIN="$target/release" "$venv/bin/python" scripts/mutate.py 3000 --seed 1 --keep "$target/findings"
# As everything else was compiled, so that nothing is compiled again.
stage "wheel" env PATH="$venv/bin:$PATH" maturin build --release --locked --features "$features" --out "$target/wheels"
stage "Python package" env REMIT_BIN="$target/release" REMIT_WHEELS="$target/wheels" "$venv/bin/python" -m pytest -q tests/python
stage "oracle tests" env REMIT_BIN="$target/release" "$venv/bin/python" -m pytest -q tests/oracle
[[ "$features" != *cuda* ]] || stage "acceptance on a GPU, emulated" env REMIT_BIN="$target/release" PYTHON="$venv/bin/python" \
    scripts/bench/gpu.sh --emulated --out "$target/gpu-emulated"

echo
printf '%s\n' "${summary[@]}"
[ "${#skipped[@]}" -eq 0 ] || printf 'test.sh: skipped %s\n' "${skipped[@]}"
echo "test.sh: all tests passed in $((SECONDS - begin)) s"
