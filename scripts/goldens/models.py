"""Makes models with random weights: fixtures/models/tiny-* and odd-*, two of every family.

    python scripts/goldens/models.py                 # a few seconds; needs fixtures/models/demo-base (its tokenizer)

They are not trained. Their matrices are drawn wide enough that the log-probs are far from uniform and a wrong
rotation, norm or head grouping shows. tiny-* have the vocabulary and the tokenizer of the demo pair, so that commands can
run on them; odd-* have neither, and shapes that nobody would choose. Between the two of a family is what can differ
within it: grouped heads, one key head or as many as query heads; a head_dim unrelated to hidden_size; tied and untied
heads; biases; windows shorter than the rows; the kinds of RoPE the family has; settings spelled out and left to defaults,
in today's names and in those of older checkpoints; f32, f16, bf16; one file or shards. fixtures/models/README.md lists
them.

Every folder is loaded again before the script is done with it, and must give the logits of the model it was made from.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    YoutuConfig,
    YoutuForCausalLM,
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


def small(**changes):
    """SMALL with `changes`."""
    return {**SMALL, **changes}


DEFAULT, LOCAL, GLOBAL = "default", "sliding_attention", "full_attention"


def olmo3():
    """Written in the older spelling, where rope_theta and rope_scaling speak of the
    full-attention layers alone: the sliding ones then have the default of the class, whatever rope_theta says."""
    return Olmo3ForCausalLM(
        Olmo3Config(
            **small(hidden_size=24, intermediate_size=40, num_attention_heads=2),
            num_hidden_layers=4,
            sliding_window=20,
            rope_parameters={
                LOCAL: {"rope_type": DEFAULT, "rope_theta": 500000.0},
                GLOBAL: {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 2.0,
                    "beta_slow": 0.5,
                    "attention_factor": 1.25,
                },
            },
            tie_word_embeddings=False,
        )
    )


def gemma2():
    return Gemma2ForCausalLM(
        Gemma2Config(
            **small(intermediate_size=40),
            num_hidden_layers=3,
            head_dim=12,
            query_pre_attn_scalar=5,
            sliding_window=20,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=8.0,
        )
    )


def gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **small(intermediate_size=40),
            num_hidden_layers=4,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=20,
            layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL],
            rope_parameters={
                LOCAL: {"rope_type": DEFAULT, "rope_theta": 10000.0},
                GLOBAL: {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        )
    )


def phi3():
    return Phi3ForCausalLM(
        Phi3Config(
            **small(intermediate_size=40),
            num_hidden_layers=3,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.25, 1.5],
                "long_factor": [1.5, 4.0, 16.0],
            },
            tie_word_embeddings=True,
        )
    )


def youtu():
    return YoutuForCausalLM(
        YoutuConfig(
            **small(hidden_size=24, intermediate_size=40, num_key_value_heads=4),
            num_hidden_layers=2,
            q_lora_rank=14,
            kv_lora_rank=12,
            qk_nope_head_dim=6,
            qk_rope_head_dim=8,
            v_head_dim=10,
            rope_interleave=True,
            rms_norm_eps=1e-2,
            tie_word_embeddings=True,
        )
    )


ODD = dict(max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=None)


def odd_llama():
    return LlamaForCausalLM(
        LlamaConfig(
            **ODD,
            vocab_size=257,
            hidden_size=28,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=10,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        )
    )


def odd_mistral():
    return MistralForCausalLM(
        MistralConfig(
            **ODD,
            vocab_size=201,
            hidden_size=20,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=None,
            rope_parameters={"rope_type": DEFAULT, "rope_theta": 1000000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )


def odd_qwen2():
    return Qwen2ForCausalLM(
        Qwen2Config(
            **ODD,
            vocab_size=320,
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=12,
            use_sliding_window=True,
            sliding_window=20,
            layer_types=[LOCAL, GLOBAL, LOCAL],
            tie_word_embeddings=False,
        )
    )


def odd_qwen3():
    return Qwen3ForCausalLM(
        Qwen3Config(
            **ODD,
            vocab_size=320,
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=20,
            use_sliding_window=True,
            sliding_window=70,
            max_window_layers=2,
            # Among the frequencies of heads of 20, some are kept, some divided by the factor, some between.
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            },
            attention_bias=True,
            rms_norm_eps=1e-3,
            tie_word_embeddings=False,
        )
    )


def odd_olmo2():
    return Olmo2ForCausalLM(
        Olmo2Config(
            **ODD,
            vocab_size=257,
            hidden_size=36,
            intermediate_size=30,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            attention_bias=True,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
        )
    )


def odd_smollm3():
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            **ODD,
            vocab_size=257,
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            no_rope_layers=[0, 1, 1],
            use_sliding_window=True,
            sliding_window=20,
            tie_word_embeddings=True,
        )
    )


def odd_olmo3():
    return Olmo3ForCausalLM(
        Olmo3Config(
            **ODD,
            vocab_size=257,
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            sliding_window=70,
            layer_types=[GLOBAL, LOCAL, LOCAL],
            rope_parameters={
                LOCAL: {"rope_type": DEFAULT, "rope_theta": 10000.0},
                GLOBAL: {"rope_type": DEFAULT, "rope_theta": 500000.0},
            },
            attention_bias=True,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
        )
    )


def odd_gemma2():
    return Gemma2ForCausalLM(
        Gemma2Config(
            **ODD,
            vocab_size=257,
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=20,
            query_pre_attn_scalar=33,
            sliding_window=70,
            layer_types=[GLOBAL, LOCAL],
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            rms_norm_eps=1e-2,
            attention_bias=True,
            tie_word_embeddings=False,
        )
    )


def odd_gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **ODD,
            vocab_size=257,
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=10,
            query_pre_attn_scalar=17,
            sliding_window=70,
            layer_types=[GLOBAL, LOCAL],
            rope_parameters={
                LOCAL: {"rope_type": DEFAULT, "rope_theta": 500.0},
                GLOBAL: {"rope_type": DEFAULT, "rope_theta": 100000.0},
            },
            final_logit_softcapping=8.0,
            attention_bias=True,
            rms_norm_eps=1e-2,
        )
    )


def odd_phi3():
    return Phi3ForCausalLM(
        Phi3Config(
            **ODD,
            vocab_size=257,
            hidden_size=24,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=20,
            rope_parameters={"rope_type": DEFAULT, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            tie_word_embeddings=False,
        )
    )


def odd_phi3_long():
    return Phi3ForCausalLM(
        Phi3Config(
            **ODD,
            vocab_size=257,
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=70,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.4, 2.0],
                "long_factor": [2.0, 3.0, 5.0, 8.0, 12.0],
            },
            tie_word_embeddings=False,
        )
    )


def odd_youtu():
    return YoutuForCausalLM(
        YoutuConfig(
            **ODD,
            vocab_size=211,
            hidden_size=20,
            intermediate_size=36,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            q_lora_rank=None,
            kv_lora_rank=14,
            qk_nope_head_dim=10,
            qk_rope_head_dim=4,
            v_head_dim=6,
            rope_interleave=False,
            attention_bias=True,
            rms_norm_eps=1e-2,
            tie_word_embeddings=False,
        )
    )


def randomize(model, seed, width):
    """Matrices and biases from N(0, width), norms' factors around 1. In the order of sorted names, so the seed alone
    decides. Gemma stores a factor less 1."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            is_norm = p.ndim == 1 and not name.endswith("bias")
            p.copy_(centre + 0.2 * noise if is_norm else width * noise)


