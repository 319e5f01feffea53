"""What the tests share: reading shards and corpus files with other libraries, log-probs by transformers, the formula."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import zstandard
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

EOS_ID = 0


def load(folder):
    """The checkpoint in float32, with attention written out step by step."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def target_log_probs(model, ids):
    """(n - 1,) float64 log p(x_t | x_<t) of one row run alone. Keeps the graph where there is one."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def weights_of(delta, epsilon=0.2, tau=1.0):
    """The weights of one row from its differences, as numpy float64."""
    delta = np.asarray(delta, dtype=np.float64)
    centred = delta - delta.mean()
    return np.clip(2.0 / (1.0 + np.exp(-centred / tau)), 1 - epsilon, 1 + epsilon)


def shards(folder):
    found = sorted(Path(folder).glob("*.parquet"))
    assert found, f"no *.parquet in {folder}"
    return found


def read_rows(folder):
    """All rows of a set as dicts, sorted by row_id."""
    rows = [row for path in shards(folder) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["row_id"])


def corpus_files(folder):
    """Files in byte order of their paths, as (relative path, path)."""
    files = [(p.relative_to(folder).as_posix(), p) for p in Path(folder).rglob("*") if p.is_file()]
    return sorted(files, key=lambda pair: pair[0].encode())


def documents(path):
    """The texts of one corpus file: a .txt or .md file is one document, the other formats hold one per record."""
    name = path.name
    if name.endswith((".txt", ".md")):
        return [path.read_bytes().decode()]
    if name.endswith(".parquet"):
        return pq.read_table(path)["text"].to_pylist()
    raw = path.read_bytes()
    if name.endswith(".zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return [json.loads(line)["text"] for line in raw.decode().split("\n") if line]


def encoded_corpus(folder, tokenizer_json):
    """[(source, doc_index, ids with EOS)] of the whole corpus, in order."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    found = []
    for source, path in corpus_files(folder):
        encodings = tokenizer.encode_batch(documents(path), add_special_tokens=False)
        found += [(source, i, e.ids + [EOS_ID]) for i, e in enumerate(encodings)]
    return found


def subset(rows, count):
    """About `count` rows evenly spread, with the first, the last, the shortest and the longest always among them."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    step = max(1, len(rows) // count)
    chosen = {0, len(rows) - 1, by_length[0], by_length[-1], *range(0, len(rows), step)}
    return [rows[i] for i in sorted(chosen)]
