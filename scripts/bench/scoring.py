"""Measures scoring beside transformers, on the same rows in turn: tokens/s, share of the product rate, peak memory.

    cargo build --release
    python scripts/bench/scoring.py                 # about 15 minutes on 2 cores, with nothing else running
    python scripts/bench/scoring.py --rounds 1 --rows equal --dtypes bf16           # a quick look

The model is a random Qwen3 of 115M parameters with 151,936 entries, stored in bf16; 8,192 tokens, in rows of 1024 or of
mixed lengths. transformers is run as one who knows it would: hidden states once, the head in chunks of 256 targets, rows
sorted by length and padded in batches of equal size. Every run is a process of its own and its time is without loading.
The sides take turns, and every run of transformers also measures PyTorch's product rate (f32 or bf16), of products of the
model's own shapes; ratios are of medians. With --llama, an interpreter with llama-cpp-python, llama.cpp takes its turns too.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import results
from train_step import measured

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, HIDDEN, TOKENS = 151_936, 512, 8192
MODEL = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)
# Tokens of a padded batch of transformers, and targets whose logits it holds at a time.
BATCH_TOKENS, HEAD_CHUNK = 4096, 256
PRODUCT_SECONDS = 3
DTYPES = {"f32": "f32", "bf16": "bf16", "bf16-split": "f32"}
LLAMA_DTYPES = ("f32", "bf16")
# At least: the ratio to transformers, the share of PyTorch's product rate, mixed rows beside equal ones, split beside f32.
RATIO, SHARE, MIXED, SPLIT = {"f32": 1.8, "bf16": 2.0}, {"f32": 0.88, "bf16": 0.8}, 0.9, 1.3
SPLIT_NATS = 1e-3


def make(folder):
    """The model, and both kinds of rows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **MODEL), dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "fixtures/models/demo-base" / file, folder / "model" / file)
    generator = np.random.default_rng(1)
    mixed = []
    while sum(mixed) < TOKENS:
        mixed.append(min(int(generator.integers(16, 1024)), TOKENS - sum(mixed)))
    for name, lengths in (("equal", [1024] * (TOKENS // 1024)), ("mixed", mixed)):
        with open(folder / f"{name}.jsonl", "w") as out:
            for length in lengths:
                print(json.dumps({"input_ids": generator.integers(0, 1000, length).tolist()}), file=out)


def product_rate(dtype):
    """FLOP/s of PyTorch's products of the model's shapes, over seconds: other work slows it as it slows a run."""
    import torch

    x, w = torch.randn(1024, HIDDEN).to(dtype), torch.randn(4096, HIDDEN).to(dtype)
    for _ in range(10):
        x @ w.T
    products, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < PRODUCT_SECONDS:
        x @ w.T
        products += 1
    return products * 2 * x.numel() * len(w) / seconds


def theirs(folder, rows, dtype):
    """A run of transformers: prints JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    all_ids = [json.loads(line)["input_ids"] for line in open(folder / f"{rows}.jsonl")]
    model(torch.tensor([all_ids[0][:64]]))
    started = time.perf_counter()
    order = sorted(range(len(all_ids)), key=lambda i: len(all_ids[i]))
    scores = [None] * len(all_ids)
    while order:
        longest = len(all_ids[order[-1]])
        count = max(1, BATCH_TOKENS // longest)
        batch, order = order[-count:], order[:-count]
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(all_ids[i])] = torch.tensor(all_ids[i])
            mask[row, : len(all_ids[i])] = 1
        padded = mask if not mask.all() else None
        hidden = model.model(input_ids=ids, attention_mask=padded, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            states, targets = hidden[row, : len(all_ids[i]) - 1], torch.tensor(all_ids[i][1:])
            found = []
            for at in range(0, len(targets), HEAD_CHUNK):
                logits = model.lm_head(states[at : at + HEAD_CHUNK]).float()
                chosen = logits.gather(1, targets[at : at + HEAD_CHUNK, None])[:, 0]
                found.append(chosen - logits.logsumexp(1))
            scores[i] = torch.cat(found)
    seconds = time.perf_counter() - started
    scores = torch.cat(scores).double()
    print(json.dumps({"rate": TOKENS / seconds, "mean": scores.mean().item(), "products": product_rate(dtype)}))


def flops_per_token(rows, folder):
    """2 x multiply-adds of a token's forward, averaged over the rows."""
    lengths = [len(json.loads(line)["input_ids"]) for line in open(folder / f"{rows}.jsonl")]
    heads = MODEL["num_attention_heads"] * MODEL["head_dim"]
    keys = MODEL["num_key_value_heads"] * MODEL["head_dim"]
    layer = HIDDEN * (2 * heads + 2 * keys) + 3 * HIDDEN * MODEL["intermediate_size"]
    seen = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    return 2 * (MODEL["num_hidden_layers"] * (layer + 2 * heads * seen) + VOCABULARY * HIDDEN)


def ours(binary, folder, rows, dtype):
    out = folder / "scored"
    shutil.rmtree(out, ignore_errors=True)
    command = [binary, folder / f"{rows}.jsonl", "-o", out, "--rl-model", folder / "model", "--dtype", dtype, "--json"]
    command.append("--exact")
    output, peak = measured([*command, "--eos", "never", "--device", "cpu"])
    report = json.loads(output)
    return {"rate": TOKENS / report["seconds"], "peak": peak, "scores": log_probs(out)}


def of_llama(interpreter, folder, rows, dtype):
    """A run of llama.cpp, whose passes alone are timed."""
    script, file = Path(__file__).with_name("peer_llama.py"), folder / f"{dtype}.gguf"
    if not file.exists():
        measured([interpreter, script, "convert", folder / "model", file, dtype])
    output, peak = measured([interpreter, script, "score", file, folder / f"{rows}.jsonl", os.cpu_count()])
    return {**json.loads(output.splitlines()[-1]), "peak": peak}


def log_probs(folder):
    """Of all targets, in the order of the rows."""
    import pyarrow.parquet as pq

    columns = ["row_id", "rl_logprob"]
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path, columns=columns).to_pylist()]
    rows.sort(key=lambda row: row["row_id"])
    return np.array([value for row in rows for value in row["rl_logprob"][1:]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="*", default=["equal", "mixed"])
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES))
    parser.add_argument("--llama", help="an interpreter with llama-cpp-python, gguf and numpy")
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        folder, rows, dtype = args.theirs
        return theirs(Path(folder), rows, dtype)
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target/release")).resolve() / "remit-score"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        make(scratch)
        print(f"{'rows':<6} {'dtype':<11} {'remit tok/s':>20} {'transformers tok/s':>20} {'ratio':>6} {'of products':>11} {'MB':>6} {'MB':>6}")
        all_rates, scores, others = {}, {}, {}
        for rows in args.rows:
            for dtype in args.dtypes:
                # bf16-split is compared with f32, which is measured before it.
                mine, other, third = [], others.get((rows, DTYPES[dtype]), []), []
                known = bool(other)
                others[rows, DTYPES[dtype]] = other
                for _ in range(args.rounds):
                    mine.append(ours(binary, scratch, rows, dtype))
                    if known:
                        continue
                    command = [sys.executable, Path(__file__).resolve(), "--theirs", scratch, rows, DTYPES[dtype]]
                    output, peak = measured(command)
                    other.append({**json.loads(output.splitlines()[-1]), "peak": peak})
                    if args.llama and dtype in LLAMA_DTYPES:
                        third.append(of_llama(args.llama, scratch, rows, dtype))
                rates = [sorted(run["rate"] for run in side) for side in (mine, other)]
                spread = [f"{side[0]:.0f} {statistics.median(side):.0f} {side[-1]:.0f}" for side in rates]
                medians = [statistics.median(side) for side in rates]
                products = statistics.median(run["products"] for run in other)
                share = medians[0] * flops_per_token(rows, scratch) / products
                peaks = [max(run["peak"] for run in side) for side in (mine, other)]
                all_rates[rows, dtype], scores[rows, dtype] = rates[0], mine[0]["scores"]
                what, peer = f"{dtype}, {rows} rows", f"transformers, {DTYPES[dtype]}"
                results.add("Scoring", what, "tokens/s", *rates, peer, at_least=RATIO.get(dtype))
                results.add(
                    "Scoring", f"{what}: share of PyTorch's product rate", "", [share], value=share,
                    at_least=SHARE.get(dtype), key=f"share {dtype}",
                )
                if third:
                    version, values = third[0]["version"], sorted(run["rate"] for run in third)
                    results.add("Scoring", what, "tokens/s", rates[0], values, f"llama.cpp {dtype}, llama-cpp-python {version}")
                    print(f"llama.cpp, {dtype}: {statistics.median(values):.0f} tok/s, ratio {medians[0] / statistics.median(values):.2f}")
                results.add("Scoring", f"{what}: peak memory", "MB", [peaks[0]], [peaks[1]], peer)
                print(
                    f"{rows:<6} {dtype:<11} {spread[0]:>20} {spread[1]:>20} {medians[0] / medians[1]:>6.2f} {share:>11.0%}"
                    f" {peaks[0]:>6.0f} {peaks[1]:>6.0f}",
                    flush=True,
                )
        compare(args, all_rates, scores)


