"""The words of docs/benchmarks.md that no benchmark measures."""

BEFORE = [
    "Where three numbers stand, they are the lowest, the median and the highest of the runs. Ratios are of medians of one run of a",
    "script, whose sides take turns, so that what else the machine does touches both. Other programs compiled and tested while these were",
    "measured, most of the time at a lower priority: single runs are disturbed, and rates are lower than on a machine that is idle.",
]

# By the key of a row whose target was missed.
MISSED = {
    "split": (
        "`bf16-split` beside f32. A core of this CPU multiplies and adds 32 f32 or 64 bf16 a clock: 263 and 526 GFLOP/s, "
        "measured on registers alone. A split activation takes two products of bf16 where f32 takes one, so at their best the two are "
        "equally fast. Of those rates the kernels alone reach 82 % in f32 and 89 % split, which leaves 1.08. The target was set when f32 "
        "ran on the `gemm` crate's kernel. The parts in another order changed nothing. `bf16-split` takes half the memory of f32."
    ),
    "share bf16": (
        "The share of PyTorch's (oneDNN's) product rate in bf16. The kernel alone reaches 85 to 93 % of it. The rest is attention in f32, 5 % "
        "of the operations at half the rate; logits in f32, written and read twice for the log-sum-exp; norms and rounding. Tried: blocks "
        "of 160, 192 and 256 words of the sum instead of 128, and prefetching the left operand: within 2 %; prefetching what is written and "
        "copying a panel for 1,026 rows at a time instead of 480: 7 % on the head's products, 6 % of the time of a run, kept. Not tried: "
        "matrices copied into panels once a model, which would save 3 %, and queries, keys and values rounded together."
    ),
    "bf16-split: mixed rows": (
        "Mixed rows in `bf16-split`: the last runs of the script, which other work disturbed. Four runs afterwards took 9.6 to 9.9 s of CPU "
        "time on equal rows and 9.6 to 9.9 s on mixed ones."
    ),
}

AFTER = [
    "Streaming has a model of four times the allowed data. All weights are read once per batch of 131,072 tokens: with 102,400 tokens, the",
    "script's default, which takes 12 minutes, reading weighs an eighth of what it weighs here.",
    "",
    "## The peers",
    "",
    "PyTorch's products of f32 run at 180 to 220 GFLOP/s here, remit's at 400 to 460, of the 525 that two cores have; in bf16 PyTorch's",
    "(oneDNN) run at 900 to 990 and remit's at 840 to 940, of 1,050. That is why the share in f32 is above 1. llama.cpp's time is that of its",
    "passes alone, without a log-sum-exp, and it takes rows one by one. `torch.autocast` trains with f32 weights, as `--dtype bf16` does.",
    "",
    "## Measured earlier",
    "",
    "Not repeated with the rest, on a machine of the same kind on 2026-11-24:",
    "",
    "| what | remit | beside it | how |",
    "|---|---|---|---|",
    "| `--weighting dynamic` | 1 % more time, 0.4 % more memory | `uniform` | `scripts/bench/train_step.py` |",
    "| training, peak memory with `--activation-checkpointing`, rows of 512 and of 2048 tokens | 1.14 GB | | the same |",
    "| reading, tokenizing, packing and writing, scoring replaced by a constant | 1.65 million tokens/s: 0.87 to 0.89 of tokenizing alone | "
    "Python's `tokenizers.encode_batch`: remit is 1.6 times as fast | `scripts/bench/data_plane.py` |",
    "| memory for a JSONL file of 2 GB, scoring replaced by a constant | 256 MB at most | | `scripts/bench/data_plane.py --memory-gb 2` |",
    "| memory for scoring with two models of 20M parameters, 150,000 entries, rows of 32,768 tokens | 281 MB, 156 MB of them the models | | |",
    "",
    "A build from nothing took 6 min 45 s with other work running (at most 10 minutes: met), 311 crates with those of the tests.",
    "",
    "## Bf16 in training",
    "",
    "The share of the gradient that rounding changes, the largest of a tensor by norms, over all 23 golden models. The first row is what",
    "`tests/oracle/test_dtypes.py` measures; the others were computed once, in PyTorch.",
    "",
    "| forward pass | backward pass | difference from f32 |",
    "|---|---|---|",
    "| f32, what `--dtype bf16` does | products of bf16 | 0.4 to 0.8 % |",
    "| activations rounded | products of bf16 | 0.7 to 7.5 %: not done |",
    "| `torch.autocast` | `torch.autocast` | 1.7 to 18 % |",
    "",
    "## What bounds memory",
    "",
    "Scoring needs the models in f32 (`--dtype bf16`: half of that) and activations: at most 192 MiB for a batch, whatever `--batch-tokens` says,",
    "or what a single longer row needs. Nothing grows with the vocabulary.",
    "",
    "## Again",
    "",
    "```sh",
    "cargo build --release --bins --examples",
    "scripts/bench/all.sh                        # about an hour on 2 cores, with nothing else running",
    "scripts/bench/all.sh --quick                # small sizes, one round; the page goes to target/bench/quick",
    "```",
]
