"""Every family of models through both commands, against transformers: scores, training, and the checkpoint it leaves.

The models are fixtures/models/tiny-*, one of each family. Some rows are longer than their windows, and they lie on both
sides of the length at which tiny-phi3 takes its other RoPE factors.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from oracle import (
    devices,
    load,
    metrics_of,
    perturbed_copy,
    read_rows,
    stored_tensors,
    target_log_probs,
    train_in_pytorch,
)

MODELS = Path(__file__).resolve().parents[2] / "fixtures" / "models"
FAMILIES = sorted(p.parent.name for p in MODELS.glob("tiny-*/tokenizer.json") if not p.parent.name.endswith("-base"))
# An emulated GPU is slow: these have every kind of norm, projection and attention between them. tests/it/goldens.rs has
# the log-probs and gradients of all on it.
EMULATED = {"tiny-gemma3", "tiny-olmo2", "tiny-qwen2", "tiny-youtu"}
RUNS = [(name, device) for device in devices() for name in FAMILIES if device == "cpu" or name in EMULATED]
SEQ_LEN, BATCH_TOKENS, MICRO_BATCH_TOKENS = 96, 1024, 512
STEPS, LR = 20, 2e-3
# Near enough to one another that most weights lie between the bounds, where they are sensitive.
NOISE = 0.01


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On matrices this small a second thread gains nothing, and waits long for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Family(NamedTuple):
    """What the commands made of one model: the set and the annealed checkpoint, from near copies of the model."""

    device: str
    base: Path
    reference: Path
    rows: list
    annealed: Path


@pytest.fixture(scope="module")
def documents(corpus, tmp_path_factory):
    """A corpus for one optimizer step: a page of prose, which gives rows of SEQ_LEN, and some sums, which are short."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "page.txt").write_text((corpus / "prose" / "harbour.txt").read_text()[:1800])
    records = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()
    some = sorted((json.loads(record)["text"] for record in records[:100]), key=len)[::20]
    (folder / "sums.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return folder


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def family(request, run, documents, tmp_path_factory):
    name, device = request.param
    folder = tmp_path_factory.mktemp(name)
    base = perturbed_copy(MODELS / name, folder / "base", NOISE, seed=1)
    reference = perturbed_copy(MODELS / name, folder / "reference", NOISE, seed=2)
    weights, annealed = folder / "weights", folder / "annealed"
    run("remit-score", documents, "-o", weights, "--rl-model", reference, "--base-model", base, "--seq-len", SEQ_LEN,
        "--exact", "--device", device)
    run("remit-anneal", "--weights", weights, "--model", base, "-o", annealed, "--weighting", "dynamic",
        "--steps", STEPS, "--lr", LR, "--batch-tokens", BATCH_TOKENS, "--micro-batch-tokens", MICRO_BATCH_TOKENS,
        "--device", device)
    return Family(device, base, reference, read_rows(weights), annealed)


def largest_difference(rows, key, model):
    """In nats, of the stored log-probs from those of transformers."""
    worst = 0.0
    for row in rows:
        with torch.no_grad():
            expected = target_log_probs(model, row["input_ids"])
        worst = max(worst, (torch.tensor(row[key][1:], dtype=torch.float64) - expected).abs().max().item())
    return worst


def test_the_set_is_one_step_of_several_micro_batches(family):
    lengths = [len(row["input_ids"]) for row in family.rows]
    assert MICRO_BATCH_TOKENS < sum(lengths) <= BATCH_TOKENS
    assert max(lengths) == SEQ_LEN and min(lengths) < 64


def test_scores_are_those_of_transformers(family):
    assert largest_difference(family.rows, "rl_logprob", load(family.reference)) < 1e-4
    assert largest_difference(family.rows, "base_logprob", load(family.base)) < 1e-4


def test_training_follows_pytorch(family):
    history, _ = train_in_pytorch(family.base, family.rows, "dynamic", STEPS, LR)
    found = metrics_of(family.annealed)
    assert len(found) == STEPS
    for step, (ours, theirs) in enumerate(zip(found, history)):
        for key, tolerance in (("loss", 1e-4), ("ntp_loss", 1e-4), ("weight_mean", 1e-4), ("grad_norm", 1e-3)):
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance), f"{key} of step {step + 1}"
    assert found[-1]["loss"] < 0.98 * found[0]["loss"], "the loss hardly moved, so the comparison says little"


def test_annealed_checkpoint_keeps_names_shapes_and_dtypes(family):
    before, after = stored_tensors(family.base), stored_tensors(family.annealed)
    config = json.loads((family.annealed / "config.json").read_text())
    if config.get("tie_word_embeddings") and "lm_head.weight" in before:
        # The second copy of a tied embedding may go, but not stay behind: transformers unties copies that differ.
        head = after.pop("lm_head.weight", None)
        assert head is None or torch.equal(head, after["model.embed_tokens.weight"])
        del before["lm_head.weight"]
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}


def test_every_tensor_is_trained(family):
    before, after = stored_tensors(family.base), stored_tensors(family.annealed)
    frozen = [name for name in after if torch.equal(before[name], after[name])]
    assert not frozen, f"unchanged after training: {frozen}"


def test_annealed_checkpoint_scores_as_transformers_does(family, run, documents, tmp_path):
    run("remit-score", documents, "-o", tmp_path / "weights", "--rl-model", family.annealed, "--seq-len", SEQ_LEN,
        "--exact", "--device", family.device)
    rows = sorted(read_rows(tmp_path / "weights"), key=lambda row: len(row["input_ids"]))
    chosen = [rows[0], rows[len(rows) // 2], rows[-1]]
    assert largest_difference(chosen, "rl_logprob", load(family.annealed)) < 1e-4
