"""Bytes per token and seconds of what remit-score can store besides log-probs: one run of the same corpus for each option,
in turn, several times.

    REMIT_BIN=target/release python scripts/bench/signals.py [--model DIR] [--runs N]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "log-probs alone": (),
    "--entropy": ("--entropy",),
    "--entropy --entropy-temperature 2": ("--entropy", "--entropy-temperature", "2"),
    "--entropy --top-k 4, lowest fifth": ("--entropy", "--top-k", "4", "--top-k-where", "entropy<=q20"),
    "--entropy --top-k 16, lowest fifth": ("--entropy", "--top-k", "16", "--top-k-where", "entropy<=q20"),
    "--entropy --top-k 64, lowest fifth": ("--entropy", "--top-k", "64", "--top-k-where", "entropy<=q20"),
    "--entropy --top-k 16, all": ("--entropy", "--top-k", "16"),
}
BASE_OPTIONS = {"base, weights": (), "base, weights, --weight-bounds exact": ("--weight-bounds", "exact")}


def score(binary, corpus, out, *args):
    """(seconds with the models loaded, tokens, bytes of the shards)."""
    shutil.rmtree(out, ignore_errors=True)
    command = [binary / "remit-score", corpus, "-o", out, "--json", "--device", "cpu", *args]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    size = sum(path.stat().st_size for path in out.glob("part-*"))
    return report["seconds"], report["scored_tokens"], size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ROOT / "fixtures/models/demo-rl")
    parser.add_argument("--base", default=ROOT / "fixtures/models/demo-base")
    parser.add_argument("--corpus", default=ROOT / "fixtures/corpus")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target/release"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        seconds, sizes = {}, {}
        cases = {name: ("--rl-model", args.model, *options) for name, options in OPTIONS.items()}
        for name, options in BASE_OPTIONS.items():
            cases[name] = ("--rl-model", args.model, "--base-model", args.base, *options)
        for _ in range(args.runs):
            for name, options in cases.items():
                spent, tokens, sizes[name] = score(binary, args.corpus, out, *options)
                seconds.setdefault(name, []).append(spent)
        print(time.strftime("%Y-%m-%d"), f"{tokens:,} tokens, {args.runs} runs in turn, seconds: min / median / max")
        print("| stored | bytes per token | more | seconds | against the first of its kind |\n|---|---|---|---|---|")
        for name in cases:
            first = "base, weights" if name in BASE_OPTIONS else "log-probs alone"
            own = seconds[name]
            ratios = [a / b for a, b in zip(own, seconds[first], strict=True)]
            print(
                f"| {name} | {sizes[name] / tokens:.3f} | {(sizes[name] - sizes[first]) / tokens:+.3f} "
                f"| {min(own):.2f} / {statistics.median(own):.2f} / {max(own):.2f} | {statistics.median(ratios):.3f} |"
            )


if __name__ == "__main__":
    main()
