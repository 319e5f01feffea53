"""Kills training runs at random moments, and holds what they end with against an undisturbed run.

    cargo build --release
    python3 scripts/kill_anneal.py 200          # about 3 minutes on 2 cores

In each round remit-anneal is killed with SIGKILL, once or several times in a row, and the same command started again,
which goes on from the newest checkpoint that is whole. Half of the kills wait until a checkpoint is being written. Now
and then the signal is SIGTERM, which has to exit with 75, or a byte of the newest checkpoint is flipped before the run
goes on, so that it has to go back to the one before. When a run has ended with 0, metrics.jsonl and eval.jsonl (timings
aside), config.json and the weights must be bit for bit those of a run that nobody disturbed, and no temporary file be
left.

In some rounds a run goes on with another micro-batch. From 1024 tokens on that must not change a bit, since gradients
are summed in units of up to 1024 whatever the micro-batch. With less, sums are added in another order: every tensor has
to agree to 1e-6 of its norm. (Not every single number: where a gradient all but vanishes, AdamW makes of its last bits
a step of some percent of the learning rate.) The argument is the number of kills that have to hit a live process.
"""

import argparse
import array
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "fixtures" / "models"
TEMP_SUFFIX = ".remit-tmp"
INTERRUPTED = 75
TIMINGS = {"tokens_per_second", "seconds"}
# Tokens: the usual size first; below UNIT_TOKENS sums are added in another order.
MICRO_BATCHES = (2048, 1024, 512, 256)
UNIT_TOKENS = 1024
TOLERANCE = 1e-6


class Kind(NamedTuple):
    """How a run is set up: its steps, and the rest of its options."""

    num_steps: int
    keep: int
    options: list


KINDS = {
    "usual": Kind(12, 2, ["--batch-tokens", 2048, "--save-every", 2, "--holdout", 0.1, "--eval-every", 5]),
    # Little work between two checkpoints, so that a good part of the time goes into writing them.
    "writing": Kind(30, 3, ["--batch-tokens", 128, "--save-every", 1]),
}


@dataclass
class Tally:
    """What happened so far."""

    rounds: int = 0
    kills: int = 0
    in_a_row: int = 0
    in_a_write: int = 0
    terms: int = 0
    flips: int = 0
    other_micro_batches: int = 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=10)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the moments; printed, so that a run can be repeated"
    )
    parser.add_argument(
        "--keep-on-failure", type=Path, metavar="DIR", help="where to copy the folder of a round that failed"
    )
    args = parser.parse_args()
    random.seed(args.seed)
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory(prefix="remit-kill-anneal-") as folder:
        try:
            kill_until(args.kills, Path(folder))
        except SystemExit:
            if args.keep_on_failure:
                shutil.copytree(folder, args.keep_on_failure, dirs_exist_ok=True)
            raise


def kill_until(wanted, folder):
    binaries = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
    corpus = folder / "corpus.jsonl"
    lines = (ROOT / "fixtures" / "corpus" / "solutions" / "train-00.jsonl").read_text().splitlines(keepends=True)
    corpus.write_text("".join(lines[:160]))
    command = [binaries / "remit-score", corpus, "-o", folder / "set", "--seq-len", 256, "--part-bytes", 8000]
    command += ["--rl-model", MODELS / "tiny-llama", "--base-model", MODELS / "tiny-llama-base"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)

    def command(kind, output, micro_batch=MICRO_BATCHES[0]):
        words = [binaries / "remit-anneal", "--weights", folder / "set", "-o", folder / output, "--threads", 1]
        words += ["--steps", KINDS[kind].num_steps, "--keep", KINDS[kind].keep, *KINDS[kind].options]
        return list(map(str, [*words, "--micro-batch-tokens", micro_batch]))

    alone = {}
    for kind in KINDS:
        begun = time.monotonic()
        done = subprocess.run(command(kind, kind), capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"the undisturbed run ended with {done.returncode}:\n{done.stderr}")
        alone[kind] = time.monotonic() - begun
        print(f"{kind}, undisturbed: {KINDS[kind].num_steps} steps in {alone[kind]:.2f} s")

    tally = Tally()
    while tally.kills < wanted:
        tally.rounds += 1
        kind = random.choice(list(KINDS))
        sizes = MICRO_BATCHES if random.random() < 0.25 else MICRO_BATCHES[:1]
        output = folder / "killed"
        used = interrupted_run(lambda size: command(kind, "killed", size), sizes, alone[kind], kind, output, tally)
        # Also when it has ended: the same command has to find that nothing is left to do.
        used.append(random.choice(sizes))
        last = subprocess.run(command(kind, "killed", used[-1]), capture_output=True, text=True)
        if last.returncode != 0:
            sys.exit(f"round {tally.rounds}: the run that had to finish ended with {last.returncode}:\n{last.stderr}")
        tally.other_micro_batches += set(used) != {MICRO_BATCHES[0]}
        problems = differences(folder / kind, output, KINDS[kind].keep, exact=min(used) >= UNIT_TOKENS)
        if problems:
            sys.exit(f"round {tally.rounds} ({kind}): " + "; ".join(problems))
        shutil.rmtree(output)
    print(
        f"{tally.kills} kills in {tally.rounds} rounds, {tally.in_a_row} of them straight after another, "
        f"{tally.in_a_write} while a checkpoint was written; {tally.terms} SIGTERMs, "
        f"{tally.flips} damaged checkpoints, {tally.other_micro_batches} rounds with another micro-batch: "
        "every run went on and came to the same end"
    )


