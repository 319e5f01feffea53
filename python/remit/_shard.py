"""One shard: mapped into memory, compared with the manifest before it is parsed, read row group by row group."""

import json
import os
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ._errors import REMAKE, REMOVE_AND_REMAKE, DamagedError, MissingError, shown
from ._group import BASE_COLUMNS, COLUMNS, I64, RowGroup, RowProblem, lengths_of, row_group, schema_problem
from ._manifest import SHARD_VERSION, Manifest, ShardEntry

T = TypeVar("T")


class Shard:
    """A shard of a set. Its row groups are the unit of reading."""

    def __init__(self, folder: str, entry: ShardEntry, manifest: Manifest, verify: bool) -> None:
        """Maps a shard, and compares its size with the manifest; with `verify`, its BLAKE3 as well.

        Raises:
            MissingError: It is not there.
            DamagedError: It is not what the manifest says.
        """
        self.path = os.path.join(folder, entry.file)
        self.entry, self._format, self._has_base = entry, manifest.format, manifest.has_base
        if not os.path.exists(self.path):
            raise MissingError(f"the shard {shown(self.path)} is missing\n{REMAKE}")
        size = os.path.getsize(self.path)
        if size != entry.size_bytes:
            raise DamagedError(
                f"the shard {shown(self.path)} has {size} bytes; the manifest says {entry.size_bytes}\n"
                f"{REMOVE_AND_REMAKE}"
            )
        # The mapping that is hashed is the one that is read.
        self._buffer = pa.memory_map(self.path).read_buffer()
        if verify:
            found = blake3(self._buffer).hexdigest()
            if found != entry.blake3:
                raise DamagedError(
                    f"the shard {shown(self.path)} is damaged: its BLAKE3 is {found}, the manifest says "
                    f"{entry.blake3}\n{REMOVE_AND_REMAKE}"
                )
        self._open(manifest)

    def _open(self, manifest: Manifest) -> None:
        self._parquet: pq.ParquetFile | None = None
        self._arrow: Any = None
        if self._format == "parquet":
            parquet = self._parquet = self._guarded(lambda: pq.ParquetFile(pa.BufferReader(self._buffer)))
            metadata, found = dict(parquet.metadata.metadata or {}), parquet.schema_arrow
            rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
        else:
            arrow = self._arrow = self._guarded(lambda: pa.ipc.open_file(self._buffer))
            metadata, found = dict(arrow.metadata or {}), arrow.schema
            rows = self._batch_rows(metadata)
        version = metadata.get(b"remit.format_version", b"not given").decode(errors="replace")
        if version != SHARD_VERSION:
            raise self._other_format(f"its version is {version}, and this remit reads {SHARD_VERSION}")
        problem = schema_problem(found, self._format, self._has_base)
        if problem is not None:
            raise self._other_format(problem)
        if metadata.get(b"remit.plan_blake3") != manifest.plan_identity.encode():
            raise DamagedError(
                f"the shard {shown(self.path)} was made under another plan than that of its folder\n"
                "hint: remove it and run the same remit-score command again; it makes what is missing"
            )
        self._starts = [0, *accumulate(rows)]
        self._expect("rows", self.entry.rows, self._starts[-1])

    def _batch_rows(self, metadata: dict[bytes, bytes]) -> list[int]:
        try:
            rows = json.loads(metadata[b"remit.batch_rows"])
            if len(rows) == self._arrow.num_record_batches and all(isinstance(n, int) and n >= 0 for n in rows):
                return list(rows)
        except (KeyError, TypeError, ValueError):
            pass
        raise self._unreadable("its footer has an impossible number of rows")

    @property
    def num_row_groups(self) -> int:
        """Returns the number of its row groups."""
        return len(self._starts) - 1

    def rows_of(self, group: int) -> tuple[int, int]:
        """Returns the numbers in the shard of a group's first row, and of the row after its last."""
        return self._starts[group], self._starts[group + 1]

    def group_of(self, row: int) -> tuple[int, int]:
        """Returns the row group of a row of the shard, and its number there."""
        group = bisect_right(self._starts, row) - 1
        return group, row - self._starts[group]

    def row_id(self, row: int) -> int:
        """Returns the `row_id` of a row of the shard."""
        return (self.entry.part << 32) + row

    def read(self, group: int) -> RowGroup:
        """Returns the rows of a row group, each checked against the rules of the format.

        Raises:
            DamagedError: They can't be decoded, or one breaks a rule.
        """
        start, end = self.rows_of(group)
        table = self._decode(group, [*COLUMNS, *(BASE_COLUMNS if self._has_base else ())])
        self._expect("rows in a row group", end - start, table.num_rows)
        try:
            return self._guarded(lambda: row_group(table, self.row_id(start), self._has_base))
        except RowProblem as problem:
            raise DamagedError(
                f"the shard {shown(self.path)}, row {start + problem.row}: {problem.reason}\n{REMOVE_AND_REMAKE}"
            ) from None

    def row_lengths(self, group: int) -> I64:
        """Returns the number of tokens of each row of a row group; decodes the ids alone."""
        start, end = self.rows_of(group)
        lengths = self._guarded(lambda: lengths_of(self._decode(group, ["input_ids"]).column("input_ids")))
        self._expect("rows in a row group", end - start, len(lengths))
        return np.asarray(lengths)

    def _decode(self, group: int, columns: list[str]) -> Any:
        if self._parquet is not None:
            parquet = self._parquet
            return self._guarded(lambda: parquet.read_row_group(group, columns=columns))
        batch = self._guarded(lambda: self._arrow.get_batch(group).select(columns))
        self._guarded(lambda: batch.validate(full=False))
        return batch

    def _guarded(self, step: Callable[[], T]) -> T:
        """Runs a step of the parser; what it raises becomes an error that names the shard."""
        try:
            return step()
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise self._unreadable(str(error)) from None

    def _unreadable(self, reason: str) -> DamagedError:
        name = {"parquet": "Parquet", "arrow": "Arrow"}[self._format]
        return DamagedError(
            f"the shard {shown(self.path)} is not a readable {name} file: {reason}\n{REMOVE_AND_REMAKE}"
        )

    def _other_format(self, reason: str) -> DamagedError:
        return DamagedError(f"the shard {shown(self.path)} is not one of this format: {reason}\n{REMOVE_AND_REMAKE}")

    def _expect(self, what: str, expected: int, found: int) -> None:
        if expected != found:
            raise DamagedError(
                f"the shard {shown(self.path)} holds {found} {what}; {expected} were expected\n{REMOVE_AND_REMAKE}"
            )
