"""Datasets for PyTorch: the steps of `remit-anneal` as micro-batches, and single rows.

    dataset = ShardDataset(ws, seed=0, batch_tokens=16384, micro_tokens=4096, rank=rank, world=world)
    for step in dataset:                    # one optimizer step: all its rows are on some rank
        for micro in step.micro_batches:    # as many on every rank
            ...

A micro-batch is packed: rows one after another without padding, with what attention needs to stay within a row
(`cu_seqlens`, `position_ids`). Whoever needs padding calls `micro.padded()`.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from ._errors import UsageError
from ._set import WeightSet
from .batches import Rows, all_steps, divided
from .order import DEFAULT_BATCH_TOKENS, Cursor, Order

DEFAULT_MICRO_TOKENS = 4096
"""Tokens of a micro-batch, as for `remit-anneal`."""

IGNORED = -100
"""Label of what is no target, as in torch.nn.functional.cross_entropy."""

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, packed: tensors have an element for each token.

    Element `t` belongs to token `t`; so the logits at `t - 1` are what `is_target[t]`, `rl_logprob[t]` and `weight[t]`
    are about. The first token of a row is never a target, so nothing is asked of the logits before it.
    """

    input_ids: Tensor
    """(tokens,) int64."""
    position_ids: Tensor
    """(tokens,) int64: position in the row."""
    row: Tensor
    """(tokens,) int64: number of the row, from 0."""
    is_target: Tensor
    """(tokens,) float32: 1 for what is predicted, else 0."""
    rl_logprob: Tensor
    """(tokens,) float32, nats; 0 where there is no target."""
    weight: Tensor | None
    """(tokens,) float32: static weights; None if no base was scored."""
    cu_seqlens: Tensor
    """(rows + 1,) int32: where rows begin, and the number of tokens."""
    row_ids: Tensor
    """(rows,) int64: `row_id` in the set; -1 for what only fills up."""
    max_seqlen: int
    """Tokens of the longest row."""

    @staticmethod
    def of(rows: Rows) -> "MicroBatch":
        """Makes tensors of rows. Of none, it makes a row of two tokens without a target, so that every rank runs."""
        if rows.num_rows == 0:
            none = np.zeros(2, np.float32)
            weight = None if rows.weight is None else none
            two = (np.array([0, 2]), np.zeros(2, np.uint32), np.zeros(2, np.bool_), none, weight)
            return replace(MicroBatch.of(Rows(np.zeros(1, np.uint64), *two)), row_ids=torch.full((1,), -1))
        lengths = rows.lengths
        return MicroBatch(
            input_ids=torch.from_numpy(rows.input_ids.astype(np.int64)),
            position_ids=torch.from_numpy(np.arange(rows.num_tokens) - np.repeat(rows.offsets[:-1], lengths)),
            row=torch.from_numpy(np.repeat(np.arange(rows.num_rows), lengths)),
            is_target=torch.from_numpy(rows.is_target.astype(np.float32)),
            rl_logprob=torch.from_numpy(rows.rl_logprob.copy()),
            weight=None if rows.weight is None else torch.from_numpy(rows.weight.copy()),
            cu_seqlens=torch.from_numpy(rows.offsets.astype(np.int32)),
            row_ids=torch.from_numpy(rows.row_ids.astype(np.int64)),
            max_seqlen=int(lengths.max()),
        )

    @property
    def num_rows(self) -> int:
        """Returns the number of rows."""
        return len(self.row_ids)

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens."""
        return len(self.input_ids)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in pairs if isinstance(value, Tensor)}
        return replace(self, **changed)

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "MicroBatch":
        """Returns it on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """Returns it in memory that a GPU can copy from; `DataLoader(pin_memory=True)` calls this."""
        return self._mapped(torch.Tensor.pin_memory)

    def filled(self, num_tokens: int, pad_id: int = 0) -> "MicroBatch":
        """Returns it with a last row of `pad_id` without a target, so that it has this many tokens.

        For kernels that are compiled for one shape, and trainers that take no other.
        """
        missing = num_tokens - self.num_tokens
        if missing < 0:
            raise UsageError(
                f"a micro-batch of {self.num_tokens} tokens does not fit {num_tokens}\n"
                "hint: micro_tokens is to be at most that, and no row may be longer"
            )
        if missing == 0:
            return self

        def more(tensor: Tensor, value: "Tensor | float") -> Tensor:
            added = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).expand(missing)
            return torch.cat([tensor, added])

        one = torch.ones(1, dtype=torch.int64, device=self.row.device)
        return MicroBatch(
            input_ids=more(self.input_ids, pad_id),
            position_ids=more(self.position_ids, torch.arange(missing)),
            row=more(self.row, self.num_rows),
            is_target=more(self.is_target, 0),
            rl_logprob=more(self.rl_logprob, 0),
            weight=None if self.weight is None else more(self.weight, 0),
            cu_seqlens=torch.cat([self.cu_seqlens, (one * num_tokens).to(self.cu_seqlens.dtype)]),
            row_ids=torch.cat([self.row_ids, -one]),
            max_seqlen=max(self.max_seqlen, missing),
        )

    def shifted(self) -> "Shifted":
        """Returns it as trainers have it that shift labels themselves: values at `t` are about the token after `t`."""

        def ahead(tensor: Tensor, last: float = 0) -> Tensor:
            return torch.cat([tensor[1:], torch.full_like(tensor[:1], last)])

        is_target = ahead(self.is_target)
        return Shifted(
            tokens=self.input_ids,
            position_ids=self.position_ids,
            labels=torch.where(is_target > 0, ahead(self.input_ids), IGNORED),
            # The last token of a row is before the first one of the next, which is no target.
            row=self.row,
            is_target=is_target,
            rl_logprob=ahead(self.rl_logprob),
            weight=None if self.weight is None else ahead(self.weight),
            num_rows=self.num_rows,
        )

    def padded(self, pad_id: int = 0) -> "PaddedBatch":
        """Returns a row of a matrix for each row, padded at the right."""
        shape = (self.num_rows, self.max_seqlen)
        place = self.row * self.max_seqlen + self.position_ids
        flat = torch.full((shape[0] * shape[1],), pad_id, dtype=torch.int64, device=self.row.device)
        mask = torch.zeros_like(flat)
        flat[place], mask[place] = self.input_ids, 1
        return PaddedBatch(flat.view(shape), mask.view(shape), place)


