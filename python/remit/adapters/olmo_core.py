"""OLMo-core: a data loader of packed rows, and a train module with the loss.

    class Module(RemitModule, TransformerTrainModule): ...
    module = Module(objective, model=..., optim=..., rank_microbatch_size=seq_len, max_sequence_length=seq_len, ...)
    loader = RemitLoader(dataset, seq_len, work_dir=...)

Weights can't go through its own collator and masks: `label_mask` becomes bool, so that 0.8 and 1.2 are both True. And
each rank divides by its own number of targets, of which the mean over ranks is taken; here, it is once by all.

`remit.npy` writes arrays beside the .npy files of a corpus, token by token, for whoever has a loader of his own.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from olmo_core.data.data_loader import DataLoaderBase
from olmo_core.nn.lm_head import LMOutputWithLoss
from torch import Tensor

from .._errors import UsageError
from ..loss import Objective
from ..torch import MicroBatch, ShardDataset, Step

_OWN = ("row", "is_target", "rl_logprob", "weight", "divisor")


class RemitLoader(DataLoaderBase):  # type: ignore[misc]
    """The steps of a dataset as batches: an instance of `seq_len` tokens for each micro-batch, filled up."""

    def __init__(
        self,
        dataset: ShardDataset,
        objective: Objective,
        seq_len: int,
        *,
        work_dir: str | os.PathLike[str],
        steps_per_epoch: int,
        pad_id: int = 0,
        intra_document: bool = True,
    ) -> None:
        """Takes a dataset with `micro_batches`.

        Args:
            dataset: For this data-parallel rank.
            objective: The loss.
            seq_len: Tokens of an instance; a micro-batch has to fit.
            work_dir: As for OLMo-core's loaders.
            steps_per_epoch: Steps that OLMo-core is to call an epoch.
            pad_id: Id that instances are filled up with.
            intra_document: Tell where rows begin (`doc_lens`), which attention backends of GPUs need. Without it, a
                micro-batch may have one row only.
        """
        super().__init__(
            work_dir=work_dir,
            global_batch_size=seq_len * (dataset.micro_batches or 1) * dataset.world,
            dp_world_size=dataset.world,
            dp_rank=dataset.rank,
        )
        if dataset.micro_batches is None:
            raise UsageError("OLMo-core wants batches of one size\nhint: ShardDataset(ws, micro_batches=...)")
        self.dataset, self.objective, self.seq_len, self.pad_id = dataset, objective, seq_len, pad_id
        self.steps_per_epoch, self.intra_document = steps_per_epoch, intra_document

    @property
    def total_batches(self) -> int:
        """Returns the number of batches that OLMo-core calls an epoch."""
        return self.steps_per_epoch

    def reshuffle(self, epoch: int | None = None, **kwargs: Any) -> None:
        """Notes the epoch; the order is that of the dataset."""
        del kwargs
        self._epoch = 1 if epoch is None else epoch

    def _iter_batches(self) -> Iterator[dict[str, Any]]:
        self.dataset.steps = self.dataset.state_dict()["steps_done"] + self.steps_per_epoch - self.batches_processed
        for step in self.dataset:
            yield self._batch(step.micro_batches, self._divisor(step))

    def _divisor(self, step: Step) -> float:
        # Gradients become the mean of the ranks'.
        return self.objective.denominator(step) / self.dataset.world

    def _batch(self, micros: list[MicroBatch], divisor: float) -> dict[str, Any]:
        filled = [micro.filled(self.seq_len, self.pad_id) for micro in micros]
        shifted = [micro.shifted() for micro in filled]
        batch: dict[str, Any] = {
            "input_ids": torch.stack([one.tokens for one in shifted]),
            "labels": torch.stack([one.labels for one in shifted]),
            "remit_row": torch.stack([one.row for one in shifted]),
            "remit_is_target": torch.stack([one.is_target for one in shifted]),
            "remit_rl_logprob": torch.stack([one.rl_logprob for one in shifted]),
            "remit_divisor": torch.full((len(micros),), divisor, dtype=torch.float64),
        }
        weights = [one.weight for one in shifted if one.weight is not None]
        if len(weights) == len(shifted):
            batch["remit_weight"] = torch.stack(weights)
        if self.intra_document:
            lengths = [micro.cu_seqlens.diff() for micro in filled]
            batch["doc_lens"] = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)
            batch["max_doc_lens"] = [micro.max_seqlen for micro in filled]
        elif max(micro.num_rows for micro in micros) > 1:
            raise UsageError(
                "a micro-batch has several rows, which would see each other\n"
                "hint: intra_document=True, or as many micro_batches as steps have rows"
            )
        return batch

    def get_mock_batch(self) -> dict[str, Any]:
        """Returns a batch without a target."""
        row = MicroBatch(
            input_ids=torch.zeros(2, dtype=torch.long),
            position_ids=torch.arange(2),
            row=torch.zeros(2, dtype=torch.long),
            is_target=torch.zeros(2),
            rl_logprob=torch.zeros(2),
            weight=torch.zeros(2) if self.dataset.ws.has_base else None,
            cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
            row_ids=torch.full((1,), -1),
            max_seqlen=2,
        )
        return self._batch([row] * (self.dataset.micro_batches or 1), 1.0)

    def global_num_tokens_in_batch(self, batch: dict[str, Any]) -> int:
        """Returns the number of tokens of a batch on all ranks, those that fill up included."""
        return int(batch["input_ids"].numel()) * self.dataset.world

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch."""
        return {**self.dataset.state_dict(), "batches_processed": self.batches_processed, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there."""
        self.dataset.load_state_dict(state_dict)
        self.batches_processed, self._epoch = state_dict["batches_processed"], state_dict["epoch"]


class RemitModule:
    """Puts the loss into a TransformerTrainModule; name it first among the bases."""

    def __init__(self, objective: Objective, *arguments: Any, **more: Any) -> None:
        """Takes the objective, and the arguments of the train module."""
        self.remit_objective = objective
        super().__init__(*arguments, **more)

    def model_forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Returns the loss of a batch of RemitLoader; of any other batch, what OLMo-core does."""
        own = {name: kwargs.pop(f"remit_{name}", None) for name in _OWN}
        if own["row"] is None or labels is None:
            return super().model_forward(input_ids, labels=labels, **kwargs)  # type: ignore[misc]
        for name in ("ignore_index", "loss_reduction", "z_loss_multiplier", "loss_div_factor", "return_logits"):
            kwargs.pop(name, None)
        logits: Tensor = super().model_forward(input_ids, **kwargs)  # type: ignore[misc]
        device = logits.device
        log_probs = -torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.to(device).flatten().clamp(min=0), reduction="none"
        )
        # Rows of the instances of a batch are numbered one after another.
        row = own["row"].to(device)
        counts = row[:, -1] + 1
        row = row + (counts.cumsum(0) - counts)[:, None]
        batch = _Flat(
            row=row.flatten(),
            num_rows=int(counts.sum()),
            is_target=own["is_target"].to(device).flatten(),
            rl_logprob=own["rl_logprob"].to(device).flatten(),
            weight=None if own["weight"] is None else own["weight"].to(device).flatten(),
        )
        sums = self.remit_objective.sums_of(log_probs, None, batch)
        loss = (sums.loss_sum / own["divisor"][0]).float()
        return LMOutputWithLoss(logits=None, loss=loss, ce_loss=loss.detach(), z_loss=None)


class _Flat:
    """What the weights need of a batch."""

    def __init__(
        self, *, row: Tensor, num_rows: int, is_target: Tensor, rl_logprob: Tensor, weight: Tensor | None
    ) -> None:
        self.row, self.num_rows, self.is_target = row, num_rows, is_target
        self.rl_logprob, self.weight = rl_logprob, weight
