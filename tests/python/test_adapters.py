"""Adapters, against the real libraries where they are installed: same losses as the loop of one's own."""

import functools
import itertools
import types

import numpy as np
import pytest
import remit
import torch
from conftest import LEARNER
from remit.loss import Objective
from remit.torch import ShardDataset
from transformers import AutoModelForCausalLM

WEIGHTINGS = ["dynamic", "static", "uniform", "excess-top-k"]
MICRO_BATCHES, SEQ_LEN = 3, 400


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(LEARNER, dtype=torch.float32).eval()


def dataset(weights, **more):
    return ShardDataset(remit.open(weights), seed=1, batch_tokens=700, micro_batches=MICRO_BATCHES, **more)


def logits_of(model, tokens, positions):
    return model(input_ids=tokens, position_ids=positions, use_cache=False).logits


@pytest.fixture(scope="module")
def expected(weights, model):
    """Loss of each of three steps, and the gradient of a tensor in them, by weighting."""
    found = {}
    for weighting in WEIGHTINGS:
        objective = Objective.of(remit.open(weights), weighting, normalize="targets")
        found[weighting] = []
        for step in itertools.islice(iter(dataset(weights)), 3):
            model.zero_grad()
            total = 0.0
            for micro in step.micro_batches:
                logits = logits_of(model, micro.input_ids[None], micro.position_ids[None])[0]
                loss = objective.sums(logits, micro).loss_sum / objective.denominator(step)
                loss.backward()
                total += float(loss.detach())
            found[weighting].append((total, model.model.norm.weight.grad.clone()))
    return found


def agree(found, expected):
    loss, gradient = expected
    assert found[0] == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(found[1], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_megatron_sums_and_divides_as_remit_does(weights, model, expected, weighting):
    schedules = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.packed_seq_params import PackedSeqParams
    from remit.adapters.megatron import PackedRows, loss_func, packed

    config = ModelParallelConfig()
    config.calculate_per_token_loss = True
    objective = Objective.of(remit.open(weights), weighting, normalize="targets")
    samples = iter(PackedRows(dataset(weights), SEQ_LEN))
    for want in expected[weighting]:
        model.zero_grad()
        total = num_tokens = 0
        for _ in range(MICRO_BATCHES):
            batch = next(samples)
            assert {batch[name].shape for name in ("tokens", "labels", "loss_mask", "row")} == {(1, SEQ_LEN)}
            assert isinstance(packed(batch), PackedSeqParams) and packed(batch).cu_seqlens_q[-1] == SEQ_LEN
            logits = logits_of(model, batch["tokens"], batch["position_ids"])
            # As GPTModel does where it gets labels.
            output = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0], reduction="none")[None]
            reports = []
            arguments = (None, output, functools.partial(loss_func, objective, batch), config, None, False)
            loss, tokens = schedules.forward_step_calc_loss(
                *arguments, MICRO_BATCHES, reports, cp_group_size=1, is_last_stage=True
            )
            loss.backward()
            # As finalize_model_grads adds them up.
            counter = torch.zeros([], dtype=torch.int)
            counter += tokens
            num_tokens, total = num_tokens + int(counter), total + float(loss.detach())
        agree((total / num_tokens, model.model.norm.weight.grad / num_tokens), want)


def test_weights_in_megatrons_mask_would_be_truncated(weights):
    """Why the adapter keeps them out of it: what Megatron's loss_func returns as the number of tokens."""
    pytest.importorskip("megatron.core")
    from remit.adapters.megatron import PackedRows, loss_func

    batch = next(iter(PackedRows(dataset(weights), SEQ_LEN)))
    weight = batch["weight"].flatten()
    assert int(weight.sum()) != float(weight.sum())
    with pytest.raises(remit.UsageError, match="Megatron divides by an integer"):
        loss_func(Objective(normalize="weights"), batch, torch.zeros(1, SEQ_LEN))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_torchtitan_gets_numbers_through_its_labels(weights, model, expected, weighting):
    pytest.importorskip("torchtitan.components.loss")
    from remit.adapters.torchtitan import RemitDataLoader, RemitLoss
    from torchtitan.components.loss import IGNORE_INDEX

    shape = {"batch_tokens": 700, "micro_batches": MICRO_BATCHES, "seed": 1}
    config = RemitDataLoader.Config(dataset_path=str(weights), weighting=weighting, **shape)
    loader = config.build(dp_world_size=1, dp_rank=0, seq_len=SEQ_LEN, local_batch_size=1, tokenizer=None)
    loss_fn = RemitLoss.Config(weighting=weighting).build(compile_config=None)
    batches = iter(loader)
    for want in expected[weighting]:
        model.zero_grad()
        micros = [next(batches) for _ in range(MICRO_BATCHES)]
        # As torchtitan's trainer counts.
        valid = sum((labels != IGNORE_INDEX).sum() for _, labels in micros)
        total = 0.0
        for inputs, labels in micros:
            assert inputs["input"].shape == inputs["positions"].shape == labels.shape == (1, SEQ_LEN)
            logits = logits_of(model, inputs["input"], inputs["positions"])
            loss, metrics = loss_fn(logits, labels, valid, positions=inputs["positions"])
            loss.backward()
            total += float(loss.detach())
            assert metrics == {}
        agree((total, model.model.norm.weight.grad), want)
    state = loader.state_dict()
    other = config.build(dp_world_size=1, dp_rank=0, seq_len=SEQ_LEN)
    other.load_state_dict(state)
    assert torch.equal(next(iter(other))[1], next(batches)[1])