@dataclass(frozen=True)
class Shifted:
    """A packed micro-batch whose labels are shifted: element `t` of what is about targets belongs to token `t + 1`.

    `Objective.sums_of` takes it, with the log-probs of the labels.
    """

    tokens: Tensor
    """(tokens,) int64: the inputs."""
    position_ids: Tensor
    """(tokens,) int64: position in the row."""
    labels: Tensor
    """(tokens,) int64: the token after it; -100 where that is no target."""
    row: Tensor
    """(tokens,) int64: number of the row, from 0."""
    is_target: Tensor
    """(tokens,) float32: 1 where the label is to be predicted, else 0."""
    rl_logprob: Tensor
    """(tokens,) float32, nats, of the label."""
    weight: Tensor | None
    """(tokens,) float32: static weight of the label."""
    num_rows: int
    """Number of rows."""


@dataclass(frozen=True)
class PaddedBatch:
    """The rows of a micro-batch as a matrix, padded at the right."""

    input_ids: Tensor
    """(rows, longest row) int64."""
    attention_mask: Tensor
    """(rows, longest row) int64: 1 for tokens, 0 for padding."""
    place: Tensor
    """(tokens,) int64: where the packed tokens are."""

    def packed(self, values: Tensor) -> Tensor:
        """Returns what a model says of tokens, (rows, longest row, ...), in the order of the packed micro-batch."""
        return values.flatten(0, 1)[self.place]


@dataclass(frozen=True)
class Step:
    """One optimizer step: the micro-batches of this rank, and what is true of all ranks together."""

    number: int
    """From 1."""
    epoch: int
    """From 0. A step never mixes epochs."""
    micro_batches: list[MicroBatch]
    """Those of this rank; every rank has as many."""
    row_ids: Tensor
    """(rows of all ranks,) int64, in the order of training."""
    num_targets: int
    """Of all ranks: what the sum of the losses is divided by."""
    num_tokens: int
    """Of all ranks."""
    row_targets: Tensor
    """(rows of all ranks,) int64: targets of every row."""
    weight_sum: float | None
    """Static weights of all ranks; None if no base was scored."""
    state: dict[str, Any]
    """What `ShardDataset.load_state_dict` needs to go on after this step, on any number of ranks."""

    def pin_memory(self) -> "Step":
        """Returns it with micro-batches in memory that a GPU can copy from."""
        return replace(self, micro_batches=[micro.pin_memory() for micro in self.micro_batches])


