"""Compares two builds of the programs: seconds and peak memory of scoring and of training steps, in turn.

    python scripts/bench/builds.py OLD NEW                    # folders that hold remit-score and remit-anneal; about 10 minutes
    python scripts/bench/builds.py OLD NEW --rounds 3 --steps 4

The model is that of train_step.py (a random llama of 42M parameters). Every run is a process of its own and the builds take
turns; ratios are of medians, NEW / OLD. A run of scoring is timed as a whole, loading included; a training run's time is the
median of its steps but the first two.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from train_step import SEQ_LEN, VOCABULARY, Bench, measured

# Rows of a corpus that takes some seconds to score.
SCORED_ROWS = 24


def score(bench, dtype):
    """Seconds and peak memory in MB of a run of remit-score."""
    output = bench.folder / "scored"
    shutil.rmtree(output, ignore_errors=True)
    command = [bench.binaries / "remit-score", bench.folder / "corpus.npy", "-o", output, "--dtype", dtype]
    command += ["--rl-model", bench.folder / "reference", "--seq-len", SEQ_LEN, "--packing", "window"]
    started = time.perf_counter()
    _, peak = measured([*command, "--eos", "never", "--device", "cpu"])
    return time.perf_counter() - started, peak


def train(bench):
    """Seconds a step and peak memory in MB of a run of remit-anneal."""
    run = bench.remit("dynamic")
    return run.step_seconds, run.peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a training run; the first two don't count")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name in ("old", "new"):
            bench = Bench(Path(folder) / name, options.steps)
            bench.binaries = getattr(options, name).resolve()
            bench.folder.mkdir()
            sides.append(bench)
        first = sides[0].folder
        sides[0].own("make-models", first)
        ids = np.random.default_rng(1).integers(0, VOCABULARY, (SCORED_ROWS, SEQ_LEN), dtype=np.uint16)
        np.save(first / "corpus.npy", ids)
        for name in ("model", "reference", "corpus.npy"):
            (sides[1].folder / name).symlink_to(first / name)
        for bench in sides:
            bench.make_set(SEQ_LEN)
        tasks = {"score f32": lambda b: score(b, "f32"), "score bf16": lambda b: score(b, "bf16"), "train": train}
        print(f"{'':<12} {'old s':>8} {'new s':>8} {'ratio':>7} {'pairs':>7} {'old MB':>8} {'new MB':>8} {'ratio':>7}")
        for task, run in tasks.items():
            runs = {bench: [] for bench in sides}
            for number in range(options.rounds):
                for bench in sides if number % 2 == 0 else sides[::-1]:
                    runs[bench].append(run(bench))
            old, new = runs.values()
            seconds = [statistics.median(s for s, _ in side) for side in (old, new)]
            peaks = [statistics.median(p for _, p in side) for side in (old, new)]
            pairs = statistics.median(n[0] / o[0] for o, n in zip(old, new))
            print(
                f"{task:<12} {seconds[0]:>8.3f} {seconds[1]:>8.3f} {seconds[1] / seconds[0]:>7.3f} {pairs:>7.3f} "
                f"{peaks[0]:>8.0f} {peaks[1]:>8.0f} {peaks[1] / peaks[0]:>7.3f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
