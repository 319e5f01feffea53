"""A finished set: opened, checked, and read."""

import functools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from ._errors import DamagedError, Error, MissingError, NoRowError, UsageError, of_several, shown
from ._group import F32, U32, Bools, RowGroup
from ._manifest import Manifest, ShardEntry, load
from ._shard import Shard

if TYPE_CHECKING:
    import pandas
    import torch

# Row groups that random access keeps decoded: about 10 MB each.
CACHED_GROUPS = 4


class Row(NamedTuple):
    """A row: one attention context.

    Element `t` of every array belongs to token `t`. Where there is no target, which the first position never is,
    log-probs are NaN and the weight is 0.
    """

    row_id: int
    source: str
    doc_index: int
    doc_starts: U32
    input_ids: U32
    is_target: Bools
    rl_logprob: F32
    base_logprob: F32 | None
    weight: F32 | None

    def torch(self) -> "dict[str, torch.Tensor]":
        """Returns its arrays as tensors, the ids as int64."""
        import torch

        arrays = {
            "input_ids": self.input_ids.astype(np.int64),
            "is_target": self.is_target,
            "rl_logprob": self.rl_logprob,
            "base_logprob": self.base_logprob,
            "weight": self.weight,
        }
        return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items() if value is not None}


class WeightSet:
    """A set that `remit-score` made. `remit.open` makes one.

    `len(ws)` is its number of rows, `ws[i]` its row number `i`, `ws.row(row_id)` the row with this id, and iteration
    goes over all rows in the order of the set.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Opens a set as `remit.open` does."""
        self.folder = os.fspath(folder)
        self._manifest = load(self.folder)
        self.shards = self._open_shards(verify)
        self._starts = [0, *accumulate(shard.entry.rows for shard in self.shards)]
        self._group = functools.lru_cache(maxsize=CACHED_GROUPS)(lambda shard, group: self.shards[shard].read(group))

    def _open_shards(self, verify: bool) -> list[Shard]:
        problems: list[Error] = []

        def opened(entry: ShardEntry) -> Shard | None:
            try:
                return Shard(self.folder, entry, self._manifest, verify)
            except Error as error:
                problems.append(error)
                return None

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            shards = [shard for shard in pool.map(opened, self._manifest.shards) if shard is not None]
        if problems:
            raise of_several(self.folder, sorted(problems, key=str))
        return shards

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the set anew in another process, where its digests are not compared again."""
        return _reopen, (self.folder, self._manifest.content_blake3)

    def __repr__(self) -> str:
        """Returns what it is, in a line."""
        return f"<remit.WeightSet {shown(self.folder)}: {len(self):,} rows, {self.num_tokens:,} tokens>"

    @property
    def manifest(self) -> Manifest:
        """Returns the manifest."""
        return self._manifest

    @property
    def plan(self) -> dict[str, Any]:
        """Returns what decided the set: models, tokenizer, packing, corpus."""
        return self._manifest.plan

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens of all rows."""
        return int(self._manifest.totals["tokens"])

    @property
    def num_targets(self) -> int:
        """Returns the number of targets of all rows."""
        return int(self._manifest.totals["targets"])

    @property
    def has_base(self) -> bool:
        """Returns whether rows have base log-probs and static weights."""
        return self._manifest.has_base

    def stats(self, by: str | None = None) -> dict[str, Any]:
        """Returns counts, mean log-probs, perplexities and weights of all rows; with `by="source"`, for each source."""
        if by not in (None, "source"):
            raise UsageError(f"statistics by {by!r} are not stored\nhint: by=None, or by='source'")
        return dict(self._manifest.totals if by is None else self._manifest.sources)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        """Returns a row by its number in the set; negative ones count from the end."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise NoRowError(f"{shown(self.folder)} has {len(self)} rows, and so no row number {index}")
        shard = bisect_right(self._starts, number) - 1
        return self._row(shard, number - self._starts[shard])

    def row(self, row_id: int) -> Row:
        """Returns the row with this id."""
        part, number = row_id >> 32, row_id & 0xFFFFFFFF
        if not 0 <= part < len(self.shards) or number >= self.shards[part].entry.rows:
            raise NoRowError(
                f"{shown(self.folder)} has no row {row_id}: that would be row {number} of part {part}\n"
                "hint: a row_id is part number x 2^32 + index in the part; ws[i] counts rows from 0"
            )
        return self._row(part, number)

    def _row(self, shard: int, number: int) -> Row:
        group, at = self.shards[shard].group_of(number)
        return row_at(self._group(shard, group), at)

    def __iter__(self) -> Iterator[Row]:
        """Goes over all rows in the order of the set."""
        for group in self.groups():
            for at in range(group.num_rows):
                yield row_at(group, at)

    def groups(self) -> Iterator[RowGroup]:
        """Goes over all rows, row group by row group: columns as numpy arrays, of some 500,000 tokens each."""
        for shard in self.shards:
            for group in range(shard.num_row_groups):
                yield shard.read(group)

    def to_arrow(self) -> pa.Table:
        """Returns all rows as one table, checked, with the columns of the format."""
        tables = []
        for group in self.groups():
            offsets = pa.array(group.offsets, pa.int32())
            absent = ~group.is_target
            columns = {
                "row_id": pa.array(np.arange(group.num_rows, dtype=np.uint64) + np.uint64(group.first_row_id)),
                "source": group.source.cast(pa.string()),
                "doc_index": pa.array(group.doc_index),
                "doc_starts": pa.ListArray.from_arrays(
                    pa.array(group.doc_starts_offsets, pa.int32()), pa.array(group.doc_starts)
                ),
                "input_ids": pa.ListArray.from_arrays(offsets, pa.array(group.input_ids)),
                "rl_logprob": pa.ListArray.from_arrays(offsets, pa.array(group.rl_logprob, mask=absent)),
            }
            if group.base_logprob is not None and group.weight is not None:
                columns["base_logprob"] = pa.ListArray.from_arrays(offsets, pa.array(group.base_logprob, mask=absent))
                columns["weight"] = pa.ListArray.from_arrays(offsets, pa.array(group.weight))
            tables.append(pa.table(columns))
        if tables:
            return pa.concat_tables(tables)
        raise UsageError(f"{shown(self.folder)} has no rows\nhint: remit-inspect {shown(self.folder)} tells why")

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns all rows as a data frame, checked."""
        return self.to_arrow().to_pandas()

    def tokens(self, row_id: int | None = None) -> pa.Table:
        """Returns a table with a row for each token, with its text, by `remit-inspect export`.

        Args:
            row_id: Only the tokens of this row.
        """
        with tempfile.TemporaryDirectory(prefix="remit-") as folder:
            path = Path(folder) / "tokens.parquet"
            run_program("remit-inspect", "export", self.folder, "--tokens", path)
            filters = None if row_id is None else [("row_id", "=", row_id)]
            return pa.parquet.read_table(path, filters=filters, memory_map=False)

    def check(self, model: str | os.PathLike[str]) -> None:
        """Checks that the ids of the set mean the same to a model or tokenizer, a Hugging Face directory.

        Raises:
            Error: Its tokenizer has another fingerprint than the one that the set was tokenized with.
        """
        found = tokenizer_fingerprint(model)
        wanted = self.plan["tokenizer"]
        if found != wanted["fingerprint"]:
            raise UsageError(
                f"the set in {shown(self.folder)} was tokenized with the tokenizer of {shown(wanted['path'])} "
                f"(fingerprint {wanted['fingerprint']}), but that of {shown(model)} is another (fingerprint {found})\n"
                f"hint: score the corpus again with --tokenizer {shown(model)}, and with an RL model to which those "
                "ids mean the same"
            )


