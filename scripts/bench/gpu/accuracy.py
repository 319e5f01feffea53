"""Steps that say whether results are right: the card against the CPU, against transformers, and against itself."""

import hashlib
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor

from bench import ROOT, Failed, differences, worst
from table import Check

NATS, BF16_NATS = 1e-4, 0.02
# Two sides that round alike differ by chance.
NO_WORSE = 1.05
GRADIENT, GRADIENT_FLOOR = 1e-4, 1e-3

# Of the library's tests, by parts of their names: those that run on the card.
KERNEL_TESTS = ("kernels::conformance", "kernels::cuda")

# Here the ordinary tests run them on the emulated GPU.
KERNELS = (Check("every operation, both ways, f32 and bf16, against f64", "all tests pass", card_only=True),)
SELF_TEST = (
    Check("log-probs of every family, f32, against the CPU", f"at most {NATS:.0e} nats apart"),
    Check("gradients of every family, f32, against the CPU", f"at most {GRADIENT:.0e} of a parameter's norm"),
)
FAMILIES = (Check("every family, f32, against transformers", f"at most {NATS:.0e} nats apart"),)
SHAPES = (
    Check("OLMo-2-1B's shape, f32, against transformers", f"at most {NATS:.0e} nats apart"),
    Check("OLMo-2-1B's shape, bf16, mean distance from f32", f"at most {BF16_NATS} nats, and transformers' x {NO_WORSE}"),
    Check("Qwen3-0.6B's shape, bf16, mean distance from f32", f"at most {BF16_NATS} nats, and transformers' x {NO_WORSE}"),
    Check("log-probs above 0, or not finite, of shapes and families", "none"),
)
INVARIANCE = (
    Check("rows alone and in batches of any size", "equal bytes"),
    Check("two runs", "equal bytes"),
    Check("rows in another order", "equal log-probs"),
)


def family_models(bench):
    wanted = bench.sizes.families
    folders = sorted(p.parent for p in (ROOT / "fixtures" / "models").glob("tiny-*/tokenizer.json"))
    names = {p.name.removeprefix("tiny-"): p for p in folders if not p.name.endswith("-base")}
    return {name: path for name, path in names.items() if wanted is None or name in wanted}


def named_worst(found):
    """The largest of values by name, and whose it is."""
    name = max(found, key=lambda name: math.inf if found[name] != found[name] else found[name])
    return found[name], f"{found[name]:.1e} ({name}, of {len(found)})"


def kernel_tests(bench):
    """The program with the library's tests."""
    program = bench.binaries / "remit-kernel-tests"
    if not program.exists():
        raise Failed("there is no remit-kernel-tests; REMIT_KERNEL_TESTS=1 scripts/build-cuda.sh builds it")
    return program


def kernels(bench, report):
    """The library's tests of kernels, on the card."""
    if bench.emulated:
        return
    output = bench.run([kernel_tests(bench), *KERNEL_TESTS], {**bench.remit_environment, "REMIT_TEST_GPU": "1"})
    [result] = [line for line in output.splitlines() if line.startswith("test result:")]
    report(KERNELS[0], result.removeprefix("test result: ").split("; 0 measured")[0], " 0 passed" not in result)


def self_test(bench, report):
    """Every family's log-probs and gradients on the card, beside the CPU's of the same binary."""
    models = family_models(bench)
    # Other weights than those that the kernels were made with, the same in every run.
    bench.theirs("make_families", folder=bench.folder, models=list(models.values()), seed=20, noise=0.01)
    rows = bench.rows("families", bench.sizes.family_lengths, seed=1)
    bench.facts["rows of the families"] = rows

    def on_both(name):
        base, reference = (bench.folder / f"tiny-{name}-{kind}" for kind in ("base", "reference"))
        sets, columns, checkpoints = [], [], []
        for device in (bench.device, "cpu"):
            side = f"{name}-{'cpu' if device == 'cpu' else 'card'}"
            scored, _ = bench.score(
                rows, f"self-{side}", reference, "--base-model", base, "--exact", device=device, seq_len=512
            )
            sets.append(scored)
            columns.append([bench.log_probs(scored, column) for column in ("rl_logprob", "base_logprob")])
        for device in (bench.device, "cpu"):
            side = f"{name}-{'cpu' if device == 'cpu' else 'card'}"
            output, _ = bench.anneal(
                sets[1], f"step-{side}", base, "--steps", 1, "--save-every", 1, "--clip", "none", device=device
            )
            checkpoints.append(output / "checkpoints" / "step-00000001.safetensors")
        ours, expected = columns
        apart = worst(value for a, b in zip(ours, expected) for value in differences(a, b))
        return name, sets[0], ours[0], apart, checkpoints

    with ThreadPoolExecutor(bench.sizes.family_jobs) as pool:
        found = list(pool.map(on_both, models))
    bench.facts["sets of the families"] = {name: scored for name, scored, *_ in found}
    bench.facts["log-probs of the families"] = {name: ours for name, _, ours, *_ in found}
    largest, text = named_worst({name: apart for name, _, _, apart, _ in found})
    report(SELF_TEST[0], text, largest <= NATS)
    apart = bench.theirs("gradients_apart", pairs={name: files for name, *_, files in found}, floor=GRADIENT_FLOOR)
    largest, text = named_worst(apart)
    report(SELF_TEST[1], text, largest <= GRADIENT)


