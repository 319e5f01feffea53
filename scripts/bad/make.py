"""Makes fixtures/bad: files that ask for more than a machine has, or hold what must be refused by name, in little space.

    python scripts/bad/make.py            # needs nothing but Python

Each is refused with an exact message; tests/it/hostile/files.rs has the messages, and fails on a file without one.
"""

import base64
import gzip
import json
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
BAD = HERE / "fixtures" / "bad"
TEXT = b"\x05\x00\x00\x00hello"

# Thrift's compact protocol, as far as Parquet's metadata needs it.
TRUE, I32, I64, BINARY, LIST, STRUCT = 1, 5, 6, 8, 9, 12


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def zigzag(n):
    return varint((n << 1) ^ (n >> 63))


def value(kind, v):
    if kind in (I32, I64):
        return zigzag(v)
    if kind == BINARY:
        return varint(len(v)) + v
    if kind == STRUCT:
        return struct_of(v)
    element, items = v
    head = bytes([len(items) << 4 | element]) if len(items) < 15 else bytes([0xF0 | element]) + varint(len(items))
    return head + b"".join(value(element, item) for item in items)


def struct_of(fields):
    out, last = b"", 0
    for number, kind, v in fields:
        out += bytes([(number - last) << 4 | kind]) + value(kind, v)
        last = number
    return out + b"\0"


def data_page(body, encoding, num_values=1, unpacked=None):
    header = [(1, I32, num_values), (2, I32, encoding), (3, I32, 3), (4, I32, 3)]
    unpacked = len(body) if unpacked is None else unpacked
    return struct_of([(1, I32, 0), (2, I32, unpacked), (3, I32, len(body)), (5, STRUCT, header)]) + body


def dictionary_page(body, num_values, unpacked=None):
    header = [(1, I32, num_values), (2, I32, 0)]
    unpacked = len(body) if unpacked is None else unpacked
    return struct_of([(1, I32, 2), (2, I32, unpacked), (3, I32, len(body)), (7, STRUCT, header)]) + body


def element(name, **fields):
    known = {"type": (1, I32), "repetition": (3, I32), "children": (5, I32), "converted": (6, I32)}
    listed = [(*known[key], v) for key, v in fields.items()] + [(4, BINARY, name)]
    return sorted(listed)


def parquet(pages, schema=None, num_rows=1, codec=0, dictionary=0, chunks=None):
    """A file with one column of text; `dictionary` is the number of bytes before the first page of values."""
    text = element(b"text", type=6, repetition=0, converted=0)
    schema = schema or [element(b"schema", children=1), text]
    meta = [
        (1, I32, 6), (2, LIST, (I32, [0])), (3, LIST, (BINARY, [b"text"])), (4, I32, codec), (5, I64, num_rows),
        (6, I64, len(pages)), (7, I64, len(pages)), (9, I64, 4 + dictionary),
    ]
    if dictionary:
        meta.append((11, I64, 4))
    chunk = [(2, I64, 4), (3, STRUCT, meta)]
    group = [(1, LIST, (STRUCT, chunks or [chunk])), (2, I64, len(pages)), (3, I64, num_rows)]
    footer = struct_of([(1, I32, 2), (2, LIST, (STRUCT, schema)), (3, I64, num_rows), (4, LIST, (STRUCT, [group]))])
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def run(count, place=0):
    """A run of one place in a dictionary, in an encoding of places that takes 1 bit each."""
    return bytes([1]) + varint(count << 1) + bytes([place])


