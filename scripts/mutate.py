"""Damages files of every kind that remit reads, and holds what the programs make of them against the rules.

    cargo build --release --locked -p remit --bins --features object-store
    cargo build --release --locked -p remit-fuzz
    python3 scripts/mutate.py 3000 --seed 1          # about 2 minutes on 2 cores

The packages are in scripts/requirements.txt. An input is an intact file with one or several changes of one kind: bits,
cuts, ranges, lengths, and changes that keep the structure of JSON, Thrift and flatbuffers. It is read by one or several
command lines. Of every hundred inputs as many as `--programs` says are read by the programs as they are installed, each
a process of its own; the others by the same code in the one process of fuzz/, which is some times faster.

What may come of it: exit code 0, and what the format allows a reader to accept; or a refusal, which is one of the exit
codes that fit, one line that begins with `error: `, and in it the name of the file. Everything else is a finding: a signal, a
panic, more than 10 seconds of a core, more than 500 MB, an error without a name, a control character on its way to a
terminal, and damage in a set or a checkpoint that goes unnoticed. Findings are printed, and their files kept in
`--keep`. The exit code is 1 if there are any.
"""

import argparse
import collections
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from mutations import plain, runners, targets
from mutations.seeds import programs

ROOT = Path(__file__).resolve().parents[1]
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", type=int, nargs="?", default=3000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="printed, so that a run can be repeated")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every Nth input from the Ith on, for several processes")
    parser.add_argument("--programs", type=int, default=10, metavar="PERCENT", help="share that is read by the installed programs")
    parser.add_argument("--target", action="append", help="only these; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder for the files of findings")
    parser.add_argument("--shm", default="/dev/shm", help="where files are damaged; memory is faster than a disk")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    binaries = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
    where = args.shm if os.path.isdir(args.shm) else None
    with tempfile.TemporaryDirectory(prefix="remit-mutate-", dir=where) as folder:
        campaign = Campaign(args, binaries, Path(folder))
        try:
            sys.exit(campaign.run())
        finally:
            campaign.harness.close()
            campaign.helper.close()


class Stopped(BaseException):
    """SIGTERM: what was found so far is told."""


def stop(*_):
    raise Stopped


