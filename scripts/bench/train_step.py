"""Measures training steps of 42M parameters, beside PyTorch and transformers: tokens/s and peak memory.

    cargo build --release
    python scripts/bench/train_step.py                  # about 15 minutes on 2 cores, with nothing else running
    python scripts/bench/train_step.py --only step --rounds 1 --steps 4          # a quick look

A random llama (vocabulary 32,000, hidden 512, 8 layers of 8 heads, FFN 1408, tied head: 42.1M parameters, f32) takes
steps of 8 rows x 512 tokens. All sides train on the same 8 rows again and again, at the same rates and with the same
optimizer, so their losses have to agree. Every run is a process of its own and the sides take turns, `--rounds` times;
ratios are of medians, so that what else the machine does touches all of them. A run's time is the median of its steps
but the first two; its memory is the peak of its resident set.

- step: remit-anneal against a loop in PyTorch as one writes it: transformers with its default attention, cross entropy,
  backward, clip, AdamW (fused or foreach, whichever a short trial finds faster); in f32, and in bf16: --dtype bf16 against
  torch.autocast, both with f32 originals.
- weighting: --weighting dynamic against uniform, in pairs whose first alternates.
- checkpointing: peak memory with --activation-checkpointing, for rows of 512 and of 2048 tokens, 4096 tokens a
  micro-batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import results

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("step", "weighting", "checkpointing")
VOCABULARY, ROWS, SEQ_LEN, LONG_SEQ_LEN = 32_000, 8, 512, 2048
STEP_TOKENS = ROWS * SEQ_LEN
MODEL = dict(
    vocab_size=VOCABULARY,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LR, WEIGHT_DECAY, CLIP = 1e-4, 0.1, 1.0
UNSTEADY_STEPS = 2
# tokens/s beside PyTorch at least, and peak memory at most; losses of the two apart by at most so much, in f32 and in bf16.
SPEED, MEMORY, APART = 1.2, 0.6, {"f32": 1e-3, "bf16": 1e-2}
# Starts a program from a small process, since a child's peak memory begins with its parent's; prints kB.
MEASURE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def make_models(folder):
    """`folder`/model, and `folder`/reference: the same with a little noise."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **MODEL)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    num_parameters = sum(p.numel() for p in model.parameters())
    for name in ("model", "reference"):
        model.save_pretrained(folder / name)
        # Without a configuration that names an EOS: the rows have none.
        for file in ("tokenizer.json",):
            shutil.copyfile(ROOT / "fixtures" / "models" / "demo-base" / file, folder / name / file)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.002 * torch.randn_like(p))
    print(json.dumps({"parameters": num_parameters}))


