"""Entropies and the most likely tokens that remit-score stores, against torch's of the full logits, for every family."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from oracle import ROOT, load, read_rows, shards

K, FRACTION = 4, 0.2
FAMILIES = sorted(p.name for p in (ROOT / "fixtures" / "models").iterdir() if p.name.startswith(("tiny-", "odd-")))
TOLERANCE_NATS = 1e-5


@pytest.fixture(scope="module")
def small_corpus(corpus, tmp_path_factory):
    """A few documents, long and short."""
    out = tmp_path_factory.mktemp("few")
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()[:6]
    (out / "a.jsonl").write_text("\n".join(lines) + "\n")
    (out / "b.txt").write_bytes((corpus / "prose" / "harbour.txt").read_bytes()[:1500])
    return out


def score(run, corpus, out, model, *args):
    run("remit-score", corpus, "-o", out, "--rl-model", model, "--seq-len", 96, *args)
    return read_rows(out)


def distributions(model, ids, temperature):
    """(n - 1, V) float64 log-probs of what follows each position but the last."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return torch.log_softmax(logits / temperature, -1)


@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_top_k_and_tail_are_those_of_the_full_logits(family, temperature, run, small_corpus, models, tmp_path):
    rows = score(run, small_corpus, tmp_path / "set", models / family, "--exact", "--entropy", "--top-k", K,
                 "--entropy-temperature", temperature)
    model = load(models / family)
    worst = dict.fromkeys(("entropy", "top", "tail", "sum"), 0.0)
    for row in rows:
        log_p = distributions(model, row["input_ids"], temperature)
        entropy = -(log_p.exp() * log_p).sum(-1)
        top = log_p.topk(K, -1)
        for column in ("rl_entropy", "rl_top_ids", "rl_top_logprobs", "rl_tail_logprob"):
            assert row[column][0] is None and len(row[column]) == len(row["input_ids"])
        assert None not in row["rl_entropy"][1:]
        ids = torch.tensor(row["rl_top_ids"][1:])
        stored = torch.tensor(row["rl_top_logprobs"][1:], dtype=torch.float64)
        tail = torch.tensor(row["rl_tail_logprob"][1:], dtype=torch.float64)
        # Of equal tokens any may be among the first: what their ids have, and how much that is.
        rest = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
        found = {
            "entropy": (torch.tensor(row["rl_entropy"][1:], dtype=torch.float64) - entropy).abs(),
            "top": torch.maximum((stored - top.values).abs(), (stored - log_p.gather(-1, ids)).abs()),
            "tail": (tail - rest).abs(),
            "sum": (stored.exp().sum(-1) + tail.exp() - 1).abs(),
        }
        for key, difference in found.items():
            assert torch.isfinite(difference).all(), key
            worst[key] = max(worst[key], difference.max().item())
    print(family, temperature, {key: f"{value:.1e}" for key, value in worst.items()})
    limit = TOLERANCE_NATS
    assert worst["entropy"] < limit and worst["top"] < limit and worst["tail"] < limit
    assert worst["sum"] < 1e-6
