"""Every operation whose gradient is written by hand, over random shapes, against PyTorch's autograd in float64.

A Rust test writes the cases: inputs, an upstream gradient, what the operation's forward gave and its gradients, each
case a safetensors file whose metadata has the name of the operation and its parameters. Here the operation is written
out in PyTorch, from its definition. REMIT_OPS_CASES names a folder that holds cases already; without it cargo makes
them.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conftest import ROOT

# With the features that everything else was compiled with, so that nothing is compiled again.
FEATURES = os.environ.get("REMIT_FEATURES", "object-store")
COMMAND = f"cargo test --release --lib --features {FEATURES} --locked ops_cases -- --ignored".split()
# Norm of the difference by the norm; and for single numbers, of the largest number.
TOLERANCE, LARGEST_TOLERANCE = 1e-5, 5e-5
# What is no input that a gradient is taken of.
CONSTANTS = {"dy", "dy_keys", "dy_values", "d_sum", "ids", "weights", "frequencies", "added"}


class Case:
    """One file: parameters and tensors by name, floats in float64."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.parameters = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.tensors = {name: t.double() if t.is_floating_point() else t.long() for name, t in tensors.items()}
        self.name, self.op = path.stem, self.parameters["op"]
        #: Whether the factor of a norm counts as a constant, so that its gradient is one term of two.
        self.holds_factors = False

    def __repr__(self):
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        return f"{self.name} {self.parameters} {shapes}"

    def number(self, name, default=None):
        """A parameter as a float; None where it is "none"."""
        value = self.parameters.get(name, default)
        return None if value in (None, "none") else float(value)

    def size(self, name, default=None):
        value = self.number(name, default)
        return None if value is None else int(value)

    def rows(self, num_tokens):
        """The token range of each row."""
        lengths = self.parameters.get("row_lengths") or str(num_tokens)
        ranges, start = [], 0
        for length in map(int, lengths.split(",")):
            ranges.append(slice(start, start + length))
            start += length
        assert start == num_tokens
        return ranges


def soft_capped(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def norm(case, x, w):
    groups = x.unflatten(-1, (-1, len(w)))
    factor = torch.rsqrt(groups.square().mean(-1, keepdim=True) + case.number("eps"))
    if case.holds_factors:
        factor = factor.detach()
    scaled = groups * factor
    return {"y": (scaled * (w + case.number("offset", "0"))).flatten(-2)}


def rope(case, x):
    head_dim, first = case.size("head_dim"), case.size("first", "0")
    if "frequencies" in case.tensors:
        frequencies = case.tensors["frequencies"]
    else:
        rotated = case.size("rotary_dim", str(head_dim - first))
        frequencies = case.number("theta") ** (-torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
        # As in transformers the table is in float32.
        frequencies = frequencies.float().double()
    half = len(frequencies)
    positions = torch.cat([torch.arange(row.stop - row.start) for row in case.rows(len(x))])
    angles = (positions.float()[:, None] * frequencies.float()).double()[:, None, :]  # [tokens, 1, half]
    turn = torch.polar(torch.full_like(angles, case.number("rope_scale", "1")), angles)
    heads = x.unflatten(-1, (-1, head_dim))
    before, turned, after = heads.split([first, 2 * half, head_dim - first - 2 * half], dim=-1)
    if case.parameters["interleaved"] == "true":
        pairs = turned.unflatten(-1, (half, 2))
        z = torch.complex(pairs[..., 0], pairs[..., 1]) * turn
        turned = torch.stack([z.real, z.imag], -1).flatten(-2)
    else:
        z = torch.complex(turned[..., :half], turned[..., half:]) * turn
        turned = torch.cat([z.real, z.imag], -1)
    return {"y": torch.cat([before, turned, after], -1).flatten(-2)}


def add_norm(case, x, addend, w):
    """The residual stream with something added to it, and the norm of the sum."""
    return {"sum": x + addend} | norm(case, x + addend, w)


def norm_rope(case, x, w):
    return rope(case, norm(case, x, w)["y"])


def embedding(case, table):
    return {"y": torch.nn.functional.embedding(case.tensors["ids"], table) * case.number("scale")}


def attention(case, q, k, v):
    heads, kv_heads, window = case.size("heads"), case.size("kv_heads"), case.size("window", "none")
    q, k, v = (t.unflatten(-1, (n, -1)).transpose(0, 1) for t, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
    rows = []
    for row in case.rows(q.shape[1]):
        scores = soft_capped(
            q[:, row] @ k[:, row].transpose(1, 2) * case.number("scale"), case.number("soft_cap", "none")
        )
        distance = torch.arange(scores.shape[1])[:, None] - torch.arange(scores.shape[1])
        hidden = (distance < 0) | (distance >= window if window is not None else torch.tensor(False))
        rows.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, row])
    return {"y": torch.cat(rows, 1).transpose(0, 1).flatten(-2)}


def glu(case, gate, up):
    activations = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }
    return {"y": activations[case.parameters["activation"].replace("-", "_")](gate) * up}


