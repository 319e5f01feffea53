"""Compiles the kernels with `-Xptxas -v` and makes a table of what each uses; see kernels.sh, which calls it."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

SOURCES = pathlib.Path("src/model/kernels/cuda/sources")
PAGE = pathlib.Path("docs/gpu.md")
BEGIN, END = "<!-- kernels.sh: begin -->\n", "<!-- kernels.sh: end -->\n"
ARCHITECTURES = (80, 90)
# Of a multiprocessor, by architecture: bytes of shared memory.
SHARED = {80: 164 << 10, 90: 228 << 10}


def compiled(nvcc, source, architecture, folder):
    """Returns {kernel: (registers, static shared bytes, bytes of stack and spills)}."""
    command = [nvcc, "-cubin", "-std=c++17", "-O3", "--fmad=true", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    command += ["-o", str(folder / f"{source.stem}_{architecture}.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or "warning" in done.stderr:
        sys.exit(f"kernel_table.py: {' '.join(command)}\n{done.stderr}")
    kernels = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", part).group(1)
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        shared = re.search(r"(\d+) bytes smem", part)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        kernels[name] = (registers, int(shared.group(1)) if shared else 0, sum(map(int, stack.groups())))
    return kernels


def launch_of(name):
    """Returns threads and bytes of dynamic shared memory of a block, as sources/README.md says; heads of f32 are of 128."""
    rows = lambda n, d: n * (d + 8) * 2
    found = re.fullmatch(r"attention_(forward|backward_kv|backward_q)_(f32|bf16_(\d+)_?(\d+)?)", name)
    if found is None:
        row_kernels = ("embedding_bf16", "embedding_f32", "gather_rows", "scatter_rows", "mla")
        backward = re.fullmatch(r"(rms_norm|norm_rope)_backward_\w+", name)
        # 2048 features.
        return 128 if name.startswith(row_kernels) else 256, 8192 if backward else 0
    kind = found.group(1)
    if found.group(2) == "f32":
        floats = 48 * 129 + 16 * 17 + 48 if kind == "forward" else 64 * 129 + 2 * 16 * 17 + 32
        return 128, 4 * floats
    d = int(found.group(3))
    v = int(found.group(4) or d)
    if kind == "forward":
        n = {128: 48, 192: 32, 256: 32}.get(d, 64)
        return 128, rows(128 if d <= 128 else 64, d) + 2 * (rows(n, d) + rows(n, v))
    m = 64 if d <= 64 else 32
    extra = 8 * m if kind == "backward_kv" else 0
    threads = 256 if kind == "backward_kv" and d > 128 else 128
    return threads, rows(64, d) + rows(64, v) + 2 * (rows(m, d) + rows(m, v) + extra)


def blocks_per_multiprocessor(architecture, registers, threads, shared):
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // (per_warp * (threads // 32))
    return min(by_registers, SHARED[architecture] // (shared + 1024), 2048 // threads, 32)


def main():
    nvcc, *words = sys.argv[1:]
    if words not in ([], ["--write"], ["--check"]):
        sys.exit("usage: kernels.sh [--write | --check]")
    sources = sorted(SOURCES.glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (source, architecture): pool.submit(compiled, nvcc, source, architecture, pathlib.Path(folder))
            for source in sources
            for architecture in ARCHITECTURES
        }
        results = {key: job.result() for key, job in jobs.items()}
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", version).group(1)
    lines = [
        f"Compiled by nvcc {version}. Registers are per thread, shared memory is in bytes per block, static and dynamic",
        "(for norms of 2048 features, for attention in f32 of heads of 128). Blocks per multiprocessor are what these and",
        "the threads leave room for. Numbers are for sm_80 / sm_90. No kernel spills or uses local memory.",
        "",
        "| kernel | threads | registers | shared memory | blocks per multiprocessor |",
        "|---|---|---|---|---|",
    ]
    bad = []
    count = 0
    for source in sources:
        for name in sorted(results[source, 90]):
            count += 1
            threads, dynamic = launch_of(name)
            registers, blocks, shared = [], [], 0
            for architecture in ARCHITECTURES:
                used, static, stack = results[source, architecture][name]
                shared = static + dynamic
                if stack:
                    bad.append(f"{name} for sm_{architecture} uses {stack} bytes of stack and spills")
                fit = blocks_per_multiprocessor(architecture, used, threads, shared)
                if fit == 0:
                    bad.append(f"{name} does not fit a multiprocessor of sm_{architecture}")
                registers.append(str(used))
                blocks.append(str(fit))
            lines.append(f"| `{name}` | {threads} | {' / '.join(registers)} | {shared} | {' / '.join(blocks)} |")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if bad:
        sys.exit("kernel_table.py: " + "\n".join(bad))
    print(f"kernel_table.py: {count} kernels compile for sm_80 and sm_90, none spills")
    if not words:
        return
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"kernel_table.py: {PAGE} has no place for the table, between {BEGIN.strip()} and {END.strip()}")
    new = before + BEGIN + table + END + after
    if words == ["--check"] and new != page:
        sys.exit(f"kernel_table.py: the table in {PAGE} is of other kernels\n  hint: scripts/cuda/kernels.sh --write")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
