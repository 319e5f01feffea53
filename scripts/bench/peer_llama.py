"""What llama.cpp does beside scripts/bench/scoring.py, in an interpreter that has llama-cpp-python, gguf and numpy:

    python -m venv llama && llama/bin/pip install llama-cpp-python gguf      # compiles llama.cpp: minutes
    python scripts/bench/scoring.py --llama llama/bin/python

A task is a line of arguments: `convert MODEL FILE DTYPE` writes a Qwen3 with a tied head as GGUF; `score FILE ROWS THREADS`
prints JSON. Only the passes are timed, with logits of every token; what a program then does with them is not.
"""

import ctypes
import json
import struct
import sys
import time

import numpy as np

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored(path):
    """(name, shape, bits of bf16) of the tensors of a safetensors file in bf16."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start = 8 + length
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            assert tensor["dtype"] == "BF16", tensor["dtype"]
            begin, end = tensor["data_offsets"]
            file.seek(start + begin)
            yield name, tensor["shape"], np.frombuffer(file.read(end - begin), dtype=np.uint16)


def convert(model, target, dtype):
    import gguf

    config = json.load(open(f"{model}/config.json"))
    rope = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(rope)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, shape, bits in stored(f"{model}/model.safetensors"):
        name = name.removesuffix(".weight")
        layer = ""
        if name.startswith("model.layers."):
            number, name = name.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        name = f"{layer}{TENSORS[name]}.weight"
        if dtype == "bf16" and len(shape) == 2:
            rows = bits.reshape(shape).view(np.uint8)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            wide = (bits.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(name, wide.reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def score(file, rows, threads):
    import llama_cpp as llama

    # Held while the library may call it.
    silence = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silence, ctypes.c_void_p())
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    all_ids = [json.loads(line)["input_ids"] for line in open(rows)]
    longest = max(map(len, all_ids))
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(longest, 0, 1)

    def decode(ids):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        started = time.perf_counter()
        assert llama.llama_decode(context, batch) == 0
        logits = llama.llama_get_logits(context)
        return time.perf_counter() - started, np.ctypeslib.as_array(logits, (len(ids), vocabulary))

    decode(all_ids[0][:64])
    seconds, total, targets = 0.0, 0.0, 0
    for number, ids in enumerate(all_ids):
        took, logits = decode(ids)
        seconds += took
        if number < 2:
            # Enough to see that it is the same model.
            for at in range(len(ids) - 1):
                row = logits[at].astype(np.float64)
                total += row[ids[at + 1]] - row.max() - np.log(np.exp(row - row.max()).sum())
            targets += len(ids) - 1
    print(json.dumps({"rate": sum(map(len, all_ids)) / seconds, "mean": total / targets, "version": llama.__version__}))


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    else:
        score(sys.argv[2], sys.argv[3], int(sys.argv[4]))
