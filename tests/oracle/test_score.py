"""remit-score against transformers and tokenizers, for three pairs and both packings."""

from itertools import groupby

import numpy as np
import pytest
import torch

from oracle import encoded_corpus, load, read_rows, shards, subset, target_log_probs, weights_of
import pyarrow.parquet as pq

SEQ_LEN = 512
TOLERANCE_NATS = 1e-4
PAIRS = {
    "demo": ("demo-rl", "demo-base"),
    "tiny-llama": ("tiny-llama", "tiny-llama-base"),
    "tiny-qwen3": ("tiny-qwen3", "tiny-qwen3-base"),
}


@pytest.fixture(scope="module", params=[(pair, packing) for pair in PAIRS for packing in ("document", "window")],
                ids=lambda param: "-".join(param))
def scored(request, run, corpus, models, tmp_path_factory):
    """(pair, packing, folder) of the corpus scored once for all tests of a case."""
    pair, packing = request.param
    out = tmp_path_factory.mktemp(f"{pair}-{packing}") / "weights"
    args = ["--packing", packing, "--seq-len", SEQ_LEN, "--exact"]
    if pair != "demo":  # the demo pair is what runs when no model is named
        rl, base = PAIRS[pair]
        args += ["--rl-model", models / rl, "--base-model", models / base]
    run("remit-score", corpus, "-o", out, *args)
    return pair, packing, out


def test_log_probs_equal_those_of_transformers(scored, models):
    pair, packing, out = scored
    rows = subset(read_rows(out), count=120 if packing == "window" else 400)
    for column, name in zip(("rl_logprob", "base_logprob"), PAIRS[pair]):
        model = load(models / name)
        worst, at = 0.0, None
        for row in rows:
            with torch.no_grad():
                expected = target_log_probs(model, row["input_ids"]).numpy()
            assert row[column][0] is None, f"row {row['row_id']}: {column} of the first token is not null"
            difference = np.abs(np.array(row[column][1:], dtype=np.float64) - expected)
            if difference.max() > worst:
                worst, at = difference.max(), (row["row_id"], int(difference.argmax()) + 1)
        print(f"{pair} {packing} {column}: largest difference {worst:.2e} nats over {len(rows)} rows")
        assert worst < TOLERANCE_NATS, f"{column} against {name}: {worst:.3g} nats at (row, position) {at}"


def test_weights_follow_the_formula(scored):
    _, _, out = scored
    for row in read_rows(out):
        delta = np.array(row["rl_logprob"][1:], np.float64) - np.array(row["base_logprob"][1:], np.float64)
        assert row["weight"][0] == 0
        np.testing.assert_allclose(row["weight"][1:], weights_of(delta), atol=1e-5, rtol=0, err_msg=f"row {row['row_id']}")


def test_row_ids_are_unique_and_columns_have_one_length(scored):
    _, _, out = scored
    rows = read_rows(out)
    assert len({row["row_id"] for row in rows}) == len(rows)
    for row in rows:
        lengths = {len(row[c]) for c in ("input_ids", "rl_logprob", "base_logprob", "weight")}
        assert len(lengths) == 1, f"row {row['row_id']}: column lengths {lengths}"
        assert None not in row["rl_logprob"][1:] and None not in row["base_logprob"][1:], f"row {row['row_id']}"


def test_rows_hold_the_tokens_of_the_corpus(scored, corpus, models):
    pair, packing, out = scored
    encoded = encoded_corpus(corpus, models / PAIRS[pair][0] / "tokenizer.json")
    (check_documents if packing == "document" else check_windows)(out, encoded)


def check_documents(out, encoded):
    """Every document with its EOS, split at SEQ_LEN, pieces of fewer than 2 tokens left out, in the order of the corpus."""
    expected = []
    for source, index, ids in encoded:
        for start in range(0, len(ids), SEQ_LEN):
            piece = ids[start : start + SEQ_LEN]
            if len(piece) >= 2:
                expected.append((source, index, [0] if start == 0 else [], piece))
    rows = read_rows(out)
    for row, (source, index, starts, ids) in zip(rows, expected):
        where = f"row {row['row_id']}, expected {source} record {index}"
        assert (row["source"], row["doc_index"]) == (source, index), where
        assert row["input_ids"] == ids, where
        assert row["doc_starts"] == starts, where
    assert len(rows) == len(expected)


def check_windows(out, encoded):
    """The rows of one shard, put end to end, are documents with their EOS, put end to end; so are the shards, but for a
    last token that would have been a row of its own."""
    stream, starts = [], set()
    for _, _, ids in encoded:
        starts.add(len(stream))
        stream += ids
    tables = [sorted(pq.read_table(path).to_pylist(), key=lambda row: row["row_id"]) for path in shards(out)]
    at = 0
    for rows in sorted((rows for rows in tables if rows), key=lambda rows: rows[0]["row_id"]):
        assert all(len(row["input_ids"]) == SEQ_LEN for row in rows[:-1]), "only the last row of a part may be shorter"
        if at not in starts and at + 1 in starts:
            at += 1  # the one-token tail of the part before, left out
        assert at in starts, f"a shard begins at token {at} of the corpus, inside a document"
        for row in rows:
            length = len(row["input_ids"])
            where = f"row {row['row_id']} at token {at} of the corpus"
            assert row["input_ids"] == stream[at : at + length], where
            assert row["doc_starts"] == [i for i in range(length) if at + i in starts], where
            at += length
    assert at in (len(stream), len(stream) - 1)


def test_rows_of_a_document_stand_together(scored):
    _, packing, out = scored
    if packing == "window":
        pytest.skip("a window may hold several documents")
    keys = [key for key, _ in groupby((row["source"], row["doc_index"]) for row in read_rows(out))]
    assert len(keys) == len(set(keys))
