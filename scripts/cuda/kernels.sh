#!/usr/bin/env bash
# Compiles every CUDA kernel for sm_80 and sm_90, fails where one spills registers or uses local memory, and prints
# a table of registers and shared memory. Needs no GPU.
#
#   scripts/cuda/kernels.sh [--write]      # --write: puts the table into docs/gpu.md
#   scripts/cuda/kernels.sh --check        # fails if the table there is another
#
# nvcc is $NVCC, or that of $CUDA_HOME, $CUDA_PATH, the PATH or /usr/local/cuda, or the one that
# scripts/build-cuda.sh installed; where there is none, the same compiler is installed from PyPI, once, into
# $REMIT_CACHE/nvcc13 (~/.cache/remit/nvcc13).
set -euo pipefail
cd "$(dirname "$0")/../.."

cache="${REMIT_CACHE:-$HOME/.cache/remit}"
own="$cache/nvcc13"
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

find_nvcc() { # sets nvcc, or fails
    local each
    for each in "${NVCC:-}" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" "$(command -v nvcc || true)" \
        /usr/local/cuda/bin/nvcc "$cache"/{cuda13,nvcc13}/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
        [ -x "$each" ] || continue
        nvcc="$each"
        return
    done
    return 1
}

install_nvcc() { # under a lock, so that two runs at a time don't install the same one
    mkdir -p "$cache"
    exec 9>"$cache/nvcc13.lock"
    flock 9
    if [ "$(cat "$own/ready" 2>/dev/null)" != "${wheels[*]}" ]; then
        echo "kernels.sh: installing CUDA's compiler into $own" >&2
        rm -rf "$own"
        python3 -m venv "$own"
        "$own/bin/pip" install --quiet --disable-pip-version-check --no-deps "${wheels[@]}"
        echo "${wheels[*]}" >"$own/ready"
    fi
    exec 9>&-
}

find_nvcc || { install_nvcc && find_nvcc; }
exec python3 scripts/cuda/kernel_table.py "$nvcc" "$@"
