"""Several GPUs, by what their processes read: here emulated ones."""

import subprocess

import pytest
from oracle import BINARIES, ROOT, devices

MB = 1_000_000


def bytes_read():
    """Bytes that this process and those that it has waited for have read, and theirs in turn."""
    with open("/proc/self/io") as lines:
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def read_by(devices, corpus, output):
    before = bytes_read()
    command = [BINARIES / "remit-score", corpus, "-o", output, "--device", devices, "--threads", "1"]
    command += ["--rl-model", ROOT / "fixtures/models/demo-rl", "--base-model", ROOT / "fixtures/models/demo-base"]
    subprocess.run(command, check=True, capture_output=True)
    return bytes_read() - before


@pytest.mark.skipif("cuda-emulated" not in devices(), reason="a build without the feature cuda-emulator")
def test_the_files_of_the_corpus_are_read_once_for_all_gpus(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    # Lines that hold no document, so that reading them is nearly all there is to do.
    corpus.write_text('{"text": "one two three"}\n' + (" " * 999 + "\n") * 40_000)
    one = read_by("cuda-emulated", corpus, tmp_path / "one")
    all_three = read_by("cuda-emulated:all", corpus, tmp_path / "all")
    assert one > 40 * MB
    # Each of them has its models, and finds out that the shards are there.
    assert all_three - one < 30 * MB
