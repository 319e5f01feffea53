"""Measures the data plane with scoring replaced by a constant, beside Python's tokenizers on the same text.

    cargo build --release --example data_plane
    python scripts/bench/data_plane.py                   # about 3 minutes on 2 cores
    python scripts/bench/data_plane.py --memory-gb 2     # a 2 GB JSONL file as well: peak memory

The text is the Python standard library's sources, as JSONL; the tokenizer a byte-level BPE of 32,000 ids that is trained on
a part of it. Tokenizing alone, all stages together and `Tokenizer.encode_batch` take turns, each in a process of its own,
and ratios are of medians, so that what else the machine does touches all of them. All use every core.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import results
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
BATCH_BYTES = 1 << 20
# Starts a program from a small process, since a child's peak memory begins with its parent's; prints kB.
MEASURE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def sources(limit_bytes):
    """Texts of the standard library, file by file, up to a number of bytes."""
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        size += len(text.encode())
        yield text
        if size >= limit_bytes:
            return


def train(texts, path):
    """A byte-level BPE of 32,000 ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def python_rate(tokenizer_path, corpus_path, send):
    """Sends tokens/s of encode_batch over batches of about 1 MiB."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    batches, size = [], BATCH_BYTES
    for line in open(corpus_path):
        text = json.loads(line)["text"]
        if size >= BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    started = time.perf_counter()
    tokens = sum(len(encoding.ids) for batch in batches for encoding in tokenizer.encode_batch(batch, add_special_tokens=False))
    send.send((tokens, tokens / (time.perf_counter() - started)))


def in_python(tokenizer_path, corpus_path):
    receive, send = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("spawn").Process(target=python_rate, args=(tokenizer_path, corpus_path, send))
    process.start()
    result = receive.recv()
    process.join()
    return result


def in_rust(binary, tokenizer, corpus, output, mode):
    """The stages that were printed, by name, and peak memory in MB."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-S", "-c", MEASURE, binary, tokenizer, corpus, output, mode]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    *lines, peak_kb = done.stdout.splitlines()
    return {stage["stage"]: stage for stage in map(json.loads, lines)}, int(peak_kb) / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=20, help="size of the text")
    parser.add_argument("--memory-gb", type=float, default=0, help="also read a JSONL file of this size")
    args = parser.parse_args()
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")) / "examples" / "data_plane"

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tokenizer, corpus, output = folder / "tokenizer.json", folder / "corpus.jsonl", folder / "out"
        texts = list(sources(args.mb << 20))
        train(texts[:: max(1, len(texts) // 200)], tokenizer)
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        corpus.write_text("".join(lines))
        print(f"{len(texts)} documents, {corpus.stat().st_size / 1e6:.1f} MB of JSONL, {os.cpu_count()} cores")
        rates = {name: [] for name in ("plan", "read", "tokenize", "all", "python")}
        for _ in range(args.rounds):
            alone, _ = in_rust(binary, tokenizer, corpus, output, "tokenize")
            tokens, rate = in_python(tokenizer, corpus)
            together, _ = in_rust(binary, tokenizer, corpus, output, "all")
            assert tokens == alone["tokenize"]["tokens"] == together["all"]["tokens"], "the same text gives other tokens"
            for name in ("plan", "read"):
                rates[name].append(tokens / alone[name]["seconds"])
            rates["tokenize"].append(alone["tokenize"]["tokens_per_second"])
            rates["all"].append(together["all"]["tokens_per_second"])
            rates["python"].append(rate)
        names = {
            "plan": "plan (hash, cut)",
            "read": "read",
            "tokenize": "tokenize alone",
            "all": "read, tokenize, pack, write",
            "python": "tokenizers.encode_batch (Python)",
        }
        median = {name: statistics.median(values) for name, values in rates.items()}
        for name, label in names.items():
            print(f"{label:34} {median[name]:12,.0f} tokens/s")
        print(f"all / tokenize alone: {median['all'] / median['tokenize']:.3f}  (at least 0.85)")
        print(f"tokenize alone / Python: {median['tokenize'] / median['python']:.3f}  (at least 1)")
        section, unit = "Data plane, scoring replaced by a constant", "tokens/s"
        results.add(section, names["all"], unit, rates["all"], rates["tokenize"], names["tokenize"], at_least=0.85)
        results.add(section, names["tokenize"], unit, rates["tokenize"], rates["python"], names["python"], at_least=1)

        if args.memory_gb:
            size = 0
            with corpus.open("w") as file:
                while size < args.memory_gb * 1e9:
                    for line in lines:
                        size += file.write(line)
            stages, peak = in_rust(binary, tokenizer, corpus, output, "all")
            print(
                f"{corpus.stat().st_size / 1e9:.2f} GB of JSONL: {stages['all']['tokens']:,} tokens, planned in "
                f"{stages['plan']['seconds']:.0f} s, written in {stages['all']['seconds']:.0f} s; peak memory {peak:.0f} MB "
                "(at most 400)"
            )
            what = f"peak memory for {args.memory_gb:g} GB of JSONL"
            results.add(section, what, "MB", [peak], value=peak, at_most=400)


if __name__ == "__main__":
    main()
