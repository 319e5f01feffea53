"""Makes fixtures/golden: log-probs and gradients by transformers in float32, to compare remit's own with.

    python scripts/goldens/make.py                   # writes fixtures/golden; under a minute
    python scripts/goldens/make.py tiny-x odd-x      # those of these models alone
    python scripts/goldens/make.py --check           # makes them again and compares; exit 1 names the worst difference

The models are demo-base, demo-rl, and the tiny-* and odd-* of fixtures/models that are not the -base of another.

<model>.logprobs.json     rows of ids, and log p(x_t | x_<t) of every target; element i belongs to position i + 1.
<model>.grads.json        a batch with its RL and base log-probs, static weights, and the loss of each weighting.
<model>.grads.safetensors the gradient of that loss, float32, under <weighting>/<parameter name as in the checkpoint>.
"""

import argparse
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "fixtures" / "models"
GOLDEN = ROOT / "fixtures" / "golden"
TOKENIZER = MODELS / "demo-base" / "tokenizer.json"
LENGTHS = [2, 3, 17, 64, 65, 128, 300, 600]
ODD_LENGTHS = [2, 5, 40, 64, 66, 130, 600]
# Gradients in every weighting for these two, in the dynamic one for the rest.
ALL_WEIGHTINGS = ("tiny-llama", "tiny-qwen3")
# The rows of the gradients. Those of the first models are shorter than the windows and RoPE limits of the later ones.
GRADIENT_LENGTHS = [5, 80, 23]
FIRST_GRADIENT_LENGTHS = [5, 40, 23]
FIRST = (*ALL_WEIGHTINGS, "tiny-mistral", "tiny-qwen2", "tiny-olmo2", "tiny-smollm3")
WEIGHTINGS = ("uniform", "static", "dynamic", "excess-top-k")
EPSILON, TAU, TOP_K_FRACTION = 0.2, 1.0, 0.6
LOGPROB_TOLERANCE_NATS = 2e-5
GRADIENT_TOLERANCE = 1e-5


def random_models():
    """Names of the models with random weights, two or more of a family."""
    names = sorted(p.name for p in MODELS.iterdir() if p.name.startswith(("tiny-", "odd-")))
    return [name for name in names if not name.endswith("-base")]


def load(name):
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager").eval()


def perturbed(name, scale, seed):
    """The model with N(0, scale) added to every parameter."""
    model, generator = load(name), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return model


def target_log_probs(model, ids):
    """(n - 1,) float64: log-softmax in float64 of the float32 logits. Keeps the graph."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def weights_of(delta):
    """The formula, over the targets of one row."""
    centred = delta - delta.mean()
    return torch.clamp(2 * torch.sigmoid(centred / TAU), 1 - EPSILON, 1 + EPSILON)


def selected(excess):
    """Weight 1 for the TOP_K_FRACTION of one row's targets with the largest excess loss, rounded up; 0 for the others."""
    weights = torch.zeros_like(excess)
    weights[excess.topk(math.ceil(TOP_K_FRACTION * len(excess) - 1e-9)).indices] = 1
    return weights


