"""Scores text that nobody prepared, the Python standard library's sources, with the demo pair, and prints what a token
takes in a shard, column by column.

    cargo build --release
    python scripts/bench/bytes_per_token.py                # 1 MB of text: about 2 minutes on 2 cores
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import results

ROOT = Path(__file__).resolve().parents[2]
# What the three columns that training needs may take in Parquet, bytes a token.
MOST = 4.5
TOKEN_COLUMNS = ("input_ids", "rl_logprob", "base_logprob", "weight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kb", type=int, default=1000, help="size of the text")
    args = parser.parse_args()
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve() / "remit-score"
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        size = 0
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = path.read_bytes()
            (corpus / f"{path.stem}.txt").write_bytes(text)
            size += len(text)
            if size >= args.kb * 1000:
                break
        sets = {}
        for kind in ("parquet", "arrow"):
            sets[kind] = Path(folder) / kind
            subprocess.run([binary, corpus, "-o", sets[kind], "--format", kind], check=True, capture_output=True)
        bytes_of = dict.fromkeys(TOKEN_COLUMNS, 0)
        total = tokens = 0
        for path in sorted(sets["parquet"].glob("part-*")):
            file = pq.ParquetFile(path)
            total += path.stat().st_size
            for group in range(file.num_row_groups):
                for index in range(file.metadata.row_group(group).num_columns):
                    column = file.metadata.row_group(group).column(index)
                    name = column.path_in_schema.split(".")[0]
                    if name in bytes_of:
                        bytes_of[name] += column.total_compressed_size
            tokens += sum(map(len, file.read(["input_ids"])["input_ids"].to_pylist()))
        arrow_of = dict.fromkeys(TOKEN_COLUMNS, 0)
        arrow = arrow_tokens = 0
        for path in sorted(sets["arrow"].glob("part-*")):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            arrow += path.stat().st_size
            arrow_tokens += len(pa.compute.list_flatten(table["input_ids"]))
            for name in TOKEN_COLUMNS:
                arrow_of[name] += table[name].get_total_buffer_size()
        assert arrow_tokens == tokens
        print(f"{size:,} bytes of text, {tokens:,} tokens; bytes a token:")
        print(f"{'':14} Parquet   Arrow")
        for name in TOKEN_COLUMNS:
            print(f"{name:14} {bytes_of[name] / tokens:7.3f} {arrow_of[name] / tokens:7.3f}")
        needed, arrow_needed = (
            sum(column[name] for name in TOKEN_COLUMNS if name != "base_logprob") for column in (bytes_of, arrow_of)
        )
        print(f"token columns  {needed / tokens:7.3f} {arrow_needed / tokens:7.3f} (input_ids, rl_logprob, weight; in Parquet at most {MOST})")
        print(f"with the base  {sum(bytes_of.values()) / tokens:7.3f} {sum(arrow_of.values()) / tokens:7.3f}")
        print(f"whole shards   {total / tokens:7.3f} {arrow / tokens:7.3f}")
        what, value = "ids, rl_logprob and weight on disk, Parquet", needed / tokens
        results.add("Disk", what, "bytes/token", [value], [arrow_needed / tokens], "Arrow", value=value, at_most=MOST)
        if needed / tokens > MOST:
            sys.exit(f"the token columns take more than {MOST} bytes a token")


if __name__ == "__main__":
    main()
