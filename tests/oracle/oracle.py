"""What the tests share: reading shards and corpus files with other libraries, log-probs by transformers, the formula,
the training in PyTorch."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

EOS_ID = 0
ROOT = Path(__file__).resolve().parents[2]
# The folder of the commands.
BINARIES = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
# No weight decay on these. An untied head is a matrix like any other.
EMBEDDINGS = {"model.embed_tokens.weight"}


def devices():
    """What --device can be asked for: the CPU, and a GPU that the CPU emulates where the commands were built with one."""
    try:
        version = subprocess.run([BINARIES / "remit-anneal", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        version = ""
    return ["cpu"] + ["cuda-emulated"] * ("+cuda-emulator" in version)


def load(folder):
    """The checkpoint in float32, with attention written out step by step."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def target_log_probs(model, ids):
    """(n - 1,) float64 log p(x_t | x_<t) of one row run alone. Keeps the graph where there is one."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def weights_of(delta, epsilon=0.2, tau=1.0):
    """The weights of one row from its differences, as numpy float64."""
    delta = np.asarray(delta, dtype=np.float64)
    centred = delta - delta.mean()
    return np.clip(2.0 / (1.0 + np.exp(-centred / tau)), 1 - epsilon, 1 + epsilon)


def train_in_pytorch(
    learner, rows, weighting, steps, lr, weight_decay=0.1, clip=1.0, epsilon=0.2, tau=1.0, order=None, reference=None
):
    """`steps` steps of AdamW as remit-anneal takes them, in float32: (one dict of metrics a step, final parameters by
    name). A step is over all `rows`, or over those of the row_ids that `order` lists for it. `weighting` is dynamic,
    static or uniform; or online: dynamic, with log-probs that the checkpoint `reference` gives in every step anew."""
    model = load(learner)
    reference = load(reference) if weighting == "online" else None
    by_id = {row["row_id"]: row for row in rows}
    order = [list(by_id)] * steps if order is None else order
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n not in EMBEDDINGS]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n in EMBEDDINGS]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    history = []
    for step in range(steps):
        rows = [by_id[row_id] for row_id in order[step]]
        num_targets = sum(len(row["input_ids"]) - 1 for row in rows)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss, ntp, weight_sum = 0.0, 0.0, 0.0
        for row in rows:  # one context at a time; gradients add up
            log_probs = target_log_probs(model, row["input_ids"])
            if weighting == "uniform":
                weight = torch.ones_like(log_probs)
            elif weighting == "static":
                weight = torch.tensor(row["weight"][1:], dtype=torch.float64)
            else:
                if weighting == "online":
                    with torch.no_grad():
                        of_reference = target_log_probs(reference, row["input_ids"])
                else:
                    of_reference = torch.tensor(row["rl_logprob"][1:], dtype=torch.float64)
                delta = of_reference - log_probs.detach()
                weight = torch.clamp(2 * torch.sigmoid((delta - delta.mean()) / tau), 1 - epsilon, 1 + epsilon)
            row_loss = -(weight * log_probs).sum() / num_targets
            row_loss.backward()
            loss += row_loss.item()
            ntp -= log_probs.detach().sum().item() / num_targets
            weight_sum += weight.sum().item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        optimizer.step()
        history.append({"loss": loss, "ntp_loss": ntp, "grad_norm": norm, "weight_mean": weight_sum / num_targets})
    return history, {name: p.detach() for name, p in model.named_parameters()}


def metrics_of(folder):
    """The lines of an annealed model's metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def stored_tensors(folder):
    """The tensors of a checkpoint's *.safetensors, by name."""
    return {name: t for path in sorted(Path(folder).glob("*.safetensors")) for name, t in load_file(path).items()}


def perturbed_copy(source, target, scale, seed):
    """A copy of a checkpoint with N(0, scale) added to every tensor. The files are otherwise alike: names, dtypes,
    config, and both copies of a tied embedding where both are stored."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    for path in sorted(target.glob("*.safetensors")):
        tensors = load_file(path)
        tied = "lm_head.weight" in tensors and json.loads((source / "config.json").read_text())["tie_word_embeddings"]
        for name, t in sorted(tensors.items()):
            tensors[name] = (t.float() + scale * torch.randn(t.shape, generator=generator)).to(t.dtype)
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    return target


def description(folder, name):
    """The plan, manifest or rejects of a set."""
    [path] = Path(folder).glob(f"_remit/{name}.*")
    footer = pq.read_metadata(path).metadata if path.suffix == ".parquet" else pa.ipc.open_file(str(path)).metadata
    return json.loads(footer[f"remit.{name}".encode()])


def shards(folder):
    found = sorted(Path(folder).glob("*.parquet"))
    assert found, f"no *.parquet in {folder}"
    return found


def read_rows(folder):
    """All rows of a set as dicts, sorted by row_id."""
    rows = [row for path in shards(folder) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["row_id"])


def corpus_files(folder):
    """Files in byte order of their paths, as (relative path, path)."""
    files = [(p.relative_to(folder).as_posix(), p) for p in Path(folder).rglob("*") if p.is_file()]
    return sorted(files, key=lambda pair: pair[0].encode())


def documents(path):
    """The texts of one corpus file: a .txt or .md file is one document, the other formats hold one per record."""
    name = path.name
    if name.endswith((".txt", ".md")):
        return [path.read_bytes().decode()]
    if name.endswith(".parquet"):
        return pq.read_table(path)["text"].to_pylist()
    raw = path.read_bytes()
    if name.endswith(".zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return [json.loads(line)["text"] for line in raw.decode().split("\n") if line]


def encoded_corpus(folder, tokenizer_json):
    """[(source, doc_index, ids with EOS)] of the whole corpus, in order."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    found = []
    for source, path in corpus_files(folder):
        encodings = tokenizer.encode_batch(documents(path), add_special_tokens=False)
        found += [(source, i, e.ids + [EOS_ID]) for i, e in enumerate(encodings)]
    return found


def subset(rows, count):
    """About `count` rows evenly spread, with the first, the last, the shortest and the longest always among them."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    step = max(1, len(rows) // count)
    chosen = {0, len(rows) - 1, by_length[0], by_length[-1], *range(0, len(rows), step)}
    return [rows[i] for i in sorted(chosen)]
