"""Hugging Face Trainer, and what is made of it: TRL, axolotl, LLaMA-Factory.

    ws = remit.open("weights/")
    dataset = ShardDataset(ws, batch_tokens=16384, micro_batches=4, rank=rank, world=world)
    trainer = RemitTrainer(model=model, args=TrainingArguments(..., gradient_accumulation_steps=4, max_steps=1000),
                           remit_dataset=dataset, remit_objective=Objective.of(ws))
    trainer.train()

`gradient_accumulation_steps` has to be the dataset's `micro_batches`. With another subclass of Trainer, put
`RemitMixin` first: `class MyTrainer(RemitMixin, SFTTrainer)`. Batches are packed: a model has to keep rows apart by
`position_ids`, as models of transformers do where they get no attention mask; or give `padded=True`.

Its own collators drop columns that the model's forward has no argument for, weights among them, and without a word.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
import transformers
from transformers.trainer_utils import get_last_checkpoint

from .._errors import UsageError
from ..loss import LossSums, Objective
from ..torch import MicroBatch, ShardDataset

STATE_FILE = "remit_state.json"


class MicroBatches(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The micro-batches of a dataset's steps one by one, as the inputs of a model, with what the loss needs."""

    def __init__(self, dataset: ShardDataset, objective: Objective, padded: bool, pad_id: int) -> None:
        """Takes what `RemitMixin` was given."""
        self.dataset, self.objective, self.is_padded, self.pad_id = dataset, objective, padded, pad_id

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Goes on where the dataset is."""
        for step in self.dataset:
            divisor = self.objective.denominator(step)
            for micro in step.micro_batches:
                inputs = self._padded(micro) if self.is_padded else packed(micro)
                yield {**inputs, "remit_micro": micro, "remit_divisor": divisor, "remit_rows": step.row_ids}

    def _padded(self, micro: MicroBatch) -> dict[str, Any]:
        matrix = micro.padded(self.pad_id)
        return {"input_ids": matrix.input_ids, "attention_mask": matrix.attention_mask, "remit_matrix": matrix}


def packed(micro: MicroBatch) -> dict[str, torch.Tensor]:
    """Returns the inputs of a model: one row of a matrix with all tokens, and positions that begin anew in each row."""
    return {"input_ids": micro.input_ids[None], "position_ids": micro.position_ids[None]}


class RemitMixin:
    """What a subclass of Trainer needs: the rows of a dataset, and the loss over them."""

    # Losses are divided by what they have to be divided by: once, over ranks and micro-batches.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *arguments: Any,
        remit_dataset: ShardDataset,
        remit_objective: Objective,
        padded: bool = False,
        pad_id: int = 0,
        **more: Any,
    ) -> None:
        """Takes the arguments of Trainer, without a dataset for training and without a loss.

        Args:
            arguments: As for Trainer.
            remit_dataset: With `micro_batches`, and this process's `rank` of `world`.
            remit_objective: The loss.
            padded: Rows as a padded matrix with an attention mask, for models that know no packing.
            pad_id: Id of padding.
            more: As for Trainer.
        """
        self.remit_objective, self.remit_dataset = remit_objective, remit_dataset
        self._batches = MicroBatches(remit_dataset, remit_objective, padded, pad_id)
        more.setdefault("train_dataset", self._batches)
        super().__init__(*arguments, **more)
        args = self.args  # type: ignore[attr-defined]
        if args.gradient_accumulation_steps != remit_dataset.micro_batches:
            raise UsageError(
                f"gradient_accumulation_steps is {args.gradient_accumulation_steps}, and the dataset has "
                f"{remit_dataset.micro_batches} micro-batches a step\nhint: ShardDataset(ws, micro_batches=...) and "
                "TrainingArguments(gradient_accumulation_steps=...) have to be the same"
            )
        if args.max_steps <= 0:
            raise UsageError("the steps of a set have no end\nhint: give TrainingArguments max_steps")
        if args.world_size != remit_dataset.world:
            raise UsageError(
                f"there are {args.world_size} processes, and the dataset is for {remit_dataset.world} ranks\n"
                "hint: ShardDataset(ws, rank=args.process_index, world=args.world_size)"
            )
        self.remit_sums: LossSums | None = None
        self.add_callback(_SavesState(self))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> "torch.utils.data.DataLoader[dict[str, Any]]":
        """Returns the micro-batches of this rank; nobody is to divide them again."""
        return torch.utils.data.DataLoader(self._batches, batch_size=None)

    def train(self, resume_from_checkpoint: Any = None, **more: Any) -> Any:
        """Trains; from a checkpoint, goes on with the very rows that were next."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        if resume_from_checkpoint:
            path = Path(os.fspath(resume_from_checkpoint)) / STATE_FILE
            if not path.exists():
                raise UsageError(f"{path.parent} has no {STATE_FILE}\nhint: only a run of this trainer can be resumed")
            self.remit_dataset.load_state_dict(json.loads(path.read_text()))
            # Its rows are where they have to be; Trainer would leave out as many again.
            self.args.ignore_data_skip = True  # type: ignore[attr-defined]
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)  # type: ignore[misc]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the share of a micro-batch in the loss of its step."""
        del num_items_in_batch  # the count of targets is that of all ranks
        inputs = dict(inputs)
        micro, divisor = inputs.pop("remit_micro"), inputs.pop("remit_divisor")
        matrix = inputs.pop("remit_matrix", None)
        inputs.pop("remit_rows")
        outputs = model(**inputs, use_cache=False)  # a cache would let rows see each other
        logits = outputs.logits
        micro = micro.to(logits.device)
        sums = self.remit_objective.sums(logits[0] if matrix is None else matrix.packed(logits), micro)
        self.remit_sums = sums.detach()
        # Gradients become the mean of the ranks', so that times their number they are the sum.
        loss = sums.loss_sum * (self.remit_dataset.world / divisor)
        return (loss, outputs) if return_outputs else loss


class _SavesState(transformers.TrainerCallback):  # type: ignore[misc]
    """Writes, beside every checkpoint, which rows are next."""

    def __init__(self, trainer: RemitMixin) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Writes the state of the dataset into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            (folder / STATE_FILE).write_text(json.dumps(self.trainer.remit_dataset.state_dict()))


class RemitTrainer(RemitMixin, transformers.Trainer):  # type: ignore[misc]
    """Trainer over the rows of a set."""
