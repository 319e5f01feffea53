"""One wheel has the package and the programs: installed into a new environment, it does what the README shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def test_a_new_environment_installs_the_wheel_and_runs_the_readmes_python(weights, tmp_path):
    folder = os.environ.get("REMIT_WHEELS")
    if not folder:
        pytest.skip("REMIT_WHEELS is not set: scripts/test.sh builds a wheel, and sets it")
    wheel = max(Path(folder).glob("remit-*.whl"), key=lambda path: path.stat().st_mtime)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_folder = tmp_path / "venv" / "bin"
    install = [bin_folder / "pip", "install", "--quiet", "--disable-pip-version-check", wheel, "pandas"]
    subprocess.run(install, check=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "REMIT_BIN")}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for program in ("remit-score", "remit-anneal", "remit-inspect"):
        assert run(bin_folder / program, "--version").startswith(program)
    os.symlink(weights, tmp_path / "weights")
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "import remit" in block
    rows = int(run(bin_folder / "python", "-c", f"{block}\nprint(len(rows))"))
    assert rows > 0
    # It finds the programs that came with it, and its types.
    check = "import remit; ws = remit.open('weights'); print(ws.tokens(0).num_rows, len(ws[0].input_ids))"
    assert len(set(run(bin_folder / "python", "-c", check).split())) == 1
    site = "import remit, os; print(os.path.exists(os.path.join(os.path.dirname(remit.__file__), 'py.typed')))"
    assert run(bin_folder / "python", "-c", site).strip() == "True"
