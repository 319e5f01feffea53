"""Levanter, and other trainers in JAX: packed examples with `loss_weight` and segment ids, as numpy arrays.

    for example in examples(dataset, seq_len):
        lm = LmExample.causal(hax.named(example["tokens"], "position"),
                              loss_weight=hax.named(example["loss_weight"], "position"),
                              segment_ids=hax.named(example["segment_ids"], "position"))

`loss_weight[t]` belongs to the token after `t`, as in Levanter. Its loss is a mean over `loss_weight > 0`, or a sum
over their sum: give it `example["divisor"]` instead, so that all processes and micro-batches divide by one number.
For dynamic weights, compute them in the loss function: `dynamic(jax.numpy, ...)`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import UsageError
from ..loss import Objective
from ..torch import ShardDataset

Array = npt.NDArray[Any]


def examples(dataset: ShardDataset, objective: Objective, seq_len: int, pad_id: int = 0) -> Iterator[dict[str, Any]]:
    """Goes over the micro-batches of a dataset, filled up to `seq_len` tokens.

    `loss_weight` is the static weight, 1 for uniform weighting; else 1 where there is a target, for `dynamic`.
    """
    if objective.weighting == "excess-top-k":
        raise UsageError("there is no excess-top-k in JAX here\nhint: dynamic, static or uniform weighting")
    for step in dataset:
        divisor = objective.denominator(step)
        for micro in step.micro_batches:
            shifted = micro.filled(seq_len, pad_id).shifted()
            weight = shifted.is_target
            if objective.weighting == "static":
                if shifted.weight is None:
                    raise UsageError("the set stores no static weights\nhint: dynamic weighting needs none")
                weight = shifted.weight
            yield {
                "tokens": shifted.tokens.numpy().astype(np.int32),
                "loss_weight": weight.numpy(),
                "segment_ids": shifted.row.numpy().astype(np.int32),
                "rl_logprob": shifted.rl_logprob.numpy(),
                "num_segments": shifted.num_rows,
                "divisor": divisor,
            }


def dynamic(
    xp: Any,
    rl_logprob: Array,
    learner: Array,
    segment_ids: Array,
    is_target: Array,
    *,
    num_segments: int,
    epsilon: float = 0.2,
    temperature: float = 1.0,
) -> Array:
    """Returns the paper's weights; `xp` is `jax.numpy` or `numpy`. Under `jax.grad`, stop the gradient of `learner`.

    `num_segments` is a bound of the number of rows that is known when JAX traces: `seq_len // 2 + 1` always is.
    """
    mask = is_target > 0
    delta = xp.where(mask, rl_logprob - learner, 0.0)
    one = xp.arange(num_segments)[:, None] == segment_ids[None, :]  # (rows, tokens)
    mean = (one @ delta) / xp.maximum(one @ mask.astype(delta.dtype), 1)
    weights = 2 / (1 + xp.exp(-(delta - mean[segment_ids]) / temperature))
    found: Array = xp.where(mask, xp.clip(weights, 1 - epsilon, 1 + epsilon), 0.0)
    return found
