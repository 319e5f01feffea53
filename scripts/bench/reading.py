"""Reading a set in the order of training: the Python package, the Rust reader, and what others make of the same files.

    cargo build --release --locked --features object-store --bins --example repeated_set
    target/release/examples/repeated_set weights/ large/ 96          # 50 million tokens of the README's demo
    python scripts/bench/reading.py large/ --rounds 3

Every reader goes over all rows once, in turn; printed is the best of the rounds. The package and the Rust reader open
the set and compare every digest and every rule of rows. The package shuffles, and makes steps of 16,384 tokens; the Rust
reader (`remit-inspect verify`) goes through row groups in order, on all cores. pyarrow and datasets read what is stored,
row by row into arrays, in the order of the files, and check nothing. --timeout ends a reader that takes longer.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
COLUMNS = ["row_id", "input_ids", "rl_logprob", "weight"]


def of_rust(folder):
    """Tokens and seconds of remit-inspect verify, which opens, decodes and checks."""
    import remit

    tokens = remit.open(folder, verify=False).num_tokens
    started = time.perf_counter()
    subprocess.run([ROOT / "target/release/remit-inspect", "verify", folder], capture_output=True, check=True)
    return tokens, 0.0, time.perf_counter() - started


def of_package(folder):
    import remit
    from remit.torch import ShardDataset

    started = time.perf_counter()
    ws = remit.open(folder)
    opened = time.perf_counter()
    dataset = ShardDataset(ws, batch_tokens=16384, micro_tokens=1 << 30)
    tokens = 0
    for step in dataset:
        if step.epoch > 0:
            break
        tokens += sum(micro.num_tokens for micro in step.micro_batches)
    return tokens, opened - started, time.perf_counter() - opened


def of_pyarrow(folder):
    import pyarrow.dataset as ds

    started = time.perf_counter()
    tokens = 0
    for batch in ds.dataset(sorted(map(str, Path(folder).glob("part-*")))).to_batches(columns=COLUMNS):
        for i in range(batch.num_rows):
            ids = batch.column("input_ids")[i].values.to_numpy()
            batch.column("rl_logprob")[i].values.to_numpy(zero_copy_only=False)
            batch.column("weight")[i].values.to_numpy()
            tokens += len(ids)
    return tokens, 0.0, time.perf_counter() - started


def of_datasets(folder):
    import datasets

    datasets.disable_progress_bars()
    files = sorted(map(str, Path(folder).glob("part-*")))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    loaded = loaded.select_columns(COLUMNS).with_format("numpy")
    started = time.perf_counter()
    tokens = sum(len(row["input_ids"]) for row in loaded)
    return tokens, 0.0, time.perf_counter() - started


READERS = {"Rust": of_rust, "remit": of_package, "pyarrow": of_pyarrow, "datasets": of_datasets}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, help="seconds of one reader")
    parser.add_argument("--only", help="one reader, in this process; prints a JSON array")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    args = parser.parse_args()
    if args.only:
        print(json.dumps(READERS[args.only](args.set)))
        return
    best = {}
    for _ in range(args.rounds):
        for name in args.readers:
            # A process for each, so that none finds the memory of another.
            command = [sys.executable, __file__, str(args.set), "--only", name]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=args.timeout)
            except subprocess.TimeoutExpired:
                print(f"{name:<9} took more than {args.timeout:.0f} s", flush=True)
                continue
            tokens, opened, read = json.loads(done.stdout)
            best[name] = min(best.get(name, (tokens, 1e9, 1e9)), (tokens, opened, read), key=lambda found: found[2])
            print(f"{name:<9} {tokens:>11,} tokens, opened in {opened:.2f} s, read in {read:.2f} s", flush=True)
    print("\n| reader | open and check | read | million tokens/s |\n|---|---|---|---|")
    for name, (tokens, opened, read) in best.items():
        print(f"| {name} | {opened:.2f} s | {read:.2f} s | {tokens / read / 1e6:.1f} |")


if __name__ == "__main__":
    main()
