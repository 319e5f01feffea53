"""The order in which `remit-anneal` sees the rows of a set, and how they form steps; computed, not read.

It is a function of set, seed and epoch alone: the row groups of the set are permuted, consecutive ones are gathered
into windows of at most `SHUFFLE_WINDOW_TOKENS`, and all rows of a window are shuffled together. So one window is in
memory at a time. `remit-inspect order` prints the same.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from ._errors import UsageError
from ._group import I64, U64, Bools, RowGroup
from ._set import WeightSet

SHUFFLE_WINDOW_TOKENS = 8 << 20
"""Most tokens of a window, unless a single row group has more."""

DEFAULT_BATCH_TOKENS = 16384
"""Tokens of an optimizer step, as for `remit-anneal`."""

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Cursor(NamedTuple):
    """A position between two steps: epoch, and rows of it that were trained on."""

    epoch: int = 0
    rows: int = 0


class Place(NamedTuple):
    """Rows, in order: for each the number of its row group in the set, and its number there."""

    group: I64
    row: I64
    length: I64


class SplitMix64:
    """The generator of Steele, Lea & Flood (2014), seeded by the BLAKE3 of a purpose."""

    def __init__(self, key: bytes) -> None:
        """Seeds it."""
        self._state = int.from_bytes(blake3(key).digest(8), "little")

    def draws(self, count: int) -> U64:
        """Returns the next numbers."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        z = steps + np.uint64(self._state)
        self._state = (self._state + count * _GAMMA) & _MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        drawn: U64 = z ^ (z >> np.uint64(31))
        return drawn

    def below(self, bounds: U64) -> I64:
        """Returns a number below each bound (less than 2^32), each equally likely (Lemire, arXiv 1805.10941)."""
        found = np.empty(len(bounds), np.int64)
        done = 0
        while done < len(bounds):
            left = bounds[done:]
            state = self._state
            x = self.draws(len(left))
            # Does this draw belong to the uneven rest, and is thrown away?
            rejected = x * left < (np.uint64(0) - left) % left
            taken = int(np.argmax(rejected)) if rejected.any() else len(left)
            high, low = x[:taken] >> np.uint64(32), x[:taken] & np.uint64(0xFFFFFFFF)
            n = left[:taken]
            found[done : done + taken] = (high * n + (low * n >> np.uint64(32))) >> np.uint64(32)
            if taken < len(left):
                self._state = (state + (taken + 1) * _GAMMA) & _MASK
            done += taken
        return found

    def permutation(self, count: int) -> I64:
        """Returns the numbers below `count`, shuffled by Fisher-Yates from the end."""
        items = list(range(count))
        bounds = np.arange(count, 1, -1, dtype=np.uint64)
        for i, j in zip(range(count - 1, 0, -1), self.below(bounds).tolist(), strict=True):
            items[i], items[j] = items[j], items[i]
        return np.array(items, np.int64)


def is_held_out(source: str, doc_index: int, fraction: float) -> bool:
    """Returns whether a row belongs to the held-out share of the documents, given its first document.

    A hash decides, so that the choice depends on no seed.
    """
    return _held_out_draw(source.encode(), doc_index) < fraction * 2**53


