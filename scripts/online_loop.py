"""Runs the paper's online loop in PyTorch, and remit on the same rows: losses and weights have to be the same.

    cargo build --release
    python scripts/online_loop.py                         # half a minute on 2 cores
    python scripts/online_loop.py --plot online_loop.svg  # draws losses and differences as well

In the online loop the RL model runs in every step, the weights come from the learner as it is then, and no gradient
goes through them. remit scores the corpus once, and remit-anneal --weighting dynamic reads what was stored: with all
bits (--exact), and with the default 12. Pair: fixtures/models/tiny-llama-base and a copy with noise. Both sides take 50
steps over the same rows in the same order (`remit-inspect order`), with the same AdamW. `--weighting uniform` and
`static` are held against a next-token loop in PyTorch, and against one whose per-token loss is multiplied by the stored
column.

Printed are the losses of every step, then for each comparison the largest relative difference of a loss, and of a final
tensor by norms. The exit code is 1 if one is above its limit.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))

from oracle import metrics_of, perturbed_copy, read_rows, stored_tensors, train_in_pytorch  # noqa: E402

LEARNER = ROOT / "fixtures" / "models" / "tiny-llama-base"
# Of the noise that makes the reference: three weights of ten lie between the bounds, where they are sensitive.
NOISE = 0.003
STEPS, LR, SEED = 50, 1e-3, 5
SEQ_LEN, BATCH_TOKENS, MICRO_BATCH_TOKENS = 96, 768, 256
NUM_DOCUMENTS = 60


class Case(NamedTuple):
    """A run of remit-anneal, the loop in PyTorch that it is held against, and how far they may be apart."""

    weighting: str
    set_name: str
    loop: str
    loss_limit: float
    tensor_limit: float


CASES = {
    "dynamic, --exact": Case("dynamic", "exact", "online", 1e-4, 1e-3),
    "dynamic, 12 bits": Case("dynamic", "rounded", "online", 1e-3, 1e-3),
    "uniform": Case("uniform", "exact", "uniform", 1e-4, 1e-3),
    "static": Case("static", "exact", "static", 1e-4, 1e-3),
}


class Comparison(NamedTuple):
    """Losses of every step on both sides, largest relative differences, and the mean share of weights at a bound."""

    ours: list
    theirs: list
    loss_difference: float
    tensor_difference: float
    at_bounds: float


def run_binary(name, *arguments):
    """Runs one of the commands; ends the script with what it wrote when it fails."""
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve() / name
    done = subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} exited with {done.returncode}:\n{done.stderr}")
    return done


class Experiment:
    """The pair and its two sets in a folder, and both sides' training. `run(name, *arguments)` runs a command."""

    def __init__(self, folder, run, steps=STEPS):
        self.folder, self.run, self.steps = Path(folder), run, steps
        self.loops = {}
        self.reference = perturbed_copy(LEARNER, self.folder / "reference", NOISE, seed=3)
        corpus = self.folder / "corpus"
        corpus.mkdir()
        lines = (ROOT / "fixtures" / "corpus" / "solutions" / "train-00.jsonl").read_text().splitlines()
        (corpus / "some.jsonl").write_text("\n".join(random.Random(1).sample(lines, NUM_DOCUMENTS)) + "\n")
        (corpus / "visit.txt").write_text((ROOT / "fixtures" / "corpus" / "prose" / "visit.txt").read_text())
        for name, more in (("exact", ["--exact"]), ("rounded", [])):
            run("remit-score", corpus, "-o", self.folder / name, "--rl-model", self.reference, "--base-model", LEARNER,
                "--seq-len", SEQ_LEN, *more)  # fmt: skip

    def order(self):
        """The row_ids of every step, as remit-anneal takes them."""
        done = self.run("remit-inspect", "order", self.folder / "exact", "--seed", SEED, "--batch-tokens", BATCH_TOKENS,
                        "--steps", self.steps)  # fmt: skip
        return [json.loads(line)["row_ids"] for line in done.stdout.splitlines()]

    def in_pytorch(self, loop):
        """(metrics of the steps, final parameters) of a loop in PyTorch: online, uniform or static. Run once each."""
        if loop not in self.loops:
            rows = read_rows(self.folder / "exact")
            self.loops[loop] = train_in_pytorch(
                LEARNER, rows, loop, self.steps, LR, order=self.order(), reference=self.reference
            )
        return self.loops[loop]

    def in_remit(self, weighting, set_name):
        """(metrics of the steps, final parameters) of remit-anneal."""
        output = self.folder / f"annealed-{weighting}-{set_name}"
        self.run("remit-anneal", "--weights", self.folder / set_name, "--model", LEARNER, "-o", output, "--weighting",
                 weighting, "--steps", self.steps, "--lr", LR, "--seed", SEED, "--batch-tokens", BATCH_TOKENS,
                 "--micro-batch-tokens", MICRO_BATCH_TOKENS, "--weight-decay", 0.1, "--clip", 1.0)  # fmt: skip
        return metrics_of(output), stored_tensors(output)

    def compare(self, case):
        """A Comparison for a Case."""
        ours, our_tensors = self.in_remit(case.weighting, case.set_name)
        theirs, their_tensors = self.in_pytorch(case.loop)
        losses = [[step["loss"] for step in side] for side in (ours, theirs)]
        assert len(losses[0]) == len(losses[1]) == self.steps
        loss_difference = max(abs(a / b - 1) for a, b in zip(*losses))
        tensor_difference = max(
            ((our_tensors[name].double() - t.double()).norm() / t.double().norm()).item()
            for name, t in their_tensors.items()
        )
        at_bounds = sum(step["weight_at_bounds"] for step in ours) / self.steps
        return Comparison(*losses, loss_difference, tensor_difference, at_bounds)


