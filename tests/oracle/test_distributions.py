"""Entropies and the most likely tokens that remit-score stores, against torch's of the full logits, for every family."""

import math

import pytest
import torch

from oracle import ROOT, load, read_rows

K = 4
FAMILIES = sorted(p.name for p in (ROOT / "fixtures" / "models").iterdir() if p.name.startswith("tiny-"))
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


def test_options_change_no_other_column_and_no_batch_changes_them(run, small_corpus, models, tmp_path):
    model = models / "tiny-qwen3"
    plain = score(run, small_corpus, tmp_path / "plain", model)
    args = ("--entropy", "--top-k", K, "--top-k-where", "entropy<=q20")
    rows = score(run, small_corpus, tmp_path / "a", model, *args)
    for row, without in zip(rows, plain, strict=True):
        assert {key: row[key] for key in without} == without
    score(run, small_corpus, tmp_path / "b", model, *args, "--batch-tokens", 97, "--threads", 1)
    shard = "part-000000.parquet"
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_top_k_is_stored_for_the_fraction_with_the_lowest_entropy(run, small_corpus, models, tmp_path):
    args = ("--entropy", "--top-k", K, "--top-k-where", "entropy<=q20")
    rows = score(run, small_corpus, tmp_path / "set", models / "tiny-llama", *args)
    stored, others = [], []
    for row in rows:
        for entropy, ids, log_probs, tail in zip(
            row["rl_entropy"], row["rl_top_ids"], row["rl_top_logprobs"], row["rl_tail_logprob"], strict=True
        ):
            assert (ids is None) == (log_probs is None) == (tail is None)
            if ids is not None:
                assert len(set(ids)) == K and log_probs == sorted(log_probs, reverse=True)
                stored.append(entropy)
            elif entropy is not None:
                others.append(entropy)
    assert len(stored) == math.ceil(0.2 * (len(stored) + len(others)) - 1e-9)
    assert max(stored) <= min(others)


def test_logits_at_the_extremes_of_16_bits_give_finite_distributions(run, small_corpus, models, tmp_path):
    """Weights of the head near the largest number of float16: one token has all of the probability."""
    from safetensors.torch import load_file, save_file
    import shutil

    folder = tmp_path / "extreme"
    shutil.copytree(models / "tiny-llama", folder)
    tensors = load_file(folder / "model.safetensors")
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    scale = 60000 / tensors[head].abs().max().item()
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for row in score(run, small_corpus, tmp_path / "set", folder, "--exact", "--entropy", "--top-k", K):
        values = row["rl_entropy"][1:] + row["rl_tail_logprob"][1:] + [v for top in row["rl_top_logprobs"][1:] for v in top]
        assert all(math.isfinite(value) for value in values)
        assert all(entropy >= 0 for entropy in row["rl_entropy"][1:])


def test_weights_at_a_bound_are_the_bound_if_asked_for(run, corpus, tmp_path):
    sets = {}
    for bounds in ("rounded", "exact"):
        out = tmp_path / bounds
        run("remit-score", corpus / "solutions" / "drill.txt", "-o", out, "--weight-bounds", bounds)
        sets[bounds] = read_rows(out)
    low, high = (torch.tensor(value, dtype=torch.float32).item() for value in (0.8, 1.2))
    at_bounds = 0
    for rounded, exact in zip(sets["rounded"], sets["exact"], strict=True):
        for before, after in zip(rounded["weight"], exact["weight"], strict=True):
            near = min(abs(before - low), abs(before - high)) < 1e-4
            at_bounds += after in (low, high)
            assert after == before or (near and after in (low, high))
    assert at_bounds > 100
    assert not any(weight >= 1.2 for row in sets["rounded"] for weight in row["weight"])
