"""The order of rows and steps is that of the programs, for any seed, size of a step and share that is held out."""

import itertools

import numpy as np
import pytest
import remit
from conftest import objects, program
from remit.order import Cursor, Order, SplitMix64, epochs, is_held_out, runs


def steps_of(folder, seed, batch_tokens, holdout, steps):
    more = ["--holdout", holdout] if holdout else []
    found = objects(
        program(
            "remit-inspect", "order", folder, "--seed", seed, "--batch-tokens", batch_tokens, "--steps", steps, *more
        )
    )
    return [(step["epoch"], step["row_ids"]) for step in found]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "window"])
@pytest.mark.parametrize(
    ("seed", "batch_tokens", "holdout"), [(0, 16384, None), (5, 700, 0.05), (1, 2000, 0.5), ((1 << 64) - 1, 1, None)]
)
def test_the_order_is_that_of_the_programs(sets, kind, seed, batch_tokens, holdout):
    order = Order(remit.open(sets[kind]), seed, holdout)
    steps = ((end.epoch, ids.tolist()) for c in epochs(order, Cursor()) for end, ids in order.step_ids(c, batch_tokens))
    expected = steps_of(sets[kind], seed, batch_tokens, holdout, 120)
    assert list(itertools.islice(steps, 120)) == expected
    assert len({epoch for epoch, _ in expected}) > (batch_tokens > 1)


def test_a_cursor_is_all_that_is_needed_to_go_on(weights):
    order = Order(remit.open(weights), 3)
    steps = list(order.step_ids(Cursor(2), 600))
    assert sum(len(ids) for _, ids in steps) == order.num_rows == len(remit.open(weights))
    for number in range(0, len(steps), 7):
        rest = list(order.step_ids(steps[number][0], 600))
        assert [ids.tolist() for _, ids in rest] == [ids.tolist() for _, ids in steps[number + 1 :]]


def test_what_is_held_out_is_no_document_of_the_rows_that_are_trained_on(sets):
    ws = remit.open(sets["window"])
    order = Order(ws, 0, 0.3)
    held = {g.first_row_id + int(r) for g, rows in order.held_out() for r in rows}
    assert held == {row.row_id for row in ws if is_held_out(row.source, row.doc_index, 0.3)}
    trained = {int(row_id) for _, ids in order.step_ids(Cursor(), 999) for row_id in ids}
    assert not held & trained and len(held | trained) < len(ws)


def test_several_windows_are_shuffled_one_by_one(weights):
    """With small windows, as a large set has them: every row once, another order in every epoch."""
    ws = remit.open(weights)
    small = Order(ws, 0, window_tokens=6000)
    windows = list(small.windows(0))
    assert len(windows) > 2 and max(int(window.length.sum()) for window in windows) <= 20000
    ids = np.concatenate([small.row_ids(window) for window in windows])
    assert sorted(ids.tolist()) == [row.row_id for row in ws]
    for start in (0, 1, len(windows[0].row), len(ids) - 1):
        rest = np.concatenate([small.row_ids(window) for window in small.windows(0, start)])
        assert rest.tolist() == ids[start:].tolist()
    assert ids.tolist() != np.concatenate([small.row_ids(window) for window in small.windows(1)]).tolist()


def test_draws_that_lemire_rejects_are_thrown_away():
    """With bounds near 2^32 a rejection is as rare as with others, so the arithmetic is held against plain integers."""
    bounds = np.array([3, 2**32 - 5, 1, 2**31 + 1, 7] * 50, np.uint64)
    vectors, plain = SplitMix64(b"key"), SplitMix64(b"key")
    expected = []
    for bound in bounds.tolist():
        while True:
            product = int(plain.draws(1)[0]) * bound
            if product % 2**64 >= (2**64 - bound) % bound:
                expected.append(product >> 64)
                break
    assert vectors.below(bounds).tolist() == expected
    # The second draw, 0, is below (2^64 - 3) mod 3 = 1: the numbers after it are drawn again.
    rejecting = SplitMix64(b"key")
    draws = iter([np.array([5 << 60, 0, 7], np.uint64), np.array([9 << 60, 1 << 63], np.uint64)])
    rejecting.draws = lambda count: next(draws)
    assert rejecting.below(np.array([3, 3, 3], np.uint64)).tolist() == [
        x * 3 >> 64 for x in (5 << 60, 9 << 60, 1 << 63)
    ]


def test_runs_take_as_many_rows_as_fit():
    assert runs([3, 3, 5, 9, 1], 8) == [2, 1, 1, 1]
    assert runs([], 8) == [] and runs([10], 8) == [1] and runs(np.array([4, 4, 1]), 8) == [2, 1]


@pytest.mark.parametrize(("arguments", "message"), [((-1, None), "the seed is -1"), ((0, 1.5), "is 1.5; it must be")])
def test_arguments_that_make_no_sense_are_refused(weights, arguments, message):
    with pytest.raises(remit.UsageError, match=message):
        Order(remit.open(weights), *arguments)
