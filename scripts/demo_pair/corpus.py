"""Writes the generated part of fixtures/corpus: the same kind of text that the base was trained on, another sample.

    python scripts/demo_pair/corpus.py               # a few seconds; the same bytes every time

The essays in fixtures/corpus/essays are written by hand and left alone. A record whose `correct` is false holds a worked
solution with a deliberate slip.
"""

import argparse
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

import text

ROOT = Path(__file__).resolve().parents[2]


def solutions(rng, prefix, count):
    for i in range(count):
        body, p, correct = text.worked(rng)
        yield {"id": f"{prefix}-{i:05}", "text": body, "expression": p.expression, "answer": p.answer, "correct": correct}


def mixed(rng, prefix, count):
    """Notes of one line, articles and programs; `kind` says which."""
    makers = {
        "note": (0.45, text.note),
        "article": (0.25, lambda r: text.article(r, r.randint(1, 4))),
        "python": (0.18, text.python_program),
        "rust": (0.12, text.rust_program),
    }
    kinds, weights = list(makers), [share for share, _ in makers.values()]
    for i in range(count):
        kind = rng.choices(kinds, weights)[0]
        yield {"id": f"{prefix}-{i:05}", "kind": kind, "text": makers[kind][1](rng)}


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write_parquet(path, records, row_group):
    table = pa.Table.from_pylist(list(records))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group)
    path.write_bytes(sink.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "corpus")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for folder in ("solutions", "prose", "code"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)

    (args.out / "solutions/train-00.jsonl").write_bytes(jsonl(solutions(rng, "a", 2000)))
    packed = zstandard.ZstdCompressor(level=9).compress(jsonl(solutions(rng, "b", 2000)))
    (args.out / "solutions/train-01.jsonl.zst").write_bytes(packed)
    write_parquet(args.out / "solutions/train-02.parquet", solutions(rng, "c", 2000), row_group=500)
    (args.out / "solutions/drill.txt").write_text("\n\n".join(text.worked(rng)[0] for _ in range(60)) + "\n")

    (args.out / "prose/mixed.jsonl").write_bytes(jsonl(mixed(rng, "m", 650)))
    write_parquet(args.out / "prose/articles.parquet", mixed(rng, "p", 600), row_group=64)
    (args.out / "prose/handbook.md").write_text(text.article(rng, 60))
    (args.out / "prose/harbour.txt").write_text(text.story(rng, 45))
    (args.out / "prose/visit.txt").write_text(text.story(rng, 3))
    (args.out / "prose/one-line.txt").write_text(text.note(rng) + "\n")
    (args.out / "prose/greetings.txt").write_text("\n".join(text.note(rng) for _ in range(30)) + "\n")

    programs = [{"id": f"py-{i:03}", "language": "python", "text": text.python_program(rng)} for i in range(280)]
    programs += [{"id": f"rs-{i:03}", "language": "rust", "text": text.rust_program(rng)} for i in range(220)]
    (args.out / "code/programs.jsonl").write_bytes(jsonl(programs))
    listing = "\n\n".join("```python\n" + text.python_program(rng) + "```" for _ in range(12))
    (args.out / "code/listings.md").write_text("# Listings\n\n" + listing + "\n")


if __name__ == "__main__":
    main()