def polyline(points, colour, more=""):
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" {more}/>'


def text(x, y, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'


def svg(comparisons):
    """A drawing: losses of the online loop and of remit-anneal above, their relative differences below."""
    exact, rounded = comparisons["dynamic, --exact"], comparisons["dynamic, 12 bits"]
    steps = len(exact.ours)
    left, right, width = 70, 20, 760
    top, upper, gap, lower = 50, 250, 60, 170
    height = top + upper + gap + lower + 50

    def x(step):
        return left + (width - left - right) * (step - 1) / max(1, steps - 1)

    everything = exact.ours + exact.theirs
    low, high = math.floor(min(everything) * 10) / 10, math.ceil(max(everything) * 10) / 10

    def y_loss(loss):
        return top + upper * (high - loss) / (high - low)

    floor = 1e-9
    begin = top + upper + gap

    def y_difference(value):  # from 1e-9 to 1e-2
        return begin + lower * (-2 - math.log10(max(value, floor))) / 7

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(
            left,
            20,
            "The online loop in PyTorch, and remit-anneal --weighting dynamic on stored log-probs",
            'font-size="14"',
        ),
        text(left, top - 10, "weighted loss, nats a target"),
        text(left, begin - 10, "relative difference of the loss from the online loop&#8217;s"),
        text(width - right, height - 10, "step", 'text-anchor="end"'),
    ]
    for i in range(5):
        loss = low + (high - low) * i / 4
        parts.append(polyline([(left, y_loss(loss)), (width - right, y_loss(loss))], "#dddddd"))
        parts.append(text(left - 8, y_loss(loss) + 4, f"{loss:.2f}", 'text-anchor="end"'))
    for exponent in range(-9, -1):
        y = y_difference(10.0**exponent)
        parts.append(polyline([(left, y), (width - right, y)], "#dddddd"))
        parts.append(text(left - 8, y + 4, f"1e{exponent}", 'text-anchor="end"'))
    for step in sorted({1, *range(10, steps + 1, 10)}):
        parts.append(text(x(step), height - 28, str(step), 'text-anchor="middle"'))
    parts.append(
        polyline([(x(i + 1), y_loss(loss)) for i, loss in enumerate(exact.theirs)], "#1f77b4", 'stroke-width="2"')
    )
    parts += [
        f'<circle cx="{x(i + 1):.1f}" cy="{y_loss(loss):.1f}" r="2.5" fill="none" stroke="#d62728"/>'
        for i, loss in enumerate(exact.ours)
    ]
    for comparison, colour in ((exact, "#d62728"), (rounded, "#2ca02c")):
        values = [abs(a / b - 1) for a, b in zip(comparison.ours, comparison.theirs)]
        parts.append(polyline([(x(i + 1), y_difference(value)) for i, value in enumerate(values)], colour))
    for limit, colour in ((1e-4, "#d62728"), (1e-3, "#2ca02c")):
        y = y_difference(limit)
        parts.append(polyline([(left, y), (width - right, y)], colour, 'stroke-dasharray="6 4"'))
    for i, (words, colour) in enumerate((("online loop, PyTorch", "#1f77b4"), ("remit-anneal, --exact", "#d62728"),
                                         ("remit-anneal, 12 bits (limits: dashed)", "#2ca02c"))):  # fmt: skip
        parts.append(text(width - right - 240, top + 18 + 16 * i, words, f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="where to draw losses and differences")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # on matrices this small a second thread gains nothing
    with tempfile.TemporaryDirectory(prefix="remit-online-") as folder:
        experiment = Experiment(folder, run_binary, args.steps)
        comparisons = {name: experiment.compare(case) for name, case in CASES.items()}
    exact, rounded = comparisons["dynamic, --exact"], comparisons["dynamic, 12 bits"]
    print(f"{'step':>4} {'online loop':>12} {'--exact':>12} {'12 bits':>12} {'difference':>11} {'of 12 bits':>11}")
    for step, (online, ours, of_rounded) in enumerate(zip(exact.theirs, exact.ours, rounded.ours), 1):
        print(
            f"{step:>4} {online:>12.8f} {ours:>12.8f} {of_rounded:>12.8f} {abs(ours / online - 1):>11.1e} "
            f"{abs(of_rounded / online - 1):>11.1e}"
        )
    print(f"weights at a bound: {exact.at_bounds:.0%}")
    failed = False
    for name, comparison in comparisons.items():
        case = CASES[name]
        print(
            f"{name:<17} against the {case.loop} loop: loss apart by {comparison.loss_difference:.1e} (at most "
            f"{case.loss_limit:.0e}), final tensors by {comparison.tensor_difference:.1e} "
            f"(at most {case.tensor_limit:.0e})"
        )
        failed |= comparison.loss_difference > case.loss_limit or comparison.tensor_difference > case.tensor_limit
    if args.plot:
        args.plot.write_text(svg(comparisons))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
