"""remit-anneal --weighting switch, kd and rl-nll against the same training written in PyTorch, and against the exact
divergence over the whole vocabulary."""

import math
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from oracle import BINARIES, EMBEDDINGS, load, metrics_of, read_rows

STEPS, LR, K, TEMPERATURE, FRACTION, ALPHA = 20, 1e-3, 8, 2.0, 0.2, 0.5
CASES = {
    "switch": ("--weighting", "switch"),
    "switch-forward": ("--weighting", "switch", "--divergence", "forward"),
    "kd": ("--weighting", "kd", "--alpha", ALPHA),
    "kd-forward": ("--weighting", "kd", "--alpha", ALPHA, "--divergence", "forward"),
    "rl-nll": ("--weighting", "rl-nll"),
}


@pytest.fixture(scope="module")
def small_set(run, corpus, models, tmp_path_factory):
    """(learner, weights): one step's worth of documents with all distributions, scored by a copy of the learner that is
    not too near."""
    folder = tmp_path_factory.mktemp("small")
    learner, teacher = models / "tiny-llama-base", folder / "teacher"
    model = load(learner)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(teacher)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(learner / file, teacher / file)
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines()
    small = folder / "corpus"
    small.mkdir()
    (small / "some.jsonl").write_text("\n".join(random.Random(1).sample(lines, 16)) + "\n")
    out = folder / "weights"
    run("remit-score", small, "-o", out, "--rl-model", teacher, "--base-model", learner, "--seq-len", 128, "--exact",
        "--entropy", "--top-k", K, "--entropy-temperature", TEMPERATURE)
    return learner, out


def divergence(log_p, row, position, forward):
    """Of one target: over the k tokens and the tail. `log_p` is the learner's, (V,)."""
    ids = torch.tensor(row["rl_top_ids"][position])
    tail = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
    learner = torch.cat([log_p[ids], tail[None]])
    teacher = torch.tensor(row["rl_top_logprobs"][position] + [row["rl_tail_logprob"][position]], dtype=torch.float64)
    p, q = (teacher, learner) if forward else (learner, teacher)
    return (p.exp() * (p - q)).sum()


def train(learner, rows, case):
    """20 steps of AdamW over all rows: the metrics of each, and the parameters after them."""
    model = load(learner)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n not in EMBEDDINGS]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n in EMBEDDINGS]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    ranked = sorted((row["rl_entropy"][t], i, t) for i, row in enumerate(rows) for t in range(1, len(row["input_ids"])))
    count = len(ranked)
    chosen = {(i, t) for _, i, t in ranked[: math.ceil(FRACTION * count - 1e-9)]}
    forward = case.endswith("forward")
    history = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        optimizer.zero_grad()
        total, of_divergence = 0.0, 0.0
        for i, row in enumerate(rows):
            ids = torch.tensor(row["input_ids"])
            logits = model(input_ids=ids[None]).logits[0, :-1].double()
            log_p, tempered = torch.log_softmax(logits, -1), torch.log_softmax(logits / TEMPERATURE, -1)
            nll = -log_p.gather(-1, ids[1:, None])[:, 0]
            if case == "rl-nll":
                delta = -torch.tensor(row["rl_logprob"][1:], dtype=torch.float64)
                weight = torch.clamp(2 * torch.sigmoid(delta - delta.mean()), 0.8, 1.2)
                loss, kl = (weight * nll).sum() / count, torch.zeros(())
            else:
                kls = {
                    t: TEMPERATURE**2 * divergence(tempered[t - 1], row, t, forward)
                    for t in range(1, len(ids))
                    if case.startswith("kd") or (i, t) in chosen
                }
                kl = sum(kls.values(), torch.zeros((), dtype=torch.float64))
                if case.startswith("kd"):
                    kl = ALPHA * kl / count
                    loss = (1 - ALPHA) * nll.sum() / count + kl
                else:
                    kl = kl / len(chosen)
                    rest = [t - 1 for t in range(1, len(ids)) if t not in kls]
                    loss = nll[rest].sum() / (count - len(chosen)) + kl
            loss.backward()
            total, of_divergence = total + loss.item(), of_divergence + kl.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        history.append({"loss": total, "divergence": of_divergence, "grad_norm": norm})
    return history, {name: p.detach() for name, p in model.named_parameters()}


def anneal(run, weights, learner, out, case, *args):
    run("remit-anneal", "--weights", weights, "--model", learner, "-o", out, *CASES[case], "--lr", LR, "--seed", 0,
        "--device", "cpu", *args)


@pytest.mark.parametrize("case", CASES)
def test_20_steps_follow_pytorch(case, small_set, run, tmp_path):
    learner, weights = small_set
    out = tmp_path / "annealed"
    anneal(run, weights, learner, out, case, "--epochs", STEPS, "--batch-tokens", 1_000_000)
    history, parameters = train(learner, read_rows(weights), case)
    found = metrics_of(out)
    assert len(found) == STEPS, "one step should hold the whole set"
    for step, (ours, theirs) in enumerate(zip(found, history)):
        for key, tolerance in (("loss", 1e-4), ("divergence", 1e-4), ("grad_norm", 1e-3)):
            if key in ours:
                assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-7), f"{key} of step {step + 1}"
        assert ("divergence" in ours) == (case != "rl-nll")
    after = load_file(out / "model.safetensors")
    for name, expected in parameters.items():
        difference = (after[name].double() - expected.double()).norm() / expected.double().norm()
        assert difference < 2e-4, name


@pytest.mark.parametrize("case", ["switch", "kd"])
def test_micro_batches_and_interruptions_change_no_bit(case, run, corpus, models, tmp_path):
    weights = tmp_path / "weights"
    run("remit-score", corpus / "solutions" / "train-00.jsonl", "-o", weights, "--limit-docs", 300, "--entropy", "--top-k", 4)
    learner = models / "demo-base"
    steps = ("--steps", 6, "--batch-tokens", 6000, "--save-every", 2)
    anneal(run, weights, learner, tmp_path / "whole", case, *steps)
    anneal(run, weights, learner, tmp_path / "small", case, *steps, "--micro-batch-tokens", 1024)
    out = tmp_path / "killed"
    command = [BINARIES / "remit-anneal", "--weights", weights, "--model", learner, "-o", out, *CASES[case], "--lr", LR,
               "--seed", 0, "--device", "cpu", *steps]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("checkpoints/*.b3")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    anneal(run, weights, learner, out, case, *steps)
    model = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "small" / "model.safetensors").read_bytes() == model
    assert (out / "model.safetensors").read_bytes() == model


def test_what_a_set_lacks_is_refused_by_name(corpus, models, run, tmp_path):
    weights = tmp_path / "weights"
    run("remit-score", corpus / "prose" / "visit.txt", "-o", weights, "--entropy", "--top-k", 4, "--top-k-where", "entropy<=q10")
    for args, expected in (
        (("switch",), "needs distributions for 0.2 of the targets (--switch-fraction), and 0.1 of them have one in"),
        (("kd",), "needs the distribution of every target, and 0.1 of them have one in"),
        (("switch", "--normalize", "weights", "--switch-fraction", "0.1"), "--normalize weights can't be had"),
    ):
        command = [BINARIES / "remit-anneal", "--weights", weights, "-o", tmp_path / "out", "--weighting", *args]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
