"""The intact files that are damaged: small ones of every kind that remit reads, made here."""

import gzip
import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import zstandard

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
MODELS = FIXTURES / "models"
BAD = FIXTURES / "bad"


def lines(count, start=0):
    text = (FIXTURES / "corpus" / "solutions" / "train-00.jsonl").read_text().splitlines()
    return text[start : start + count]


def jsonl():
    texts = "\n".join(lines(8)) + "\n"
    chats = [[{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": f"It is {n + 1}."}] for n in range(4)]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    chat = "\n".join(json.dumps({"messages": messages, "tools": tools}) for messages in chats) + "\n"
    ids = "\n".join(json.dumps({"input_ids": list(range(n, n + 9)), "loss_mask": [n % 2] * 9}) for n in range(5, 9)) + "\n"
    nested = "\n".join(json.dumps({"meta": {"a": [1, {"b": None}]}, "text": text}) for text in ("one", "two é", "\U0001f600 three")) + "\n"
    files = {"a.jsonl": texts, "chat.jsonl": chat, "ids.jsonl": ids, "nested.json": nested}
    files = {name: text.encode() for name, text in files.items()}
    files["packed.jsonl.gz"] = gzip.compress(files["a.jsonl"], mtime=0)
    files["packed.jsonl.zst"] = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True).compress(files["a.jsonl"])
    files["a.txt"] = "\ufeffone and two\r\nthree é\n".encode()
    return files


def tables():
    """Tables of text, ids and messages, by name."""
    texts = [json.loads(line)["text"][:120] for line in lines(12, 20)]
    nulls = [None if n % 5 == 3 else text for n, text in enumerate(texts)]
    numbers = pa.array(range(12), pa.int64())
    nested = pa.array([[{"a": n, "b": [str(n)] * (n % 3)}] for n in range(12)])
    messages = pa.array([[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in texts])
    ids = pa.array([list(range(n, n + 7)) for n in range(12)], pa.list_(pa.int32()))
    return {
        "text": pa.table({"text": pa.array(texts), "n": numbers, "nested": nested}),
        "nulls": pa.table({"n": numbers, "text": pa.array(nulls, pa.large_string())}),
        "words": pa.table({"text": pa.array(["one", "two"] * 6).dictionary_encode()}),
        "ids": pa.table({"input_ids": ids}),
        "messages": pa.table({"messages": messages}),
    }


def parquet():
    ways = [
        ("snappy", {}),
        ("zstd", {"use_dictionary": False, "data_page_version": "2.0", "row_group_size": 5}),
        ("gzip", {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}),
        ("lz4", {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}),
        ("none", {"write_statistics": False, "row_group_size": 4, "write_page_index": True}),
    ]
    files = {}
    for name, table in tables().items():
        for codec, options in ways:
            if "column_encoding" in options and name not in ("text", "nulls"):
                options = {key: value for key, value in options.items() if key != "column_encoding"}
            sink = io.BytesIO()
            if "column_encoding" in options:
                table_ = table.select(["text"])
            else:
                table_ = table
            pq.write_table(table_, sink, compression=codec, **options)
            files[f"{name}-{codec}.parquet"] = sink.getvalue()
    return files


def arrow():
    files = {}
    for name, table in tables().items():
        for codec in (None, "lz4", "zstd"):
            for kind, writer in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
                sink = io.BytesIO()
                with writer(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as out:
                    out.write_table(table, max_chunksize=5)
                files[f"{name}-{kind}-{codec}.arrow"] = sink.getvalue()
    sink = io.BytesIO()
    feather.write_feather(tables()["text"], sink, compression="lz4")
    files["text.feather"] = sink.getvalue()
    views = pa.table({"text": pa.array(["short", "a longer text than twelve bytes"] * 3, pa.string_view())})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, views.schema) as out:
        out.write_table(views)
    files["views.arrow"] = sink.getvalue()
    return files


def arrays():
    """Files of token ids: a separator, 0, after every document."""
    line = np.array([n % 11 for n in range(120)])
    files = {}
    for dtype in ("<u2", "<u4", "<i8"):
        sink = io.BytesIO()
        np.save(sink, line.astype(dtype))
        files[f"line{dtype[1:]}.npy"] = sink.getvalue()
    sink = io.BytesIO()
    np.save(sink, line.reshape(12, 10).astype("<u2"))
    files["rows.npy"] = sink.getvalue()
    files["line.bin"] = line.astype("<u2").tobytes()
    return files


def tokenizers():
    """tokenizer.json of the fixtures, and small ones with other models and parts, by the library that reads them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    files = {name: (MODELS / name / "tokenizer.json").read_bytes() for name in ("tiny-llama",)}
    words = {"[UNK]": 0, "a": 1, "b": 2, "##a": 3, "what": 4, "is": 5, "1": 6, "+": 7, "2": 8, "?": 9, "<|endoftext|>": 10}
    piece = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    piece.normalizer = normalizers.BertNormalizer()
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.post_processor = processors.TemplateProcessing(single="$A [UNK]", special_tokens=[("[UNK]", 0)])
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581", -2.0), ("a", -3.0), ("\u2581what", -4.0), ("1", -5.5)], unk_id=0, byte_fallback=False))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Prepend("\u2581")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    level = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    level.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("\\d+|\\s+"), "isolated"), pre_tokenizers.Punctuation()])
    level.add_special_tokens(["<s>"])
    for name, tokenizer in (("piece", piece), ("unigram", unigram), ("level", level)):
        files[name] = tokenizer.to_str().encode()
    return files


TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message.content | trim }}\n{% else %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{%- set ns = namespace(n=0) -%}{{ ns.n + 1 }}"
)


def tokenizer_config():
    config = {
        "bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}, "add_bos_token": True,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "model_max_length": 256,
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}},
    }
    return json.dumps(config, indent=1).encode()


def link_model(name, to):
    """A folder with the files of a fixture; none of them is written to."""
    to.mkdir(parents=True)
    for path in (MODELS / name).iterdir():
        shutil.copyfile(path, to / path.name)
    return to


CONFIG = """\
# how it is trained
lr = 5e-4
steps = 3
batch-tokens = 512
schedule = "linear"
weighting = "dynamic"
epsilon = 0.2
holdout = 0.1
eval-every = 2
resume = "auto"
seed = 7
json = true
"""


def programs(folder):
    """What runs a program to its end before anything is damaged."""

    def run(*words):
        done = subprocess.run([str(folder / words[0]), *map(str, words[1:])], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{words} ended with {done.returncode}: {done.stderr}")

    return run


def sharded(folder):
    """A model in two shards with an index, from one in a file."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    half = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {}
    for file, part in half.items():
        new, body = {}, b""
        for name in part:
            start, end = header[name]["data_offsets"]
            new[name] = {**header[name], "data_offsets": [len(body), len(body) + end - start]}
            body += data[8 + length + start : 8 + length + end]
            weight_map[name] = file
        text = json.dumps(new).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