def linear(case, x, w, b=None):
    return {"y": torch.nn.functional.linear(x, w, b)}


def mla(case, kv, k_rope):
    """Keys [tokens, heads * (nope + rope)] and values [tokens, heads * value] from `kv`, which has the unrotated
    key and the value of each head, and `k_rope`, the rotated part that all heads have in common."""
    nope, value = case.size("nope"), case.size("value")
    pairs = kv.unflatten(-1, (-1, nope + value))
    keys = torch.cat([pairs[..., :nope], k_rope[:, None, :].expand(-1, pairs.shape[1], -1)], -1)
    return {"keys": keys.flatten(-2), "values": pairs[..., nope:].flatten(-2)}


def lm_head(case, x, w):
    """Log-probs of the targets, and what is minimised: sum of weight * -log p + z_loss * (log-sum-exp)^2, the latter over those
    whose weight is not 0: here these are no targets."""
    ids, weights = case.tensors["ids"], case.tensors["weights"]
    rows = case.rows(len(x))
    hidden = torch.cat([x[row.start : row.stop - 1] for row in rows])
    targets = torch.cat([ids[row.start + 1 : row.stop] for row in rows])
    logits = soft_capped(hidden @ w.T, case.number("soft_cap", "none"))
    normalizers = logits.logsumexp(-1)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - normalizers
    loss = -(weights * log_probs).sum() + case.number("z_loss", "0") * normalizers[weights != 0].square().sum()
    return {"log_probs": log_probs, "loss": loss}


