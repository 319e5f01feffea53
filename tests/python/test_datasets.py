"""Steps and micro-batches: the rows of remit-anneal, each on one rank, and a state that is exact."""

import itertools

import numpy as np
import pytest
import remit
import torch
from conftest import objects, program
from remit.batches import Rows, divided
from remit.torch import MicroBatch, RowDataset, ShardDataset
from torch.utils.data import DataLoader


def taken(dataset, count):
    return list(itertools.islice(iter(dataset), count))


def ids(steps):
    return [step.row_ids.tolist() for step in steps]


def same_step(a, b):
    return (a.number, a.epoch, a.state) == (b.number, b.epoch, b.state) and all(
        torch.equal(x.input_ids, y.input_ids) and torch.equal(x.rl_logprob, y.rl_logprob)
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True)
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", ["parquet", "window", "rl-only"])
def test_every_row_of_a_step_is_on_one_rank(sets, kind, world):
    ws = remit.open(sets[kind])
    seed, batch_tokens = 4, 900
    expected = objects(
        program("remit-inspect", "order", sets[kind], "--seed", seed, "--batch-tokens", batch_tokens, "--steps", 90)
    )
    ranks = [
        ShardDataset(ws, seed=seed, batch_tokens=batch_tokens, micro_tokens=200, rank=rank, world=world)
        for rank in range(world)
    ]
    by_id = {row.row_id: row for row in ws}
    for want, *steps in zip(expected, *(taken(rank, 90) for rank in ranks), strict=True):
        assert all(step.row_ids.tolist() == want["row_ids"] for step in steps)
        assert {(step.number, step.epoch) for step in steps} == {(want["step"], want["epoch"])}
        # As many micro-batches everywhere, or a rank would wait for ever.
        assert len({len(step.micro_batches) for step in steps}) == 1
        micros = [micro for step in steps for micro in step.micro_batches]
        found = [row_id for micro in micros for row_id in micro.row_ids.tolist() if row_id >= 0]
        assert sorted(found) == sorted(want["row_ids"])
        assert all(micro.num_tokens <= 200 or micro.num_rows == 1 for micro in micros)
        targets = sum(int(micro.is_target.sum()) for micro in micros)
        assert {step.num_targets for step in steps} == {targets == 0 or targets}
        assert targets == sum(int(by_id[row_id].is_target.sum()) for row_id in want["row_ids"])
        assert steps[0].row_targets.tolist() == [int(by_id[row_id].is_target.sum()) for row_id in want["row_ids"]]


def test_a_micro_batch_has_the_values_of_its_rows(weights):
    ws = remit.open(weights)
    for step in taken(ShardDataset(ws, batch_tokens=3000, micro_tokens=1000), 5):
        for micro in step.micro_batches:
            for i, row_id in enumerate(micro.row_ids.tolist()):
                row, tokens = ws.row(row_id), slice(micro.cu_seqlens[i], micro.cu_seqlens[i + 1])
                assert micro.input_ids[tokens].tolist() == row.input_ids.tolist()
                assert micro.position_ids[tokens].tolist() == list(range(len(row.input_ids)))
                assert set(micro.row[tokens].tolist()) == {i}
                assert micro.is_target[tokens].tolist() == row.is_target.astype(float).tolist()
                assert micro.rl_logprob[tokens].tolist() == np.nan_to_num(row.rl_logprob).tolist()
                assert micro.weight[tokens].tolist() == row.weight.tolist()
            assert micro.cu_seqlens.dtype == torch.int32 and micro.cu_seqlens[-1] == micro.num_tokens
            assert micro.max_seqlen == int(micro.cu_seqlens.diff().max())
            # Fractions of a mask, should anybody make some, are not cut off.
            assert micro.is_target.dtype == micro.rl_logprob.dtype == micro.weight.dtype == torch.float32


