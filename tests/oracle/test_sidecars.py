"""Columns added to a finished set, certificates, and rankings."""

import json
import math
import shutil
import signal
import subprocess
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oracle import BINARIES, metrics_of, read_rows


@pytest.fixture(scope="module")
def workplace(run, corpus, models, tmp_path_factory):
    """A folder with a set of several parts, and a second model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("sidecars")
    run("remit-score", corpus / "solutions" / "train-00.jsonl", "-o", folder / "weights", "--limit-docs", 1200,
        "--part-bytes", 40000)
    assert len(list((folder / "weights").glob("*.parquet"))) > 3
    return folder


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fail(*args):
    done = subprocess.run([str(word) for word in (BINARIES / args[0], *args[1:])], capture_output=True, text=True)
    assert done.returncode != 0
    return done.returncode, done.stderr


def test_three_workers_and_a_kill_add_the_same_bytes_and_change_nothing_of_the_set(workplace, run, models, tmp_path):
    weights = workplace / "weights"
    before = files(weights)
    add = ("remit-score", "--add", weights, "--rl-model", models / "demo-base", "--as", "second")
    run(*add, "-o", tmp_path / "one")
    other = tmp_path / "other"
    command = [BINARIES / add[0], *add[1:], "-o", other, "--batch-tokens", 300]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(other.glob("part-*.parquet")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for index in (2, 0, 1):
        run(*add, "-o", other, "--num-workers", 3, "--worker-index", index)
    kept = {name: data for name, data in files(other).items() if not name.name.startswith(".")}
    assert kept == files(tmp_path / "one")
    assert files(weights) == before
    run("remit-inspect", "verify", weights)
    # The base of the set is the very model.
    for path in sorted(weights.glob("*.parquet")):
        of_set, added = pq.read_table(path), pq.read_table(tmp_path / "one" / path.name)
        assert added.column("second").to_pylist() == of_set.column("base_logprob").to_pylist()
        assert added.column("row_id") == of_set.column("row_id")


def test_training_takes_added_columns_and_their_mean(workplace, run, models, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(workplace / "weights", weights)
    run("remit-score", "--add", weights, "--rl-model", models / "demo-base", "--as", "same")
    steps = ("--steps", 2, "--lr", 1e-3, "--batch-tokens", 4096, "--device", "cpu")
    run("remit-anneal", "--weights", weights, "-o", tmp_path / "same", "--rl-column", "same", *steps)
    # The learner agrees with itself, but for the rounding of what is stored.
    assert metrics_of(tmp_path / "same")[0]["weight_mean"] == pytest.approx(1, abs=1e-3)
    assert metrics_of(tmp_path / "same")[0]["weight_at_bounds"] == 0
    run("remit-anneal", "--weights", weights, "-o", tmp_path / "mean", "--rl-column", "rl,same", *steps)
    run("remit-anneal", "--weights", weights, "-o", tmp_path / "rl", *steps)
    rows = read_rows(weights)
    mean = [metrics_of(tmp_path / name)[0]["loss"] for name in ("same", "mean", "rl")]
    assert len(set(mean)) == 3 and rows
    settings = json.loads((tmp_path / "mean" / "run.json").read_text())["settings"]
    assert settings["rl_columns"].startswith("rl,same=")
    assert "rl_columns" not in json.loads((tmp_path / "rl" / "run.json").read_text())["settings"]


def test_a_damaged_or_foreign_sidecar_is_refused(workplace, run, corpus, models, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(workplace / "weights", weights)
    code, message = fail("remit-anneal", "--weights", weights, "-o", tmp_path / "out", "--rl-column", "second")
    assert code == 66 and "holds no" in message
    run("remit-score", "--add", weights, "--rl-model", models / "demo-base", "--as", "second")
    sidecar = tmp_path / "weights.second"
    shard = sidecar / "part-000001.parquet"
    intact = shard.read_bytes()
    shard.write_bytes(intact[:200] + bytes([intact[200] ^ 1]) + intact[201:])
    code, message = fail("remit-anneal", "--weights", weights, "-o", tmp_path / "out", "--rl-column", "second")
    assert code == 65 and "is damaged" in message
    shard.write_bytes(intact)
    other = tmp_path / "other"
    run("remit-score", corpus / "prose" / "visit.txt", "-o", other)
    shutil.copytree(sidecar, tmp_path / "other.second")
    code, message = fail("remit-anneal", "--weights", other, "-o", tmp_path / "out", "--rl-column", "second")
    assert code == 65 and "was made for the set" in message
    code, message = fail("remit-score", "--add", weights, "--rl-model", models / "demo-rl", "--as", "second")
    assert code == 2 and "was started with other inputs" in message
    code, message = fail("remit-score", "--add", weights, "--rl-model", models / "demo-rl", "--as", "weight")
    assert code == 2 and "a column of the set itself is called so" in message


def test_imported_numbers_are_joined_by_row_id_and_checked(workplace, run, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(workplace / "weights", weights)
    rows = read_rows(weights)
    file = tmp_path / "numbers.parquet"

    def write(change=lambda table: table):
        shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        table = {"row_id": [row["row_id"] for row in shuffled], "mine": [list(row["base_logprob"]) for row in shuffled]}
        change(table)
        pq.write_table(pa.table(table), file)

    write()
    run("remit-score", "--add", weights, "--import", file, "--as", "mine", "--exact")
    added = [row for path in sorted((tmp_path / "weights.mine").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [(row["row_id"], row["mine"]) for row in added] == [(row["row_id"], row["base_logprob"]) for row in rows]
    steps = ("--steps", 1, "--batch-tokens", 2048)
    done = run("remit-anneal", "--weights", weights, "-o", tmp_path / "out", "--rl-column", "mine", *steps)
    assert "mine was imported from" in done.stderr

    def short(table):
        table["mine"][3] = table["mine"][3][:-1]

    def absent(table):
        del table["mine"][5], table["row_id"][5]

    def nan(table):
        table["mine"][7][2] = math.nan

    def double(table):
        table["row_id"][1] = table["row_id"][0]

    for change, expected in ((short, "numbers; the row has"), (absent, "there is no row_id"), (nan, "a finite number was expected"),
                             (double, "comes twice")):
        write(change)
        code, message = fail("remit-score", "--add", weights, "--import", file, "--as", "mine", "-o", tmp_path / change.__name__)
        assert code == 65 and expected in message, message


def test_a_certificate_of_an_own_set_finds_identical_bits_and_another_model_is_refused(workplace, run, models):
    weights = workplace / "weights"
    found = json.loads(run("remit-score", weights, "--certify", 0.2, "--json", "--batch-tokens", 500).stdout)
    assert {column["column"] for column in found["columns"]} == {"rl_logprob", "base_logprob"}
    for column in found["columns"]:
        assert column["identical"] == column["values"] > 1000 and column["max_nats"] == 0
    assert 0.1 < found["rows"] / found["of_rows"] < 0.3
    again = json.loads(run("remit-score", weights, "--certify", 0.2, "--json").stdout)
    assert again == found
    in_bf16 = json.loads(run("remit-score", weights, "--certify", 0.2, "--json", "--dtype", "bf16").stdout)
    assert in_bf16["columns"][0]["max_nats"] > 0 and in_bf16["rows"] == found["rows"]
    code, message = fail("remit-score", weights, "--certify", 0.2, "--rl-model", models / "demo-base")
    assert code == 65 and "is not the model that the set was scored with" in message


def test_ranks_are_those_of_numbers_computed_from_the_columns(workplace, run):
    weights = workplace / "weights"
    by_document = {}
    for row in read_rows(weights):
        by_document.setdefault((row["source"], row["doc_index"]), []).append(row)
    lines = [json.loads(line) for line in run("remit-inspect", "rank", weights, "--all", "--json").stdout.splitlines()]
    assert len(lines) == len(by_document)
    texts = {}
    for line in lines:
        rows = by_document[line["source"], line["doc_index"]]
        log_probs = [value for row in rows for value in row["rl_logprob"][1:]]
        assert line["rl_loss"] == pytest.approx(-np.mean(log_probs), rel=1e-6)
        assert line["rl_bits_per_byte"] == pytest.approx(-np.sum(log_probs) / math.log(2) / line["bytes"], rel=1e-6)
        texts[line["doc_index"]] = line["bytes"]
    ranked = [line["rl_bits_per_byte"] for line in lines]
    assert ranked == sorted(ranked, reverse=True)
    [source] = [json.loads(line) for line in run("remit-inspect", "rank", weights, "--of", "sources", "--json").stdout.splitlines()]
    assert source["bytes"] == sum(texts.values())
    gains = run("remit-inspect", "rank", weights, "--by", "gain", "--limit", 3, "--ascending").stdout.splitlines()
    assert len(gains) == 4 and "solutions/" not in gains[0]