def lengths(values):
    """Lengths, all but the first of which are the same: DELTA_BINARY_PACKED with deltas of 0 bits."""
    first, second, count = values[0], values[1], len(values)
    out = varint(128) + varint(4) + varint(count) + zigzag(first)
    for block in range((count - 1 + 127) // 128):
        # The first delta of all is another: the least delta of its block, with 32 bits for each of it.
        if block == 0 and second != first:
            least = min(second - first, 0)
            widths = bytes([32, 0, 0, 0])
            deltas = [second - first] + [0] * 31
            packed = b"".join(struct.pack("<I", delta - least) for delta in deltas)
            if least == 0:
                out += zigzag(0) + widths + packed
            else:
                widths = bytes([32] * 4)
                packed += b"".join(struct.pack("<I", -least) for _ in range(96))
                out += zigzag(least) + widths + packed
        else:
            out += zigzag(0) + bytes(4)
    return out


def packed(body):
    return gzip.compress(body, 9, mtime=0)


def deep(levels):
    names = [element(b"g", repetition=1, children=1) for _ in range(levels - 1)]
    text = element(b"text", type=6, repetition=0, converted=0)
    schema = [element(b"schema", children=2), text, *names, element(b"x", type=1, repetition=1)]
    return parquet(data_page(TEXT, 0), schema=schema)


def tokenizer(**changes):
    file = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    return json.dumps(file | changes).encode()


def main():
    BAD.mkdir(exist_ok=True)
    delta = b"\x80\x01\x04" + varint(1 << 52) + bytes(8)
    first = dictionary_page(TEXT, 1)
    book = b"a" * (1 << 20)
    word = struct.pack("<I", len(book)) + book
    book_page = dictionary_page(packed(word), 1, len(word))
    places = run(100_000)
    prefixes = lengths([0] + [len(book)] * 99_999) + lengths([len(book)] + [0] * 99_999) + book
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    files = {
        # A column that isn't read, in groups within groups.
        "deep400.parquet": deep(400),
        "deep4000.parquet": deep(4000),
        # A schema that says it has 2^31 - 1 columns.
        "children2g.parquet": parquet(data_page(TEXT, 0), schema=[
            element(b"schema", children=2**31 - 1), element(b"text", type=6, repetition=0, converted=0)]),
        # 2^52 values of a packed list of lengths.
        "dlba.parquet": parquet(data_page(delta, 6)),
        # A dictionary of one word that says it has 2^31 - 1.
        "dict2g.parquet": parquet(
            (d := dictionary_page(TEXT, 2**31 - 1)) + data_page(run(1), 8), dictionary=len(d)
        ),
        # 50 million references to one word.
        "rlebomb50m.parquet": parquet(
            first + data_page(run(50_000_000), 8, 50_000_000), num_rows=50_000_000, dictionary=len(first)
        ),
        # 100,000 references to a word of a megabyte; and as many texts that each share one with the text before.
        "dictrep.parquet": parquet(
            book_page + data_page(packed(places), 8, 100_000, len(places)),
            num_rows=100_000, codec=2, dictionary=len(book_page),
        ),
        "prefixes.parquet": parquet(
            data_page(packed(prefixes), 7, 100_000, len(prefixes)), num_rows=100_000, codec=2
        ),
        # Pages that say they unpack to 2^31 - 1 bytes, with each codec that is told by the page alone.
        "page2g-snappy.parquet": parquet(data_page(b"\xff\xff\xff\xff\x07\0\0\0\0", 0, unpacked=2**31 - 1), codec=1),
        "page2g-zstd.parquet": parquet(data_page(b"\x28\xb5\x2f\xfd\0\0\0\0\0", 0, unpacked=2**31 - 1), codec=6),
        "page2g-gzip.parquet": parquet(data_page(b"\x1f\x8b\x08\0\0\0\0\0\0", 0, unpacked=2**31 - 1), codec=2),
        "page2g-plain.parquet": parquet(data_page(TEXT, 0, unpacked=2**31 - 1)),
        # A page that says it is stored in 2^31 - 1 bytes.
        "stored2g.parquet": parquet(
            struct_of([(1, I32, 0), (2, I32, 9), (3, I32, 2**31 - 1), (5, STRUCT, [
                (1, I32, 1), (2, I32, 0), (3, I32, 3), (4, I32, 3)])]) + TEXT
        ),
        # Ids beyond all tables, as a word and as an added token.
        "id2g.tokenizer.json": tokenizer(model={"type": "BPE", "vocab": {"a": 0, "b": 2**31 - 1}, "merges": []}),
        # 40 rules that each double the letter a.
        "double40.tokenizer.json": tokenizer(normalizer={"type": "Sequence", "normalizers": [double] * 40}),
        # Words without end, for which WordPiece would take years.
        "words.tokenizer.json": tokenizer(model={
            "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9, "vocab": {"a": 0, "##a": 1},
        }),
        # A precompiled map that says its table has 2^32 - 1 bytes.
        "precompiled.tokenizer.json": tokenizer(
            normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\xff").decode()}
        ),
        # A tokenizer within itself.
        "deep.tokenizer.json": b'{"normalizer":' + b'{"type":"Sequence","normalizers":[' * 200 + b"]}" * 200 + b"}",
        # Names of special tokens that are none.
        "number.special_tokens_map.json": b'{"eos_token": 5}',
        "unknown.special_tokens_map.json": b'{"eos_token": "<no such>"}',
        # Chat templates: 10^10 rounds of a loop, and a text that doubles 40 times.
        "loop.jinja": b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "double40.jinja": b"{% set ns = namespace(x='a' * 16) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        # Records, options and lists that are not what they have to be.
        "float.jsonl": b'{"input_ids": [1, 1e30]}\n',
        "deep.jsonl": b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n",
        "deep.toml": b"lr = " + b"[" * 10_000,
        "word.toml": b'lr = "fast"\n',
        "nul.list": b"good.jsonl\na\0b\n",
        "latin1.list": b"good.jsonl\ncaf\xe9.jsonl\n",
        "nothing.list": b"\n\n",
        "long.list": b"a" * 300 + b".jsonl\n",
    }
    for name, content in files.items():
        (BAD / name).write_bytes(content)
    for path in sorted(BAD.iterdir()):
        print(f"{path.stat().st_size:>8} {path.name}")


if __name__ == "__main__":
    main()
