"""Hugging Face's Trainer, the real one, follows remit-anneal; and so does what is made of it."""

import itertools

import pytest
import remit
import torch
import transformers
from conftest import LEARNER, program
from remit.adapters.transformers import RemitMixin, RemitTrainer
from remit.loss import Objective
from remit.torch import ShardDataset
from test_parity import (
    BATCH_TOKENS,
    LIMIT,
    LIMIT_AFTER_A_CHOICE,
    LR,
    MICRO_TOKENS,
    SEED,
    STRICT_STEPS,
    flags,
    metrics_of,
)

STEPS, MICRO_BATCHES = 20, 3


class Losses(transformers.TrainerCallback):
    """Remembers what is logged."""

    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **more):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def trainer_for(ws, folder, weighting, kind=RemitTrainer, padded=False, **more):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(LEARNER, dtype=torch.float32)
    dataset = ShardDataset(ws, seed=SEED, batch_tokens=BATCH_TOKENS, micro_batches=MICRO_BATCHES)
    args = transformers.TrainingArguments(
        folder,
        max_steps=STEPS,
        gradient_accumulation_steps=MICRO_BATCHES,
        learning_rate=LR,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=1,
        save_steps=7,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    losses = Losses()
    trainer = kind(
        model=model,
        args=args,
        remit_dataset=dataset,
        remit_objective=Objective.of(ws, weighting),
        padded=padded,
        callbacks=[losses],
        **more,
    )
    return trainer, losses


@pytest.fixture(scope="module")
def annealed(weights, tmp_path_factory):
    """The losses of remit-anneal; Trainer's optimizer decays the embedding too."""
    folder = tmp_path_factory.mktemp("annealed")

    def losses(weighting):
        more = {"--steps": STEPS, "--decay-on": "embeddings", "--micro-batch-tokens": MICRO_TOKENS}
        program("remit-anneal", *flags(weights, folder / weighting, weighting, **more))
        return [step["loss"] for step in metrics_of(folder / weighting)]

    return {weighting: losses(weighting) for weighting in ("dynamic", "excess-top-k")}


def agree(found, expected, weighting="dynamic"):
    apart = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    strict = STRICT_STEPS if weighting == "excess-top-k" else len(apart)
    assert max(apart[:strict]) <= LIMIT, apart
    assert max(apart) <= (LIMIT if strict == len(apart) else LIMIT_AFTER_A_CHOICE), apart


@pytest.mark.parametrize(("weighting", "padded"), [("dynamic", False), ("dynamic", True), ("excess-top-k", False)])
def test_the_trainer_follows_remit_anneal(weights, annealed, tmp_path, weighting, padded):
    trainer, losses = trainer_for(remit.open(weights), tmp_path, weighting, padded=padded)
    trainer.train()
    agree(losses.losses, annealed[weighting], weighting)


def test_a_resumed_trainer_goes_on_with_the_same_rows(weights, annealed, tmp_path):
    ws = remit.open(weights)
    first, losses = trainer_for(ws, tmp_path, "dynamic")

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            control.should_training_stop = state.global_step == 9

    first.add_callback(Stop())
    first.train()
    second, more = trainer_for(ws, tmp_path, "dynamic")
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    agree(losses.losses[:7] + more.losses, annealed["dynamic"])


def test_a_trainer_of_trl_takes_the_mixin(weights, annealed, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")

    class RemitSFT(RemitMixin, trl.SFTTrainer):
        pass

    ws = remit.open(weights)
    model = transformers.AutoModelForCausalLM.from_pretrained(LEARNER, dtype=torch.float32)
    args = trl.SFTConfig(
        str(tmp_path),
        max_steps=3,
        gradient_accumulation_steps=MICRO_BATCHES,
        learning_rate=LR * 3 / STEPS,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    losses = Losses()
    trainer = RemitSFT(
        model=model,
        args=args,
        processing_class=transformers.AutoTokenizer.from_pretrained(LEARNER),
        train_dataset=datasets.Dataset.from_dict({"input_ids": [[1, 2]]}),
        remit_dataset=ShardDataset(ws, seed=SEED, batch_tokens=BATCH_TOKENS, micro_batches=MICRO_BATCHES),
        remit_objective=Objective.of(ws),
        callbacks=[losses],
    )
    trainer.train()
    assert losses.losses[0] == pytest.approx(annealed["dynamic"][0], rel=LIMIT) and len(losses.losses) == 3


def test_what_does_not_fit_together_is_refused(weights, tmp_path):
    ws = remit.open(weights)
    with pytest.raises(remit.UsageError, match="the sum of dynamic weights is known only after"):
        step = next(iter(ShardDataset(ws)))
        Objective(normalize="weights").denominator(step)
    trainer, _ = trainer_for(ws, tmp_path, "dynamic")
    with pytest.raises(remit.UsageError, match=r"has no remit_state.json"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    args = transformers.TrainingArguments(tmp_path, use_cpu=True, max_steps=2, report_to=[])
    with pytest.raises(remit.UsageError, match="gradient_accumulation_steps is 1, and the dataset has 3"):
        RemitTrainer(
            model=trainer.model,
            args=args,
            remit_dataset=ShardDataset(ws, micro_batches=3),
            remit_objective=Objective.of(ws),
        )


@pytest.mark.parametrize("weighting", ["static", "uniform", "excess-top-k"])
def test_the_divisor_that_is_known_before_is_the_sum_after(weights, weighting):
    ws = remit.open(weights)
    objective = Objective.of(ws, weighting, normalize="weights")
    for step in itertools.islice(iter(ShardDataset(ws, batch_tokens=3000)), 3):
        sums = [objective.sums_of(-1 - (m.input_ids % 5).float(), None, m) for m in step.micro_batches]
        total = sum(sums[1:], sums[0])
        assert float(total.normalizer("weights")) == pytest.approx(objective.denominator(step), rel=1e-9)
