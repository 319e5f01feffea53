"""Tests of the Python package: what it reads, computes and refuses, against the programs and the libraries it is for.

    cargo build --release
    REMIT_BIN=target/release python -m pytest tests/python

The packages are in scripts/requirements.txt. REMIT_BIN is the folder of the programs; target/release when unset.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
os.environ["REMIT_BIN"] = str(BINARIES)
sys.path.insert(0, str(ROOT / "python"))
sys.path.insert(0, str(ROOT / "examples"))
# Also in processes that the tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "python"), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
)

LEARNER = ROOT / "fixtures" / "models" / "demo-base"


def program(name, *arguments, code=0):
    """Runs a program; returns what it wrote to stdout, or with another code than 0, to stderr."""
    done = subprocess.run([BINARIES / name, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, f"{name} {arguments} exited with {done.returncode}:\n{done.stderr}"
    return done.stderr if code else done.stdout


def objects(text):
    """The JSON objects of lines."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small corpus: documents of two files, one longer than a row, and ids with masks."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = (ROOT / "fixtures/corpus/solutions/train-00.jsonl").read_text().splitlines()[:400]
    (folder / "solutions.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "visit.txt").write_text((ROOT / "fixtures/corpus/prose/visit.txt").read_text() * 2)
    masked = [
        {"input_ids": list(range(3, 3 + n)), "loss_mask": [i % 3 != n % 2 for i in range(n)]} for n in range(8, 40)
    ]
    (folder / "masked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in masked))
    return folder


@pytest.fixture(scope="session")
def score(corpus, tmp_path_factory):
    """score("name", *arguments): the folder of the corpus scored so; made once for each name."""
    made = {}

    def call(name, *arguments):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("set") / name
            program("remit-score", corpus, "-o", made[name], "--seq-len", 128, "--part-bytes", 20000, *arguments)
        return made[name]

    return call


@pytest.fixture(scope="session")
def weights(score):
    """The corpus, scored with both models of the demo pair. Read it, do not write to it."""
    return score("weights")


@pytest.fixture(scope="session")
def sets(score, weights):
    """One folder for each way of scoring."""
    return {
        "parquet": weights,
        "arrow": score("arrow", "--format", "arrow"),
        "window": score("window", "--packing", "window"),
        "exact": score("exact", "--exact"),
        "rl-only": score("rl-only", "--rl-model", ROOT / "fixtures/models/demo-rl"),
    }


@pytest.fixture
def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
