"""The loss of `remit-anneal`: sums over targets, divided once by the count of the whole step.

    objective = Objective.of(ws, weighting="dynamic")
    for step in dataset:                               # remit.torch.ShardDataset
        for micro in step.micro_batches:
            sums = objective.sums(model(micro.input_ids[None], position_ids=micro.position_ids[None]).logits[0], micro)
            (sums.loss_sum / step.num_targets).backward()

A mean of means over micro-batches or ranks would be another loss wherever those differ in targets or weights.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from . import weights as formulas
from ._errors import UsageError, shown

if TYPE_CHECKING:
    from ._set import WeightSet
    from .torch import MicroBatch, Step

Weighting = Literal["dynamic", "static", "uniform", "excess-top-k"]
Normalize = Literal["targets", "weights"]

# Logits that become float32 at a time.
CHUNK_TOKENS = 1024


class Scored(Protocol):
    """What the weights need of a micro-batch: an element for each token."""

    @property
    def row(self) -> Tensor:
        """The number of each token's row."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""

    @property
    def is_target(self) -> Tensor:
        """1.0 for what is predicted, else 0."""

    @property
    def rl_logprob(self) -> Tensor:
        """Log-probs under the RL model, nats."""

    @property
    def weight(self) -> Tensor | None:
        """Static weights."""


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, float64 scalars; they add up over micro-batches and ranks."""

    loss_sum: Tensor
    """What is minimised: weighted negative log-probs and z-loss. It has a gradient."""
    targets: Tensor
    nll: Tensor
    """Negative log-probs, nats."""
    weighted_nll: Tensor
    weight: Tensor
    squared_log_normalizers: Tensor
    """0 where there is no z-loss."""

    def detach(self) -> "LossSums":
        """Returns the same without gradient."""
        return LossSums(*(getattr(self, field.name).detach() for field in fields(self)))

    def __add__(self, other: "LossSums") -> "LossSums":
        """Returns the sums over both."""
        return LossSums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "LossSums":
        """Returns the sums over all ranks, without gradient."""
        values = torch.stack([getattr(self, field.name).detach() for field in fields(self)])
        dist.all_reduce(values, group=group)
        return LossSums(*values)

    def normalizer(self, normalize: Normalize) -> Tensor:
        """Returns what sums are divided by; 1 where there is nothing to divide."""
        if normalize == "targets":
            return self.targets.clamp(min=1)
        return torch.where(self.weight > 0, self.weight, 1.0)

    def loss(self, normalize: Normalize) -> float:
        """Returns the weighted loss, without z-loss: nats per target, or per unit of weight."""
        return float(self.weighted_nll / self.normalizer(normalize))

    @property
    def ntp_loss(self) -> float:
        """Returns the plain next-token loss, nats per target."""
        return float(self.nll / self.targets.clamp(min=1))

    @property
    def weight_mean(self) -> float:
        """Returns the mean weight of a target."""
        return float(self.weight / self.targets.clamp(min=1))


@dataclass(frozen=True)
class Objective:
    """What is minimised: `sum of weight * -log p + z_loss * (log-sum-exp of the logits)²`, over `normalize`."""

    weighting: Weighting = "dynamic"
    epsilon: float = formulas.DEFAULT_EPSILON
    temperature: float = formulas.DEFAULT_TEMPERATURE
    center: bool = True
    top_k_fraction: float = formulas.DEFAULT_TOP_K_FRACTION
    normalize: Normalize | None = None
    """The number of targets, or the sum of weights. None: weights for excess-top-k, else targets."""
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        """Refuses numbers that the formulas can't be used with."""
        if self.weighting not in get_args(Weighting):
            raise UsageError(f"there is no weighting {self.weighting!r}\nhint: one of {', '.join(get_args(Weighting))}")
        if not 0 <= self.epsilon < 1:
            raise UsageError(f"epsilon is {self.epsilon}; it must be at least 0 and less than 1")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; it must be a positive number")
        if not 0 < self.top_k_fraction <= 1:
            raise UsageError(f"the fraction of excess-top-k is {self.top_k_fraction}; it must be above 0 and at most 1")
        if self.normalize is None:
            default: Normalize = "weights" if self.weighting == "excess-top-k" else "targets"
            object.__setattr__(self, "normalize", default)
        if self.normalize not in get_args(Normalize):
            raise UsageError(f"sums can't be divided by {self.normalize!r}\nhint: targets, weights")

    @staticmethod
    def of(
        ws: "WeightSet",
        weighting: Weighting = "dynamic",
        *,
        epsilon: float | None = None,
        temperature: float | None = None,
        center: bool = True,
        top_k_fraction: float = formulas.DEFAULT_TOP_K_FRACTION,
        normalize: Normalize | None = None,
        z_loss: float = 0.0,
    ) -> "Objective":
        """Returns the objective for a set: what is left open is what the set was scored with, as for `remit-anneal`.

        Raises:
            UsageError: The set does not store what the weighting needs, or was made with other numbers.
        """
        formula = ws.plan["formula"]
        if weighting == "static":
            if formula is None:
                raise UsageError(
                    f"static weighting needs stored weights, but the set in {shown(ws.folder)} was scored without "
                    "--base-model\nhint: dynamic weighting needs none"
                )
            changed = {
                name: value
                for name, value in (("epsilon", epsilon), ("temperature", temperature))
                if value is not None and value != formula[name]
            }
            if changed or not center:
                raise UsageError(
                    f"static weights were made with epsilon {float(formula['epsilon'])} and temperature "
                    f"{float(formula['temperature'])}, centred on their row, and can't be changed here\n"
                    "hint: dynamic weighting computes them anew, or score again with other values"
                )
        stored = formula or {"epsilon": formulas.DEFAULT_EPSILON, "temperature": formulas.DEFAULT_TEMPERATURE}
        return Objective(
            weighting=weighting,
            epsilon=float(stored["epsilon"]) if epsilon is None else epsilon,
            temperature=float(stored["temperature"]) if temperature is None else temperature,
            center=center,
            top_k_fraction=top_k_fraction,
            normalize=normalize,
            z_loss=z_loss,
        )

    @property
    def divisor(self) -> Normalize:
        """Returns what sums are divided by."""
        return self.normalize or "targets"

    def token_weights(self, batch: Scored, log_probs: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Returns the weight of every token, given its log-prob under the learner: float32, without a gradient."""
        if self.weighting == "uniform":
            return formulas.uniform(batch.is_target)
        if self.weighting == "static":
            if batch.weight is None:
                raise UsageError("the set stores no static weights, because it was scored without a base model")
            return formulas.static(batch.weight, batch.is_target)
        learner = log_probs.detach()
        if self.weighting == "dynamic":
            return formulas.dynamic(
                batch.rl_logprob,
                learner,
                batch.row,
                batch.is_target,
                batch.num_rows,
                epsilon=self.epsilon,
                temperature=self.temperature,
                center=self.center,
                group=group,
            )
        if group is not None:
            raise UsageError(
                "excess-top-k ranks the tokens of a whole row, which no rank has under context parallelism"
            )
        return formulas.excess_top_k(
            batch.rl_logprob, learner, batch.row, batch.is_target, batch.num_rows, fraction=self.top_k_fraction
        )

    def sums(self, logits: Tensor, batch: "MicroBatch", group: dist.ProcessGroup | None = None) -> LossSums:
        """Returns the sums over a micro-batch, given the logits at each of its tokens: (tokens, vocabulary).

        The logits at token `t` predict token `t + 1`, as models return them.
        """
        log_probs, log_normalizers = token_log_probs(logits, batch.input_ids, with_normalizers=self.z_loss > 0)
        return self.sums_of(log_probs, log_normalizers, batch, group)

    def sums_of(
        self,
        log_probs: Tensor,
        log_normalizers: Tensor | None,
        batch: Scored,
        group: dist.ProcessGroup | None = None,
    ) -> LossSums:
        """Returns the sums over a micro-batch, given the log-prob of each of its tokens under the learner."""
        mask = batch.is_target.bool()
        # What is no target may have any value, one that is not finite as well.
        log_probs = torch.where(mask, log_probs, 0.0)
        weights = self.token_weights(batch, log_probs, group)
        weighted = -(weights * log_probs).double().sum()
        squares = torch.zeros_like(weighted)
        loss_sum = weighted
        if log_normalizers is not None:
            squares = torch.where(mask, log_normalizers, 0.0).double().square().sum()
            loss_sum = weighted + self.z_loss * squares
        return LossSums(
            loss_sum=loss_sum,
            targets=mask.sum().double(),
            nll=-log_probs.detach().double().sum(),
            weighted_nll=weighted.detach(),
            weight=weights.double().sum(),
            squared_log_normalizers=squares.detach(),
        )

    def denominator(self, step: "Step") -> float:
        """Returns what the sums of a step are divided by, known before any of its micro-batches was computed.

        Raises:
            UsageError: It is the sum of dynamic weights, which depends on the learner.
        """
        if self.divisor == "targets" or self.weighting == "uniform":
            return float(max(1, step.num_targets))
        if self.weighting == "excess-top-k":
            return float(formulas.num_selected(step.row_targets, self.top_k_fraction).sum())
        if self.weighting == "static" and step.weight_sum is not None:
            return step.weight_sum or 1.0
        raise UsageError(
            "the sum of dynamic weights is known only after the last micro-batch, and this trainer divides before\n"
            "hint: normalize='targets', or a loop of your own, as in examples/fsdp.py"
        )


def token_log_probs(
    logits: Tensor, input_ids: Tensor, *, with_normalizers: bool = False, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[Tensor, Tensor | None]:
    """Returns the log-prob of every token, float32, given the logits before it; 0 for the first.

    Logits of bf16 become float32, `chunk_tokens` at a time. With `with_normalizers`, returns the log-sum-exps too.
    """

    def pieces(of: Tensor) -> list[Tensor]:
        return [of[at : at + chunk_tokens] for at in range(0, len(of), chunk_tokens)]

    found, normalizers = [], []
    for before, after in zip(pieces(logits[:-1]), pieces(input_ids[1:]), strict=True):
        before = before.float()
        found.append(-F.cross_entropy(before, after, reduction="none"))
        if with_normalizers:
            normalizers.append(before.logsumexp(-1))
    first = torch.zeros(1, dtype=torch.float32, device=logits.device)
    return torch.cat([first, *found]), torch.cat([first, *normalizers]) if with_normalizers else None
