"""Rows in the order of training, step by step, and their division among ranks and micro-batches; numpy alone.

`remit.torch` makes tensors of them. One window of rows is in memory at a time, about 13 bytes for each of at most
8,388,608 tokens, and of the next one what is being read.
"""

import heapq
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ._errors import UsageError
from ._group import F32, I64, U32, U64, Bools
from .order import Cursor, Order, Place, epochs, runs


class Rows(NamedTuple):
    """Rows one after another, with an element for each token; row `i` has the tokens `offsets[i]` to `offsets[i + 1]`.

    Element `t` belongs to token `t`: `rl_logprob[t]` is the log-probability of `input_ids[t]` given what comes before
    it in its row. Where `is_target[t]` is false, log-prob and weight are 0.
    """

    row_ids: U64  # (rows,)
    offsets: I64  # (rows + 1,)
    input_ids: U32  # (tokens,)
    is_target: Bools  # (tokens,)
    rl_logprob: F32  # (tokens,) nats
    weight: F32 | None  # (tokens,)

    @property
    def num_rows(self) -> int:
        """Returns the number of rows."""
        return len(self.row_ids)

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens."""
        return len(self.input_ids)

    @property
    def lengths(self) -> I64:
        """Returns the number of tokens of every row."""
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> "Rows":
        """Returns consecutive rows, as views."""
        offsets = self.offsets[start : stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        return Rows(
            self.row_ids[start:stop],
            offsets - offsets[0],
            self.input_ids[tokens],
            self.is_target[tokens],
            self.rl_logprob[tokens],
            None if self.weight is None else self.weight[tokens],
        )

    def take(self, rows: I64) -> "Rows":
        """Returns rows by their numbers, copied."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = spread(self.offsets[rows] - offsets[:-1], lengths)
        return Rows(
            self.row_ids[rows],
            offsets,
            self.input_ids[tokens],
            self.is_target[tokens],
            self.rl_logprob[tokens],
            None if self.weight is None else self.weight[tokens],
        )


def joined(parts: list[Rows]) -> Rows:
    """Returns the rows of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    weights = [part.weight for part in parts if part.weight is not None]
    return Rows(
        np.concatenate([part.row_ids for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.is_target for part in parts]),
        np.concatenate([part.rl_logprob for part in parts]),
        np.concatenate(weights) if len(weights) == len(parts) else None,
    )


def spread(starts: I64, lengths: I64) -> I64:
    """Returns the positions of tokens, given for each row its start less the tokens of the rows before it."""
    return np.repeat(starts, lengths) + np.arange(int(lengths.sum()))


def load(order: Order, places: Place) -> Rows:
    """Decodes rows, checked against the rules of the format; several row groups at a time.

    Raises:
        DamagedError: They can't be decoded, or one breaks a rule.
    """
    ws = order.ws
    offsets = np.concatenate([[0], np.cumsum(places.length)])
    num_tokens = int(offsets[-1])
    input_ids, is_target = np.empty(num_tokens, np.uint32), np.empty(num_tokens, np.bool_)
    rl = np.empty(num_tokens, np.float32)
    weight = np.empty(num_tokens, np.float32) if ws.has_base else None
    # Rows by their group, and in it by their number, so that reading goes forward.
    by_place = np.lexsort((places.row, places.group))
    numbers, starts = np.unique(places.group[by_place], return_index=True)
    bounds = [*starts.tolist(), len(by_place)]

    def fill(number: int) -> None:
        shard, at = order.groups[int(numbers[number])]
        group = ws.shards[shard].read(at)
        chosen = by_place[bounds[number] : bounds[number + 1]]
        rows, lengths = places.row[chosen], places.length[chosen]
        before = np.cumsum(lengths) - lengths
        to = spread(offsets[:-1][chosen] - before, lengths)
        is_all = len(rows) == group.num_rows
        source = slice(None) if is_all else spread(group.offsets[rows] - before, lengths)
        input_ids[to] = group.input_ids[source]
        is_target[to] = group.is_target[source]
        rl[to] = group.rl_logprob[source]
        if weight is not None and group.weight is not None:
            weight[to] = group.weight[source]

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(len(numbers))):
            pass
    return Rows(order.row_ids(places), offsets, input_ids, is_target, rl, weight)


def steps(order: Order, cursor: Cursor, batch_tokens: int) -> Iterator[tuple[Cursor, Rows]]:
    """Goes over the steps of an epoch from a cursor on: where the next step begins, and all rows of this one."""
    end = cursor.rows
    open_rows: list[Rows] = []
    for places in order.windows(cursor.epoch, cursor.rows):
        window = load(order, places)
        num_open = sum(rows.num_rows for rows in open_rows)
        lengths = np.concatenate([*(rows.lengths for rows in open_rows), window.lengths])
        *whole, rest = runs(lengths, batch_tokens)
        at = -num_open
        for run in whole:
            taken = window.slice(max(at, 0), at + run) if at + run > 0 else None
            parts = [*open_rows, *([taken] if taken is not None else [])]
            open_rows = []
            at += run
            end += run
            yield Cursor(cursor.epoch, end), joined(parts)
        # Copied, so that the window can go.
        left = window.take(np.arange(max(at, 0), at + rest))
        open_rows = [*open_rows, left]
    if open_rows:
        end += sum(rows.num_rows for rows in open_rows)
        yield Cursor(cursor.epoch, end), joined(open_rows)


def all_steps(order: Order, cursor: Cursor, batch_tokens: int) -> Iterator[tuple[Cursor, Rows]]:
    """Goes over steps, epoch after epoch, for ever."""
    if order.num_rows == 0:
        raise UsageError("the set has no row to train on\nhint: lower the share that is held out")
    for begin in epochs(order, cursor):
        yield from steps(order, begin, batch_tokens)


def divided(
    lengths: npt.NDArray[np.int64], world: int, *, micro_tokens: int | None = None, micro_batches: int | None = None
) -> list[list[I64]]:
    """Divides the rows of a step among ranks: for each rank, the rows of its micro-batches, as many for every rank.

    Rows go, the longest first, to whichever micro-batch has the fewest tokens. With `micro_tokens`, there are as few
    micro-batches as have no more tokens, a longer row aside; with `micro_batches`, as many as that for each rank.
    Where a step has fewer rows than micro-batches, some are empty.
    """
    if (micro_tokens is None) == (micro_batches is None):
        raise UsageError("give either micro_tokens or micro_batches")
    rounds = micro_batches or 1
    if micro_tokens is not None:
        rounds = max(1, -(-int(lengths.sum()) // (world * micro_tokens)))
    limit = max(micro_tokens or 0, int(lengths.max(initial=0)))
    while True:
        bins = _balanced(lengths, world * rounds)
        loads = [int(lengths[rows].sum()) for rows in bins]
        if micro_tokens is None or max(loads) <= limit:
            return [bins[rank::world] for rank in range(world)]
        rounds += 1


def _balanced(lengths: npt.NDArray[np.int64], count: int) -> list[I64]:
    if count == 1:
        return [np.arange(len(lengths))]
    heap = [(0, i) for i in range(count)]
    found: list[list[int]] = [[] for _ in range(count)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        tokens, i = heap[0]
        found[i].append(row)
        heapq.heapreplace(heap, (tokens + int(lengths[row]), i))
    return [np.array(sorted(rows), np.int64) for rows in found]
