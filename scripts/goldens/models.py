"""Makes tiny models with random weights: fixtures/models/tiny-*, and a second seed, `-base`, of llama and qwen3.

    python scripts/goldens/models.py                 # a few seconds; needs fixtures/models/demo-base (its tokenizer)

They are not trained. Their matrices are drawn wide enough that the log-probs are far from uniform and a wrong rotation,
norm or head grouping shows. Each has what the demo pair lacks: tiny-llama an untied head, llama3 RoPE scaling that matters
from position 32 on, more vocabulary than the tokenizer, and the older spelling of the RoPE settings in config.json;
tiny-qwen3 a head_dim unrelated to hidden_size, so that q is wider than the residual stream; tiny-mistral a window shorter
than the rows and a head_dim of 12; tiny-qwen2 biases, and a window on its later layers only; tiny-olmo2 norms after the
sublayers and across heads, and an untied head; tiny-smollm3 layers without RoPE, and biases everywhere. The last four are
stored in bf16.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

ROOT = Path(__file__).resolve().parents[2]


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1056,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


def qwen3():
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=1024,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


SMALL = dict(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=56,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)


def mistral():
    return MistralForCausalLM(
        MistralConfig(**SMALL, num_hidden_layers=2, head_dim=12, sliding_window=20, tie_word_embeddings=True)
    )


def qwen2():
    return Qwen2ForCausalLM(
        Qwen2Config(
            **SMALL,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=70,
            max_window_layers=1,
            tie_word_embeddings=True,
        )
    )


def olmo2():
    return Olmo2ForCausalLM(Olmo2Config(**SMALL, num_hidden_layers=2, tie_word_embeddings=False))


def smollm3():
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            **SMALL,
            num_hidden_layers=4,
            no_rope_layer_interval=2,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        )
    )


def randomize(model, seed):
    """Matrices from N(0, 0.2), norm weights around 1. In the order of sorted names, so the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            is_norm = p.ndim == 1 and not name.endswith("bias")
            p.copy_(1.0 + 0.2 * noise if is_norm else 0.2 * noise)


def older_spelling(path):
    """config.json as published Llama 3 checkpoints have it: rope_theta and rope_scaling at the top level."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "models")
    args = parser.parse_args()
    tokenizer = ROOT / "fixtures" / "models" / "demo-base"
    made = [
        ("tiny-llama", llama, 11, torch.float32),
        ("tiny-llama-base", llama, 12, torch.float32),
        ("tiny-qwen3", qwen3, 21, torch.float32),
        ("tiny-qwen3-base", qwen3, 22, torch.float32),
        ("tiny-mistral", mistral, 31, torch.bfloat16),
        ("tiny-qwen2", qwen2, 41, torch.bfloat16),
        ("tiny-olmo2", olmo2, 51, torch.bfloat16),
        ("tiny-smollm3", smollm3, 61, torch.bfloat16),
    ]
    for name, build, seed, dtype in made:
        folder = args.out / name
        model = build().to(torch.float32)
        randomize(model, seed)
        model.to(dtype).save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        if build is llama:
            older_spelling(folder / "config.json")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / file, folder / file)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
