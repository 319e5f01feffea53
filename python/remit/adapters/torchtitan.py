"""torchtitan: a data loader of packed rows, and a loss.

    config.dataloader = RemitDataLoader.Config(dataset_path="weights/", micro_batches=4, batch_tokens=65536)
    config.loss = RemitLoss.Config(weighting="dynamic")

with `local_batch_size` 1, and a `global_batch_size` of micro_batches x data-parallel ranks. torchtitan hands nothing to
a loss but labels and positions. So a label carries, in its upper 32 bits, the number that belongs to its token: the
log-probability under the RL model, or the static weight. `-100` remains what is no target, which torchtitan counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss

from .._errors import UsageError
from .._set import WeightSet
from ..loss import Objective, Weighting
from ..torch import IGNORED, ShardDataset, Shifted


def tagged(labels: Tensor, values: Tensor) -> Tensor:
    """Returns labels with a float32 in their upper 32 bits; what is no target stays -100."""
    return torch.where(labels == IGNORED, labels, labels | (values.float().view(torch.int32).long() << 32))


def untagged(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ids and the numbers of labels that `tagged` made; both 0 where there is no target."""
    is_target = labels != IGNORED
    ids = torch.where(is_target, labels & 0xFFFFFFFF, 0)
    return ids, torch.where(is_target, (labels >> 32).int().view(torch.float32), 0.0)


class RemitLoss(BaseLoss):  # type: ignore[misc]
    """The loss of remit-anneal, from labels that carry their numbers."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):  # type: ignore[misc]
        """Options of the loss; None is what `remit.loss.Objective` has."""

        weighting: str = "dynamic"
        epsilon: float = 0.2
        temperature: float = 1.0
        top_k_fraction: float = 0.6
        center: bool = True

    def __init__(self, config: "RemitLoss.Config", *, compile_config: Any = None) -> None:
        """Takes its options; it is not compiled."""
        del compile_config
        self.objective = Objective(
            weighting=cast(Weighting, config.weighting),
            epsilon=config.epsilon,
            temperature=config.temperature,
            top_k_fraction=config.top_k_fraction,
            center=config.center,
            # torchtitan divides by the number of labels that are not -100.
            normalize="targets",
        )
        self.fn = self._sum

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of logits (batch, tokens, vocabulary) over the targets of all ranks, and no metrics."""
        loss = self.fn(pred, labels, positions=kwargs.get("positions"))
        return (loss if global_valid_tokens is None else loss / global_valid_tokens), {}

    def _sum(self, pred: Tensor, labels: Tensor, *, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            raise UsageError("rows are told apart by positions\nhint: use RemitDataLoader, which gives them")
        labels, logits = labels.flatten(), pred.flatten(0, 1).float()
        ids, values = untagged(labels)
        # A row begins where positions do. Every sample of a batch does too.
        row = (positions.flatten() == 0).long().cumsum(0) - 1
        log_probs = -torch.nn.functional.cross_entropy(logits, ids, reduction="none")
        batch = Shifted(
            tokens=ids,
            position_ids=positions.flatten(),
            labels=ids,
            row=row,
            is_target=(labels != IGNORED).float(),
            rl_logprob=values,
            weight=values,
            num_rows=int(row[-1]) + 1,
        )
        return self.objective.sums_of(log_probs, None, batch).loss_sum.float()


class RemitDataLoader(BaseDataLoader):  # type: ignore[misc]
    """Packed rows of a set, filled up to `seq_len` tokens, in the order of remit-anneal."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):  # type: ignore[misc]
        """Where the set is, and how steps are made of it. `dataset_path` is the set."""

        batch_tokens: int = 16384
        micro_batches: int = 1
        seed: int = 0
        holdout: float | None = None
        weighting: str = "dynamic"
        pad_id: int = 0

    def __init__(
        self, config: "RemitDataLoader.Config", *, dp_world_size: int, dp_rank: int, seq_len: int, **others: Any
    ) -> None:
        """Opens the set; takes what torchtitan gives to its data loaders."""
        del others
        if config.dataset_path is None:
            raise UsageError("there is no set\nhint: dataset_path is the folder that remit-score made")
        ws = WeightSet(config.dataset_path, verify=dp_rank == 0)
        self.dataset = ShardDataset(
            ws,
            seed=config.seed,
            holdout=config.holdout,
            batch_tokens=config.batch_tokens,
            micro_batches=config.micro_batches,
            rank=dp_rank,
            world=dp_world_size,
        )
        self.seq_len, self.pad_id = seq_len, config.pad_id
        self.is_static = config.weighting == "static"

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Goes over micro-batches: inputs and positions, and labels; each (1, seq_len)."""
        for step in self.dataset:
            for micro in step.micro_batches:
                shifted = micro.filled(self.seq_len, self.pad_id).shifted()
                values = shifted.weight if self.is_static else shifted.rl_logprob
                if values is None:
                    raise UsageError("the set stores no static weights\nhint: weighting='dynamic' needs none")
                inputs = {"input": shifted.tokens[None], "positions": shifted.position_ids[None]}
                yield inputs, tagged(shifted.labels, values)[None]

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last step whose micro-batches were handed out; save between steps."""
        return self.dataset.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there."""
        if state_dict:
            self.dataset.load_state_dict(state_dict)
