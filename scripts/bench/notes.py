"""The words of docs/benchmarks.md that no benchmark measures."""

BEFORE = [
    "Where three numbers stand, they are the lowest, the median and the highest of the runs. Ratios are of medians of one run of a",
    "script, whose sides take turns, so that what else the machine does touches both.",
]

# By the key of a row whose target was missed.
MISSED = {}

AFTER = []
