"""Object stores that fail: what passes is retried, and what stays ends with an exit code that fits and the object's name.

The binaries have to be built with `--features object-store`; scripts/test.sh does that. Nothing is published by a run that fails, and
memory is bounded. A store gives up after 10 retries within 3 minutes, so these tests take minutes, most of them asleep.
"""

import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT
from faulty_store import BUCKET, Fault, Store

MAX_BYTES = 500 << 20
#: Seconds: 10 retries, waits of up to 15 seconds between them, and a slow machine.
MAX_SECONDS = 280
OPTIONS = ("--part-bytes", 700, "--threads", 1)
NUM_PARTS = 3


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "corpus"
    folder.mkdir(parents=True)
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:12]))
    (folder / "b.md").write_text("One and one is two. " * 20)
    return folder


@pytest.fixture(scope="module")
def expected(run, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "weights"
    run("remit-score", source, "-o", out, *OPTIONS)
    found = {f"out/{path.relative_to(out)}": path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(found) >= NUM_PARTS + 2
    return found


@pytest.fixture
def store(source):
    store = Store()
    for path in source.iterdir():
        store.put(f"corpus/{path.name}", path.read_bytes())
    yield store
    store.close()


class Ended:
    def __init__(self, store, name, *args):
        folder = os.path.abspath(os.environ.get("REMIT_BIN", ROOT / "target" / "release"))
        env = {
            **os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": store.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_READ_TIMEOUT": "2 seconds",
        }
        begun = time.monotonic()
        command = [os.path.join(folder, name), *map(str, args)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.peak_bytes = 0
        watch = threading.Thread(target=self.watch, args=(process,))
        watch.start()
        self.stderr = process.stderr.read().decode()
        watch.join()
        self.code, self.seconds = process.wait(), time.monotonic() - begun

    def watch(self, process):
        """Looks at the most memory so far: what the kernel says at the end is also of this process, before it became another."""
        while process.poll() is None:
            with open(f"/proc/{process.pid}/status") as status:
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
            self.peak_bytes = int(found[1]) << 10 if found else self.peak_bytes
            time.sleep(0.05)

    def check(self, code, *parts):
        assert self.code == code, self.stderr
        # Each retry is a line of the log before.
        error = ("\n" + self.stderr).split("\nerror: ")
        assert len(error) == (1 if code == 0 else 2) and "panicked" not in self.stderr, self.stderr
        for part in parts:
            assert part in error[1], self.stderr
        assert self.peak_bytes < MAX_BYTES and self.seconds < MAX_SECONDS, (self.peak_bytes, self.seconds)


def score(store):
    return Ended(store, "remit-score", f"s3://{BUCKET}/corpus", "-o", f"s3://{BUCKET}/out", *OPTIONS)


def url(key):
    return f"s3://{BUCKET}/{key}"


PASSING = [
    Fault("LIST", "corpus", 500, 2), Fault("LIST", "corpus", "reset", 1), Fault("HEAD", "a.jsonl", 503, 2), Fault("HEAD", "a.jsonl", "reset", 1),
    Fault("READ", "a.jsonl", 500, 2), Fault("READ", "a.jsonl", "half", 2), Fault("READ", "b.md", "slow", 1), Fault("READ", "b.md", "reset", 2),
    Fault("PUT", "part-000001", 503, 2), Fault("PUT", "manifest", "reset", 1), Fault("PUT", "part-000000", 500, 1), Fault("READ", "part-000001", "half", 2),
]


def test_what_passes_is_retried_and_the_set_is_that_of_a_local_run(store, expected):
    store.faults = [Fault(fault.method, fault.key, fault.kind, fault.times) for fault in PASSING]
    score(store).check(0)
    missed = [(fault.method, fault.key, fault.kind) for fault in store.faults if fault.times]
    assert not missed
    assert {key: body for key, (body, _) in store.objects.items() if key.startswith("out/")} == expected


def test_a_part_whose_answer_was_lost_is_not_put_twice(store, expected):
    """It is stored and the connection breaks: the retry finds it there, which is no error, whoever put it."""
    store.faults = [Fault("PUT", "part-000001", "lost", 1), Fault("PUT", "manifest", "lost", 1)]
    score(store).check(0)
    assert {key: body for key, (body, _) in store.objects.items() if key.startswith("out/")} == expected


#: What stays, and the exit code and words of the error.
LASTING = {
    "a list that fails": ([Fault("LIST", "corpus", 500)], 74, ["corpus"]),
    "a list that is none": ([Fault("LIST", "corpus", "garbage")], 74, ["corpus"]),
    "a list that is slow": ([Fault("LIST", "corpus", "slow")], 74, ["corpus"]),
    "an object that is listed and not there": ([Fault("LIST", "corpus", "other")], 66, ["corpus/ghost.jsonl"]),
    "an object that can't be looked at": ([Fault("HEAD", "a.jsonl", 503)], 74, ["corpus/a.jsonl"]),
    "an object that can't be read": ([Fault("READ", "a.jsonl", 500)], 74, ["corpus/a.jsonl"]),
    "an object that is forbidden": ([Fault("READ", "a.jsonl", 403)], 74, ["corpus/a.jsonl"]),
    "half a body": ([Fault("READ", "a.jsonl", "half")], 74, ["corpus/a.jsonl"]),
    "a body that does not come": ([Fault("READ", "a.jsonl", "slow")], 74, ["corpus/a.jsonl"]),
    "a connection that breaks": ([Fault("READ", "a.jsonl", "reset")], 74, ["corpus/a.jsonl"]),
    "less than was asked for": ([Fault("READ", "a.jsonl", "size")], 74, ["corpus/a.jsonl"]),
    "an object that is shorter than it says": ([Fault("HEAD", "a.jsonl", "size")], 74, ["corpus/a.jsonl"]),
    "an object that changes all the time": ([Fault("HEAD", "a.jsonl", "etag")], 65, ["corpus/a.jsonl"]),
    "a part that can't be put": ([Fault("PUT", "part-000001", 500)], 74, ["out/part-000001.parquet"]),
    "a part that can't be put for want of rights": ([Fault("PUT", "part-000001", 403)], 74, ["out/part-000001.parquet"]),
    "a manifest that can't be put": ([Fault("PUT", "manifest", 503)], 74, ["out/_remit/manifest.parquet"]),
    "a part that can't be read back": ([Fault("READ", "part-000001", 500)], 74, ["out/part-000001.parquet"]),
    "a part that is another when it is read back": ([Fault("READ", "part-000001", "other")], 65, ["out/part-000001.parquet"]),
}


def test_what_lasts_is_an_error_that_names_the_object_and_publishes_nothing(source, expected):
    def one(case):
        faults, code, parts = LASTING[case]
        store = Store()
        try:
            for path in source.iterdir():
                store.put(f"corpus/{path.name}", path.read_bytes())
            store.faults = [Fault(fault.method, fault.key, fault.kind) for fault in faults]
            ended = score(store)
            ended.check(code, *(url(part) for part in parts))
            assert store.faults[0].hits > 0
            published = store.keys("out/")
            assert not any("manifest" in key for key in published), published
            # Whatever is there is what it has to be, and with a store that works the rest is made.
            assert all(store.objects[key][0] == expected[key] for key in published)
            store.faults = []
            score(store).check(0)
            assert {key: store.objects[key][0] for key in store.keys("out/")} == expected
        except AssertionError as error:
            return f"{case}: {error}"
        finally:
            store.close()

    with ThreadPoolExecutor(len(LASTING)) as pool:
        failures = [failure for failure in pool.map(one, LASTING) if failure]
    assert not failures, "\n".join(failures)


def test_a_set_that_a_store_gives_otherwise_than_it_was_put_is_refused(store, expected):
    for key, body in expected.items():
        store.put(key, body)
    Ended(store, "remit-inspect", "verify", url("out")).check(0)
    for key in ("part-000001.parquet", "_remit/manifest.parquet", "_remit/plan.parquet"):
        for kind in ("other", "half"):
            # Half a body often enough: a run that goes on with what it has would not notice.
            store.faults = [Fault("READ", key, kind, 3 if kind == "half" else None)]
            Ended(store, "remit-inspect", "verify", url("out")).check(*((65, url(f"out/{key}")) if kind == "other" else (0,)))
            assert store.faults[0].hits > 0
