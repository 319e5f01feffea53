"""How large everything is: on a card, and on the emulated GPU, which is thousands of times as slow."""

from dataclasses import dataclass, field

COMMON = dict(bos_token_id=None, eos_token_id=0, pad_token_id=None)
OLMO2_1B = dict(
    **COMMON,
    model_type="olmo2",
    vocab_size=100_352,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=4096,
    rope_theta=500_000.0,
    tie_word_embeddings=False,
)
QWEN3_06B = dict(
    **COMMON,
    model_type="qwen3",
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    rope_theta=1_000_000.0,
    tie_word_embeddings=True,
)
# Of a width at which a token's log-prob is far from that of its neighbours, as on the large ones.
TINY = dict(vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, initializer_range=0.12)
TINY_OLMO2 = {**OLMO2_1B, **TINY, "num_attention_heads": 2, "num_key_value_heads": 2}
TINY_QWEN3 = {**QWEN3_06B, **TINY, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@dataclass
class Sizes:
    """Those of a card are the defaults."""

    shapes: dict = field(default_factory=lambda: {"olmo2-1b": OLMO2_1B, "qwen3-0.6b": QWEN3_06B})
    # Of fixtures/models, without the tiny- of their names; None for all.
    families: list | None = None
    # Trained beside PyTorch: every kind of norm, projection and attention is among them.
    trained: tuple = ("gemma3", "olmo2", "qwen2", "youtu")
    family_lengths: tuple = (2, 63, 64, 65, 127, 128, 129, 400)
    family_jobs: int = 4
    lengths: tuple = (2, 63, 64, 65, 127, 128, 129, 1000, 4096)
    invariance_rows: int = 64
    invariance_longest: int = 2048
    # The first puts every row into a batch of its own.
    invariance_batches: tuple = (1, 1024, 4096, 16_384, 32_768)
    # Tokens of a short and a long run, the difference of which is timed.
    timed_tokens: tuple = (65_536, 589_824)
    seq_len: int = 4096
    short_seq_len: int = 256
    batch_tokens: int = 32_768
    repeats: int = 3
    step_tokens: int = 65_536
    micro_batch_tokens: int = 16_384
    steps: int = 6


EMULATED = Sizes(
    shapes={"olmo2-1b": TINY_OLMO2, "qwen3-0.6b": TINY_QWEN3},
    families=["gemma3", "qwen2", "youtu"],
    trained=("gemma3",),
    family_lengths=(2, 17, 65),
    family_jobs=1,
    lengths=(2, 63, 65, 100),
    invariance_rows=6,
    invariance_longest=70,
    invariance_batches=(1, 64, 512),
    timed_tokens=(64, 128),
    seq_len=64,
    short_seq_len=16,
    batch_tokens=128,
    repeats=1,
    step_tokens=128,
    micro_batch_tokens=64,
    steps=3,
)


def flops_per_token(shape, seq_len):
    """2 x multiply-adds of a token's forward, averaged over a row: matrices, the head, and the keys that it sees."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head_dim = shape.get("head_dim", hidden // heads)
    layer = hidden * head_dim * 2 * (heads + shape["num_key_value_heads"]) + 3 * hidden * shape["intermediate_size"]
    attention = 2 * heads * head_dim * (seq_len + 1) / 2
    return 2 * (shape["num_hidden_layers"] * (layer + attention) + shape["vocab_size"] * hidden)
