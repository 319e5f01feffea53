"""Columns of a row group as numpy arrays, every rule of the format checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# A log-prob may exceed 0 by this much, from rounding in its log-sum-exp.
LOG_PROB_SLACK_NATS = 1e-3

BASE_COLUMNS = ("base_logprob", "weight")
COLUMNS = ("row_id", "source", "doc_index", "doc_starts", "input_ids", "rl_logprob")


class RowGroup(NamedTuple):
    """Rows of a row group: values of all rows one after another, and where each row begins.

    Row `i` has the tokens `offsets[i]` to `offsets[i + 1]`. Element `t` of an array of tokens belongs to token `t`:
    `rl_logprob[t]` is the log-probability of `input_ids[t]` given what comes before it in its row. Where
    `is_target[t]` is false, there is none, and log-probs and weight are 0.
    """

    first_row_id: int
    offsets: I64  # (rows + 1,)
    input_ids: U32  # (tokens,)
    is_target: Bools  # (tokens,)
    rl_logprob: F32  # (tokens,) nats
    base_logprob: F32 | None  # (tokens,) nats
    weight: F32 | None  # (tokens,)
    source: Any  # pyarrow array of strings, or a dictionary of them
    doc_index: U64  # (rows,)
    doc_starts: U32  # of all rows
    doc_starts_offsets: I64  # (rows + 1,)

    @property
    def num_rows(self) -> int:
        """Returns the number of rows."""
        return len(self.offsets) - 1

    def sources(self) -> list[str]:
        """Returns the source of every row."""
        return list(self.source.to_pylist())


class RowProblem(Exception):
    """A rule of the format that a row breaks."""

    def __init__(self, row: int, reason: str) -> None:
        """Takes the row's number in its group, and the reason."""
        super().__init__(reason)
        self.row, self.reason = row, reason


def schema_problem(found: pa.Schema, file_format: str, has_base: bool) -> str | None:
    """Returns in what the columns of a file are not those of a shard. Columns after them are left unread."""
    wanted = schema(file_format, has_base)
    fields = [found.field(i) for i in range(min(len(found), len(wanted)))]
    extra = found.names[len(wanted) :]
    is_same = len(fields) == len(wanted) and all(a.equals(b) for a, b in zip(fields, wanted, strict=True))
    if is_same and not set(extra) & {*COLUMNS, *BASE_COLUMNS}:
        return None
    describe: Callable[[pa.Schema], str] = lambda of: ", ".join(f"{f.name}: {f.type}" for f in of)  # noqa: E731
    return f"expected {describe(wanted)}; found {describe(found)}"


def schema(file_format: str, has_base: bool) -> pa.Schema:
    """Returns the columns of a shard."""

    def lists(name: str, item: pa.DataType, nullable: bool) -> pa.Field:
        return pa.field(name, pa.list_(pa.field("element", item, nullable=nullable)), nullable=False)

    source = pa.dictionary(pa.int32(), pa.string()) if file_format == "parquet" else pa.string()
    fields = [
        pa.field("row_id", pa.uint64(), nullable=False),
        pa.field("source", source, nullable=False),
        pa.field("doc_index", pa.uint64(), nullable=False),
        lists("doc_starts", pa.uint32(), False),
        lists("input_ids", pa.uint32(), False),
        lists("rl_logprob", pa.float32(), True),
    ]
    if has_base:
        fields += [lists("base_logprob", pa.float32(), True), lists("weight", pa.float32(), False)]
    return pa.schema(fields)


def row_group(table: pa.Table | pa.RecordBatch, first_row_id: int, has_base: bool) -> RowGroup:
    """Checks the rows of a table, of which the first has the id `first_row_id`.

    Raises:
        RowProblem: A row breaks a rule of the format.
    """
    num_rows = table.num_rows

    def column(name: str) -> Any:
        found = table.column(name)
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
            if isinstance(found, pa.ChunkedArray):  # as pyarrow has it for dictionaries
                found = found.unify_dictionaries().combine_chunks() if found.num_chunks != 1 else found.chunk(0)
        if found.null_count:
            raise RowProblem(_first(found.is_null().to_numpy(False)), f"{name} is null at position 0")
        return found

    ids = column("row_id").to_numpy()
    wrong = ids != np.arange(first_row_id, first_row_id + num_rows, dtype=np.uint64)
    if wrong.any():
        at = _first(wrong)
        raise RowProblem(at, f"row_id is {ids[at]}; {first_row_id + at} was expected")
    source = column("source")
    if pa.types.is_dictionary(source.type) and source.dictionary.null_count:
        raise RowProblem(0, "source is null at position 0")
    offsets, input_ids, _ = _lists(column("input_ids"), "input_ids", False)
    lengths = np.diff(offsets)
    if (lengths < 2).any():
        at = _first(lengths < 2)
        raise RowProblem(at, f"it has {lengths[at]} tokens; a row has at least 2 and less than 2^32")
    starts_offsets, starts, _ = _lists(column("doc_starts"), "doc_starts", False)
    _check_starts(starts_offsets, starts, lengths)
    rl, is_target = _log_probs(column("rl_logprob"), "rl_logprob", offsets)
    counts = np.add.reduceat(is_target, offsets[:-1], dtype=np.int64) if num_rows else np.zeros(0, np.int64)
    if (counts == 0).any():
        raise RowProblem(_first(counts == 0), "it has no target; a row has at least one")
    base = weight = None
    if has_base:
        base, of_base = _log_probs(column("base_logprob"), "base_logprob", offsets)
        if not np.array_equal(is_target, of_base):
            at = _row_of(offsets, is_target != of_base)
            raise RowProblem(at, "rl_logprob and base_logprob are not null at the same positions")
        weight = _weights(column("weight"), offsets, is_target)
    return RowGroup(
        first_row_id=first_row_id,
        offsets=offsets,
        input_ids=input_ids,
        is_target=is_target,
        rl_logprob=rl,
        base_logprob=base,
        weight=weight,
        source=source,
        doc_index=column("doc_index").to_numpy(),
        doc_starts=starts,
        doc_starts_offsets=starts_offsets,
    )