def _held_out_draw(source: bytes, doc_index: int) -> int:
    seed = int.from_bytes(blake3(b"remit holdout 1" + struct.pack("<Q", doc_index) + source).digest(8), "little")
    z = (seed + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 11


class Order:
    """The rows of a set in their shuffled order. Decodes the ids of every row once, for its length."""

    def __init__(
        self,
        ws: WeightSet,
        seed: int = 0,
        holdout: float | None = None,
        window_tokens: int = SHUFFLE_WINDOW_TOKENS,
    ) -> None:
        """Learns the length of every row.

        Args:
            ws: The set.
            seed: As for `remit-anneal`.
            holdout: Fraction of the documents that is left out, in (0, 1); `held_out` has their rows.
            window_tokens: Most tokens of a window. Another number than the default is another order.
        """
        if not 0 <= seed < 1 << 64:
            raise UsageError(f"the seed is {seed}; it must be at least 0 and less than 2^64")
        if holdout is not None and not 0 < holdout < 1:
            raise UsageError(f"the share to hold out is {holdout}; it must be between 0 and 1")
        self.ws, self.seed, self.holdout = ws, seed, holdout
        self._window_tokens = window_tokens
        # Shard, and row group in it, of every row group of the set.
        self.groups = [(s, g) for s, shard in enumerate(ws.shards) for g in range(shard.num_row_groups)]
        self._lengths = [ws.shards[s].row_lengths(g) for s, g in self.groups]
        held, trained = self._divided() if holdout is not None else ([], [])
        self._held_out: list[Bools] = held
        self._trained: list[I64] = trained or [np.arange(len(lengths)) for lengths in self._lengths]
        self._tokens = [int(n[rows].sum()) for n, rows in zip(self._lengths, self._trained, strict=True)]

    def _divided(self) -> tuple[list[Bools], list[I64]]:
        """Divides the rows into those that are held out and those that are trained on.

        A row with a part of a document of which another part is held out, in the row before or after it, is neither.
        """
        fraction = (self.holdout or 0) * 2**53
        all_held, all_trained = [], []
        for shard in self.ws.shards:
            groups = [shard.read(g) for g in range(shard.num_row_groups)]
            held = np.zeros(shard.entry.rows, np.bool_)
            continues = np.zeros(shard.entry.rows, np.bool_)
            at = 0
            for group in groups:
                for i, (source, document) in enumerate(
                    zip(group.sources(), group.doc_index.tolist(), strict=True), start=at
                ):
                    held[i] = _held_out_draw(source.encode(), document) < fraction
                end = at + group.num_rows
                begin, stop = group.doc_starts_offsets[:-1], group.doc_starts_offsets[1:]
                firsts = np.append(group.doc_starts, 1)[begin]
                continues[at:end] = (begin == stop) | (firsts != 0)
                at = end
            # The row before is held out, and this one goes on with its document; or the next one does, and is.
            shares = np.zeros_like(held)
            shares[1:] |= continues[1:] & held[:-1]
            shares[:-1] |= held[1:] & continues[1:]
            trained = ~held & ~shares
            bounds = list(itertools.accumulate((group.num_rows for group in groups), initial=0))
            for start, stop_at in itertools.pairwise(bounds):
                all_held.append(held[start:stop_at])
                all_trained.append(np.flatnonzero(trained[start:stop_at]))
        return all_held, all_trained

    @property
    def num_rows(self) -> int:
        """Returns the number of rows of an epoch."""
        return sum(map(len, self._trained))

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens of an epoch."""
        return sum(self._tokens)

    @property
    def longest_row(self) -> int:
        """Returns the number of tokens of the longest row that is trained on; 0 if there is none."""
        pairs = zip(self._lengths, self._trained, strict=True)
        return max((int(lengths[rows].max()) for lengths, rows in pairs if len(rows)), default=0)

    def held_out(self) -> Iterator[tuple[RowGroup, I64]]:
        """Goes over what is held out, in the order of the set: a row group, and the numbers of its rows."""
        for (shard, group), held in zip(self.groups, self._held_out, strict=False):
            if held.any():
                yield self.ws.shards[shard].read(group), np.flatnonzero(held)

    def windows(self, epoch: int, start_row: int = 0) -> Iterator[Place]:
        """Goes over the rows of an epoch from a row on, window by window."""
        permuted = self._generator(epoch, _MASK).permutation(len(self.groups)).tolist()
        windows: list[list[int]] = []
        tokens = 0
        for group in permuted:
            more = self._tokens[group]
            if windows and tokens + more <= self._window_tokens:
                windows[-1].append(group)
                tokens += more
            else:
                windows.append([group])
                tokens = more
        skip = start_row
        for number, window in enumerate(windows):
            num_rows = sum(len(self._trained[group]) for group in window)
            if skip >= num_rows:
                skip -= num_rows
                continue
            groups = np.repeat(np.array(window, np.int64), [len(self._trained[g]) for g in window])
            rows = np.concatenate([self._trained[g] for g in window])
            lengths = np.concatenate([self._lengths[g][self._trained[g]] for g in window])
            order = self._generator(epoch, number).permutation(num_rows)[skip:]
            skip = 0
            yield Place(groups[order], rows[order], lengths[order])

    def _generator(self, epoch: int, window: int) -> SplitMix64:
        return SplitMix64(b"remit shuffle 1" + struct.pack("<QQQ", self.seed, epoch, window))

    def row_ids(self, places: Place) -> U64:
        """Returns the ids of rows."""
        firsts = np.array([self.ws.shards[s].row_id(self.ws.shards[s].rows_of(g)[0]) for s, g in self.groups])
        return (firsts.astype(np.int64)[places.group] + places.row).astype(np.uint64)

    def step_ids(self, cursor: Cursor, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> Iterator[tuple[Cursor, U64]]:
        """Goes over the steps of an epoch from a cursor on: where the next step begins, and the ids of the rows.

        A step takes rows in order, as many as fit `batch_tokens`, at least one. It never mixes epochs.
        """
        groups, rows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        lengths = np.zeros(0, np.int64)
        end = cursor.rows

        def closed(upto: int) -> tuple[Cursor, U64]:
            ids = self.row_ids(Place(groups[:upto], rows[:upto], lengths[:upto]))
            return Cursor(cursor.epoch, end), ids

        for window in self.windows(cursor.epoch, cursor.rows):
            groups, rows, lengths = (np.concatenate(pair) for pair in zip((groups, rows, lengths), window, strict=True))
            *whole, open_rows = runs(lengths, batch_tokens)
            for run in whole:
                end += run
                yield closed(run)
                groups, rows, lengths = groups[run:], rows[run:], lengths[run:]
            del open_rows
        if len(groups):
            end += len(groups)
            yield closed(len(groups))


def runs(lengths: Sequence[int] | npt.NDArray[np.int64], limit: int) -> list[int]:
    """Splits rows, in order, into runs of at most `limit` tokens, each of at least one row; returns their sizes.

    >>> runs([3, 3, 5, 9, 1], 8)
    [2, 1, 1, 1]
    """
    found: list[int] = []
    tokens = rows = 0
    for length in lengths.tolist() if isinstance(lengths, np.ndarray) else lengths:
        if tokens > 0 and tokens + length > limit:
            found.append(rows)
            tokens, rows = length, 1
        else:
            tokens += length
            rows += 1
    return [*found, rows] if rows else found


def epochs(order: Order, cursor: Cursor) -> Iterator[Cursor]:
    """Goes over the beginnings of epochs, from a cursor in one of them on, for ever."""
    yield cursor
    yield from (Cursor(epoch, 0) for epoch in itertools.count(cursor.epoch + 1))
