"""What the benchmarks write for scripts/bench/page.py: a file of JSON lines, one a measurement."""

import json
import os
import statistics
from pathlib import Path

# The file to append to; without it nothing is written.
FILE = "REMIT_BENCH_RESULTS"


def add(section, what, unit, ours, theirs=None, peer=None, value=None, at_least=None, at_most=None, key=None):
    """A row of a table: values of remit's runs, and of the peer's in the same run, if there is one.

    `value` is what the target is about: a ratio of medians unless it is given. `key` names the row for notes.
    """
    path = os.environ.get(FILE)
    if not path:
        return
    if value is None and theirs:
        value = statistics.median(ours) / statistics.median(theirs)
    row = dict(section=section, what=what, unit=unit, ours=list(ours), theirs=list(theirs or []), peer=peer, value=value)
    row |= dict(at_least=at_least, at_most=at_most, key=key or what)
    with Path(path).open("a") as out:
        print(json.dumps(row), file=out)