# The inputs of each operation, optional ones last, and the parameters that cases have to vary.
OPERATIONS = {
    "norm": (norm, ["x", "w"], ["offset"]),
    "rope": (rope, ["x"], ["interleaved"]),
    "attention": (attention, ["q", "k", "v"], ["heads", "kv_heads", "window", "soft_cap", "row_lengths"]),
    "glu": (glu, ["gate", "up"], ["activation"]),
    "linear": (linear, ["x", "w", "b"], []),
    "mla": (mla, ["kv", "k_rope"], ["nope", "value"]),
    "add_norm": (add_norm, ["x", "addend", "w"], ["offset"]),
    "norm_rope": (norm_rope, ["x", "w"], ["offset", "interleaved"]),
    "embedding": (embedding, ["table"], ["scale"]),
    "lm_head": (lm_head, ["x", "w"], ["soft_cap", "z_loss", "row_lengths"]),
}
# The names that gradients have where they are not "d" and the input's name.
GRADIENT_NAMES = {("lm_head", "w"): "dhead"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """All cases, by operation."""
    folder = os.environ.get("REMIT_OPS_CASES")
    if folder is None:
        folder = tmp_path_factory.mktemp("ops")
        done = subprocess.run(
            COMMAND, cwd=ROOT, env={**os.environ, "REMIT_OPS_CASES": str(folder)}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(COMMAND)}\n{done.stdout}{done.stderr}"
    found = {}
    for path in sorted(Path(folder).glob("case-*.safetensors")):
        case = Case(path)
        found.setdefault(case.op, []).append(case)
    return found


def assert_close(found, expected, what, case, terms=None):
    """Compares by norm and by the largest element, relative to those expected, or, where terms cancel to nothing, as the
    gradient of a softmax of one element, to a hundredth of the norm of those terms: of the gradient that came in, if not
    given."""
    if terms is None:
        terms = case.tensors["dy"].norm().item() if "dy" in case.tensors else 0.0
    floor = max(1e-9, 1e-2 * terms)
    assert found.shape == expected.shape, f"{what} of {case}: {found.shape} instead of {expected.shape}"
    apart = (found - expected).norm() / expected.norm().clamp(min=floor)
    largest = (
        (found - expected).abs().max() / expected.abs().max().clamp(min=floor) if found.numel() else torch.tensor(0.0)
    )
    assert apart < TOLERANCE and largest < LARGEST_TOLERANCE, f"{what} of {case} is off by {apart:.1e}, {largest:.1e}"


def differentiate(case):
    """Outputs of a case, computed by PyTorch, and the gradients of its inputs."""
    function, names, _ = OPERATIONS[case.op]
    inputs = {name: case.tensors[name].clone().requires_grad_() for name in names if name in case.tensors}
    outputs = function(case, **inputs)
    if case.op == "lm_head":
        total = outputs.pop("loss")
    elif case.op == "mla":
        total = (outputs["keys"] * case.tensors["dy_keys"]).sum() + (
            outputs["values"] * case.tensors["dy_values"]
        ).sum()
    else:
        total = (outputs["y"] * case.tensors["dy"]).sum()
        if "sum" in outputs:
            total = total + (outputs["sum"] * case.tensors["d_sum"]).sum()
    return outputs, dict(zip(inputs, torch.autograd.grad(total, list(inputs.values()))))


def norms_of_terms(case):
    """By input, the norm of the terms that its gradient is the sum of; none for what the gradient that came in tells.

    The gradient of a norm is that of its input, times a factor, less that of the factor. Over one or two small elements
    the two cancel, and are many times larger than what came in."""
    if "norm" not in case.op:
        return {}
    case.holds_factors = True
    _, gradients = differentiate(case)
    case.holds_factors = False
    return {name: gradient.norm().item() for name, gradient in gradients.items() if name != "w"}


def check(case):
    """Outputs and gradients of a case against those of its operation in PyTorch."""
    outputs, gradients = differentiate(case)
    terms = norms_of_terms(case)
    compared = set(gradients)
    for name, expected in outputs.items():
        assert_close(case.tensors[name], expected.detach(), name, case)
        compared.add(name)
    for name, expected in gradients.items():
        written = "d" + name
        if written not in case.tensors:
            written = GRADIENT_NAMES.get((case.op, name), written)
        if name == "x" and "added" in case.tensors:
            expected = expected + case.tensors["added"]
        assert_close(case.tensors[written], expected, written, case, terms.get(name))
        compared.add(written)
    assert set(case.tensors) - compared <= CONSTANTS, f"tensors of {case} that nothing was compared with"


@pytest.mark.parametrize("op", OPERATIONS)
def test_gradients_are_those_of_autograd(op, cases):
    assert len(cases.get(op, [])) >= 10, f"too few cases of {op}"
    for case in cases[op]:
        check(case)


@pytest.mark.parametrize("op", OPERATIONS)
def test_cases_vary(op, cases):
    """The parameters that matter take more than one value, and so do the shapes."""
    _, names, parameters = OPERATIONS[op]
    for parameter in parameters:
        assert len({case.parameters.get(parameter) for case in cases[op]}) > 1, (
            f"{parameter} of {op} is always the same"
        )
    for name in names:
        assert len({tuple(case.tensors[name].shape) for case in cases[op] if name in case.tensors}) > 1, (
            f"{name} of {op}"
        )
    if op == "linear":
        assert {"b" in case.tensors for case in cases[op]} == {False, True}
    if op == "rope":
        assert any(2 * turned(case) < case.size("head_dim") for case in cases[op]), "no rotation is partial"
    if op == "attention":
        assert any(case.size("heads") > case.size("kv_heads") for case in cases[op]), "no heads are grouped"


def turned(case):
    """Pairs of features that turn."""
    if "frequencies" in case.tensors:
        return len(case.tensors["frequencies"])
    return case.size("rotary_dim", str(case.size("head_dim") - case.size("first", "0"))) // 2


def test_there_is_a_check_for_every_operation(cases):
    assert cases.keys() == OPERATIONS.keys()
