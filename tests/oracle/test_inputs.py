"""The same documents, in every container that can hold them: text or ids, plain or compressed, give the same rows."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from conftest import ROOT
from oracle import EOS_ID, description, read_rows

NUM_DOCUMENTS = 60


@pytest.fixture(scope="module")
def documents(corpus):
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()[:NUM_DOCUMENTS]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def ids(documents, models):
    tokenizer = Tokenizer.from_file(str(models / "demo-rl" / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids + [EOS_ID] for text in documents]


def score(run, folder, *more):
    run("remit-score", folder / "corpus", "-o", folder / "weights", "--part-bytes", 2000, "--seq-len", 128, *more)
    return read_rows(folder / "weights")


def values(rows):
    """What has to be the same wherever the documents came from."""
    return [(row["input_ids"], row["rl_logprob"], row["doc_starts"]) for row in rows]


@pytest.fixture(scope="module")
def expected(run, documents, ids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jsonl")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text(jsonl(documents))
    rows = score(run, folder)
    assert [id for row in rows for id in row["input_ids"]] == [id for document in ids for id in document]
    return values(rows)


def jsonl(documents, key="text"):
    return "".join(json.dumps({key: document}) + "\n" for document in documents)


def put_npy(dtype):
    return lambda path, texts, ids: np.save(path, np.array(sum(ids, []), dtype=dtype))


def put_bin(dtype):
    return lambda path, texts, ids: np.array(sum(ids, []), dtype=dtype).tofile(path)


def put_table(column, write):
    """column(texts, ids) is the content of a column of a name."""
    return lambda path, texts, ids: write(pa.table({"n": range(len(ids)), **column(texts, ids)}), path)


def lists(kind):
    return lambda texts, ids: {"input_ids": pa.array(ids, kind)}


def texts(kind):
    return lambda texts, ids: {"text": pa.array(texts, kind)}


def parquet(table, path):
    pq.write_table(table, path, row_group_size=7, compression="zstd")


def arrow(table, path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)


def arrow_of_one_batch(table, path):
    """A file has one dictionary for all of its batches."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def feather(table, path):
    pyarrow.feather.write_feather(table, path, compression="lz4")


def packed(compress, put):
    """The whole file compressed, whatever it does inside."""

    def put_packed(path, texts, ids):
        put(path, texts, ids)
        path.write_bytes(compress(path.read_bytes()))

    return put_packed


