"""Corpus and set on an S3-compatible server: moto's, started here. The set is that of a local run, byte for byte.

The binaries have to be built with `--features object-store`; scripts/test.sh does that.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import ROOT
from oracle import metrics_of

BUCKET = "remit"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """(boto3 client, environment for the programs) of a server with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            break
        except OSError:
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket=BUCKET)
    yield client, env
    server.terminate()
    server.wait()


@pytest.fixture
def program(s3):
    """program(name, *args): the started process, with the server in its environment."""
    folder = os.path.abspath(os.environ.get("REMIT_BIN", ROOT / "target" / "release"))

    def start(name, *args, env=()):
        command = [os.path.join(folder, name), *map(str, args)]
        return subprocess.Popen(
            command, cwd=ROOT, env={**s3[1], **dict(env)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finished(process, code=0):
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, f"{process.args} ended with {process.returncode}\n{stdout}\n{stderr}"
    return stdout, stderr


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory):
    """A corpus of several formats in a folder."""
    folder = tmp_path_factory.mktemp("source") / "corpus"
    (folder / "deep").mkdir(parents=True)
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:60]))
    (folder / "deep" / "b.md").write_text("One and one is two. " * 20)
    subprocess.run(["gzip", "-n"], input="".join(lines[60:100]).encode(), stdout=(folder / "c.jsonl.gz").open("wb"), check=True)
    pq.write_table(pa.table({"text": [f"{n} + {n} is {2 * n}" for n in range(200)]}), folder / "d.parquet", row_group_size=40)
    return folder


@pytest.fixture(scope="module")
def stored(s3, source):
    """The URL of the same corpus in the bucket."""
    for path in source.rglob("*"):
        if path.is_file():
            s3[0].upload_file(str(path), BUCKET, f"data/corpus/{path.relative_to(source)}")
    s3[0].put_object(Bucket=BUCKET, Key="data/corpus/.hidden.jsonl", Body=b"{")
    return f"s3://{BUCKET}/data/corpus"


def objects(client, prefix):
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed
    }


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OPTIONS = ("--part-bytes", 1500, "--threads", 1)


@pytest.fixture(scope="module")
def expected(run, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "weights"
    run("remit-score", source, "-o", out, *OPTIONS)
    assert len(files(out)) > 12
    return out


def test_workers_on_a_store_make_the_set_of_a_local_run(s3, program, stored, expected):
    out = f"s3://{BUCKET}/workers"
    command = ("remit-score", stored, "-o", out, *OPTIONS, "--num-workers", 2, "--worker-index")
    # Two workers, one of them twice: each part of that one is put twice, and the second is turned away.
    workers = [program(*command, index) for index in (0, 1, 1)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(finished, workers))
    finished(program("remit-score", stored, "-o", out, *OPTIONS))
    assert objects(s3[0], "workers/") == files(expected)


def test_a_killed_run_on_a_store_resumes(s3, program, stored, expected):
    out = f"s3://{BUCKET}/killed"
    for shards in (1, 4):
        process = program("remit-score", stored, "-o", out, *OPTIONS)
        deadline = time.monotonic() + 120
        while sum(name.startswith("part-") for name in objects(s3[0], "killed/")) < shards:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished(program("remit-score", stored, "-o", out, *OPTIONS))
    assert objects(s3[0], "killed/") == files(expected)


def test_a_shard_that_is_there_is_never_written_over(s3, program, stored, expected):
    """The plan and one part are there, with other bytes: whoever comes later leaves them, and says what is wrong."""
    for name in ("_remit/plan.parquet", "part-000001.parquet"):
        body = (expected / name).read_bytes()
        s3[0].put_object(Bucket=BUCKET, Key=f"taken/{name}", Body=body if "plan" in name else b"not a shard")
    _, stderr = finished(program("remit-score", stored, "-o", f"s3://{BUCKET}/taken", *OPTIONS), code=65)
    assert f"s3://{BUCKET}/taken/part-000001.parquet" in stderr
    assert objects(s3[0], "taken/")["part-000001.parquet"] == b"not a shard"


def test_inspect_and_anneal_read_from_a_store(s3, program, stored, expected, run, tmp_path):
    out = f"s3://{BUCKET}/read"
    for name, body in files(expected).items():
        s3[0].put_object(Bucket=BUCKET, Key=f"read/{name}", Body=body)
    finished(program("remit-inspect", "verify", out))
    assert finished(program("remit-inspect", out))[0] == run("remit-inspect", expected).stdout
    anneal = ("--steps", 3, "--batch-tokens", 512, "--lr", "1e-3", "--threads", 1)
    finished(program("remit-anneal", "--weights", out, "-o", tmp_path / "a", *anneal))
    run("remit-anneal", "--weights", expected, "-o", tmp_path / "b", *anneal)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert [line["loss"] for line in metrics_of(tmp_path / "a")] == [line["loss"] for line in metrics_of(tmp_path / "b")]

    damaged = bytearray(files(expected)["part-000002.parquet"])
    damaged[100] ^= 4
    s3[0].put_object(Bucket=BUCKET, Key="read/part-000002.parquet", Body=bytes(damaged))
    _, stderr = finished(program("remit-inspect", "verify", out), code=65)
    assert f"{out}/part-000002.parquet" in stderr


def test_patterns_lists_and_models_may_be_on_a_store(s3, program, stored, models, expected, tmp_path):
    out = tmp_path / "pattern"
    finished(program("remit-score", f"{stored}/**/*.md", f"{stored}/[a]*.jsonl", "-o", out))
    (tmp_path / "list").write_text(f"{stored}/a.jsonl\n{stored}/deep/b.md\n")
    for path in (models / "tiny-llama").iterdir():
        s3[0].upload_file(str(path), BUCKET, f"models/tiny/{path.name}")
    by_list = ("--files-from", tmp_path / "list", "--seq-len", 128)
    finished(program("remit-score", *by_list, "--rl-model", f"s3://{BUCKET}/models/tiny", "-o", tmp_path / "remote"))
    finished(program("remit-score", *by_list, "--rl-model", models / "tiny-llama", "-o", tmp_path / "local"))
    assert (tmp_path / "remote" / "part-000000.parquet").read_bytes() == (tmp_path / "local" / "part-000000.parquet").read_bytes()


def test_what_is_wrong_with_a_store_is_named(program, stored, expected, tmp_path):
    missing = f"s3://{BUCKET}/nothing/here"
    _, stderr = finished(program("remit-score", missing, "-o", tmp_path / "out"), code=66)
    assert missing in stderr
    _, stderr = finished(program("remit-inspect", missing), code=66)
    assert missing in stderr
    _, stderr = finished(program("remit-score", "s3://no-such-bucket/x", "-o", tmp_path / "out"), code=74)
    assert "s3://no-such-bucket/x" in stderr and "NoSuchBucket" in stderr
    run_to = ("--weights", expected, "-o", f"s3://{BUCKET}/model", "--steps", 1)
    _, stderr = finished(program("remit-anneal", *run_to), code=2)
    assert "not to object stores" in stderr
    http_not_allowed = {"AWS_ALLOW_HTTP": "false"}
    _, stderr = finished(program("remit-score", stored, "-o", tmp_path / "out", env=http_not_allowed.items()), code=74)
    assert stored in stderr
    assert not (tmp_path / "out").exists()
