"""What a run logs: TensorBoard's reader finds the numbers of the logs, and evaluations are those of transformers."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT
from oracle import load, metrics_of, perturbed_copy, read_rows, target_log_probs, weights_of

STEPS, EVAL_EVERY = 6, 3
TRAIN_TAGS = ("loss", "ntp_loss", "lr", "grad_norm", "weight_mean", "weight_at_bounds", "tokens_per_second")
EVAL_TAGS = ("loss", "ntp_loss")


class Logged(NamedTuple):
    """A run with two sources to evaluate on, and what it was made of."""

    learner: Path
    eval_rows: list
    output: Path
    started: float
    ended: float


def scalars(output):
    """TensorBoard's scalars of a run: by tag, a list of events with step, value and wall_time."""
    accumulator = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def evaluations_of(output):
    return [json.loads(line) for line in (output / "eval.jsonl").read_text().splitlines()]


def check_scalars(output):
    """Every line of both logs is in TensorBoard, rounded to 32 bits, in order and once; and nothing else is."""
    found = scalars(output)
    metrics, evaluations = metrics_of(output), evaluations_of(output)
    expected = {f"train/{key}": [(line["step"], line[key]) for line in metrics] for key in TRAIN_TAGS}
    if evaluations:
        expected |= {f"eval/{key}": [(line["step"], line[key]) for line in evaluations] for key in EVAL_TAGS}
    for line in evaluations:
        for source in line["sources"]:
            expected.setdefault(f"eval_ntp_loss/{source['source']}", []).append((line["step"], source["ntp_loss"]))
    assert found.keys() == expected.keys()
    for tag, pairs in expected.items():
        assert [event.step for event in found[tag]] == [step for step, _ in pairs], tag
        assert [np.float32(event.value) for event in found[tag]] == [np.float32(value) for _, value in pairs], tag
        times = [event.wall_time for event in found[tag]]
        assert times == sorted(times), tag
    return found


@pytest.fixture(scope="module")
def sets(run, corpus, models, tmp_path_factory):
    """(learner, set to train on, set to evaluate on)."""
    folder = tmp_path_factory.mktemp("sets")
    learner = models / "tiny-llama-base"
    reference = perturbed_copy(learner, folder / "reference", 0.01, seed=4)
    lines = (corpus / "solutions" / "train-00.jsonl").read_text().splitlines(keepends=True)
    train, evaluate = folder / "train", folder / "evaluate"
    train.mkdir()
    evaluate.mkdir()
    (train / "some.jsonl").write_text("".join(lines[:60]))
    (evaluate / "others.jsonl").write_text("".join(lines[60:80]))
    shutil.copyfile(corpus / "prose" / "visit.txt", evaluate / "visit.txt")
    outputs = [folder / "train-set", folder / "eval-set"]
    for documents, output in zip((train, evaluate), outputs):
        run(
            "remit-score",
            documents,
            "-o",
            output,
            "--rl-model",
            reference,
            "--base-model",
            learner,
            "--seq-len",
            96,
            "--exact",
        )
    return learner, *outputs


@pytest.fixture(scope="module")
def logged(run, sets, tmp_path_factory):
    learner, train, evaluate = sets
    output = tmp_path_factory.mktemp("logged") / "annealed"
    started = time.time()
    run(
        "remit-anneal",
        "--weights",
        train,
        "-o",
        output,
        "--steps",
        STEPS,
        "--lr",
        1e-3,
        "--batch-tokens",
        512,
        "--micro-batch-tokens",
        256,
        "--eval-weights",
        evaluate,
        "--eval-every",
        EVAL_EVERY,
    )
    return Logged(learner, read_rows(evaluate), output, started, time.time())


def test_tensorboard_reads_the_numbers_of_the_logs(logged):
    found = check_scalars(logged.output)
    assert len(found["train/loss"]) == STEPS
    times = [event.wall_time for events in found.values() for event in events]
    assert logged.started <= min(times) and max(times) <= logged.ended


def test_evaluations_come_before_between_and_after(logged):
    assert [line["step"] for line in evaluations_of(logged.output)] == [0, EVAL_EVERY, STEPS]


@pytest.mark.parametrize("end", ["first", "last"])
def test_evaluations_are_the_losses_of_transformers(end, logged):
    """Before the first step the model is the learner, after the last it is the one that was written."""
    model = load(logged.learner if end == "first" else logged.output)
    line = evaluations_of(logged.output)[0 if end == "first" else -1]
    sums = {}
    for row in logged.eval_rows:
        with torch.no_grad():
            log_probs = target_log_probs(model, row["input_ids"]).numpy()
        weights = weights_of(np.array(row["rl_logprob"][1:]) - log_probs)
        sums.setdefault(row["source"], []).append((len(log_probs), -(weights * log_probs).sum(), -log_probs.sum()))
    assert len(sums) == 2
    assert [source["source"] for source in line["sources"]] == sorted(sums, key=str.encode)
    everything = [row for rows in sums.values() for row in rows]
    for found, rows in [(source, sums[source["source"]]) for source in line["sources"]] + [(line, everything)]:
        targets, weighted, plain = (sum(values) for values in zip(*rows))
        assert found["targets"] == targets
        assert found["loss"] == pytest.approx(weighted / targets, rel=1e-5)
        assert found["ntp_loss"] == pytest.approx(plain / targets, rel=1e-5)


def test_the_loss_on_other_documents_falls(logged):
    first, *_, last = evaluations_of(logged.output)
    assert last["ntp_loss"] < first["ntp_loss"]


def test_held_out_rows_are_evaluated_on_and_not_trained_on(run, sets, tmp_path):
    _, train, _ = sets
    run(
        "remit-anneal",
        "--weights",
        train,
        "-o",
        tmp_path / "annealed",
        "--epochs",
        1,
        "--batch-tokens",
        512,
        "--holdout",
        0.3,
    )
    held_out = evaluations_of(tmp_path / "annealed")[0]["targets"]
    trained_on = sum(line["targets"] for line in metrics_of(tmp_path / "annealed"))
    targets = sum(len(row["input_ids"]) - 1 for row in read_rows(train))
    assert held_out + trained_on == targets
    assert 0.1 * targets < held_out < 0.5 * targets
    check_scalars(tmp_path / "annealed")


def test_a_killed_run_goes_on_without_a_step_twice(run, sets, tmp_path):
    """What was logged after the newest checkpoint is logged again by the run that goes on, and must not stay twice."""
    _, train, evaluate = sets
    output, metrics = tmp_path / "annealed", tmp_path / "annealed" / "metrics.jsonl"
    arguments = ["--weights", train, "-o", output, "--steps", 200, "--batch-tokens", 256, "--save-every", 7]
    arguments += ["--eval-weights", evaluate, "--eval-every", 5]
    binary = Path(os.environ.get("REMIT_BIN", ROOT / "target" / "release")).resolve() / "remit-anneal"
    for wanted in (25, 60):
        killed = subprocess.Popen(
            [str(binary), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while killed.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    run("remit-anneal", *arguments)
    assert [line["step"] for line in metrics_of(output)] == list(range(1, 201))
    check_scalars(output)