def sample_rows(name, lengths, seed):
    """Rows of the wanted lengths: random ids of the model's vocabulary and tokens of the corpus by turns, these modulo
    the vocabulary where it is smaller than the tokenizer's."""
    config = json.loads((MODELS / name / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    texts = [(ROOT / "fixtures/corpus" / path).read_text() for path in ("essays/mid-training.md", "solutions/drill.txt")]
    real = tokenizer.encode_batch(texts)
    rng = random.Random(seed)
    rows = []
    for i, length in enumerate(lengths):
        if i % 3 == 0:
            rows.append([rng.randrange(config["vocab_size"]) for _ in range(length)])
        else:
            source = real[i % 2].ids
            start = rng.randrange(len(source) - length)
            rows.append([id % config["vocab_size"] for id in source[start : start + length]])
    return rows


def make_log_probs(name, out):
    model = load(name)
    rows = []
    with torch.no_grad():
        for ids in sample_rows(name, ODD_LENGTHS if name.startswith("odd-") else LENGTHS, seed=101):
            rows.append({"input_ids": ids, "logprobs": target_log_probs(model, ids).tolist()})
    record = {
        "model": name,
        "made_by": "scripts/goldens/make.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    (out / f"{name}.logprobs.json").write_text(json.dumps(record) + "\n")


def make_gradients(name, out, weightings):
    """Learner: `name`. RL model and frozen base: the learner with seeded noise, more and less of it. An unrelated model
    as the RL model would drive nearly all weights to their bounds, where an error in the difference cannot show; this
    way about half lie between the bounds, and static weights differ from dynamic ones."""
    learner = load(name)
    rl_model, frozen = perturbed(name, 0.02, seed=5), perturbed(name, 0.01, seed=6)

    rows = []
    for ids in sample_rows(name, FIRST_GRADIENT_LENGTHS if name in FIRST else GRADIENT_LENGTHS, seed=202):
        with torch.no_grad():
            # Rounded to float32, as they are stored in a shard.
            rl, base = (target_log_probs(m, ids).float().double() for m in (rl_model, frozen))
        rows.append({"input_ids": ids, "rl": rl, "base": base, "static": weights_of(rl - base)})
    num_targets = sum(len(row["input_ids"]) - 1 for row in rows)

    gradients, losses = {}, {}
    for weighting in weightings:
        learner.zero_grad()
        total, plain = 0.0, 0.0
        for row in rows:
            log_probs = target_log_probs(learner, row["input_ids"])
            if weighting == "uniform":
                weight = torch.ones_like(log_probs)
            elif weighting == "static":
                weight = row["static"]
            elif weighting == "dynamic":
                weight = weights_of(row["rl"] - log_probs.detach())
            elif weighting == "excess-top-k":
                weight = selected(row["rl"] - log_probs.detach())
            else:
                raise ValueError(f"{name}: no weighting is called {weighting}")
            total = total - (weight * log_probs).sum()
            plain = plain - log_probs.detach().sum()
        loss = total / num_targets
        loss.backward()
        losses[weighting] = loss.item()
        for parameter, p in learner.named_parameters():
            gradients[f"{weighting}/{parameter}"] = p.grad.clone()

    save_file(gradients, out / f"{name}.grads.safetensors")
    (out / f"{name}.grads.safetensors").chmod(0o644)
    record = {
        "model": name,
        "made_by": "scripts/goldens/make.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "epsilon": EPSILON,
        "temperature": TAU,
        "loss": losses,
        "ntp_loss": (plain / num_targets).item(),
        "rows": [
            {
                "input_ids": row["input_ids"],
                "rl_logprobs": row["rl"].tolist(),
                "base_logprobs": row["base"].tolist(),
                "static_weights": row["static"].tolist(),
            }
            for row in rows
        ],
    }
    (out / f"{name}.grads.json").write_text(json.dumps(record) + "\n")


def make(out, names):
    out.mkdir(parents=True, exist_ok=True)
    for name in names or ("demo-base", "demo-rl", *random_models()):
        make_log_probs(name, out)
    for name in names or random_models():
        make_gradients(name, out, WEIGHTINGS if name in ALL_WEIGHTINGS else ("dynamic",))


def differences(old, new, path=""):
    """Yields (where, difference) of two JSON values; versions are not compared."""
    if isinstance(old, dict):
        if old.keys() != new.keys():
            yield path, float("inf")
            return
        for key in old.keys() - {"torch", "transformers"}:
            yield from differences(old[key], new[key], f"{path}.{key}")
    elif isinstance(old, list):
        if len(old) != len(new):
            yield path, float("inf")
            return
        for i, (a, b) in enumerate(zip(old, new)):
            yield from differences(a, b, f"{path}[{i}]")
    elif isinstance(old, float):
        yield path, abs(old - new)
    elif old != new:
        yield path, float("inf")


def check(committed, models):
    """0 when every committed file is reproduced within the tolerances, else 1."""
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        make(fresh, models)
        names = sorted(p.name for p in fresh.iterdir())
        for name in names:
            if not (committed / name).exists():
                print(f"{name}: missing from {committed}")
                failed = True
                continue
            if name.endswith(".json"):
                pairs = differences(json.loads((committed / name).read_text()), json.loads((fresh / name).read_text()))
                where, worst = max(pairs, key=lambda pair: pair[1])
                tolerance, unit = LOGPROB_TOLERANCE_NATS, "absolute"
            else:
                old, new = load_file(committed / name), load_file(fresh / name)
                if old.keys() != new.keys():
                    where, worst = "tensor names", float("inf")
                else:
                    # A key bias without RoPE shifts all scores of a query alike, so its gradient is 0 but for rounding,
                    # and has no relative error.
                    least = 1e-3 * torch.stack([t.norm() for t in old.values()]).norm()
                    pairs = ((k, ((old[k] - new[k]).norm() / old[k].norm().clamp(min=least)).item()) for k in old)
                    where, worst = max(pairs, key=lambda pair: pair[1])
                tolerance, unit = GRADIENT_TOLERANCE, "relative"
            verdict = "ok" if worst <= tolerance else "DIFFERS"
            failed |= worst > tolerance
            print(f"{name}: {verdict}: largest {unit} difference {worst:.3g} at {where}, allowed {tolerance:g}")
    return int(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models to make values of; without any, all")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--check", action="store_true", help="compare --out with freshly made values, write nothing")
    args = parser.parse_args()
    # Two threads made the committed values; one gives them but for rounding, and does not suffer from a busy machine.
    torch.set_num_threads(1 if args.check else 2)
    if args.check:
        sys.exit(check(args.out, args.models))
    make(args.out, args.models)


if __name__ == "__main__":
    main()
