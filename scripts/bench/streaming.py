"""Measures scoring with --stream-weights under a limit of memory, beside weights that stay in memory without one.

    cargo build --release
    python scripts/bench/streaming.py                       # half an hour on 2 cores, 4 GB of disk
    python scripts/bench/streaming.py --layers 24 --hidden 1024 --tokens 16384 --fraction 0.6          # a quick look

The model is a random qwen3 with an untied head of 32,000 entries, stored in bf16 and computed with --dtype bf16; rows have
1024 tokens. The limit is on the process's data (RLIMIT_DATA: heap and stacks; pages of files count to the cache), as a
fraction of the model's bytes. Beside it, the first rows are scored with the model in memory, as many as --resident-tokens
says; their scores have to be the same. Runs take turns.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import results

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, SEQ_LEN = 32_000, 1024
RATIO = 0.7


def make(folder, options):
    """A random model, a layer's worth of memory at a time, and rows."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=1,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=options.hidden // 256,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    tensors = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    layer = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.0.")}
    others = {name: tensor for name, tensor in tensors.items() if name not in layer}
    folder.mkdir()
    index = {name: "others.safetensors" for name in others}
    save_file(others, folder / "others.safetensors", metadata={"format": "pt"})
    for i in range(options.layers):
        renamed = {name.replace("layers.0.", f"layers.{i}."): tensor for name, tensor in layer.items()}
        save_file(renamed, folder / f"layer-{i}.safetensors", metadata={"format": "pt"})
        index.update(dict.fromkeys(renamed, f"layer-{i}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.num_hidden_layers, config.architectures = options.layers, ["Qwen3ForCausalLM"]
    config.layer_types = None
    config = {**config.to_dict(), "layer_types": ["full_attention"] * options.layers}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "fixtures/models/demo-base" / file, folder / file)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run(binary, folder, rows, output, limit, *more):
    """Tokens a second of a run, with a limit of its data in bytes."""
    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [binary, folder / rows, "-o", output, "--rl-model", folder / "model", "--dtype", "bf16", "--json", *more]
    command += ["--packing", "window", "--seq-len", SEQ_LEN, "--eos", "never", "--device", "cpu"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited)
    stdout, stderr = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{stderr}")
    report = json.loads(stdout)
    return report["scored_tokens"] / report["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=96)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=102_400)
    parser.add_argument("--fraction", type=float, default=0.25, help="of the model's bytes that the process may have as data")
    parser.add_argument("--resident-tokens", type=int, default=20_480)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target/release")).resolve() / "remit-score"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        size = make(scratch / "model", options)
        ids = np.random.default_rng(1).integers(1, 1000, (options.tokens // SEQ_LEN, SEQ_LEN), dtype=np.uint16)
        np.save(scratch / "rows.npy", ids)
        np.save(scratch / "first-rows.npy", ids[: max(1, options.resident_tokens // SEQ_LEN)])
        limit = int(size * options.fraction)
        print(f"model {size / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB, {ids.size} tokens")
        resident, streamed = [], []
        for turn in range(options.rounds):
            resident.append(run(binary, scratch, "first-rows.npy", scratch / f"resident-{turn}", None))
            streamed.append(run(binary, scratch, "rows.npy", scratch / f"streamed-{turn}", limit, "--stream-weights"))
        few, all_rows = log_probs(scratch / "resident-0"), log_probs(scratch / "streamed-0")
        same = bool(few) and all_rows[: len(few)] == few
        rates = [statistics.median(side) for side in (resident, streamed)]
        ratio = rates[1] / rates[0]
        print(f"in memory {rates[0]:.0f} tok/s, streamed {rates[1]:.0f} tok/s, ratio {ratio:.2f}, same scores: {same}")
        if not same:
            raise SystemExit("the scores differ")
        what = f"--stream-weights, {size / 1e9:.1f} GB of weights, {limit / 1e9:.2f} GB of data, {ids.size:,} tokens"
        results.add("Models larger than memory", what, "tokens/s", streamed, resident, "the model in memory", at_least=RATIO)


def log_probs(folder):
    """Of each row, in their order."""
    import pyarrow.parquet as pq

    columns = ["row_id", "rl_logprob"]
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path, columns=columns).to_pylist()]
    return [row["rl_logprob"] for row in sorted(rows, key=lambda row: row["row_id"])]


if __name__ == "__main__":
    main()