CONTAINERS = {
    "a.jsonl.gz": (lambda path, texts, ids: path.write_bytes(gzip.compress(jsonl(texts).encode())), ()),
    "a.jsonl.zst": (lambda path, texts, ids: path.write_bytes(zstandard.compress(jsonl(texts).encode())), ()),
    "a.ndjson": (lambda path, texts, ids: path.write_text(jsonl(texts)), ()),
    "key.jsonl": (lambda path, texts, ids: path.write_text(jsonl(texts, "essay")), ("--text-field", "essay")),
    "ids.jsonl": (lambda path, texts, ids: path.write_text(jsonl(ids, "input_ids")), ()),
    "ids.jsonl.zst": (lambda path, texts, ids: path.write_bytes(zstandard.compress(jsonl(ids, "input_ids").encode())), ()),
    "text.parquet": (put_table(texts(pa.string()), parquet), ()),
    "large.parquet": (put_table(texts(pa.large_string()), parquet), ()),
    "text.arrow": (put_table(texts(pa.string()), arrow), ()),
    "view.arrow": (put_table(texts(pa.string_view()), arrow), ()),
    "text.feather": (put_table(texts(pa.string()), feather), ()),
    "text.parquet.gz": (packed(gzip.compress, put_table(texts(pa.string()), parquet)), ()),
    "text.parquet.zst": (packed(zstandard.compress, put_table(texts(pa.string()), parquet)), ()),
    "text.feather.zst": (packed(zstandard.compress, put_table(texts(pa.string()), feather)), ()),
    "uint16.arrow.gz": (packed(gzip.compress, put_table(lists(pa.list_(pa.uint16())), arrow)), ()),
    "dictionary.arrow": (put_table(texts(pa.dictionary(pa.int16(), pa.string())), arrow_of_one_batch), ()),
    "int32.parquet": (put_table(lists(pa.list_(pa.int32())), parquet), ()),
    "int64.parquet": (put_table(lists(pa.list_(pa.int64())), parquet), ()),
    "large-list.parquet": (put_table(lists(pa.large_list(pa.uint16())), parquet), ()),
    "uint16.arrow": (put_table(lists(pa.list_(pa.uint16())), arrow), ()),
    "uint32.feather": (put_table(lists(pa.list_(pa.uint32())), feather), ()),
    "uint16.npy": (put_npy(np.uint16), ()),
    "uint32.npy": (put_npy(np.uint32), ()),
    "int64.npy": (put_npy(np.int64), ()),
    # OLMo's .npy have no header: whoever reads them has to know what they are.
    "uint16.bin": (put_bin(np.uint16), ("--token-dtype", "uint16")),
    "uint32.bin": (put_bin(np.uint32), ("--token-dtype", "uint32", "--separator", EOS_ID)),
    "olmo.npy": (lambda path, texts, ids: np.array(sum(ids, []), np.uint16).tofile(path), ("--token-dtype", "uint16")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_rows(name, run, documents, ids, expected, tmp_path):
    put, more = CONTAINERS[name]
    (tmp_path / "corpus").mkdir()
    put(tmp_path / "corpus" / name, documents, ids)
    assert values(score(run, tmp_path, *more)) == expected


def test_a_table_of_ids_has_a_document_a_row(run, ids, tmp_path):
    rows = np.array([document[:16] for document in ids if len(document) >= 16], np.uint16)
    (tmp_path / "corpus").mkdir()
    np.save(tmp_path / "corpus" / "table.npy", rows)
    scored = score(run, tmp_path)
    assert [row["input_ids"] for row in scored] == rows.tolist()
    assert [row["doc_index"] for row in scored] == list(range(len(rows)))


def test_patterns_and_lists_take_what_they_name(run, documents, tmp_path):
    for i in range(6):
        path = tmp_path / "corpus" / ("even" if i % 2 == 0 else "odd") / f"{i}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(jsonl(documents[i * 10 : i * 10 + 10]))

    def sources(out, *args):
        run("remit-score", *args, "-o", tmp_path / out, cwd=tmp_path)
        return {row["source"] for row in read_rows(tmp_path / out)}

    assert sources("a", "corpus/**/*.jsonl") == {f"{'odd' if i % 2 else 'even'}/{i}.jsonl" for i in range(6)}
    assert sources("b", "corpus/odd/[13].jsonl") == {"1.jsonl", "3.jsonl"}
    (tmp_path / "files.txt").write_text("corpus/odd/5.jsonl\n\ncorpus/even/0.jsonl\n")
    assert {name.split("/")[-1] for name in sources("c", "--files-from", "files.txt")} == {"5.jsonl", "0.jsonl"}


MEASURE = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)
stderr = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss, stderr]))
"""


def measured(command):
    """(exit status, peak memory in kB, stderr). A small process starts it: a child's peak begins with its parent's."""
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, *map(str, command)], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_a_bomb_of_a_megabyte_is_refused_in_little_memory(tmp_path):
    """10 GB of zeros in less than 1 MB; remit may take 256 MB."""
    (tmp_path / "corpus").mkdir()
    frame = zstandard.ZstdCompressor(level=3).compress(bytes(100_000_000))
    for name in ("bomb.jsonl.zst", "bomb.txt.zst", "bomb.parquet.zst"):
        path = tmp_path / "corpus" / name
        path.write_bytes(frame * 100)
        assert path.stat().st_size < 1e6
        binary = os.path.join(os.environ.get("REMIT_BIN", ROOT / "target" / "release"), "remit-score")
        status, peak_kb, stderr = measured([binary, path, "-o", tmp_path / "out"])
        assert status == 65, stderr
        assert name in stderr and ("unpacks to more than 256 times" in stderr or "longer than 16777216 bytes" in stderr), stderr
        print(f"{name}: refused with {peak_kb / 1e3:.0f} MB")
        assert peak_kb < 256_000


def test_bad_records_are_left_out_and_listed(run, documents, tmp_path):
    (tmp_path / "corpus").mkdir()
    lines = jsonl(documents[:20]).splitlines(keepends=True)
    lines[3], lines[8] = "{\n", '{"text": 3}\n'
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(lines))
    (tmp_path / "corpus" / "b.txt").write_bytes(b"caf\xe9")
    rows = score(run, tmp_path, "--on-bad-record", "skip")
    assert [(row["source"], row["doc_index"]) for row in rows if row["doc_starts"] == [0]] == [
        ("a.jsonl", i) for i in range(20) if i not in (3, 8)
    ]
    rejects = description(tmp_path / "weights", "rejects")
    assert [(reject["source"], reject["doc_index"]) for reject in rejects] == [("a.jsonl", 3), ("a.jsonl", 8), ("b.txt", 0)]
    assert "not valid JSON" in rejects[0]["reason"] and "is a number" in rejects[1]["reason"] and "UTF-8" in rejects[2]["reason"]
    manifest = description(tmp_path / "weights", "manifest")
    assert manifest["documents"]["rejected_records"] == 3
