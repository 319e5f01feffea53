#!/usr/bin/env python3
"""Shows that the tests of the CUDA kernels are sharp: without any one barrier, mask or guard they have to fail.

    scripts/cuda/mutate.py                           # all mutants, about 10 minutes on 2 cores; a table of them
    scripts/cuda/mutate.py --seconds 100 --seed 7    # some of them, drawn by the seed, until time is up
    scripts/cuda/mutate.py --write                   # all, and their table into docs/gpu.md

A mutant is a copy of the kernels in which one `__syncthreads()`, `__syncwarp()` or `wait_for_copies` is gone, or the
condition of one `GUARD` is always true, or that of one `NEEDED` always false. It is caught if the tests (emulator/test_kernels.cpp) fail, crash or hang. Exits
with 1 if one survives. Needs g++; no GPU.
"""

import argparse
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src/model/kernels/cuda/sources"
PAGE = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- mutate.py: begin -->\n", "<!-- mutate.py: end -->\n"
FLAGS = ["-std=c++17", "-O1", "-w", "-ffp-contract=off"]
BARRIERS = {"__syncthreads();": "barrier", "__syncwarp();": "barrier of a warp", "wait_for_copies<0>();": "wait for copies"}
# Of the tests, which take two.
CPU_SECONDS = 20


class Mutant:
    def __init__(self, file, kind, start, end, text, line):
        self.file, self.kind, self.start, self.end, self.text, self.line = file, kind, start, end, text, line

    def source(self, sources):
        source = (sources / self.file).read_text()
        return source[: self.start] + self.text + source[self.end :]


def mutants_of(sources, file):
    source = (sources / file).read_text()
    found = []
    for match in re.finditer(r"(?<!define )\b(?:GUARD|NEEDED)\(|__syncthreads\(\);|__syncwarp\(\);|wait_for_copies<0>\(\);", source):
        line = source.count("\n", 0, match.start()) + 1
        if match.group() in BARRIERS:
            found.append(Mutant(file, BARRIERS[match.group()], match.start(), match.end(), ";", line))
            continue
        depth, end = 1, match.end()
        while depth > 0:
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        condition = source[match.end() : end - 1]
        text = f"(({condition}) || true)" if match.group() == "GUARD(" else f"(({condition}) && false)"
        found.append(Mutant(file, f"guard `{condition}`", match.start(), end, text, line))
    return found


def includes(sources, file, header):
    names = re.findall(r'#include "(\w+\.h)"', (sources / file).read_text())
    return header in names or any(includes(sources, name, header) for name in names)


def command_for(sources, source, out):
    if source.suffix == ".cu":
        shim = sources / "emulator/shim.h"
        return ["g++", *FLAGS, "-x", "c++", "-include", str(shim), "-c", str(source), "-o", str(out)]
    return ["g++", *FLAGS, "-c", str(source), "-o", str(out)]


def outcome(sources, mutant, objects):
    """Returns how the tests found the mutant, or None."""
    units = [name for name in objects if name.endswith(".cu")]
    if mutant.file.endswith(".h"):
        units = [unit for unit in units if includes(sources, unit, mutant.file)]
    else:
        units = [mutant.file]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for source in [*sources.glob("*.cu"), *sources.glob("*.h")]:
            shutil.copy(source, folder)
        (folder / mutant.file).write_text(mutant.source(sources))
        linked = dict(objects)
        for unit in units:
            linked[unit] = folder / f"{unit}.o"
            done = subprocess.run(command_for(sources, folder / unit, linked[unit]), capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"mutate.py: {mutant.file}:{mutant.line} without its {mutant.kind} does not compile:\n{done.stderr}")
        program = folder / "test_kernels"
        subprocess.run(["g++", *map(str, linked.values()), "-o", str(program)], check=True)

        def limit():
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
            # Half of the mutants crash, each with the memory of all fibers.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        only = ["--only", "attention"] if mutant.file.startswith("attention") else []
        done = subprocess.run([str(program), "--stop", *only], capture_output=True, text=True, preexec_fn=limit)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return "hang"
        if done.returncode < 0:
            return "crash"
        if done.returncode == 0:
            return None
        return "deadlock" if "status 3" in done.stdout else "wrong result"


def table_of(results):
    """Returns lines of a table: a line per file."""
    lines = ["| file | barriers and waits | masks and guards | survived |", "|---|---|---|---|"]
    for file in sorted({mutant.file for mutant, _ in results}):
        mine = [(mutant, how) for mutant, how in results if mutant.file == file]
        guards = sum(mutant.kind.startswith("guard") for mutant, _ in mine)
        survived = sum(how is None for _, how in mine)
        lines.append(f"| `{file}` | {len(mine) - guards} | {guards} | {survived} |")
    return lines


def write_page(lines, results):
    ways = {how: sum(each == how for _, each in results) for how in ("wrong result", "crash", "deadlock", "hang")}
    text = ", ".join(f"{count} by a {how}" for how, count in ways.items() if count)
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"mutate.py: {PAGE} has no place for the table")
    summary = f"{len(results)} mutants, {sum(ways.values())} caught: {text}."
    PAGE.write_text(before + BEGIN + "\n".join([*lines, "", summary]) + "\n" + END + after)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", default="", help="files whose names contain this")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    begin = time.monotonic()
    out_of_time = lambda: args.seconds is not None and time.monotonic() - begin > args.seconds
    results = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = pathlib.Path(name)
        # A copy, so that the kernels may be edited in the meantime.
        sources = pathlib.Path(shutil.copytree(SOURCES, folder / "sources"))
        files = sorted(path.name for path in [*sources.glob("*.cu"), *sources.glob("*.h")])
        mutants = [mutant for file in files if args.only in file for mutant in mutants_of(sources, file)]
        total = len(mutants)
        random.Random(args.seed).shuffle(mutants)
        units = [*sources.glob("*.cu"), sources / "emulator/emulator.cpp", sources / "emulator/test_kernels.cpp"]
        objects = {unit.name: folder / f"{unit.name}.o" for unit in units}
        compile_one = lambda unit: subprocess.run(command_for(sources, unit, objects[unit.name]), check=True)
        list(pool.map(compile_one, units))
        program = folder / "test_kernels"
        subprocess.run(["g++", *map(str, objects.values()), "-o", str(program)], check=True)
        if subprocess.run([str(program), "--stop"]).returncode != 0:
            sys.exit("mutate.py: the tests fail without any mutation")
        run = lambda mutant: "left out" if out_of_time() else outcome(sources, mutant, objects)
        jobs = {pool.submit(run, mutant): mutant for mutant in mutants}
        for job in as_completed(jobs):
            mutant, how = jobs[job], job.result()
            if how == "left out":
                continue
            results.append((mutant, how))
            print(f"{how or 'SURVIVED':12} {mutant.file}:{mutant.line} {mutant.kind}", flush=True)
    survived = [mutant for mutant, how in results if how is None]
    lines = table_of(results)
    print("\n".join(lines))
    print(f"mutate.py: {len(results)} of {total} mutants run in {time.monotonic() - begin:.0f} s, {len(survived)} survived")
    if args.write and len(results) == total:
        write_page(lines, results)
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
