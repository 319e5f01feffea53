#!/usr/bin/env python3
"""Estimates how long the CUDA backend takes a token, kernel by kernel, from FLOPs and bytes over a card's rates.

    scripts/cuda/estimate.py            # the tables, for OLMo-2-1B's and Qwen3-0.6B's shape on an H200
    scripts/cuda/estimate.py --write    # puts them into docs/gpu.md
    scripts/cuda/estimate.py --check    # fails if those there are others, or if one misses its target

Nothing is measured here: rates are assumptions, which docs/gpu.md gives reasons for. Bytes are those that have to be
moved once.
"""

import pathlib
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/bench/gpu"))
from sizes import OLMO2_1B, QWEN3_06B, flops_per_token  # noqa: E402

PAGE = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- estimate.py: begin -->\n", "<!-- estimate.py: end -->\n"

# FLOP/s of the product that shares refer to, of products of a small model, of attention; bytes/s of memory and of L2.
PRODUCT, SMALL_PRODUCT = 790e12, 650e12
FORWARD, BACKWARD = 350e12, 200e12
MEMORY, L2 = 4.0e12, 6.0e12
# Attention in transformers: cuDNN's.
THEIR_FORWARD = 550e12
SEQ_LEN, STEP_TOKENS = 4096, 65_536


@dataclass
class Kernel:
    """What it takes a token, over all layers; the time is that of its FLOPs, or of its bytes if that is longer."""

    name: str
    calls: str
    flop: float = 0
    rate: float = 1
    bytes: float = 0
    bandwidth: float = MEMORY
    scoring: bool = False

    @property
    def microseconds(self):
        return 1e6 * max(self.flop / self.rate, self.bytes / self.bandwidth)


