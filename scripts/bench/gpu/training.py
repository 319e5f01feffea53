"""Steps about training: the same steps as PyTorch, the same bits twice, and how fast."""

import filecmp
import json
import statistics

from bench import worst
from table import Check

STEPS, LR = 20, 2e-3
LOSS, NORM = 1e-4, 1e-3

STEPS_CHECKS = (
    Check(f"loss of {STEPS} steps, f32, against PyTorch", f"at most {LOSS:.0e} apart, relative"),
    Check(f"norm of the gradient of {STEPS} steps", f"at most {NORM:.0e} apart, relative"),
    Check("two runs, f32 and bf16: the trained weights", "equal bytes"),
)
SPEED = (
    Check("uniform: 6 x parameters x tokens, share of the product rate", "at least 40 %", card_only=True),
    Check("dynamic, time of a step beside uniform", "at most 1.02 x", card_only=True),
    Check("online form, its time composed, beside dynamic", "at least 1.25 x", card_only=True),
)


def steps(bench, report):
    """Steps of tiny models of several families; losses beside PyTorch's of the same rows."""
    rows, sets = bench.fact("rows of the families"), bench.fact("sets of the families")
    losses, norms, differing = {}, {}, []
    how = ("--steps", STEPS, "--lr", LR, "--batch-tokens", sum(bench.sizes.family_lengths))
    for name in bench.sizes.trained:
        base = bench.folder / f"tiny-{name}-base"
        output, ours = bench.anneal(sets[name], f"trained-{name}", base, *how)
        again, _ = bench.anneal(sets[name], f"trained-{name}-again", base, *how)
        references = bench.folder / f"references-{name}.json"
        of_reference = bench.fact("log-probs of the families")[name]
        references.write_text(json.dumps({row: list(map(float, values)) for row, values in of_reference.items()}))
        history = bench.folder / f"history-{name}.json"
        bench.theirs("train", model=base, rows=rows, references=references, steps=STEPS, lr=LR, output=history)
        theirs = json.loads(history.read_text())
        assert len(ours) == len(theirs) == STEPS
        losses[name], norms[name] = (
            worst(abs(a[key] / b[key] - 1) for a, b in zip(ours, theirs)) for key in ("loss", "grad_norm")
        )
        pairs = [(output, again)]
        pairs.append(
            tuple(
                bench.anneal(sets[name], f"trained-{name}-bf16-{run}", base, *how[2:], "--steps", 3, dtype="bf16")[0]
                for run in (1, 2)
            )
        )
        for pair in pairs:
            if not filecmp.cmp(*(folder / "model.safetensors" for folder in pair), shallow=False):
                differing.append(pair[0].name)
    names = ", ".join(bench.sizes.trained)
    report(STEPS_CHECKS[0], f"{worst(losses.values()):.1e} ({names})", worst(losses.values()) <= LOSS)
    report(STEPS_CHECKS[1], f"{worst(norms.values()):.1e}", worst(norms.values()) <= NORM)
    report(STEPS_CHECKS[2], f"{', '.join(differing)} differ" if differing else "equal", not differing)


def speed(bench, report):
    """Steps of OLMo-2-1B's shape. The set is one step, scored by the model itself: the values of weights take no time."""
    sizes, about = bench.sizes, bench.fact("models")["olmo2-1b"]
    rows = bench.rows("step", [sizes.seq_len] * (sizes.step_tokens // sizes.seq_len), seed=8)
    scored, _ = bench.score(
        rows, "step-set", about["folder"], dtype="bf16", batch_tokens=sizes.batch_tokens, seq_len=sizes.seq_len
    )
    seconds = {"uniform": [], "dynamic": []}
    for weighting in ("uniform", "dynamic", "dynamic", "uniform")[: 2 if bench.emulated else 4]:
        _, lines = bench.anneal(
            scored, "speed", about["folder"], "--weighting", weighting, "--steps", sizes.steps, "--save-every", 1_000_000,
            "--batch-tokens", sizes.step_tokens, "--micro-batch-tokens", sizes.micro_batch_tokens, dtype="bf16",
        )  # fmt: skip
        # The first two don't count: kernels are loaded and memory is taken.
        seconds[weighting] += [line["tokens"] / line["tokens_per_second"] for line in lines[2:]]
    if bench.emulated:
        return
    uniform, dynamic = (statistics.median(seconds[weighting]) for weighting in ("uniform", "dynamic"))
    flops = 6 * about["parameters"] * sizes.step_tokens / uniform
    part = flops / bench.fact("product rate")
    tokens = sizes.step_tokens / uniform
    report(SPEED[0], f"{part:.1%}: {tokens:,.0f} tokens/s, {flops / 1e12:.0f} TFLOP/s", part >= 0.4)
    report(SPEED[1], f"{dynamic / uniform:.3f} x, {dynamic:.2f} s", dynamic <= 1.02 * uniform)
    # There is no online form to run. It would score the step's tokens with the RL model, of the same shape, and then
    # take a dynamic step: the times of the two are added.
    online = sizes.step_tokens / bench.fact("scoring rate") + dynamic
    text = f"{online / dynamic:.2f} x (a dynamic step and the time of scoring its tokens)"
    report(SPEED[2], text, online >= 1.25 * dynamic)
