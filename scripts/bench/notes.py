"""The words of docs/benchmarks.md that no benchmark measures."""

BEFORE = [
    "Where three numbers stand, they are the lowest, the median and the highest of the runs. Ratios are of medians of one run of a",
    "script, whose sides take turns, so that what else the machine does touches both. While these were measured, other programs",
    "compiled and tested at a lower priority.",
]

# By the key of a row whose target was missed.
MISSED = {
    "split": (
        "`bf16-split` beside f32. This CPU adds 32 products of f32 or 64 of bf16 a clock: 263 and 526 GFLOP/s a core, measured on registers "
        "alone. A split activation takes two products of bf16 where f32 takes one, so neither can be faster than the other. Of those "
        "rates the kernels reach 82 % in f32 and 89 % split. The target was set when f32 still ran on a kernel half as fast. The "
        "parts in another order changed nothing. `bf16-split` takes half the memory of f32."
    ),
    "share bf16": (
        "The share of PyTorch's (oneDNN's) product rate in bf16. The kernel alone reaches 85 to 93 % of it. The rest is attention in f32, 5 % "
        "of the operations at half the rate; logits in f32, written and read twice for the log-sum-exp; norms and rounding. Tried: blocks "
        "of 160, 192 and 256 words of the sum instead of 128, prefetching the left operand: within 2 %; prefetching what is written and "
        "copying a panel for 1,026 rows at a time instead of 480: 7 % on the head's products, kept."
    ),
}

AFTER = [
    "## What bounds memory",
    "",
    "Scoring needs the models in f32 (`--dtype bf16`: half of that) and activations: at most 192 MiB for a batch, whatever `--batch-tokens` says,",
    "or what a single longer row needs. Nothing grows with the vocabulary. `--activation-checkpointing` trains on rows of 2048 tokens in the",
    "memory of rows of 512.",
    "",
    "## Again",
    "",
    "```sh",
    "cargo build --release --bins --examples",
    "scripts/bench/all.sh                        # about an hour on 2 cores, with nothing else running",
    "scripts/bench/all.sh --quick                # small sizes, one round; the page goes to target/bench/quick",
    "```",
    "",
    "A build from nothing takes about 10 minutes on 2 cores with nothing else running; it was not measured here, since other programs ran.",
]
