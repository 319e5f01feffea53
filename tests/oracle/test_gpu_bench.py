"""The step of scripts/bench/gpu.sh that runs compute-sanitizer, with a stand-in for it: there is no GPU here."""

import json
import os
import subprocess
import sys

import pytest
from oracle import ROOT

CLEAN = {
    "memcheck": "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors",
    "racecheck": "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
REFUSED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the documentation"


def program(path, text):
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)


def run_step(folder, said):
    """Runs the step with a compute-sanitizer that says this of each tool, or without one: (the exit code, the rows)."""
    tools, binaries = folder / "tools", folder / "bin"
    tools.mkdir()
    binaries.mkdir()
    for name in ("remit-score", "remit-kernel-tests"):
        program(binaries / name, "raise SystemExit('not to be run by itself')")
    if said is not None:
        program(
            tools / "compute-sanitizer",
            "import os, sys\n"
            "assert os.environ['REMIT_TEST_GPU'] == '1' and os.environ['PROPTEST_CASES'] == '1'\n"
            f"assert sys.argv[-3:] == [{str(binaries / 'remit-kernel-tests')!r}, 'kernels::conformance', 'kernels::cuda']\n"
            f"print({said!r}[sys.argv[sys.argv.index('--tool') + 1]])",
        )
    done = subprocess.run(
        [ROOT / "scripts/bench/gpu.sh", "--only", "compute-sanitizer", "--out", folder / "out"],
        env={**os.environ, "PATH": f"{tools}:/usr/bin:/bin", "PYTHON": sys.executable, "REMIT_BIN": str(binaries)},
        capture_output=True,
        text=True,
    )
    found = json.loads((folder / "out/gpu.json").read_text())
    return done.returncode, [(row["verdict"], row["value"]) for row in found["rows"]]


def test_a_machine_without_the_tool_skips_the_step_and_says_so(tmp_path):
    reason = "there is no compute-sanitizer on the PATH or in /usr/local/cuda"
    assert run_step(tmp_path, None) == (0, [("skipped", reason)] * 2)


def test_a_tool_that_refuses_the_machine_skips_the_step(tmp_path):
    code, rows = run_step(tmp_path, {"memcheck": REFUSED, "racecheck": REFUSED})
    assert code == 0
    assert [verdict for verdict, _ in rows] == ["skipped"] * 2
    assert "Device not supported" in rows[0][1]


def test_no_errors_pass(tmp_path):
    values = ["0 errors", "0 hazards displayed (0 errors, 0 warnings)"]
    assert run_step(tmp_path, CLEAN) == (0, [("pass", value) for value in values])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_an_error_of_either_kind_fails(tmp_path, tool):
    wrong = CLEAN | {tool: CLEAN[tool].replace("SUMMARY: 0", "SUMMARY: 3")}
    code, rows = run_step(tmp_path, wrong)
    assert code == 1
    assert [verdict for verdict, _ in rows] == ["fail" if name == tool else "pass" for name in CLEAN]


def test_silence_fails(tmp_path):
    code, rows = run_step(tmp_path, {"memcheck": "", "racecheck": ""})
    assert (code, rows[0][0]) == (1, "fail")
