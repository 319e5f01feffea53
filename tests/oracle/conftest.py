"""Runs the built binaries and compares what they write with transformers, pyarrow, pandas and DuckDB.

    cargo build --release
    REMIT_BIN=target/release python -m pytest tests/oracle

The packages are in scripts/requirements.txt. REMIT_BIN is the folder of the binaries; target/release when unset.
"""

import os
import subprocess
import sys

import pytest
import torch

from oracle import BINARIES, ROOT

torch.set_num_threads(os.cpu_count() or 1)
# The package, for what docs/ show of it.
sys.path.insert(0, str(ROOT / "python"))


@pytest.fixture(scope="session")
def root():
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def models(root):
    return root / "fixtures" / "models"


@pytest.fixture(scope="session")
def corpus(root):
    return root / "fixtures" / "corpus"


@pytest.fixture(scope="session")
def run():
    """run("remit-score", *args): the finished process; fails the test with both streams when it does not exit with 0."""

    def call(name, *args, cwd=ROOT):
        binary = BINARIES / name
        if not binary.exists():
            pytest.fail(f"{binary} does not exist: build it, or set REMIT_BIN to the folder that holds it")
        command = [str(binary), *map(str, args)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(
                f"{' '.join(command)}\nin {cwd} exited with {done.returncode}\n"
                f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    return call


@pytest.fixture(scope="session")
def demo_weights(run, corpus, tmp_path_factory):
    """fixtures/corpus scored with the built-in pair and default settings but --exact; read it, do not write to it."""
    out = tmp_path_factory.mktemp("demo") / "weights"
    run("remit-score", corpus, "-o", out, "--seq-len", 512, "--exact")
    return out
