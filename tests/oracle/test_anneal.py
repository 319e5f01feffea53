"""remit-anneal against transformers, and against the same training written in PyTorch."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from oracle import load, metrics_of, read_rows, subset, target_log_probs, train_in_pytorch

WEIGHTINGS = ("dynamic", "static", "uniform")
STEPS, LR, WEIGHT_DECAY, CLIP = 4, 1e-3, 0.1, 1.0
EPSILON, TAU = 0.2, 1.0


def relative(a, b):
    """Norm of the difference by the norm of `b`."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item()


# --- the annealed demo base is a checkpoint like the one it came from ------------------------------------------------


@pytest.fixture(scope="module")
def annealed(run, demo_weights, tmp_path_factory):
    """The demo base after 4 steps. The rate is high enough that a norm weight near 1 moves by more than bf16's spacing."""
    out = tmp_path_factory.mktemp("annealed") / "model"
    run("remit-anneal", "--weights", demo_weights, "-o", out, "--steps", 4, "--weighting", "dynamic", "--lr", 5e-3,
        "--batch-tokens", 8192)
    return out


def test_annealed_checkpoint_loads_in_transformers(annealed):
    model = AutoModelForCausalLM.from_pretrained(annealed)
    tokenizer = AutoTokenizer.from_pretrained(annealed)
    ids = tokenizer("Question: What is 12+7?\nSolution:\n", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_annealed_checkpoint_keeps_names_shapes_and_dtypes(annealed, models):
    before = load_file(models / "demo-base" / "model.safetensors")
    after = load_file(annealed / "model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}


def test_every_tensor_is_trained(annealed, models):
    before = load_file(models / "demo-base" / "model.safetensors")
    after = load_file(annealed / "model.safetensors")
    frozen = [name for name in before if torch.equal(before[name], after[name])]
    assert not frozen, f"unchanged after training: {frozen}"


def test_annealed_checkpoint_scores_as_transformers_does(annealed, run, corpus, tmp_path):
    out = tmp_path / "weights"
    run("remit-score", corpus / "prose" / "harbour.txt", "-o", out, "--rl-model", annealed, "--exact", "--seq-len", 256)
    model = load(annealed)
    for row in subset(read_rows(out), count=50):
        with torch.no_grad():
            expected = target_log_probs(model, row["input_ids"])
        found = torch.tensor(row["rl_logprob"][1:], dtype=torch.float64)
        assert (found - expected).abs().max() < 1e-4, f"row {row['row_id']}"


# --- the same training in PyTorch ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_set(run, corpus, models, tmp_path_factory):
    """(learner, weights): about 60 documents, one step's worth, scored with tiny-llama-base and a near copy of it as the
    reference: near enough that most weights lie between the bounds, where they are sensitive."""
    folder = tmp_path_factory.mktemp("small")
    learner, reference = models / "tiny-llama-base", folder / "reference"
    model = load(learner)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(reference)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(learner / file, reference / file)

    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()
    small = folder / "corpus"
    small.mkdir()
    (small / "some.jsonl").write_text("\n".join(random.Random(1).sample(lines, 60)) + "\n")
    shutil.copyfile(corpus / "prose" / "visit.txt", small / "visit.txt")
    out = folder / "weights"
    run("remit-score", small, "-o", out, "--rl-model", reference, "--base-model", learner, "--seq-len", 128, "--exact")
    return learner, out


def trained(learner, rows, weighting):
    """STEPS steps in PyTorch: (metrics of the steps, final parameters)."""
    return train_in_pytorch(learner, rows, weighting, STEPS, LR, WEIGHT_DECAY, CLIP, EPSILON, TAU)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_training_follows_pytorch(weighting, small_set, run, tmp_path):
    learner, weights = small_set
    out = tmp_path / "annealed"
    run("remit-anneal", "--weights", weights, "--model", learner, "-o", out, "--weighting", weighting,
        "--epsilon", EPSILON, "--temperature", TAU, "--lr", LR, "--epochs", STEPS, "--batch-tokens", 1_000_000,
        "--weight-decay", WEIGHT_DECAY, "--clip", CLIP, "--seed", 0)
    rows = read_rows(weights)
    history, parameters = trained(learner, rows, weighting)

    found = metrics_of(out)
    assert [m["step"] for m in found] == list(range(1, STEPS + 1)), "one step should hold the whole set"
    for step, (ours, theirs) in enumerate(zip(found, history)):
        assert ours["lr"] == pytest.approx(LR * (1 - step / STEPS), rel=1e-6)
        assert ours["targets"] == sum(len(row["input_ids"]) - 1 for row in rows)
        for key, tolerance in (("loss", 1e-4), ("ntp_loss", 1e-4), ("weight_mean", 1e-4), ("grad_norm", 1e-3)):
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance), f"{key} of step {step + 1}"

    after = load_file(out / "model.safetensors")
    for name, expected in parameters.items():
        assert relative(after[name], expected) < 1e-4, name


def test_weightings_differ_after_the_first_step(small_set):
    """The comparison above can tell the weightings apart: their losses differ by more than its tolerance."""
    learner, weights = small_set
    rows = read_rows(weights)
    last = {w: trained(learner, rows, w)[1] for w in WEIGHTINGS}
    name = "model.layers.0.mlp.down_proj.weight"
    assert relative(last["dynamic"][name], last["uniform"][name]) > 2e-4
    assert relative(last["dynamic"][name], last["static"][name]) > 0
