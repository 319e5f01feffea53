"""Kills scoring runs of several workers at random moments, and holds what they end with against an undisturbed run.

    cargo build --release
    python3 scripts/kill.py 300          # about 4 minutes on 2 cores

In each round three workers (now and then two of them with the same number) share a corpus of plain, gzip and Zstandard
files; each is killed with SIGKILL at a random moment and started again, some of them several times. Then whoever is left
runs to the end. The folder must then be byte for byte that of a run that nobody disturbed, without a file more: manifest
included, no temporary file left. The argument is the number of kills that have to hit a live process.
"""

import argparse
import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUM_WORKERS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; printed, so that a run can be repeated")
    parser.add_argument("--format", choices=["parquet", "arrow"], help="of the shards")
    args = parser.parse_args()
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")) / "remit-score"
    random.seed(args.seed)
    print(f"seed {args.seed}")

    with tempfile.TemporaryDirectory(prefix="remit-kill-") as folder:
        folder = Path(folder)
        write_corpus(folder / "corpus")

        def command(output, index=None):
            words = [binary, folder / "corpus", "-o", folder / output, "--part-bytes", 800, "--batch-tokens", 256, "--threads", 1]
            words += ["--on-bad-record", "skip"]
            if args.format:
                words += ["--format", args.format]
            if index is not None:
                words += ["--num-workers", NUM_WORKERS, "--worker-index", index]
            return [str(word) for word in words]

        def start(index):
            return subprocess.Popen(
                command("killed", index), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )

        begun = time.monotonic()
        subprocess.run(command("whole"), check=True, capture_output=True)
        alone = time.monotonic() - begun
        expected = digests(folder / "whole")
        print(f"undisturbed: {len(expected)} files in {alone:.2f} s")

        kills = rounds = resumed_in_part = 0
        while kills < args.kills:
            rounds += 1
            indices = list(range(NUM_WORKERS))
            if random.random() < 0.3:  # by mistake, a number is given twice
                indices.append(random.choice(indices))
            for _ in range(random.choice([1, 1, 2, 3])):
                workers = [start(index) for index in indices]
                moments = sorted((random.random() * alone, i) for i in range(len(workers)))
                begun = time.monotonic()
                for moment, i in moments:
                    time.sleep(max(0.0, begun + moment - time.monotonic()))
                    if workers[i].poll() is None:
                        workers[i].send_signal(signal.SIGKILL)
                for worker in workers:
                    stderr = worker.communicate()[1].decode()
                    kills += worker.returncode == -signal.SIGKILL
                    if worker.returncode not in (0, -signal.SIGKILL):
                        sys.exit(f"round {rounds}: a worker ended with {worker.returncode}:\n{stderr}")
            left = sum(1 for name in digests(folder / "killed") if name.startswith("part-"))
            resumed_in_part += 0 < left < len(expected) - 2
            last = subprocess.run(command("killed"), capture_output=True, text=True)
            if last.returncode != 0:
                sys.exit(f"round {rounds}: the run that had to finish ended with {last.returncode}:\n{last.stderr}")
            compare(expected, digests(folder / "killed"), rounds)
            shutil.rmtree(folder / "killed")
        print(f"{kills} kills in {rounds} rounds, {resumed_in_part} of them resumed with a part of the shards there: always byte-identical")


def write_corpus(folder):
    """The solutions of the fixtures: plain, in several gzip members, as Zstandard if Python has it, and a bad record."""
    folder.mkdir()
    lines = (ROOT / "fixtures" / "corpus" / "solutions" / "train-00.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:60]) + "{\n")
    members = (gzip.compress("".join(lines[at : at + 20]).encode(), mtime=0) for at in (60, 80, 100))
    (folder / "b.jsonl.gz").write_bytes(b"".join(members))
    try:
        subprocess.run(["zstd", "-q", "-o", folder / "c.jsonl.zst"], input="".join(lines[120:160]).encode(), check=True)
    except FileNotFoundError:
        pass


def digests(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def compare(expected, actual, rounds):
    problems = [f"{name} is missing" for name in expected.keys() - actual.keys()]
    problems += [f"{name} is left over" for name in actual.keys() - expected.keys()]
    problems += [f"{name} differs" for name in expected.keys() & actual.keys() if expected[name] != actual[name]]
    if problems:
        sys.exit(f"round {rounds}: " + "; ".join(sorted(problems)))


if __name__ == "__main__":
    main()