class ShardDataset(torch.utils.data.IterableDataset[Step]):
    """The optimizer steps of a training run, in the very order of `remit-anneal`; endless unless `steps` is given.

    Rows of a step are divided among the ranks by tokens, without overlap or loss. Steps do not depend on the number of
    ranks, so a state that was saved on one number of them is loaded on any other. With
    `DataLoader(dataset, batch_size=None, num_workers=n)`, workers take turns; steps come in order.
    """

    def __init__(
        self,
        ws: WeightSet,
        *,
        seed: int = 0,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        micro_tokens: int | None = None,
        micro_batches: int | None = None,
        rank: int = 0,
        world: int = 1,
        holdout: float | None = None,
        steps: int | None = None,
        prefetch: int = 4,
    ) -> None:
        """Decodes the ids of all rows once, for their lengths.

        Args:
            ws: The set.
            seed: Decides the order, as for `remit-anneal`.
            batch_tokens: Tokens of a step, over all ranks.
            micro_tokens: Most tokens of a micro-batch, a longer row aside; 4096 by default.
            micro_batches: Instead, the number of micro-batches of a step on each rank, always the same: for trainers
                that want to know it. Their size is about `batch_tokens / world / micro_batches`.
            rank: Number of this data-parallel rank. Ranks that share rows (tensor, context, pipeline parallelism) have
                the same.
            world: Number of data-parallel ranks.
            holdout: Fraction of the documents that is left out, as for `remit-anneal`.
            steps: Steps of the run, those before a state that is loaded included.
            prefetch: Steps that a thread makes ready meanwhile; 0 for none.
        """
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world}; ranks are counted from 0")
        for name, number in (("batch_tokens", batch_tokens), ("micro_tokens", micro_tokens or 1)):
            if number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")
        if micro_batches is None and micro_tokens is None:
            micro_tokens = DEFAULT_MICRO_TOKENS
        divided(np.zeros(0, np.int64), 1, micro_tokens=micro_tokens, micro_batches=micro_batches)
        self.ws, self.order = ws, Order(ws, seed, holdout)
        self.batch_tokens, self.micro_tokens, self.micro_batches = batch_tokens, micro_tokens, micro_batches
        self.rank, self.world, self.steps, self.prefetch = rank, world, steps, prefetch
        self._done, self._cursor = 0, Cursor()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last step that was handed out, for `load_state_dict`."""
        return self._state(self._done, self._cursor)

    def _state(self, done: int, cursor: Cursor) -> dict[str, Any]:
        return {
            "set": self.ws.manifest.content_blake3,
            "seed": self.order.seed,
            "holdout": self.order.holdout,
            "batch_tokens": self.batch_tokens,
            "steps_done": done,
            "epoch": cursor.epoch,
            "rows": cursor.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the step that a state is of.

        Raises:
            UsageError: The state is of another set or order.
        """
        own = self.state_dict()
        for name, what in (("set", "set"), ("seed", "seed"), ("holdout", "holdout"), ("batch_tokens", "batch_tokens")):
            if state[name] != own[name]:
                raise UsageError(
                    f"the state is of a run with another {what}: {state[name]}, and this one has {own[name]}\n"
                    "hint: go on with the arguments that the run was started with"
                )
        self._done, self._cursor = int(state["steps_done"]), Cursor(int(state["epoch"]), int(state["rows"]))

    def __iter__(self) -> Iterator[Step]:
        """Goes over the steps after the last that was handed out."""
        worker = torch.utils.data.get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        made = self._steps(turn, turns)
        found = made if worker is not None or not self.prefetch else prefetched(made, self.prefetch)
        for step in found:
            self._done, self._cursor = step.number, Cursor(step.state["epoch"], step.state["rows"])
            yield step

    def _steps(self, turn: int, turns: int) -> Iterator[Step]:
        left = None if self.steps is None else max(0, self.steps - self._done)
        if left == 0:
            return
        found = all_steps(self.order, self._cursor, self.batch_tokens)
        for number, (end, rows) in enumerate(itertools.islice(found, left), start=self._done + 1):
            if (number - 1) % turns == turn:
                yield self._step(number, end, rows)

    def _step(self, number: int, end: Cursor, rows: Rows) -> Step:
        mine = divided(rows.lengths, self.world, micro_tokens=self.micro_tokens, micro_batches=self.micro_batches)[
            self.rank
        ]
        targets = np.add.reduceat(rows.is_target, rows.offsets[:-1], dtype=np.int64)
        return Step(
            number=number,
            epoch=end.epoch,
            micro_batches=[MicroBatch.of(rows.take(chosen)) for chosen in mine],
            row_ids=torch.from_numpy(rows.row_ids.astype(np.int64)),
            num_targets=int(targets.sum()),
            num_tokens=rows.num_tokens,
            row_targets=torch.from_numpy(targets),
            weight_sum=None if rows.weight is None else float(rows.weight.sum(dtype=np.float64)),
            state=self._state(number, end),
        )


class RowDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Single rows by their number in the set: map-style, for whoever brings an order of his own."""

    def __init__(self, ws: WeightSet) -> None:
        """Takes an open set."""
        self.ws = ws

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.ws)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Returns the tensors of a row: `input_ids`, `is_target`, `rl_logprob`, and with a base `weight`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.ws[index].torch()


def prefetched(made: Iterator[T], count: int) -> Iterator[T]:
    """Goes over what an iterator makes, in a thread that is at most `count` ahead."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    is_over = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not is_over.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for one in made:
                if not put((one, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # handed over, and raised where the steps are taken
            put((None, error))

    thread = threading.Thread(target=work, name="remit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            one, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield one  # type: ignore[misc]
    finally:
        is_over.set()
        thread.join()
