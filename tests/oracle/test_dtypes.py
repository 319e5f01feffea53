"""Every golden model in every --dtype on the CPU, against transformers in float32 on the same weights, which are stored in
bf16: what is off is what the activations lose."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM

from oracle import load, perturbed_copy, read_rows, target_log_probs

MODELS = Path(__file__).resolve().parents[2] / "fixtures" / "models"
NAMES = sorted(p.name for kind in ("tiny", "odd") for p in MODELS.glob(f"{kind}-*") if not p.name.endswith("-base"))
# Beyond the windows, and on both sides of the length at which phi3 takes its other RoPE factors.
LENGTHS = (2, 3, 17, 40, 64, 65, 96, 130)
NOISE = 0.01
F32_NATS, SPLIT_NATS, BF16_MEAN_NATS = 1e-4, 1e-3, 0.02
# Relative, of a tensor by norms. Where terms cancel, as those of a key's bias do, their rounding stays: a norm counts as this
# part of the whole gradient's at least.
GRADIENT, FLOOR = 1e-2, 0.03
BETA1 = 0.9


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On matrices this small a second thread gains nothing, and waits long for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def log_probs(model, rows):
    with torch.no_grad():
        return torch.cat([target_log_probs(model, row) for row in rows])


@pytest.fixture(scope="module", params=NAMES)
def golden(request, tmp_path_factory):
    """A near copy of a model, stored in bf16; rows as a corpus; and log-probs: of float32, and of transformers in bf16."""
    folder = tmp_path_factory.mktemp(request.param)
    model = perturbed_copy(MODELS / request.param, folder / "model", NOISE, seed=3)
    for path in model.glob("*.safetensors"):
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    if not (model / "tokenizer.json").exists():
        words = {f"w{i}": i for i in range(vocabulary)}
        Tokenizer(BPE(words, [])).save(str(model / "tokenizer.json"))
        (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    generator = np.random.default_rng(4)
    rows = [generator.integers(1, vocabulary, length).tolist() for length in LENGTHS]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    narrow = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager").eval()
    return folder, log_probs(load(model), rows), log_probs(narrow, rows)


def differences(run, folder, dtype, expected):
    """Of each target, in nats."""
    out = folder / f"scored-{dtype}"
    shutil.rmtree(out, ignore_errors=True)
    run("remit-score", folder / "rows.jsonl", "-o", out, "--rl-model", folder / "model", "--eos", "never", "--exact",
        "--device", "cpu", "--dtype", dtype)
    found = [value for row in read_rows(out) for value in row["rl_logprob"][1:]]
    assert len(found) == len(expected)
    return (torch.tensor(found, dtype=torch.float64) - expected).abs()


@pytest.mark.parametrize(("dtype", "most"), [("f32", F32_NATS), ("bf16-split", SPLIT_NATS)])
def test_no_log_prob_is_further_from_float32_than_its_dtype_allows(golden, run, dtype, most):
    folder, exact, _ = golden
    assert differences(run, folder, dtype, exact).max().item() <= most


def test_bf16_is_near_float32_and_no_further_than_transformers_in_bf16(golden, run):
    folder, exact, of_transformers = golden
    ours = differences(run, folder, "bf16", exact).mean().item()
    theirs = (of_transformers - exact).abs().mean().item()
    assert ours <= BF16_MEAN_NATS
    assert ours <= theirs
    assert ours > 1e-6, "nothing was rounded"


def test_gradients_in_bf16_are_near_those_of_float32(golden, run):
    folder, *_ = golden
    rows = [json.loads(line)["input_ids"] for line in open(folder / "rows.jsonl")]
    options = ("--device", "cpu")
    run("remit-score", folder / "rows.jsonl", "-o", folder / "set", "--rl-model", folder / "model", "--eos", "never",
        *options)
    run("remit-anneal", "--weights", folder / "set", "--model", folder / "model", "-o", folder / "annealed", "--weighting",
        "uniform", "--steps", 1, "--save-every", 1, "--clip", "none", "--batch-tokens", 4096, "--dtype", "bf16",
        "--keep-special-tokens", *options)
    # After one step the first moments are the gradient times a constant.
    moments = load_file(folder / "annealed/checkpoints/step-00000001.safetensors")
    model = load(folder / "model")
    (-torch.cat([target_log_probs(model, row) for row in rows]).mean()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    apart = {
        name: ((moments[f"first_moment.{name}"] / (1 - BETA1) - gradient).norm() / max(gradient.norm(), FLOOR * whole)).item()
        for name, gradient in expected.items()
    }
    assert max(apart.values()) <= GRADIENT, max(apart, key=apart.get)
