"""How far a divergence over k tokens and a tail is from that over the whole vocabulary: the demo pair, at the fifth of the
targets with the lowest entropy, and at all.

    python scripts/bench/top_k_tail.py        # torch, transformers, tokenizers
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TEMPERATURE, DOCUMENTS = 2.0, 60


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def gradient(loss, logits):
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


def main():
    models = ROOT / "fixtures" / "models"
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval() for name in ("demo-rl", "demo-base")
    )
    tokenizer = Tokenizer.from_file(str(models / "demo-rl" / "tokenizer.json"))
    lines = (ROOT / "fixtures/corpus/solutions/train-00.jsonl").read_text().splitlines()[:DOCUMENTS]
    of_teacher, of_student = [], []
    for line in lines:
        ids = torch.tensor([tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids])
        with torch.no_grad():
            of_teacher.append(teacher(input_ids=ids).logits[0, :-1].double())
            of_student.append(student(input_ids=ids).logits[0, :-1].double())
    q = torch.log_softmax(torch.cat(of_teacher) / TEMPERATURE, -1)
    logits = torch.cat(of_student).requires_grad_()
    p = torch.log_softmax(logits / TEMPERATURE, -1)
    entropy = -(q.exp() * q).sum(-1)
    lowest = entropy.argsort()[: math.ceil(0.2 * len(entropy))]
    print(f"{len(entropy):,} targets, {q.shape[-1]} tokens, temperature {TEMPERATURE:g}")
    print("| targets | K | tail of the RL model | reverse KL, exact | with tail | gradient off by | renormalized | gradient off by |")
    print("|---|---|---|---|---|---|---|---|")
    for name, targets in (("lowest fifth", lowest), ("all", torch.arange(len(entropy)))):
        exact = kl(p[targets], q[targets])
        wanted = gradient(exact, logits)
        for k in (4, 16, 64):
            top = q[targets].topk(k, -1)
            rest = torch.ones_like(q[targets], dtype=torch.bool).scatter(-1, top.indices, False)

            def classes(x):
                tail = x.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True)
                return torch.cat([x.gather(-1, top.indices), tail], -1)

            with_tail = kl(classes(p[targets]), classes(q[targets]))
            cut = [torch.log_softmax(x[targets].gather(-1, top.indices), -1) for x in (p, q)]
            renormalized = kl(*cut)
            off = [((gradient(loss, logits) - wanted).norm() / wanted.norm()).item() for loss in (with_tail, renormalized)]
            tail = classes(q[targets])[:, -1].exp().mean().item()
            print(
                f"| {name} | {k} | {tail:.1e} | {exact.mean().item():.5f} | {with_tail.mean().item():.5f} | {off[0]:.1%} "
                f"| {renormalized.mean().item():.5f} | {off[1]:.1%} |"
            )


if __name__ == "__main__":
    main()