def compare(args, rates, scores):
    """Prints how kinds of rows and dtypes of this run stand to one another."""
    for dtype in args.dtypes:
        if {"equal", "mixed"} <= set(args.rows):
            mixed, equal = rates["mixed", dtype], rates["equal", dtype]
            ratio = statistics.median(mixed) / statistics.median(equal)
            print(f"{dtype}: mixed / equal rows {ratio:.2f}  (at least {MIXED})")
            results.add("Scoring", f"{dtype}: mixed rows", "tokens/s", mixed, equal, "remit on equal rows", at_least=MIXED)
    if {"f32", "bf16-split"} <= set(args.dtypes):
        for rows in args.rows:
            split, wide = rates[rows, "bf16-split"], rates[rows, "f32"]
            apart = np.abs(scores[rows, "bf16-split"] - scores[rows, "f32"]).max()
            ratio = statistics.median(split) / statistics.median(wide)
            print(f"{rows}: bf16-split / f32 {ratio:.2f}  (at least {SPLIT}), apart by {apart:.1e} nats  (at most {SPLIT_NATS})")
            results.add("Scoring", f"bf16-split, {rows} rows", "tokens/s", split, wide, "remit in f32", at_least=SPLIT, key="split")
            results.add("Scoring", f"bf16-split, {rows} rows: largest difference from f32", "nats", [apart], value=apart, at_most=SPLIT_NATS)


if __name__ == "__main__":
    main()
