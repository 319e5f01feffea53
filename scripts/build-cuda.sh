#!/usr/bin/env bash
# Builds the three commands with the feature `cuda`, on a machine that needs neither a GPU nor CUDA.
#
#   scripts/build-cuda.sh [CARGO ARGS]     # 15 minutes of CPU time
#
# With REMIT_KERNEL_TESTS=1 it also builds remit-kernel-tests, the tests of the library, beside them: scripts/bench/gpu.sh
# carries it to a GPU, where it runs every kernel against f64.
#
# It uses the CUDA at $CUDA_HOME or $CUDA_PATH, of the nvcc on the PATH, or in /usr/local/cuda. Where there is
# none that cudarc knows, it installs one from PyPI, once, into $REMIT_CACHE/cuda13 (~/.cache/remit/cuda13).
#
# CUDA_COMPUTE_CAP is the oldest GPU that the result runs on: by default this machine's GPU, else 80. The
# kernels of candle that remit uses, casts and copies, are kept as PTX, which the driver compiles for its GPU when first
# used. PTX for 80 runs on every GPU from the A100 on, the H100 and newer included; for 90 and above cudaforge asks for
# the architecture-specific kind (compute_90a), which runs on that one architecture only. remit's own kernels are there
# as machine code for 80 and 90, and as PTX, whatever CUDA_COMPUTE_CAP is. candle's kernels for quantized models, which
# remit does not use and which take longer than all the rest, are left out.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${REMIT_CACHE:-$HOME/.cache/remit}"
toolkit="$cache/cuda13"
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 # the compiler
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85                  # its headers, libcudart_static.a
    nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35                       # to run, not to build
)
host="$(rustc -vV | sed -n 's/^host: //p')"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/cuda}" CARGO_BUILD_TARGET="${CARGO_BUILD_TARGET:-$host}"
say() { echo "build-cuda.sh: $*"; }
die() {
    say "$@" >&2
    exit 1
}

install_toolkit() { # under a lock, so that two runs at a time don't install the same one
    mkdir -p "$cache"
    exec 9>"$cache/cuda13.lock"
    flock 9
    if [ "$(cat "$toolkit/ready" 2>/dev/null)" != "${wheels[*]}" ]; then
        say "installing CUDA's compiler and libraries into $toolkit (about 1 GB)"
        rm -rf "$toolkit"
        python3 -m venv "$toolkit"
        "$toolkit/bin/pip" install --quiet --disable-pip-version-check --no-deps "${wheels[@]}"
        echo "${wheels[*]}" >"$toolkit/ready"
    fi
    exec 9>&-
}

cuda_version() { # cuda_version ROOT: 13.0, or nothing
    "$1/bin/nvcc" --version 2>/dev/null | sed -n 's/.* release \([0-9]*\.[0-9]*\),.*/\1/p'
}

usable() { # usable ROOT: sets cuda and version if the CUDA there is one that cudarc 0.19 has bindings for
    [ -x "$1/bin/nvcc" ] || return 1
    version="$(cuda_version "$1")"
    case "$version" in
        12.[0-689] | 13.[0-4]) cuda="$1" ;;
        *)
            say "passing over $1: CUDA ${version:-of unknown version}, and 12.0 to 13.4 are supported"
            return 1
            ;;
    esac
}

find_cuda() { # sets cuda and version
    local root nvcc
    nvcc="$(command -v nvcc || true)"
    [ -z "$nvcc" ] || nvcc="$(dirname "$(dirname "$(readlink -f "$nvcc")")")"
    for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "$nvcc" /usr/local/cuda; do
        if [ -n "$root" ] && usable "$root"; then
            say "using the installed CUDA $version in $cuda"
            return
        fi
    done
    install_toolkit
    usable "$(echo "$toolkit"/lib/python3*/site-packages/nvidia/cu13)" || die "no working nvcc in $toolkit"
    say "using CUDA $version from PyPI in $cuda"
}

choose_capability() { # the lowest of this machine's GPUs, else the A100's
    local found
    [ -z "${CUDA_COMPUTE_CAP:-}" ] || return 0
    found="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -n | head -1 || true)"
    [[ "$found" =~ ^[0-9]+$ ]] || found=80
    export CUDA_COMPUTE_CAP="$found"
}

