"""Measures the forward of every family at about 100M parameters: tokens/s, FLOP/s, and their ratio to the best.

    cargo build --release
    python scripts/bench/families.py                 # about 10 minutes on 2 cores; --rounds 1 for a quick look

Models are random, of like size, and made anew for each run in a temporary folder. The families take turns, `--rounds`
times, and medians are printed, so that what else the machine does touches all of them. FLOPs are counted here from the
weights' shapes, 2 a multiply-add: every matrix once a token, the output head included, and attention scores and values
over the keys that a token sees on average.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import results
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
COMMON = dict(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)
WINDOW = 256
FAMILIES = {
    "llama": {},
    "mistral": dict(sliding_window=WINDOW),
    "qwen2": {},
    "qwen3": dict(head_dim=64),
    "olmo2": {},
    "olmo3": dict(sliding_window=WINDOW),
    "smollm3": {},
    "gemma2": dict(head_dim=64, query_pre_attn_scalar=64, sliding_window=WINDOW),
    "gemma3_text": dict(head_dim=64, query_pre_attn_scalar=64, sliding_window=WINDOW),
    "phi3": {},
    "youtu": dict(
        num_key_value_heads=12, q_lora_rank=384, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
    ),
}


def mean_seen(seq_len, window):
    """Keys that a token sees, its own included, averaged over a row of seq_len tokens."""
    return sum(min(i + 1, window or seq_len) for i in range(seq_len)) / seq_len


def flops_per_token(model, seq_len):
    """2 x multiply-adds of one token's forward, averaged over a row of seq_len tokens."""
    config = model.config
    matrices = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith("embed_tokens.weight")
    )
    head = 0 if any(n == "lm_head.weight" for n, _ in model.named_parameters()) else config.vocab_size * config.hidden_size
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_dim, value_dim = head_dim, head_dim
    if config.model_type == "youtu":
        key_dim, value_dim = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    if config.model_type == "mistral":
        kinds = ["sliding_attention"] * config.num_hidden_layers
    seen = sum(mean_seen(seq_len, config.sliding_window if kind == "sliding_attention" else None) for kind in kinds)
    return 2 * (matrices + head + config.num_attention_heads * (key_dim + value_dim) * seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens scored a run")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target/release")).resolve() / "remit-score"
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        text = (ROOT / "fixtures/corpus/essays/mid-training.md").read_text() * 50
        # Somewhat under 3 characters a token with the demo tokenizer; the exact count is what remit-score reports.
        (scratch / "text.txt").write_text(text[: 3 * args.tokens])
        models = {}
        for family in args.families:
            config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            folder = scratch / family
            model.to(torch.bfloat16).save_pretrained(folder)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(ROOT / "fixtures/models/demo-base" / file, folder / file)
            models[family] = (sum(p.numel() for p in model.parameters()), flops_per_token(model, args.seq_len))
            del model
        rates = {family: [] for family in models}
        for turn in range(args.rounds):
            for family in models:
                out = scratch / f"out-{family}-{turn}"
                command = [binary, scratch / "text.txt", "-o", out, "--rl-model", scratch / family, "--json"]
                command += ["--packing", "window", "--seq-len", args.seq_len, "--device", "cpu"]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
                report = json.loads(done.stdout)
                rates[family].append(report["scored_tokens"] / report["seconds"])
        medians = {family: statistics.median(values) for family, values in rates.items()}
        best = max(medians[family] * models[family][1] for family in models)
        print(f"{'family':<12} {'parameters':>11} {'MFLOP/token':>12} {'tokens/s':>9} {'GFLOP/s':>8} {'of best':>8}")
        for family, (parameters, flops) in models.items():
            speed = medians[family] * flops
            what = f"{family}, {parameters / 1e6:.0f}M parameters"
            results.add("Families, f32", what, "GFLOP/s", [rate * flops / 1e9 for rate in rates[family]])
            print(
                f"{family:<12} {parameters:>11,} {flops / 1e6:>12.1f} {medians[family]:>9.0f} {speed / 1e9:>8.1f} {speed / best:>8.0%}"
            )


if __name__ == "__main__":
    main()