def kernels(shape, seq_len, product):
    hidden, layers, vocab, wide = (
        shape[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    dim = shape.get("head_dim", hidden // heads)
    q, kv = heads * dim, kv_heads * dim
    keys = (seq_len + 1) / 2
    matrices = layers * (2 * hidden * (q + kv) + 3 * hidden * wide)
    parameters = matrices + vocab * hidden * (1 if shape["tie_word_embeddings"] else 2)
    pair = layers * 2 * q * keys  # FLOP of a product of a query with its keys
    f32, bf16 = 4, 2
    post_norm = shape["model_type"] == "olmo2"
    norms = (
        [
            Kernel("`rms_norm`, after attention and feed-forward", "2 a layer", bytes=layers * 2 * 2 * hidden * bf16, scoring=True),
            Kernel("`add_assign`, the residual stream", "2 a layer", bytes=layers * 2 * 3 * hidden * bf16, scoring=True),
        ]
        if post_norm
        else [Kernel("`add_rms_norm`", "2 a layer", bytes=layers * 2 * 4 * hidden * bf16, scoring=True)]
    )
    return [
        Kernel("products of the blocks (cuBLASLt)", "7 a layer", flop=2 * matrices, rate=product, scoring=True),
        Kernel("`attention_forward`", "1 a layer", flop=2 * pair, rate=FORWARD, bytes=layers * 2 * (q + kv) * bf16, scoring=True),
        Kernel("`norm_rope`, queries and keys", "2 a layer", bytes=layers * (2 * (q + kv) * bf16 + 2 * dim // 2 * f32), scoring=True),
        *norms,
        Kernel("`glu`", "1 a layer", bytes=layers * 3 * wide * bf16, scoring=True),
        Kernel("`embedding`, `gather_rows`", "1", bytes=4 * hidden * bf16, scoring=True),
        Kernel("product of the head (cuBLASLt), logits f32", "1", flop=2 * vocab * hidden, rate=PRODUCT, scoring=True),
        Kernel("`log_sum_exp_tile`", "1", bytes=vocab * f32, bandwidth=L2, scoring=True),
        Kernel("products of the blocks, of inputs and weights", "14 a layer", flop=4 * matrices, rate=product),
        Kernel("`attention_delta`", "1 a layer", bytes=layers * 2 * q * bf16),
        Kernel("`attention_backward_kv`", "1 a layer", flop=4 * pair, rate=BACKWARD),
        Kernel("`attention_backward_q`", "1 a layer", flop=3 * pair, rate=BACKWARD),
        Kernel("`norm_rope_backward`", "2 a layer", bytes=layers * 3 * (q + kv) * bf16),
        Kernel("`rms_norm_backward`", "2 a layer", bytes=layers * 2 * 3 * hidden * bf16),
        Kernel("`add_assign`, gradients of the residual stream", "2 a layer", bytes=layers * 2 * 3 * hidden * bf16),
        Kernel("`glu_backward`", "1 a layer", bytes=layers * 5 * wide * bf16),
        Kernel("products of the head, again and of input and weight", "3", flop=6 * vocab * hidden, rate=PRODUCT),
        Kernel("`softmax_gradient`", "1", bytes=vocab * (f32 + bf16)),
        Kernel("`embedding_backward`, `scatter_rows`", "1", bytes=hidden * (bf16 + 3 * f32)),
        Kernel("`adamw`, a step of 65,536 tokens", "1 a parameter", bytes=parameters * (8 * f32 + bf16) / STEP_TOKENS),
        Kernel("`sum_of_squares`", "1 a parameter", bytes=parameters * f32 / STEP_TOKENS),
    ]


def scoring(shape, seq_len, product=PRODUCT):
    return sum(kernel.microseconds for kernel in kernels(shape, seq_len, product) if kernel.scoring)


def training(shape):
    return sum(kernel.microseconds for kernel in kernels(shape, SEQ_LEN, PRODUCT))


def theirs(shape):
    """Of transformers without compiling: the same products, attention by cuDNN, and each elementwise operation of its
    OLMo-2 (norms go to f32 and back in 36 bytes a value) and of the head's log-sum-exp by itself."""
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    ours = {kernel.name: kernel for kernel in kernels(shape, SEQ_LEN, PRODUCT)}
    products = sum(kernel.microseconds for name, kernel in ours.items() if kernel.scoring and "product" in name)
    attention = 1e6 * ours["`attention_forward`"].flop / THEIR_FORWARD
    a_layer = 4 * hidden * 36 + 2 * hidden * 20 + wide * 10 + hidden * 16
    elementwise = shape["num_hidden_layers"] * a_layer + shape["vocab_size"] * 32
    return products + attention + 1e6 * elementwise / MEMORY


def of_olmo():
    found = kernels(OLMO2_1B, SEQ_LEN, PRODUCT)
    lines = [
        "| kernel | calls | MFLOP | KB | scoring, µs | training, µs |",
        "|---|---|---|---|---|---|",
    ]
    number = lambda value, unit: f"{value / unit:,.0f}" if value else ""
    for kernel in found:
        score = f"{kernel.microseconds:.2f}" if kernel.scoring else ""
        lines.append(
            f"| {kernel.name} | {kernel.calls} | {number(kernel.flop, 1e6)} | {number(kernel.bytes, 1e3)} | {score} |"
            f" {kernel.microseconds:.2f} |"
        )
    score = scoring(OLMO2_1B, SEQ_LEN)
    lines.append(f"| sum | | | | {score:.1f} | {training(OLMO2_1B):.1f} |")
    return lines


def targets():
    """Lines of a table, and the names of those that are missed."""
    olmo, qwen = scoring(OLMO2_1B, SEQ_LEN), scoring(QWEN3_06B, SEQ_LEN, SMALL_PRODUCT)
    short, train = scoring(OLMO2_1B, 256), training(OLMO2_1B)
    share = lambda shape, time: flops_per_token(shape, SEQ_LEN) / (time * 1e-6) / PRODUCT
    hidden, wide = OLMO2_1B["hidden_size"], OLMO2_1B["intermediate_size"]
    matrices = OLMO2_1B["num_hidden_layers"] * (4 * hidden * hidden + 3 * hidden * wide)
    trained = 6 * (matrices + 2 * OLMO2_1B["vocab_size"] * hidden) / (train * 1e-6) / PRODUCT
    rows = [
        ("scoring OLMo-2-1B's shape, rows of 4096", "at least 55 %", 100 * share(OLMO2_1B, olmo), 55, "%", olmo),
        ("beside transformers' best attention", "at least 1.3 x", theirs(OLMO2_1B) / olmo, 1.3, "x", olmo),
        ("rows of 256, tokens/s beside those at 4096", "at least 80 %", 100 * olmo / short, 80, "%", short),
        ("scoring Qwen3-0.6B's shape, rows of 4096", "at least 45 %", 100 * share(QWEN3_06B, qwen), 45, "%", qwen),
        ("training OLMo-2-1B's shape, by 6 x parameters", "at least 40 %", 100 * trained, 40, "%", train),
        ("training beside the online form", "at least 1.25 x", (train + olmo) / train, 1.25, "x", train),
    ]
    lines = ["| target | | estimated | µs a token |", "|---|---|---|---|"]
    for name, target, value, _, unit, time in rows:
        text = f"{value:.0f} %" if unit == "%" else f"{value:.2f} x"
        lines.append(f"| {name} | {target} | {text} | {time:.1f} |")
    return lines, [name for name, _, value, least, *_ in rows if value < least]


def slowest_attention():
    """FLOP/s of attention forward at which scoring still takes 55 % of the card."""
    found = {kernel.name: kernel for kernel in kernels(OLMO2_1B, SEQ_LEN, PRODUCT)}
    attention = found["`attention_forward`"]
    budget = 1e6 * flops_per_token(OLMO2_1B, SEQ_LEN) / (0.55 * PRODUCT)
    left = budget - (scoring(OLMO2_1B, SEQ_LEN) - attention.microseconds)
    return attention.flop / (left * 1e-6)


def main():
    words = sys.argv[1:]
    if words not in ([], ["--write"], ["--check"]):
        sys.exit("usage: estimate.py [--write | --check]")
    lines, missed = targets()
    slowest = f"Scoring keeps its 55 % as long as attention forward is above {slowest_attention() / 1e12:.0f} TFLOP/s."
    text = "\n".join([*of_olmo(), "", *lines, "", slowest]) + "\n"
    print(text, end="")
    if missed:
        sys.exit(f"estimate.py: below its target: {'; '.join(missed)}")
    if not words:
        return
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"estimate.py: {PAGE} has no place for the tables")
    new = before + BEGIN + text + END + after
    if words == ["--check"] and new != page:
        sys.exit("estimate.py: the tables in docs/gpu.md are others\n  hint: scripts/cuda/estimate.py --write")
    if words == ["--write"]:
        PAGE.write_text(new)


if __name__ == "__main__":
    main()