def test_a_tagged_label_gives_back_its_id_and_its_number():
    torchtitan = pytest.importorskip("remit.adapters.torchtitan")
    labels = torch.tensor([0, 5, -100, 2**31 - 1, 100])
    values = torch.tensor([-1.5, -0.0, 7.0, -1e-30, 1.2])
    packed = torchtitan.tagged(labels, values)
    assert (packed == -100).tolist() == [False, False, True, False, False]
    ids, found = torchtitan.untagged(packed)
    assert ids.tolist() == [0, 5, 0, 2**31 - 1, 100]
    assert found.tolist() == torch.where(labels == -100, 0.0, values).tolist()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_olmo_core_trains_on_the_loss(weights, weighting, tmp_path):
    """Its own train module and a model of its own, on the CPU: without intra-document masks, so one row an instance."""
    modules = pytest.importorskip("olmo_core.train.train_module.transformer.train_module")
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import AdamWConfig
    from remit.adapters.olmo_core import RemitLoader, RemitModule

    class Module(RemitModule, modules.TransformerTrainModule):
        def record_metric(self, *arguments, **more):
            pass

        def record_ce_loss(self, value, *arguments):
            self.recorded = float(value)

    torch.manual_seed(0)
    ws = remit.open(weights)
    objective = Objective.of(ws, weighting, normalize="targets")
    rows = ShardDataset(ws, seed=1, batch_tokens=130, micro_batches=8)
    config = TransformerConfig.llama_like(vocab_size=1024, n_layers=1, d_model=64, n_heads=4)
    module = Module(
        objective,
        model=config.build(init_device="cpu"),
        optim=AdamWConfig(),
        rank_microbatch_size=2 * 128,
        max_sequence_length=128,
        device=torch.device("cpu"),
    )
    module.model.init_weights(max_seq_len=128, device=torch.device("cpu"))
    loader = RemitLoader(rows, objective, 128, work_dir=tmp_path, steps_per_epoch=3, intra_document=False)
    loader.reshuffle(1)
    steps = list(itertools.islice(iter(ShardDataset(ws, seed=1, batch_tokens=130, micro_batches=8)), 3))
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    for step, batch in zip(steps, batches, strict=True):
        module.zero_grads()
        module.train_batch(batch)
        found = module.recorded, module.model.lm_head.w_out.weight.grad.clone()
        module.zero_grads()
        total = 0.0
        for micro in step.micro_batches:
            logits = module.model(micro.input_ids[None])[0]
            loss = objective.sums(logits, micro).loss_sum / step.num_targets
            loss.backward()
            total += float(loss.detach())
        agree(found, (total, module.model.lm_head.w_out.weight.grad))
    assert loader.get_mock_batch()["remit_is_target"].sum() == 0
    loader.reset()
    state = loader.state_dict()
    other = RemitLoader(dataset(weights), objective, 128, work_dir=tmp_path, steps_per_epoch=3)
    with pytest.raises(remit.UsageError, match="another batch_tokens"):
        other.load_state_dict(state)


def test_olmo_cores_own_collator_makes_weights_of_one():
    """Why the adapter has a loader of its own."""
    collators = pytest.importorskip("olmo_core.data.collator")
    items = [{"input_ids": torch.arange(3), "label_mask": torch.tensor([0.0, 0.8, 1.2])}]
    batch = collators.DataCollator(pad_token_id=0)(items)
    assert batch["label_mask"].tolist() == [[False, True, True]]


def test_levanter_gets_weights_and_segments(weights):
    """Against a stub of LmExample with its real fields: Levanter needs JAX, and versions of other packages."""
    from remit.adapters.levanter import dynamic, examples

    example_type = types.SimpleNamespace
    ws = remit.open(weights)
    for weighting in ("static", "uniform", "dynamic"):
        objective = Objective.of(ws, weighting)
        steps = list(itertools.islice(iter(dataset(weights)), 2))
        found = list(itertools.islice(examples(dataset(weights), objective, SEQ_LEN), 2 * MICRO_BATCHES))
        micros = [(step, micro) for step in steps for micro in step.micro_batches]
        for (step, micro), made in zip(micros, found, strict=True):
            example = example_type(tokens=made["tokens"], loss_weight=made["loss_weight"], segments=made["segment_ids"])
            assert len(example.tokens) == len(example.loss_weight) == len(example.segments) == SEQ_LEN
            assert example.tokens.dtype == np.int32 and example.loss_weight.dtype == np.float32
            assert made["divisor"] == step.num_targets
            # log p of the token after each.
            learner = -1 - (np.append(example.tokens[1:], 0) % 5).astype(np.float32)
            weight = example.loss_weight
            if weighting == "dynamic":
                segments = {"num_segments": made["num_segments"]}
                weight = dynamic(np, made["rl_logprob"], learner, made["segment_ids"], weight, **segments)
            sums = objective.sums_of(-1 - (micro.input_ids % 5).float(), None, micro)
            assert -(weight * learner).sum() == pytest.approx(float(sums.loss_sum), rel=1e-5)
    with pytest.raises(remit.UsageError, match="no excess-top-k in JAX"):
        next(examples(dataset(weights), Objective("excess-top-k"), SEQ_LEN))
