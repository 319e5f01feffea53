"""The acceptance on a GPU: runs the steps one after another and prints the table. Started by gpu.sh, which see."""

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Callable, NamedTuple

import accuracy
import pack
import sanitizers
import speed
import training
from bench import Bench, Failed, Lacking, OutOfTime, Skipped
from sizes import EMULATED, Sizes
from table import FAIL, NOT_MEASURED, NOT_RUN, NOTED, PASS, SKIPPED, Table

# Everything, to leave some of 9 minutes for unpacking.
SECONDS = 520
# On an emulated GPU nothing is timed, and a step may take as much longer.
EMULATED_PATIENCE = 20


class Step(NamedTuple):
    """A part of the run: its time at most, and the checks that it reports. One that fails does not end the others."""

    name: str
    seconds: int
    run: Callable
    checks: tuple


STEPS = (
    Step("environment", 40, speed.environment, speed.ENVIRONMENT),
    Step("ceilings", 30, speed.ceilings, speed.CEILINGS),
    Step("models", 60, speed.models, speed.MODELS),
    Step("kernels", 60, accuracy.kernels, accuracy.KERNELS),
    Step("self-test", 80, accuracy.self_test, accuracy.SELF_TEST),
    Step("log-probs of families", 40, accuracy.families, accuracy.FAMILIES),
    Step("log-probs of shapes", 60, accuracy.shapes, accuracy.SHAPES),
    Step("invariance", 60, accuracy.invariance, accuracy.INVARIANCE),
    Step("scoring OLMo-2-1B's shape", 110, speed.scoring_olmo, speed.OLMO),
    Step("scoring Qwen3-0.6B's shape", 50, speed.scoring_qwen, speed.QWEN),
    Step("training steps", 70, training.steps, training.STEPS_CHECKS),
    Step("training OLMo-2-1B's shape", 130, training.speed, training.SPEED),
    # The last one: it takes what time is left, and none from what is measured.
    Step("compute-sanitizer", 90, sanitizers.sanitizers, sanitizers.CHECKS),
)


def run_step(step, bench, table, end):
    """Runs a step until its time or that of the whole run is over. Each of its checks gets one row, whatever happens."""
    started = time.monotonic()
    allowed = step.seconds * (EMULATED_PATIENCE if bench.emulated else 1)
    bench.deadline = min(started + allowed, end)
    done = set()

    def report(check, value, ok):
        assert check in step.checks and check not in done, check
        done.add(check)
        table.card = bench.facts.get("card", table.card)
        unmeasured = check.card_only and bench.emulated
        verdict = NOT_MEASURED if unmeasured else NOTED if ok is None else PASS if ok else FAIL
        table.add(step.name, check, "" if unmeasured else value, verdict)

    verdict, reason = FAIL, "the step did not report it"
    try:
        step.run(bench, report)
    except OutOfTime:
        verdict, reason = NOT_RUN, f"out of time after {time.monotonic() - started:.0f} s"
    except Lacking as error:
        verdict, reason = NOT_RUN, str(error)
    except Skipped as error:
        verdict, reason = SKIPPED, str(error)
    except Failed as error:
        reason = str(error)
    except Exception as error:
        bench.log.write(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}"
    for check in step.checks:
        if check not in done:
            expected = check.card_only and bench.emulated and reason == "the step did not report it"
            table.add(step.name, check, "" if expected else reason, NOT_MEASURED if expected else verdict)
    table.seconds[step.name] = round(time.monotonic() - started, 1)


def main():
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.xz", help="write all that a GPU machine needs, and exit")
    parser.add_argument("--emulated", action="store_true", help="tiny shapes on an emulated GPU; speed is not measured")
    parser.add_argument("--out", type=Path, help="folder for gpu.json, gpu.txt and gpu.log [default: $OUT, or gpu-results]")
    parser.add_argument("--seconds", type=float, help=f"time of the whole run [default: {SECONDS}]")
    parser.add_argument("--only", action="append", choices=[step.name for step in STEPS], help="a step; may be repeated")
    args = parser.parse_args()
    if args.pack:
        return pack.pack(args.pack)
    end = time.monotonic() + (args.seconds or SECONDS * (EMULATED_PATIENCE if args.emulated else 1))
    out = args.out or Path(os.environ.get("OUT") or "gpu-results")
    out.mkdir(parents=True, exist_ok=True)
    table = Table(out, args.emulated)
    with tempfile.TemporaryDirectory(prefix="remit-gpu-") as folder, open(out / "gpu.log", "w") as log:
        bench = Bench(Path(folder), log, args.emulated, EMULATED if args.emulated else Sizes())
        try:
            for step in STEPS:
                if not args.only or step.name in args.only:
                    run_step(step, bench, table, end)
        finally:
            bench.close()
    table.save()
    text = table.text()
    (out / "gpu.txt").write_text(text + "\n")
    print(text)
    sys.exit(0 if table.passed() else 1)


if __name__ == "__main__":
    main()