class Campaign:
    def __init__(self, args, binaries, folder):
        self.args, self.folder, self.random = args, folder, random.Random(args.seed)
        self.programs = runners.Programs(binaries, folder)
        self.harness = runners.Harness(binaries, folder)
        self.files = folder / "files"
        self.files.mkdir()
        (folder / "harness-stderr").touch()
        # What prepares a file is not what reads it.
        self.helper = runners.Harness(binaries, folder / "helper")
        (folder / "helper").mkdir()
        (folder / "helper" / "harness-stderr").touch()
        self.targets = targets.make(self.files, programs(binaries), self.helper)
        if args.target:
            self.targets = [target for target in self.targets if target.name in args.target]
        #: By target: inputs, those of the programs, accepted, refused, findings.
        self.counts = {target.name: collections.Counter() for target in self.targets}
        self.kinds = collections.Counter()
        self.findings, self.seen = 0, collections.Counter()

    def check_intact(self):
        """Whatever is damaged is accepted before."""
        failed = []
        for target in self.targets:
            for case in target.cases:
                if case.path.name.startswith("bad-"):
                    continue
                for commands in case.commands:
                    self.place(case, case.data)
                    for words in commands:
                        end = self.harness.run(words)
                        if end.code != 0:
                            failed.append(f"{' '.join(words)}: {end.how or end.code}\n{end.stderr.decode()}")
                    self.clean(case)
        if failed:
            sys.exit("\n".join(failed) + f"\n{len(failed)} command lines fail though nothing is damaged")

    def place(self, case, data):
        case.path.parent.mkdir(parents=True, exist_ok=True)
        case.path.write_bytes(data)
        if case.prepare:
            case.prepare(data)

    def clean(self, case):
        for output in case.outputs:
            if output.is_dir():
                shutil.rmtree(output)
            else:
                output.unlink(missing_ok=True)

    def run(self):
        first, step = map(int, self.args.part.split("/"))
        print(f"seed {self.args.seed}, part {first} of {step} of {self.args.inputs} inputs", flush=True)
        begun = time.monotonic()
        try:
            if first == 0:
                self.check_intact()
            self.inputs(range(first, self.args.inputs, step), begun)
        except Stopped:
            print("ended by SIGTERM")
        self.harness.close()
        self.report(time.monotonic() - begun)
        return 1 if self.findings else 0

    def inputs(self, numbers, begun):
        told, done = begun, 0
        shares = [target.share for target in self.targets]
        for number in numbers:
            # An input depends on the seed and its number alone.
            self.random.seed(f"{self.args.seed} {number}")
            target = self.random.choices(self.targets, shares)[0]
            self.input(number, target)
            done += 1
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{done} inputs in {told - begun:.0f} s, {self.findings} findings", flush=True)

    def input(self, number, target):
        rng, counts = self.random, self.counts[target.name]
        case = rng.choice(target.cases)
        kind = rng.choice(target.kinds)
        others = [other.data for other in rng.sample(target.cases, min(3, len(target.cases)))]
        runner = self.programs if rng.random() * 100 < self.args.programs else self.harness
        commands = rng.choice(case.commands)
        try:
            data = kind(case.data, rng, others)
        except RecursionError:  # deeper than Python follows JSON
            data = plain.flipped_bits(case.data, rng, others)
        self.place(case, data)
        ends = [runner.run(words) for words in commands]
        problem = next(filter(None, (self.problem(target, case, end) for end in ends)), None)
        problem = problem or (case.check and case.check(data, ends))
        counts["inputs"] += 1
        counts[runner.name] += 1
        counts["command lines"] += len(ends)
        counts["accepted" if all(end.code == 0 for end in ends) else "refused"] += 1
        self.kinds[kind.__name__] += 1
        if problem:
            counts["findings"] += 1
            self.found(number, target, case, kind, data, commands, ends, problem, runner)
        self.place(case, case.data)
        self.clean(case)

    def problem(self, target, case, end):
        """What is wrong with how a command line ended, in a few words."""
        if end.code is None:
            return end.how
        stderr = end.stderr.decode("utf-8", "replace")
        if "panicked" in stderr or "internal error" in stderr or "overflowed its stack" in stderr:
            return "panic"
        if end.code not in target.codes:
            return f"exit code {end.code}"
        for stream, said in (("stdout", end.stdout), ("stderr", end.stderr)):
            if raw := CONTROL.search(said):
                return f"{raw.group()} is raw on {stream}"
        if end.code != 0:
            errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
            if len(errors) != 1:
                return f"{len(errors)} lines begin with error"
            error = stderr[stderr.index("error: ") :]
            # A model is named by its folder.
            if not any(name in error for name in case.names or (case.path.name, case.path.parent.name)):
                return "the error does not name the file"
        if end.seconds > runners.MAX_SECONDS:
            return f"more than {runners.MAX_SECONDS} seconds"
        if end.peak_bytes > runners.MAX_BYTES:
            return f"more than {runners.MAX_BYTES >> 20} MB"
        return None

    def found(self, number, target, case, kind, data, commands, ends, problem, runner):
        self.findings += 1
        what = f"{target.name}: {problem}"
        self.seen[what] += 1
        if self.seen[what] > 20:
            return
        self.args.keep.mkdir(parents=True, exist_ok=True)
        kept = self.args.keep / f"{self.args.seed}-{number}-{case.path.name}"
        kept.write_bytes(data)
        print(f"FINDING {number}: {what}; {kind.__name__} of {case.path.relative_to(self.files)}, {runner.name}, kept as {kept}")
        for words, end in zip(commands, ends):
            print(f"  {' '.join(words)}\n    {end.how or end.code}, {end.seconds:.1f} s, {end.peak_bytes >> 20} MB")
            tail = end.stderr.decode("utf-8", "backslashreplace").strip().splitlines()[-4:]
            print("".join(f"    | {line[:300]}\n" for line in tail), end="", flush=True)

    def report(self, clock):
        columns = ("inputs", "programs", "harness", "command lines", "accepted", "refused", "findings")
        print(f"\n{'':28}" + "".join(f"{column:>15}" for column in columns))
        total = collections.Counter()
        for name, counts in self.counts.items():
            total.update(counts)
            print(f"{name:28}" + "".join(f"{counts[column]:>15,}" for column in columns))
        print(f"{'total':28}" + "".join(f"{total[column]:>15,}" for column in columns))
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(self.kinds.items()))
        print(f"\nkinds: {kinds}")
        for what, count in sorted(self.seen.items()):
            print(f"finding: {what}: {count}")
        hours = (self.programs.seconds + self.harness.seconds + self.helper.seconds + time.process_time()) / 3600
        print(f"seed {self.args.seed}: {clock:.0f} s on the clock, {hours:.2f} hours of a core, this script included")


if __name__ == "__main__":
    main()