def of_transformers(bench, models, rows, dtype, device):
    output = bench.folder / "of-transformers.json"
    bench.theirs("log_probs", models=models, rows=rows, dtype=dtype, device=device, output=output)
    found = json.loads(output.read_text())
    return {
        name: side if isinstance(side, str) else {int(row): values for row, values in side.items()}
        for name, side in found.items()
    }


def families(bench, report):
    """Every family in f32 beside transformers, which runs on the CPU, a row at a time."""
    families = bench.fact("log-probs of the families")
    references = {name: bench.folder / f"tiny-{name}-reference" for name in families}
    expected = of_transformers(bench, references, bench.fact("rows of the families"), "f32", "cpu")
    apart, lacking = {}, []
    for name, ours in families.items():
        if isinstance(expected[name], str):
            lacking.append(name)
        else:
            apart[name] = worst(differences(ours, expected[name]))
    if not apart:
        raise Failed(f"transformers loads none of the families: {expected[lacking[0]]}")
    largest, text = named_worst(apart)
    report(FAMILIES[0], text + (f"; not in transformers there: {', '.join(lacking)}" if lacking else ""), largest <= NATS)


def shapes(bench, report):
    """The large shapes beside transformers on the card: in f32, where both are the same, and in bf16, where both round."""
    everything = list(bench.fact("log-probs of the families").values())
    rows = bench.rows("lengths", bench.sizes.lengths, seed=2)
    for shape, in_bf16 in (("olmo2-1b", SHAPES[1]), ("qwen3-0.6b", SHAPES[2])):
        model = bench.fact("models")[shape]["folder"]
        truth, rounded = (
            of_transformers(bench, {shape: model}, rows, dtype, bench.torch_device)[shape] for dtype in ("f32", "bf16")
        )
        if isinstance(truth, str) or isinstance(rounded, str):
            raise Failed(f"transformers does not load {shape}: {truth}")
        scored, _ = bench.score(rows, f"{shape}-bf16", model, "--exact", dtype="bf16")
        ours = bench.log_probs(scored)
        everything.append(ours)
        if shape == "olmo2-1b":
            scored, _ = bench.score(rows, f"{shape}-f32", model, "--exact")
            exact = bench.log_probs(scored)
            everything.append(exact)
            largest = worst(differences(exact, truth))
            report(SHAPES[0], f"{largest:.1e}", largest <= NATS)
        own, other = (sum(values) / len(values) for values in (differences(ours, truth), differences(rounded, truth)))
        report(in_bf16, f"{own:.2e}, transformers {other:.2e}", own <= BF16_NATS and own <= NO_WORSE * other)
    values = [float(value) for side in everything for row in side.values() for value in row]
    wrong = sum(not (math.isfinite(value) and value <= 0) for value in values)
    report(SHAPES[3], f"{wrong} of {len(values)}", bool(values) and wrong == 0)


def shard_digests(scored):
    files = sorted(scored.glob("*.parquet"))
    if not files:
        raise Failed(f"{scored} has no shards")
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def invariance(bench, report):
    """A row's log-probs have the same bits whatever is beside it."""
    model = bench.fact("models")["qwen3-0.6b"]["folder"]
    generator = random.Random(3)
    lengths = [generator.randint(2, bench.sizes.invariance_longest) for _ in range(bench.sizes.invariance_rows)]
    rows = bench.rows("invariance", lengths, seed=4)
    digests, sets = {}, {}
    for tokens in bench.sizes.invariance_batches:
        sets[tokens], _ = bench.score(rows, f"batches-{tokens}", model, "--exact", dtype="bf16", batch_tokens=tokens)
        digests[tokens] = shard_digests(sets[tokens])
    alone, *others = bench.sizes.invariance_batches
    differing = [str(tokens) for tokens in others if digests[tokens] != digests[alone]]
    batches = ", ".join(map(str, others))
    value = f"{len(lengths)} rows alone and in batches of {batches} tokens" + (
        f": other bytes at {', '.join(differing)}" if differing else ""
    )
    report(INVARIANCE[0], value, not differing)

    last = others[-1]
    again, _ = bench.score(rows, "again", model, "--exact", dtype="bf16", batch_tokens=last)
    report(INVARIANCE[1], f"batches of {last} tokens", shard_digests(again) == digests[last])

    order = list(range(len(lengths)))
    generator.shuffle(order)
    lines = rows.read_text().splitlines(keepends=True)
    shuffled = bench.folder / "shuffled.jsonl"
    shuffled.write_text("".join(lines[i] for i in order))
    other, _ = bench.score(shuffled, "shuffled", model, "--exact", dtype="bf16", batch_tokens=last)
    expected, found = bench.log_probs(sets[last]), bench.log_probs(other)
    differing = sum(found[place] != expected[row] for place, row in enumerate(order))
    report(INVARIANCE[2], f"{differing} of {len(order)} rows differ", differing == 0)