def train_in_pytorch(folder, steps, kind, dtype):
    """The loop to compare with; prints the seconds and the loss of every step."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.train()
    model.config.use_cache = False
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in n]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, **{kind: True})
    ids = torch.from_numpy(np.load(folder / f"rows-{SEQ_LEN}.npy").astype(np.int64))
    # The targets are moved, not the logits: a slice of those would be a copy of half a gigabyte.
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100).reshape(-1)
    seconds, losses = [], []
    for step in range(steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(input_ids=ids).logits
            loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets, ignore_index=-100)
        del logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "losses": losses}))


def measured(command):
    """Runs a command: (its stdout but for the last line, its peak memory in MB)."""
    command = [sys.executable, "-S", "-c", MEASURE, *map(str, command)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[4:])}\nexited with {done.returncode}\n{done.stdout}{done.stderr}")
    *lines, peak_kb = done.stdout.splitlines()
    return "\n".join(lines), int(peak_kb) * 1024 / 1e6


class Bench:
    """The folder with models and sets, and the sides that can run on it."""

    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps
        self.binaries = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve()
        self.threads = os.cpu_count()

    def own(self, *arguments):
        """A hidden subcommand of this script, in its own process: (what it printed, peak memory in MB)."""
        output, peak = measured([sys.executable, Path(__file__).resolve(), *arguments])
        return json.loads(output.splitlines()[-1]), peak

    def make_set(self, seq_len):
        """STEP_TOKENS tokens in rows of `seq_len`, as frequent as words in a text (Zipf), scored with the reference."""
        ranks = np.arange(1, VOCABULARY + 1)
        frequencies = 1.0 / (ranks + 2.7)
        ids = np.random.default_rng(0).choice(VOCABULARY, STEP_TOKENS, p=frequencies / frequencies.sum())
        rows = self.folder / f"rows-{seq_len}.npy"
        np.save(rows, ids.astype(np.uint16).reshape(-1, seq_len))
        command = [self.binaries / "remit-score", rows, "-o", self.folder / f"set-{seq_len}"]
        command += ["--rl-model", self.folder / "reference", "--seq-len", seq_len, "--packing", "window"]
        measured([*command, "--eos", "never", "--device", "cpu"])

    def remit(self, weighting, *more, seq_len=SEQ_LEN):
        """A run of remit-anneal."""
        output = self.folder / "annealed"
        shutil.rmtree(output, ignore_errors=True)
        command = [self.binaries / "remit-anneal", "--weights", self.folder / f"set-{seq_len}"]
        command += ["--model", self.folder / "model", "-o", output, "--weighting", weighting, "--steps", self.steps]
        command += ["--lr", LR, "--batch-tokens", STEP_TOKENS, "--micro-batch-tokens", STEP_TOKENS]
        command += ["--weight-decay", WEIGHT_DECAY, "--clip", CLIP, "--device", "cpu", "--threads", self.threads, *more]
        _, peak = measured(command)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        targets = STEP_TOKENS - STEP_TOKENS // seq_len
        assert all(line["targets"] == targets for line in lines), "a step should hold the whole set"
        return Run(
            [STEP_TOKENS / line["tokens_per_second"] for line in lines], [line["ntp_loss"] for line in lines], peak
        )

    def pytorch(self, kind, dtype="f32", steps=None):
        """A run of the loop in PyTorch, with this kind of AdamW."""
        found, peak = self.own("pytorch", self.folder, steps or self.steps, kind, dtype)
        return Run(found["seconds"], found["losses"], peak)


class Run:
    """What one process took: seconds a step, its losses, peak memory in MB. Shows progress on stderr."""

    def __init__(self, seconds, losses, peak):
        self.step_seconds = statistics.median(seconds[min(UNSTEADY_STEPS, len(seconds) - 1) :])
        self.fastest, self.losses, self.peak = min(seconds), losses, peak
        self.rate = STEP_TOKENS / self.step_seconds
        print(f"{self.step_seconds:.3f} s/step, {peak:.0f} MB", file=sys.stderr, flush=True)


def table(runs, flops_per_token):
    """Prints medians of the runs by side; returns (median seconds a step, median peak memory) of each."""
    print(f"{'':<28} {'s/step':>7} {'tokens/s':>9} {'GFLOP/s':>8} {'peak MB':>8}   s/step of each run")
    medians = {}
    for side, of_side in runs.items():
        seconds = statistics.median(run.step_seconds for run in of_side)
        peak = statistics.median(run.peak for run in of_side)
        medians[side] = (seconds, peak)
        rate = STEP_TOKENS / seconds
        each = " ".join(f"{run.step_seconds:.2f}" for run in of_side)
        print(f"{side:<28} {seconds:>7.3f} {rate:>9.0f} {rate * flops_per_token / 1e9:>8.1f} {peak:>8.0f}   {each}")
    return medians


def section_step(bench, rounds, flops_per_token):
    trials = {kind: bench.pytorch(kind, steps=UNSTEADY_STEPS + 2).fastest for kind in ("fused", "foreach")}
    kind = min(trials, key=trials.get)
    print(f"AdamW of PyTorch, a trial: {', '.join(f'{k} {s:.3f} s/step' for k, s in trials.items())}; taken: {kind}")
    sides = {}
    for dtype in APART:
        sides[f"remit-anneal, {dtype}"] = lambda dtype=dtype: bench.remit("uniform", "--dtype", dtype)
        sides[f"PyTorch, {dtype}, {kind}"] = lambda dtype=dtype: bench.pytorch(kind, dtype)
    runs = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            runs[side].append(run())
    medians = table(runs, flops_per_token)
    for dtype, most in APART.items():
        ours, theirs = f"remit-anneal, {dtype}", f"PyTorch, {dtype}, {kind}"
        apart = max(abs(a / b - 1) for a, b in zip(runs[ours][0].losses, runs[theirs][0].losses))
        first, *_, last = runs[ours][0].losses
        print(f"{dtype}: losses {first:.4f} to {last:.4f}, largest relative difference {apart:.1e}")
        print(f"{dtype}: tokens/s, remit-anneal / PyTorch: {medians[theirs][0] / medians[ours][0]:.3f}  (at least {SPEED})")
        print(f"{dtype}: peak memory, remit-anneal / PyTorch: {medians[ours][1] / medians[theirs][1]:.3f}  (at most {MEMORY})")
        if not apart <= most:
            sys.exit("the two sides don't take the same steps")
        peer = f"PyTorch {dtype}"
        results.add("Training", f"a step in {dtype}", "tokens/s", *([r.rate for r in runs[s]] for s in (ours, theirs)), peer, at_least=SPEED)
        results.add("Training", f"peak memory in {dtype}", "MB", *([r.peak for r in runs[s]] for s in (ours, theirs)), peer, at_most=MEMORY)


def section_weighting(bench, rounds, flops_per_token):
    runs = {"uniform": [], "dynamic": []}
    for number in range(rounds):
        for weighting in ("uniform", "dynamic") if number % 2 == 0 else ("dynamic", "uniform"):
            runs[weighting].append(bench.remit(weighting))
    medians = table(runs, flops_per_token)
    pairs = statistics.median(d.step_seconds / u.step_seconds for d, u in zip(runs["dynamic"], runs["uniform"]))
    ratio = medians["dynamic"][0] / medians["uniform"][0]
    seconds = [[run.step_seconds for run in runs[side]] for side in ("dynamic", "uniform")]
    results.add("Training", "--weighting dynamic", "s a step", *seconds, "--weighting uniform", value=pairs, at_most=1.03)
    print(f"seconds a step, dynamic / uniform: {ratio:.4f}; median of the pairs' ratios {pairs:.4f}  (at most 1.03)")
    print(f"peak memory, dynamic / uniform: {medians['dynamic'][1] / medians['uniform'][1]:.4f}  (within 0.02 of 1)")


def section_checkpointing(bench, rounds, flops_per_token):
    bench.make_set(LONG_SEQ_LEN)
    sides = {
        f"rows of {seq_len}, {'checkpointing' if more else 'all kept'}": (seq_len, more)
        for seq_len in (SEQ_LEN, LONG_SEQ_LEN)
        for more in ([], ["--activation-checkpointing"])
    }
    runs = {side: [] for side in sides}
    for _ in range(min(rounds, 3)):  # memory hardly varies
        for side, (seq_len, more) in sides.items():
            runs[side].append(bench.remit("dynamic", *more, seq_len=seq_len))
    # Longer rows cost more attention than this count says.
    medians = table(runs, flops_per_token)
    for side, of_side in runs.items():
        results.add("Training", f"peak memory, {side}", "MB", [run.peak for run in of_side])
    short, long = (medians[f"rows of {seq_len}, checkpointing"][1] for seq_len in (SEQ_LEN, LONG_SEQ_LEN))
    print(
        f"peak memory, rows of {LONG_SEQ_LEN} / rows of {SEQ_LEN}, with checkpointing: {long / short:.3f}  "
        "(less than 1.15)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="of a run; the first two don't count")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section to run; may be repeated")
    parser.add_argument("--keep", type=Path, help="make models and sets in this folder, and leave them there")
    args = parser.parse_args()
    if args.steps <= UNSTEADY_STEPS:
        parser.error(f"--steps has to be more than {UNSTEADY_STEPS}")
    with tempfile.TemporaryDirectory(prefix="remit-step-") as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, args.steps)
        parameters = bench.own("make-models", folder)[0]["parameters"]
        # Forward and backward: 6 a parameter of a matrix, norms being few; scores and values over half of the row.
        attention = 12 * MODEL["num_hidden_layers"] * MODEL["hidden_size"] * (SEQ_LEN + 1) / 2
        flops_per_token = 6 * parameters + attention
        bench.make_set(SEQ_LEN)
        print(
            f"{parameters:,} parameters, {ROWS} rows x {SEQ_LEN} tokens a step, f32, {bench.threads} threads, "
            f"{args.rounds} rounds of {args.steps} steps, {flops_per_token / 1e6:.0f} MFLOP a token"
        )
        for section in args.only or SECTIONS:
            print(f"\n{section}")
            globals()[f"section_{section}"](bench, args.rounds, flops_per_token)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make-models"]:
        make_models(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["pytorch"]:
        train_in_pytorch(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main()