def _first(wrong: npt.NDArray[Any]) -> int:
    return int(np.argmax(wrong))


def _row_of(offsets: I64, wrong: Bools) -> int:
    """Returns the row of the first token at which something is wrong."""
    return int(np.searchsorted(offsets, _first(wrong), side="right")) - 1


def lengths_of(lists: Any) -> I64:
    """Returns the number of values of every list of a column."""
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    offsets: I64 = lists.offsets.to_numpy().astype(np.int64)
    return np.diff(offsets)


def _lists(lists: Any, name: str, nullable: bool) -> tuple[I64, npt.NDArray[Any], Bools | None]:
    """Returns where the lists of a column begin, all their values, and which of these are there; None when all are.

    The values are a view of the buffer that pyarrow has, what is not there included.
    """
    offsets = lists.offsets.to_numpy().astype(np.int64)
    start, end = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    values = lists.values.slice(start, end - start)
    offsets = offsets - start if len(offsets) else np.zeros(1, np.int64)
    validity, data = values.buffers()
    dtype = np.dtype(values.type.to_pandas_dtype())
    found = np.frombuffer(data, dtype, len(values), values.offset * dtype.itemsize) if data else np.zeros(0, dtype)
    if not values.null_count:
        return offsets, found, None
    bits = np.frombuffer(validity, np.uint8)
    begin = values.offset // 8
    bits = bits[begin : (values.offset + len(values) + 7) // 8]
    is_there = np.unpackbits(bits, bitorder="little")[values.offset % 8 :][: len(values)].view(np.bool_)
    if not nullable:
        at = _row_of(offsets, ~is_there)
        raise RowProblem(at, f"{name} is null at position {_first(~is_there) - offsets[at]}")
    return offsets, found, is_there


def _same_lengths(name: str, found: I64, offsets: I64) -> None:
    if not np.array_equal(found, offsets):
        lengths, expected = np.diff(found), np.diff(offsets)
        at = _first(lengths != expected)
        raise RowProblem(at, f"{name} has {lengths[at]} values; the row has {expected[at]} tokens")


def _log_probs(lists: Any, name: str, offsets: I64) -> tuple[F32, Bools]:
    found, values, is_there = _lists(lists, name, True)
    _same_lengths(name, found, offsets)
    if is_there is None or is_there[offsets[:-1]].any():
        at = 0 if is_there is None else _first(is_there[offsets[:-1]])
        raise RowProblem(at, f"the first value of {name} is not the one that marks a position without a target")
    values = np.where(is_there, values, np.float32(0))
    # False for what is no number as well.
    good = (values <= np.float32(LOG_PROB_SLACK_NATS)) & (values > -np.inf)
    if not good.all():
        at, token = _row_of(offsets, ~good), _first(~good)
        raise RowProblem(
            at,
            f"{name} at position {token - offsets[at]} is {values[token]}; a log-probability is finite and at most 0",
        )
    return values, is_there


def _weights(lists: Any, offsets: I64, is_target: Bools) -> F32:
    found, values, _ = _lists(lists, "weight", False)
    _same_lengths("weight", found, offsets)
    good = (values >= 0) & (values < np.inf)
    if not good.all():
        at, token = _row_of(offsets, ~good), _first(~good)
        raise RowProblem(
            at, f"weight at position {token - offsets[at]} is {values[token]}; a weight is finite and not negative"
        )
    stray = (values != 0) & ~is_target
    if stray.any():
        at, token = _row_of(offsets, stray), _first(stray)
        raise RowProblem(
            at,
            f"weight at position {token - offsets[at]} is {values[token]}; this is no target, so it has to be 0",
        )
    return values


def _check_starts(offsets: I64, starts: U32, lengths: I64) -> None:
    counts = np.diff(offsets)
    too_large = starts >= np.repeat(lengths, counts)
    not_ascending = np.zeros(len(starts), np.bool_)
    if len(starts):
        not_ascending[1:] = starts[1:] <= starts[:-1]
        firsts = offsets[:-1][counts > 0]
        not_ascending[firsts] = False
    wrong = too_large | not_ascending
    if wrong.any():
        at, value = _row_of(offsets, wrong), _first(wrong)
        raise RowProblem(
            at,
            f"doc_starts is not an ascending list of positions below {lengths[at]}: {starts[value]} at "
            f"{value - offsets[at]}",
        )