def test_a_state_goes_on_with_the_very_next_step_on_any_number_of_ranks(weights):
    ws = remit.open(weights)
    everything = taken(ShardDataset(ws, seed=9, batch_tokens=2000), 40)
    assert everything[-1].epoch > 0
    dataset = ShardDataset(ws, seed=9, batch_tokens=2000)
    for done, step in enumerate(itertools.islice(iter(dataset), 39), start=1):
        # The thread is ahead; the state is not.
        assert dataset.state_dict() == step.state and step.state["steps_done"] == done
        if done % 6:
            continue
        resumed = ShardDataset(ws, seed=9, batch_tokens=2000)
        resumed.load_state_dict(step.state)
        assert all(itertools.starmap(same_step, zip(taken(resumed, 2), everything[done:], strict=False)))
        elastic = ShardDataset(ws, seed=9, batch_tokens=2000, rank=1, world=3)
        elastic.load_state_dict(step.state)
        assert ids(taken(elastic, 1)) == ids(everything[done : done + 1])
    with pytest.raises(remit.UsageError, match="run with another seed: 9, and this one has 8"):
        ShardDataset(ws, seed=8, batch_tokens=2000).load_state_dict(dataset.state_dict())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_take_turns_and_steps_come_in_order(weights, workers):
    ws = remit.open(weights)
    expected = taken(ShardDataset(ws, batch_tokens=1500), 20)
    dataset = ShardDataset(ws, batch_tokens=1500, steps=20)
    found = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    assert len(found) == 20 and all(itertools.starmap(same_step, zip(found, expected, strict=True)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_is_exact_at_every_step(weights, workers):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    ws = remit.open(weights)

    def loader():
        dataset = ShardDataset(ws, seed=2, batch_tokens=1500, steps=14)
        return loaders.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    expected = [step.number for step in loader()]
    assert expected == list(range(1, 15))
    for cut in (1, 2, 5, 13):
        first = loader()
        before = [step.number for step in itertools.islice(iter(first), cut)]
        second = loader()
        second.load_state_dict(first.state_dict())
        assert before + [step.number for step in second] == expected


def test_padding_and_filling_change_nothing_but_the_shape(weights):
    step = taken(ShardDataset(remit.open(weights), batch_tokens=2000), 1)[0]
    micro = step.micro_batches[0]
    padded = micro.padded(pad_id=7)
    assert padded.input_ids.shape == padded.attention_mask.shape == (micro.num_rows, micro.max_seqlen)
    assert torch.equal(padded.packed(padded.input_ids), micro.input_ids)
    assert padded.attention_mask.sum() == micro.num_tokens
    assert (padded.input_ids[padded.attention_mask == 0] == 7).all()
    filled = micro.filled(2500, pad_id=7)
    assert filled.num_tokens == len(filled.row) == len(filled.is_target) == len(filled.weight) == 2500
    assert filled.cu_seqlens.tolist() == [*micro.cu_seqlens.tolist(), 2500] and filled.row_ids[-1] == -1
    assert filled.is_target.sum() == micro.is_target.sum()
    assert micro.filled(micro.num_tokens) is micro
    with pytest.raises(remit.UsageError, match="does not fit 10"):
        micro.filled(10)


def test_rows_are_divided_evenly():
    lengths = np.array([900, 100, 100, 400, 300, 50, 50, 100])
    ranks = divided(lengths, 2, micro_batches=2)
    loads = [int(lengths[rows].sum()) for rank in ranks for rows in rank]
    assert sum(loads) == 2000 and max(loads) == 900 and [len(rank) for rank in ranks] == [2, 2]
    # Fewer rows than micro-batches: some are empty, and become a row without a target.
    ranks = divided(np.array([5]), 2, micro_batches=1)
    assert [len(rows) for rank in ranks for rows in rank] == [1, 0]
    empty = Rows(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint32), *[np.zeros(0)] * 3)
    filler = MicroBatch.of(empty)
    assert filler.num_tokens == 2 and filler.is_target.sum() == 0 and filler.row_ids.tolist() == [-1]


def test_several_windows_make_the_steps_of_their_order(weights):
    """Steps that go over the end of a window, and windows that hold less than a step."""
    ws = remit.open(weights)
    for batch_tokens in (500, 3000, 12000):
        dataset = ShardDataset(ws, batch_tokens=batch_tokens, micro_tokens=100000)
        dataset.order = remit.order.Order(ws, 0, window_tokens=6000)
        expected = [row_ids.tolist() for _, row_ids in dataset.order.step_ids(remit.order.Cursor(), batch_tokens)]
        steps = taken(dataset, len(expected))
        assert ids(steps) == expected
        for step in steps:
            for i, row_id in enumerate(step.micro_batches[0].row_ids.tolist()):
                tokens = slice(*step.micro_batches[0].cu_seqlens[i : i + 2].tolist())
                assert step.micro_batches[0].input_ids[tokens].tolist() == ws.row(row_id).input_ids.tolist()


def test_single_rows_are_a_map_style_dataset(weights):
    ws = remit.open(weights)
    dataset = RowDataset(ws)
    assert len(dataset) == len(ws) and dataset[3]["input_ids"].tolist() == ws[3].input_ids.tolist()
    assert sum(len(batch["input_ids"][0]) for batch in DataLoader(dataset, num_workers=2)) == ws.num_tokens


def test_an_error_of_the_thread_is_raised_where_steps_are_taken(weights, tmp_path):
    def broken():
        yield 1
        raise remit.DamagedError("the shard is damaged")

    found = remit.torch.prefetched(broken(), 2)
    assert next(found) == 1
    with pytest.raises(remit.DamagedError, match="the shard is damaged"):
        next(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"micro_tokens": 5, "micro_batches": 2}, "either micro_tokens or micro_batches"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(weights, arguments, message):
    with pytest.raises(remit.UsageError, match=message):
        ShardDataset(remit.open(weights), **arguments)
