"""Weights and losses: the formulas, held against plain sums row by row, in any precision and on any number of ranks."""

import doctest
import math
import os

import pytest
import remit
import remit.loss
import remit.order
import remit.weights
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from remit.loss import Objective, token_log_probs
from remit.torch import MicroBatch, ShardDataset

WEIGHTINGS = ["dynamic", "static", "uniform", "excess-top-k"]


@pytest.fixture(scope="module")
def micro(weights):
    return next(iter(ShardDataset(remit.open(weights), batch_tokens=1500))).micro_batches[0]


def learner_of(micro, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (micro.rl_logprob + torch.randn(micro.num_tokens, generator=generator)).clamp(max=0) - 1e-3


def plainly(objective, micro, learner):
    """Weights and sums, row by row in Python's own numbers."""
    weights = [0.0] * micro.num_tokens
    for start, end in zip(micro.cu_seqlens[:-1].tolist(), micro.cu_seqlens[1:].tolist(), strict=True):
        targets = [t for t in range(start, end) if micro.is_target[t] > 0]
        delta = {t: float(micro.rl_logprob[t]) - float(learner[t]) for t in targets}
        mean = sum(delta.values()) / len(delta) if objective.center else 0.0
        ranked = sorted(targets, key=lambda t: -delta[t])
        selected = set(ranked[: max(1, math.ceil(objective.top_k_fraction * len(targets) - 1e-9))])
        for t in targets:
            if objective.weighting == "dynamic":
                weight = 2 / (1 + math.exp(-(delta[t] - mean) / objective.temperature))
                weights[t] = min(max(weight, 1 - objective.epsilon), 1 + objective.epsilon)
            elif objective.weighting == "static":
                weights[t] = float(micro.weight[t])
            else:
                weights[t] = float(objective.weighting == "uniform" or t in selected)
    nll = [-float(learner[t]) if micro.is_target[t] > 0 else 0.0 for t in range(micro.num_tokens)]
    return weights, sum(w * n for w, n in zip(weights, nll, strict=True)), sum(nll)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.9, "temperature": 0.25, "center": False, "top_k_fraction": 0.3}])
def test_weights_and_sums_are_those_of_the_formula(micro, weighting, options):
    objective, learner = Objective(weighting, **options), learner_of(micro)
    weights, weighted, nll = plainly(objective, micro, learner)
    found = objective.token_weights(micro, learner)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(weights), atol=1e-6)
    sums = objective.sums_of(learner, None, micro)
    assert float(sums.weighted_nll) == pytest.approx(weighted, rel=1e-6)
    assert float(sums.nll) == pytest.approx(nll, rel=1e-6)
    assert float(sums.targets) == float(micro.is_target.sum())
    divisor = sum(weights) if weighting == "excess-top-k" else float(sums.targets)
    assert sums.loss(objective.divisor) == pytest.approx(weighted / divisor, rel=1e-6)