def row_at(group: RowGroup, at: int) -> Row:
    """Returns a row of a row group. Ids and weights are views of the group's."""
    tokens = slice(group.offsets[at], group.offsets[at + 1])
    starts = slice(group.doc_starts_offsets[at], group.doc_starts_offsets[at + 1])
    is_target = group.is_target[tokens]
    base, weight = group.base_logprob, group.weight

    def or_nan(values: F32) -> F32:
        return np.where(is_target, values[tokens], np.float32(np.nan))

    return Row(
        row_id=group.first_row_id + at,
        source=group.source[at].as_py(),
        doc_index=int(group.doc_index[at]),
        doc_starts=group.doc_starts[starts],
        input_ids=group.input_ids[tokens],
        is_target=is_target,
        rl_logprob=or_nan(group.rl_logprob),
        base_logprob=None if base is None else or_nan(base),
        weight=None if weight is None else weight[tokens],
    )


def _reopen(folder: str, content_blake3: str) -> WeightSet:
    found = WeightSet(folder, verify=False)
    if found.manifest.content_blake3 != content_blake3:
        raise UsageError(
            f"{shown(folder)} holds another set than before: its manifest has the digest "
            f"{found.manifest.content_blake3}, it was {content_blake3}\nhint: open it again"
        )
    return found


def tokenizer_fingerprint(model: str | os.PathLike[str]) -> str:
    """Returns the digest of what decides which ids a text becomes with the tokenizer of a model."""
    report = json.loads(run_program("remit-inspect", "model", model, "--json"))
    if report.get("tokenizer_fingerprint") is None:
        raise DamagedError(f"the tokenizer of {shown(model)} is not usable: {report.get('tokenizer_problem')}")
    return str(report["tokenizer_fingerprint"])


def program(name: str) -> str:
    """Returns the path of one of the three programs: of this package's wheel, else of the PATH."""
    ending = ".exe" if sys.platform == "win32" else ""
    folders = [sysconfig.get_path("scripts"), *os.environ.get("PATH", "").split(os.pathsep)]
    for folder in [os.environ.get("REMIT_BIN", ""), *folders]:
        path = os.path.join(folder, name + ending)
        if folder and os.access(path, os.X_OK):
            return path
    raise MissingError(
        f"there is no {name} on the PATH\nhint: pip install remit brings it, and so does cargo install --path ."
    )


def run_program(name: str, *arguments: str | os.PathLike[str]) -> str:
    """Runs one of the three programs; returns its output."""
    command = [program(name), *(os.fspath(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Error(f"{name} exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