# --- spellings of config.json ----------------------------------------------------------------------------------------


def older_spelling(config):
    """As published Llama 3 checkpoints have it: rope_theta and rope_scaling at the top level."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == DEFAULT else rope


def oldest_spelling(config):
    """As the first Llama checkpoints: `type` in rope_scaling, and no word of key heads, which are then as many as the
    query heads."""
    older_spelling(config)
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    del config["num_key_value_heads"]


def mistral_spelling(config):
    """As the published Mistral 7B: head_dim follows from hidden_size."""
    older_spelling(config)
    del config["head_dim"]


def olmo2_spelling(config):
    older_spelling(config)
    config["num_key_value_heads"] = None


def without_layer_types(config):
    """Which layers slide follows from the other settings."""
    del config["layer_types"]


def gemma2_spelling(config):
    """As the published Gemma 2: rope_theta alone, and every other layer slides."""
    older_spelling(config)
    del config["rope_scaling"], config["layer_types"]


def gemma3_spelling(config):
    """As the published Gemma 3: a base for either kind of layer, and a number for the pattern of the layers."""
    rope = config["rope_parameters"]
    config["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
    config["rope_parameters"] = rope[GLOBAL]
    older_spelling(config)
    del config["layer_types"]
    config["sliding_window_pattern"] = 3


def olmo3_spelling(config):
    """As the published OLMo 3, but for the layer types, which are the default."""
    config["rope_parameters"] = config["rope_parameters"][GLOBAL]
    older_spelling(config)
    del config["layer_types"]


def phi3_spelling(config):
    """As the published Phi-4-mini."""
    older_spelling(config)
    rope = config["rope_scaling"]
    config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = {
        "type": rope["rope_type"],
        "short_factor": rope["short_factor"],
        "long_factor": rope["long_factor"],
    }


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """One folder of fixtures/models."""

    build: Callable
    seed: int
    dtype: torch.dtype
    width: float = 0.2
    spell: Callable | None = None
    shard_bytes: int = 1_000_000
    both_copies: bool = False


RECIPES = {
    "tiny-llama": Recipe(llama, 11, torch.float32, spell=older_spelling),
    "tiny-llama-base": Recipe(llama, 12, torch.float32, spell=older_spelling),
    "tiny-qwen3": Recipe(qwen3, 21, torch.float32),
    "tiny-qwen3-base": Recipe(qwen3, 22, torch.float32),
    "tiny-mistral": Recipe(mistral, 31, torch.bfloat16),
    "tiny-qwen2": Recipe(qwen2, 41, torch.bfloat16),
    "tiny-olmo2": Recipe(olmo2, 51, torch.bfloat16),
    "tiny-smollm3": Recipe(smollm3, 61, torch.bfloat16),
    "tiny-olmo3": Recipe(olmo3, 71, torch.bfloat16, 0.3, olmo3_spelling),
    "tiny-gemma2": Recipe(gemma2, 81, torch.bfloat16, 0.3, gemma2_spelling),
    "tiny-gemma3": Recipe(gemma3, 91, torch.bfloat16, 0.3, gemma3_spelling),
    "tiny-phi3": Recipe(phi3, 101, torch.bfloat16, 0.2, phi3_spelling),
    "tiny-youtu": Recipe(youtu, 111, torch.bfloat16, 0.3, both_copies=True),
    "odd-llama": Recipe(odd_llama, 13, torch.float16, 0.3, oldest_spelling, shard_bytes=16_000),
    "odd-mistral": Recipe(odd_mistral, 33, torch.float32, 0.35, mistral_spelling),
    "odd-qwen2": Recipe(odd_qwen2, 43, torch.bfloat16, 0.35),
    "odd-qwen3": Recipe(odd_qwen3, 23, torch.float16, 0.35, without_layer_types),
    "odd-olmo2": Recipe(odd_olmo2, 53, torch.float16, 0.35, olmo2_spelling),
    "odd-smollm3": Recipe(odd_smollm3, 63, torch.bfloat16, 0.35, without_layer_types, both_copies=True),
    "odd-olmo3": Recipe(odd_olmo3, 73, torch.float16, 0.35),
    "odd-gemma2": Recipe(odd_gemma2, 83, torch.float16, 0.35),
    "odd-gemma3": Recipe(odd_gemma3, 93, torch.float32, 0.35),
    "odd-phi3": Recipe(odd_phi3, 103, torch.float16, 0.35),
    "odd-phi3-long": Recipe(odd_phi3_long, 104, torch.bfloat16, 0.3),
    "odd-youtu": Recipe(odd_youtu, 113, torch.float16, 0.3, older_spelling, shard_bytes=20_000),
}


def logits(model, length):
    ids = (torch.arange(length) * 37 + 11) % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


def write(recipe, folder):
    """Writes the folder, all but the tokenizer. Returns the number of parameters and the size of the weights."""
    shutil.rmtree(folder, ignore_errors=True)
    model = recipe.build().to(torch.float32)
    randomize(model, recipe.seed, recipe.width)
    model.to(recipe.dtype).save_pretrained(folder, max_shard_size=recipe.shard_bytes)
    if recipe.both_copies:
        tensors = load_file(folder / "model.safetensors")
        assert "lm_head.weight" not in tensors
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weights = sorted(folder.glob("*.safetensors"))
    assert len(weights) == (3 if recipe.shard_bytes < 1_000_000 else 1), weights
    for file in weights:
        file.chmod(0o644)
    if recipe.spell:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        recipe.spell(config)
        path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")

    # A new model for the comparison, since `to` has rounded the RoPE frequencies of the one above as well. Rows on both
    # sides of every window and RoPE limit.
    written = recipe.build().to(torch.float32).eval()
    written.set_attn_implementation("eager")
    written.load_state_dict(model.state_dict())
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for length in (60, 130):
        expected, found = logits(written, length), logits(again, length)
        assert torch.equal(expected, found), f"{folder}: reads back otherwise than written"
        assert expected.isfinite().all()
    return sum(p.numel() for p in model.parameters()), sum(file.stat().st_size for file in weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "models")
    args = parser.parse_args()
    tokenizer = ROOT / "fixtures" / "models" / "demo-base"
    for name, recipe in RECIPES.items():
        folder = args.out / name
        parameters, size = write(recipe, folder)
        if name.startswith("tiny-"):
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(tokenizer / file, folder / file)
        print(f"{name}: {parameters} parameters, {size} bytes of weights")


if __name__ == "__main__":
    main()
