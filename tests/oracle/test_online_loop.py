"""The paper's online loop in PyTorch, with the RL model in every step, against remit-anneal on what was stored: the
runs of scripts/online_loop.py."""

import sys

import pytest
import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from online_loop import CASES, STEPS, Experiment  # noqa: E402


@pytest.fixture(scope="module")
def experiment(run, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on matrices this small a second thread gains nothing
    yield Experiment(tmp_path_factory.mktemp("online"), run)
    torch.set_num_threads(before)


def test_the_order_covers_more_than_one_epoch_without_a_row_twice_in_a_step(experiment):
    order = experiment.order()
    rows = [row for step in order for row in step]
    assert len(order) == STEPS
    assert all(len(set(step)) == len(step) for step in order)
    assert len(rows) > 2 * len(set(rows)), "every row should come up more than twice"


@pytest.mark.parametrize("name", CASES)
def test_annealing_follows_the_loop_in_pytorch(name, experiment):
    case = CASES[name]
    found = experiment.compare(case)
    for step, (ours, theirs) in enumerate(zip(found.ours, found.theirs), 1):
        assert ours == pytest.approx(theirs, rel=case.loss_limit), f"loss of step {step}"
    assert found.tensor_difference < case.tensor_limit
    assert found.ours[-1] < 0.9 * found.ours[0], "the loss hardly moved, so the comparison says little"


def test_the_comparison_tells_weightings_apart(experiment):
    """The loops in PyTorch part within the run by more than the limits, and not all weights are at the bounds."""
    assert experiment.compare(CASES["dynamic, --exact"]).at_bounds < 0.8
    losses = {
        loop: [step["loss"] for step in experiment.in_pytorch(loop)[0]] for loop in ("online", "uniform", "static")
    }
    for other in ("uniform", "static"):
        assert max(abs(a / b - 1) for a, b in zip(losses["online"], losses[other])) > 1e-3
    online, static = (experiment.in_pytorch(loop)[1] for loop in ("online", "static"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert (online[name] - static[name]).norm() / static[name].norm() > 1e-3
