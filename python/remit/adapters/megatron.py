"""Megatron-LM: a dataset of packed rows, and a loss_func.

    dataset = PackedRows(ShardDataset(ws, batch_tokens=..., micro_batches=n, rank=dp_rank, world=dp_size), seq_length)
    ...
    def forward_step(data_iterator, model):
        batch = to_device(next(data_iterator))
        losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"],
                       packed_seq_params=packed(batch))
        return losses, partial(loss_func, objective, batch)

Run it with --micro-batch-size 1, --calculate-per-token-loss, and a --global-batch-size of micro_batches x dp_size.

Weights must not go into Megatron's `loss_mask`: its loss_func returns `loss_mask.sum()` as the number of tokens, as an
int. So the divisor would be the truncated sum of the weights, and of weights below 1 it would be 0.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data
from torch import Tensor

from .._errors import UsageError
from ..loss import Objective
from ..torch import ShardDataset, Shifted


class PackedRows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """The micro-batches of a dataset as Megatron has them: one sample of `seq_length` tokens each, filled up."""

    def __init__(self, dataset: ShardDataset, seq_length: int, pad_id: int = 0) -> None:
        """Takes a dataset with `micro_batches`; a micro-batch has to fit `seq_length`."""
        if dataset.micro_batches is None:
            raise UsageError(
                "Megatron wants as many micro-batches in every step\nhint: ShardDataset(ws, micro_batches=...)"
            )
        self.dataset, self.seq_length, self.pad_id = dataset, seq_length, pad_id

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Goes on where the dataset is."""
        for step in self.dataset:
            for micro in step.micro_batches:
                filled = micro.filled(self.seq_length, self.pad_id)
                shifted = filled.shifted()
                sample = {
                    "tokens": shifted.tokens[None],
                    "labels": shifted.labels.clamp(min=0)[None],
                    "loss_mask": shifted.is_target[None],
                    "position_ids": shifted.position_ids[None],
                    "row": shifted.row[None],
                    "rl_logprob": shifted.rl_logprob[None],
                    "cu_seqlens": filled.cu_seqlens,
                    "max_seqlen": torch.tensor(filled.max_seqlen),
                }
                yield sample if shifted.weight is None else {**sample, "weight": shifted.weight[None]}


def packed(batch: dict[str, Tensor]) -> Any:
    """Returns what keeps attention within rows: Megatron's PackedSeqParams."""
    from megatron.core.packed_seq_params import PackedSeqParams

    starts, longest = batch["cu_seqlens"], int(batch["max_seqlen"])
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def loss_func(
    objective: Objective,
    batch: dict[str, Tensor],
    output_tensor: Tensor,
    context_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns sum of the loss, number that it is divided by, and what is logged; for --calculate-per-token-loss.

    Args:
        objective: Divided by targets, or excess-top-k: Megatron's divisor is an integer.
        batch: The micro-batch that the losses are of.
        output_tensor: What the model returned: -log p of every label, not weighted.
        context_group: The ranks that share the rows, under context parallelism.
    """
    if objective.divisor == "weights" and objective.weighting in ("dynamic", "static"):
        raise UsageError(
            "Megatron divides by an integer, which the sum of weights is not\nhint: Objective(normalize='targets')"
        )
    shifted = Shifted(
        tokens=batch["tokens"].flatten(),
        position_ids=batch["position_ids"].flatten(),
        labels=batch["labels"].flatten(),
        row=batch["row"].flatten(),
        is_target=batch["loss_mask"].flatten(),
        rl_logprob=batch["rl_logprob"].flatten(),
        weight=batch["weight"].flatten() if "weight" in batch else None,
        num_rows=len(batch["cu_seqlens"]) - 1,
    )
    sums = objective.sums_of(-output_tensor.float().flatten(), None, shifted, context_group)
    divisor = (sums.targets if objective.divisor == "targets" else sums.weight).int()
    loss = sums.loss_sum.float()
    report = torch.stack([loss.detach(), divisor.float()])
    return loss, divisor, {"lm loss": report}