def test_static_weights_are_dynamic_ones_under_the_base(weights):
    """The programs made the stored ones: rounded to 12 bits, from log-probs that were rounded before."""
    for row in remit.open(weights):
        targets = torch.from_numpy(row.is_target.copy())
        rl, base, stored = (torch.tensor(x) for x in (row.rl_logprob, row.base_logprob, row.weight))
        found = remit.weights.dynamic(rl, base, torch.zeros(len(rl), dtype=torch.long), targets, 1)
        assert torch.allclose(found, stored, atol=2**-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_what_is_no_target_counts_nowhere(micro, weighting):
    objective, learner = Objective(weighting, z_loss=0.1), learner_of(micro)
    normalizers = torch.rand(micro.num_tokens)
    others = micro.is_target == 0
    changed, odd = learner.clone(), normalizers.clone()
    changed[others], odd[others] = float("-inf"), float("nan")
    changed.requires_grad_()
    a, b = objective.sums_of(learner, normalizers, micro), objective.sums_of(changed, odd, micro)
    assert all(float(getattr(a, name)) == float(getattr(b, name)) for name in a.__dataclass_fields__)
    b.loss_sum.backward()
    assert torch.isfinite(changed.grad).all() and (changed.grad[others] == 0).all()


def test_sums_add_up_over_micro_batches(weights):
    ws = remit.open(weights)

    def total(micro_tokens):
        step = next(iter(ShardDataset(ws, batch_tokens=2500, micro_tokens=micro_tokens)))
        made = [Objective().sums_of(-1 - (m.input_ids % 7).float(), None, m) for m in step.micro_batches]
        return len(made), float(sum(made[1:], made[0]).loss_sum) / step.num_targets

    (one, whole), (many, split) = total(10000), total(130)
    assert one == 1 and many > 10
    assert whole == pytest.approx(split, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_are_computed_in_float32(micro, dtype):
    vocabulary = int(micro.input_ids.max()) + 1
    logits = 4 * torch.randn(micro.num_tokens, vocabulary, generator=torch.Generator().manual_seed(1))
    logits = logits.to(dtype).requires_grad_()
    found, normalizers = token_log_probs(logits, micro.input_ids, with_normalizers=True, chunk_tokens=100)
    expected = logits.double().log_softmax(-1)[:-1].gather(1, micro.input_ids[1:, None])[:, 0]
    assert found.dtype == torch.float32 and found[0] == 0
    assert torch.allclose(found[1:].double(), expected, atol=1e-5)
    assert torch.allclose(normalizers[1:].double(), logits.double().logsumexp(-1)[:-1], atol=1e-5)
    objective = Objective(z_loss=1e-3)
    sums = objective.sums(logits, micro)
    weight = objective.token_weights(micro, found).double()[1:]
    mask = micro.is_target[1:].double()
    want = -(weight * expected).sum() + 1e-3 * (mask * logits.double().logsumexp(-1)[:-1] ** 2).sum()
    assert float(sums.loss_sum) == pytest.approx(float(want), rel=1e-6)
    sums.loss_sum.backward()
    assert logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()


def test_no_gradient_goes_through_the_weights(micro):
    learner = learner_of(micro).requires_grad_()
    objective = Objective()
    objective.sums_of(learner, None, micro).loss_sum.backward()
    assert torch.allclose(learner.grad, -objective.token_weights(micro, learner))


def test_an_objective_takes_from_the_set_what_was_left_open(weights, sets):
    ws = remit.open(weights)
    assert (Objective.of(ws).epsilon, Objective.of(ws).temperature) == (0.2, 1.0)
    assert Objective.of(ws, "excess-top-k").normalize == "weights" and Objective.of(ws).normalize == "targets"
    with pytest.raises(remit.UsageError, match="static weights were made with epsilon 0.2 and temperature 1.0"):
        Objective.of(ws, "static", epsilon=0.3)
    with pytest.raises(remit.UsageError, match=r"rl-only was scored without --base-model"):
        Objective.of(remit.open(sets["rl-only"]), "static")
    for arguments, message in [
        ({"weighting": "best"}, "there is no weighting 'best'"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_k_fraction": 0.0}, "fraction of excess-top-k is 0.0"),
        ({"normalize": "tokens"}, "can't be divided by 'tokens'"),
    ]:
        with pytest.raises(remit.UsageError, match=message):
            Objective(**arguments)


@pytest.mark.parametrize("module", [remit.weights, remit.order])
def test_the_examples_in_the_documentation_are_true(module):
    assert doctest.testmod(module).failed == 0 and doctest.testmod(module).attempted > 0


def slice_of(micro, part, parts):
    """Every part-th token: what a rank has under context parallelism."""
    chosen = torch.arange(part, micro.num_tokens, parts)
    pick = {name: getattr(micro, name)[chosen] for name in ("input_ids", "row", "is_target", "rl_logprob", "weight")}
    return chosen, MicroBatch(
        position_ids=micro.position_ids[chosen],
        cu_seqlens=micro.cu_seqlens,
        row_ids=micro.row_ids,
        max_seqlen=0,
        **pick,
    )


def of_rank(rank, world, port, micro, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    chosen, mine = slice_of(micro, rank, world)
    learner = learner_of(micro)[chosen]
    weights = Objective().token_weights(mine, learner, group=dist.group.WORLD)
    sums = Objective().sums_of(learner, None, mine, group=dist.group.WORLD).all_reduce()
    queue.put((rank, weights.tolist(), sums.loss("targets"), float(sums.targets)))
    dist.barrier()
    dist.destroy_process_group()


def test_row_means_are_right_under_context_parallelism(micro, free_port):
    context = mp.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=of_rank, args=(rank, 2, free_port, micro, queue)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    whole = Objective().token_weights(micro, learner_of(micro))
    sums = Objective().sums_of(learner_of(micro), None, micro)
    for rank, weights, loss, targets in found:
        assert torch.allclose(torch.tensor(weights), whole[slice_of(micro, rank, 2)[0]], atol=1e-6)
        assert loss == pytest.approx(sums.loss("targets"), rel=1e-9) and targets == float(sums.targets)
        # Means over the rank's own tokens would be others.
        chosen, mine = slice_of(micro, rank, 2)
        assert not torch.allclose(
            Objective().token_weights(mine, learner_of(micro)[chosen]), torch.tensor(weights), atol=1e-3
        )
    with pytest.raises(remit.UsageError, match="whole row"):
        Objective("excess-top-k").token_weights(micro, learner_of(micro), group=object())
