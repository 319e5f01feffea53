"""Log-probs to the weights of tokens, in PyTorch: the formulas of `remit-anneal`, for many rows at once.

Every function takes tensors of one dimension with an element for each token, rows one after another: `row` has the
number of each token's row, from 0, and `is_target` what is predicted (1 or True) and what is not. It returns float32
weights, 0 where there is no target, without a gradient. `learner` are the log-probs of the model in training; they are
best computed in float32 also where the model runs in bf16.

    delta = rl - learner, and for every row its mean over the row's targets
    dynamic: clamp(2 * sigmoid((delta - mean) / temperature), 1 - epsilon, 1 + epsilon)
"""

import torch
import torch.distributed as dist
from torch import Tensor

DEFAULT_EPSILON = 0.2
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_K_FRACTION = 0.6


def row_sums(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Returns the sum of the values of every row."""
    return torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add_(0, row, values)


@torch.no_grad()
def dynamic(
    rl: Tensor,
    learner: Tensor,
    row: Tensor,
    is_target: Tensor,
    num_rows: int,
    *,
    epsilon: float = DEFAULT_EPSILON,
    temperature: float = DEFAULT_TEMPERATURE,
    center: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Returns the paper's weights, from the stored log-probs of the RL model and those of the learner as it is.

    Args:
        rl: Log-probs under the RL model, nats.
        learner: Log-probs under the learner, nats.
        row: The number of each token's row.
        is_target: What is predicted.
        num_rows: The number of rows.
        epsilon: Weights lie within 1 - epsilon and 1 + epsilon.
        temperature: Divisor of the centred differences, nats.
        center: Subtract the mean of the row; without it, a row that the RL model finds likelier weighs more.
        group: Under context parallelism, the processes that share the rows: each has some tokens of every row, and
            means are taken over all of them. `row` and `num_rows` have to mean the same in each.

    >>> one_row = torch.zeros(3, dtype=torch.long)
    >>> dynamic(torch.tensor([-1., -2., -4.]), torch.tensor([-2., -2., -3.]), one_row, torch.ones(3), 1)
    tensor([1.2000, 1.0000, 0.8000])
    """
    mask = is_target.bool()
    delta = torch.where(mask, rl.double() - learner.double(), 0.0)
    if center:
        sums = torch.stack([row_sums(delta, row, num_rows), row_sums(mask.double(), row, num_rows)])
        if group is not None:
            dist.all_reduce(sums, group=group)
        delta = delta - (sums[0] / sums[1].clamp(min=1))[row]
    weights = (2 * torch.sigmoid(delta / temperature)).float().clamp(1 - epsilon, 1 + epsilon)
    return torch.where(mask, weights, 0.0)


@torch.no_grad()
def uniform(is_target: Tensor) -> Tensor:
    """Returns 1 for every target: plain next-token prediction."""
    return is_target.bool().float()


@torch.no_grad()
def static(weight: Tensor, is_target: Tensor) -> Tensor:
    """Returns the stored weights, made from the RL model and the frozen base."""
    return torch.where(is_target.bool(), weight.float(), 0.0)


@torch.no_grad()
def excess_top_k(
    rl: Tensor,
    learner: Tensor,
    row: Tensor,
    is_target: Tensor,
    num_rows: int,
    *,
    fraction: float = DEFAULT_TOP_K_FRACTION,
) -> Tensor:
    """Returns 1 for the `fraction` of a row's targets with the largest `rl - learner`, and 0 for the others.

    This is the selection of Rho-1 (arXiv 2404.07965), row by row. The number selected is rounded up; among equals the
    earlier target goes first. A row has to be whole: under context parallelism there is no such weighting.

    >>> one_row = torch.zeros(4, dtype=torch.long)
    >>> learner = torch.tensor([-2., -2., -4., -3.])
    >>> excess_top_k(torch.tensor([-1., -2., -1., -4.]), learner, one_row, torch.ones(4), 1, fraction=0.5)
    tensor([1., 0., 1., 0.])
    """
    mask = is_target.bool()
    excess = torch.where(mask, rl.double() - learner.double(), -torch.inf)
    # By row, and in it by excess, largest first.
    order = torch.argsort(excess, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    sizes = row_sums(torch.ones_like(row), row, num_rows)
    rank = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row[order]]
    chosen = rank < num_selected(row_sums(mask.long(), row, num_rows), fraction)[row[order]]
    weights = torch.zeros(len(row), device=row.device)
    weights[order] = (chosen & mask[order]).float()
    return weights


def num_selected(targets: Tensor, fraction: float) -> Tensor:
    """Returns how many of a row's targets excess-top-k trains on, given their number."""
    # Minus a trifle, since 0.07 of 100 targets would else be 8.
    return (fraction * targets.double() - 1e-9).ceil().long().clamp(min=1)
