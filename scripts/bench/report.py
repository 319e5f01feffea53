"""Measures remit-inspect report and sweep on a set of ten million tokens: time, and peak memory.

    cargo build --release --bins --example repeated_set
    python scripts/bench/report.py                  # a minute on 2 cores, after fixtures/corpus is scored
    python scripts/bench/report.py --times 40       # twice as many tokens

The set has the rows of fixtures/corpus, scored with the demo pair, twenty times over, in 360 sources. With --weights
another set is repeated.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

ROOT = Path(__file__).resolve().parents[2]
# Starts a program from a small process, since a child's peak memory begins with its parent's; prints kB.
MEASURE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, 0)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(name, *command):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, command)], check=True, capture_output=True, text=True)
    kilobytes, cpu = done.stdout.split()
    seconds = time.perf_counter() - started
    print(f"{name:<8} {seconds:6.1f} s ({float(cpu):.1f} s of CPU), {int(kilobytes) / 1000:.0f} MB")
    results.add("Reports of ten million tokens", f"remit-inspect {name}", "s", [seconds])
    results.add("Reports of ten million tokens", f"remit-inspect {name}: peak memory", "MB", [int(kilobytes) / 1000])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=ROOT / "target" / "release", help="folder of the programs")
    parser.add_argument("--weights", type=Path, help="a set to repeat")
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        weights = args.weights
        if weights is None:
            weights = scratch / "weights"
            score = [args.bin / "remit-score", ROOT / "fixtures" / "corpus", "-o", weights]
            subprocess.run(score, check=True, capture_output=True)
        repeat = [args.bin / "examples" / "repeated_set", weights, scratch / "large", str(args.times)]
        print(subprocess.run(repeat, check=True, capture_output=True, text=True).stdout.strip())
        page = scratch / "report.html"
        measured("report", args.bin / "remit-inspect", "report", scratch / "large", "-o", page)
        measured("sweep", args.bin / "remit-inspect", "sweep", scratch / "large")
        print(f"page     {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