make_link_dir() { # what the linker finds before any of CUDA's own libraries, see lazy loading below
    local name static
    mkdir -p "$CARGO_TARGET_DIR/cuda-link"
    link="$(cd "$CARGO_TARGET_DIR/cuda-link" && pwd)"
    for name in cuda cublas cublasLt curand nvrtc; do
        printf '!<arch>\n' >"$link/lib$name.a" # an archive of nothing
    done
    rm -f "$link/libcudart.a"
    for static in "$cuda"/{lib64,lib,targets/*/lib,lib/*}/libcudart_static.a; do
        [ ! -e "$static" ] || ln -sfn "$static" "$link/libcudart.a"
    done
}

make_nvcc() { # an nvcc that leaves out candle's kernels for quantized models: a call of one would end the program
    mkdir -p "$link/bin"
    {
        printf '#!/usr/bin/env bash\nset -euo pipefail\nreal=%q\n' "$cuda/bin/nvcc"
        cat <<'END'
source="${*: -1}"
case "$source" in
    src/moe/*.cu | src/mmq_gguf/*.cu | src/mmvq_gguf.cu) ;;
    *) exec "$real" "$@" ;;
esac
while [ "$1" != -o ]; do shift; done
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    printf '#define LEFT_OUT(name) void name(void) { fputs(#name " was left out by build-cuda.sh\\n", stderr); abort(); }\n'
    # All of them in one file.
    [ "$source" != src/mmvq_gguf.cu ] || sed -n 's/^ *pub fn \([A-Za-z0-9_]*\)(.*/LEFT_OUT(\1)/p' src/ffi.rs
} | g++ -x c -fPIC -c -o "$2" -
END
    } >"$link/bin/nvcc"
    chmod +x "$link/bin/nvcc"
}

command -v g++ >/dev/null || die "g++ is not on the PATH, and nvcc needs it"
find_cuda
choose_capability
make_link_dir
make_nvcc
reach="and later"
[ "${CUDA_COMPUTE_CAP//[!0-9]/}" -lt 90 ] || reach="only; CUDA_COMPUTE_CAP=80 makes one for all from the A100 on"
say "for GPUs of compute capability $CUDA_COMPUTE_CAP $reach"
export CUDA_HOME="$cuda" CUDA_PATH="$cuda" NVCC="$link/bin/nvcc" PATH="$cuda/bin:$PATH"

# Lazy loading: candle asks cudarc to link to libcuda.so.1 and the like, so that not even --help would work
# without a driver. cudarc can load them at first use instead, but refuses to be built with both features.
# This names the second one to the compiler alone, not to cudarc's build script: flags in RUSTFLAGS don't
# reach build scripts when a target is named, which CARGO_BUILD_TARGET does. No other crate has a feature of
# this name. The linker is still told -lcuda and so on, for which the archives of nothing do.
export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }--cfg feature=\"dynamic-loading\" -L native=$link"

begin=$SECONDS
cargo build --release --locked --features cuda --bins "$@"
if [ -n "${REMIT_KERNEL_TESTS:-}" ]; then # under a name that has no hash
    tests="$(cargo test --release --locked --features cuda --lib --no-run --message-format=json-render-diagnostics "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)"
    cp "$tests" "$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/release/remit-kernel-tests"
fi
say "built in $((SECONDS - begin)) s"

status=0
for name in remit-score remit-anneal remit-inspect; do
    bin="$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/release/$name"
    if "$bin" --help >/dev/null 2>"$link/stderr"; then
        say "$bin starts: $(($(stat -c %s "$bin") / 1000000)) MB"
    else
        missing="$(ldd "$bin" | awk '/not found/ { print $1 }' | paste -sd' ')"
        say "$bin does not start: ${missing:+missing $missing: add the folders that hold them to LD_LIBRARY_PATH}" >&2
        [ -n "$missing" ] || cat "$link/stderr" >&2
        status=1
    fi
done

libraries="$(dirname "$(find -L "$cuda" -name 'libcublas.so.*' 2>/dev/null | head -1)")"
cat <<END
To run on a GPU they need a driver for CUDA $version or later, and at first use they load libcublas.so.${version%%.*},
libcublasLt.so.${version%%.*} and libcurand.so.10. Where these are not installed system-wide, for example here:
  export LD_LIBRARY_PATH=$libraries
END
exit "$status"