def interrupted_run(command_of, sizes, alone, kind, output, tally):
    """Starts and interrupts a run some number of times, or until it ends; returns the micro-batches it had."""
    used = []
    killed_before = False
    for attempt in range(random.choice([1, 1, 2, 3, 5])):
        if attempt > 0 and random.random() < 0.15:
            tally.flips += flip_newest(output / "checkpoints")
        sent = signal.SIGTERM if random.random() < 0.15 else signal.SIGKILL
        used.append(random.choice(sizes))
        aims_at_write = random.random() < 0.5
        log = output.with_suffix(".stderr")
        with log.open("w") as stderr:
            run = subprocess.Popen(
                command_of(used[-1]), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
            left = 1 - lines_of(output / "metrics.jsonl") / KINDS[kind].num_steps
            moment = time.monotonic() + random.random() * alone * (0.2 + 0.8 * left)
            # Before its first line a run may not have got to where it listens to SIGTERM.
            while sent == signal.SIGTERM and log.stat().st_size == 0 and run.poll() is None:
                time.sleep(0.0005)
            time.sleep(max(0.0, moment - time.monotonic()))
            while aims_at_write and not temporary_files(output / "checkpoints") and run.poll() is None:
                pass
            time.sleep(random.random() * 0.002)
            if run.poll() is None:
                run.send_signal(sent)
            run.wait()
        killed = run.returncode == -signal.SIGKILL
        tally.kills += killed
        tally.in_a_row += killed and killed_before
        tally.in_a_write += killed and bool(temporary_files(output / "checkpoints"))
        tally.terms += run.returncode == INTERRUPTED
        killed_before = killed
        if run.returncode == 0:
            break
        if not killed and (sent, run.returncode) != (signal.SIGTERM, INTERRUPTED):
            sys.exit(f"round {tally.rounds}: a run ended with {run.returncode}:\n{log.read_text()}")
    return used


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def temporary_files(folder):
    try:
        return [
            entry.name for entry in os.scandir(folder) if entry.name.startswith(".") or entry.name.endswith(TEMP_SUFFIX)
        ]
    except FileNotFoundError:
        return []


def flip_newest(folder):
    """Flips a bit of the newest whole checkpoint, if there is another to go back to. Returns whether it did."""
    digests = sorted(folder.glob("step-*.b3"))
    if len(digests) < 2:
        return False
    path = digests[-1].with_suffix("")
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return True


def without_timings(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def tensors(path):
    """The tensors of a safetensors file by name, all of them f32."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", name
            found[name] = array.array("f")
            found[name].frombytes(content[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]])
    return found


def largest_difference(a, b):
    """Of the tensors of two files: norm of the difference by the norm, the largest."""
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    return max(math.dist(a[name], b[name]) / math.hypot(*a[name]) for name in a)


def close(a, b, key=None):
    """Whether two values of JSON agree: numbers nearly."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], key) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        # A weight that lies at a bound by a hair counts on one side only.
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=0.01 if key == "weight_at_bounds" else 0)
    return a == b


def differences(whole, killed, keep, exact):
    """What is not as in the undisturbed run's folder, in words."""
    problems = []
    names = [{path.name for path in folder.iterdir()} for folder in (whole, killed)]
    problems += [f"{name} is missing" for name in sorted(names[0] - names[1])]
    problems += [f"{name} is left over" for name in sorted(names[1] - names[0])]
    problems += [f"{path} is left over" for path in sorted(killed.rglob(f"*{TEMP_SUFFIX}"))]
    problems += [f"{path} is left over" for path in sorted(killed.rglob(".*"))]
    found = len(list((killed / "checkpoints").glob("step-*.b3")))
    if found > keep:
        problems.append(f"{found} checkpoints were kept instead of {keep}")
    if problems:
        return problems
    for name in ("metrics.jsonl", "eval.jsonl"):
        if not (whole / name).exists():
            continue
        expected, actual = without_timings(whole / name), without_timings(killed / name)
        if not (expected == actual if exact else close(expected, actual)):
            problems.append(f"{name} differs")
    if (whole / "config.json").read_bytes() != (killed / "config.json").read_bytes():
        problems.append("config.json differs")
    if exact:
        if (whole / "model.safetensors").read_bytes() != (killed / "model.safetensors").read_bytes():
            problems.append("model.safetensors differs")
    else:
        apart = largest_difference(whole / "model.safetensors", killed / "model.safetensors")
        if not apart <= TOLERANCE:
            problems.append(f"a tensor differs by {apart:.1e} of its norm, more than {TOLERANCE:.0e}")
    return problems


if __name__ == "__main__":
    main()
