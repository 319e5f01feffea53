"""The step that runs the kernels' tests under NVIDIA's compute-sanitizer, where the machine has it."""

import glob
import re
import shutil

from accuracy import KERNEL_TESTS, kernel_tests
from bench import Failed, OutOfTime, Skipped
from table import Check

CHECKS = (
    Check("memory that is out of bounds or not aligned (memcheck)", "0 errors", card_only=True),
    Check("races in shared memory (racecheck)", "0 errors", card_only=True),
)
TOOLS = ("memcheck", "racecheck")
# Of each operation's random cases, which are slow under it.
CASES = 1
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) .*")


def find_sanitizer():
    """The program: of the PATH, or where toolkits put it."""
    places = sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer")) + sorted(
        glob.glob("/usr/local/cuda*/compute-sanitizer/compute-sanitizer")
    )
    return shutil.which("compute-sanitizer") or next(iter(places), None)


def judged(output):
    """(the summary, whether it is of no errors) of what compute-sanitizer wrote."""
    found = SUMMARY.search(output)
    if found is None:
        said = [line.strip("= ") for line in output.splitlines() if line.startswith("=========")]
        if any("not supported" in line for line in said):
            raise Skipped(f"compute-sanitizer refuses this machine: {said[-1]}")
        raise Failed(f"compute-sanitizer came to no summary: {(said or ['it said nothing'])[-1]}")
    return found.group().split("SUMMARY: ")[1], found.group(1) == "0"


def sanitizers(bench, report):
    """Every operation on the card once more, watched."""
    if bench.emulated:
        return
    program = kernel_tests(bench)
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise Skipped("there is no compute-sanitizer on the PATH or in /usr/local/cuda")
    environment = {**bench.remit_environment, "REMIT_TEST_GPU": "1", "PROPTEST_CASES": str(CASES)}
    for check, tool in zip(CHECKS, TOOLS):
        # The program asks the driver for things that may be missing, which is no error.
        command = [sanitizer, "--tool", tool, "--report-api-errors", "no", program, *KERNEL_TESTS]
        try:
            output = bench.run(command, environment)
        except OutOfTime:
            raise Skipped(f"{tool} was not through when the time was over") from None
        report(check, *judged(output))
