"""Steps about the card and about scoring: what is there, what it can do, and how much of that is used."""

import statistics

from bench import GB, ROOT, Failed, PeakMemory
from sizes import flops_per_token
from table import Check

ENVIRONMENT = (Check("machine"), Check("remit"))
CEILINGS = (Check("copy, read and written", card_only=True), Check("product of 8192^3, bf16", card_only=True))
MODELS = (Check("random models of OLMo-2-1B's and Qwen3-0.6B's shapes"),)
OLMO = (
    Check("rows of 4096, share of the product rate", "at least 55 %", card_only=True),
    Check("rows of 4096, beside transformers' best attention", "at least 1.3 x", card_only=True),
    Check("rows of 4096, peak memory", "at most model + 6 GB", card_only=True),
    Check("rows of 256, share of the tokens/s at 4096", "at least 80 %", card_only=True),
)
QWEN = (Check("rows of 4096, share of the product rate", "at least 45 %", card_only=True),)


def environment(bench, report):
    found = bench.theirs("environment", device=bench.torch_device)
    versions = f"PyTorch {found['torch']} (CUDA {found['cuda']}), transformers {found['transformers']}"
    if not bench.emulated:
        bench.facts["card"] = found["card"]
        driver = bench.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()[0]
        versions = f"{found['card']}, {found['memory_gb']} GB, sm_{found['capability']}, driver {driver}, {versions}"
    report(ENVIRONMENT[0], versions, None)
    version = ", ".join(bench.remit("remit-score", "--version").splitlines())
    if bench.emulated and "+cuda-emulator" not in version:
        raise Failed(f"{bench.binaries} was built without the feature cuda-emulator")
    # A row is scored before anything else: what is missing is said in the second row of the table.
    rows = bench.rows("first", [16], seed=5)
    _, result = bench.score(rows, "first", ROOT / "fixtures" / "models" / "tiny-qwen3", seq_len=64)
    report(ENVIRONMENT[1], f"{version}; device {result['manifest']['plan']['rl']['device']}", None)


def ceilings(bench, report):
    if bench.emulated:
        return
    found = bench.theirs("ceilings", device=bench.torch_device)
    bench.facts["product rate"] = found["product"]
    report(CEILINGS[0], f"{found['copy'] / 1e12:.2f} TB/s", None)
    report(CEILINGS[1], f"{found['product'] / 1e12:.0f} TFLOP/s", None)


def models(bench, report):
    tokenizer = ROOT / "fixtures" / "models" / "tiny-qwen3"
    found = bench.theirs(
        "make_shapes", folder=bench.folder, shapes=bench.sizes.shapes, tokenizer=tokenizer, device=bench.torch_device
    )
    bench.facts["models"] = {name: {**about, "folder": bench.folder / name} for name, about in found.items()}
    sizes = [f"{about['parameters'] / 1e6:.0f}M parameters, {about['bytes'] / GB:.2f} GB" for about in found.values()]
    report(MODELS[0], "; ".join(sizes), None)


def rate(bench, shape, seq_len, repeats):
    """Tokens/s of scoring in bf16: the difference of a long and a short run, so that starting up is not in it.
    Medians, each of several runs."""
    model = bench.fact("models")[shape]["folder"]
    seconds = []
    for tokens in bench.sizes.timed_tokens:
        rows = bench.rows(f"timed-{tokens}-{seq_len}", [seq_len] * (tokens // seq_len), seed=6)
        runs = []
        for _ in range(repeats):
            _, report = bench.score(
                rows, "timed", model, dtype="bf16", batch_tokens=bench.sizes.batch_tokens, seq_len=seq_len
            )
            runs.append(report["seconds"])
        seconds.append(statistics.median(runs))
    short, long = bench.sizes.timed_tokens
    if not bench.emulated and seconds[1] <= seconds[0]:
        raise Failed(f"the longer run took no longer: {seconds[0]:.2f} and {seconds[1]:.2f} s")
    return (long - short) / max(seconds[1] - seconds[0], 1e-9)


def share(bench, shape, tokens_per_second):
    """The part of the card's product rate that this many tokens/s take, and both in words."""
    flops = tokens_per_second * flops_per_token(bench.sizes.shapes[shape], bench.sizes.seq_len)
    part = flops / bench.fact("product rate")
    return part, f"{part:.1%}: {tokens_per_second:,.0f} tokens/s, {flops / 1e12:.0f} TFLOP/s"


def scoring_olmo(bench, report):
    sizes = bench.sizes
    about = bench.fact("models")["olmo2-1b"]
    ours = rate(bench, "olmo2-1b", sizes.seq_len, sizes.repeats)
    bench.facts["scoring rate"] = ours
    if not bench.emulated:
        part, text = share(bench, "olmo2-1b", ours)
        report(OLMO[0], text, part >= 0.55)
        tokens = sizes.timed_tokens[0]
        rows = bench.rows("memory", [sizes.seq_len] * (tokens // sizes.seq_len), seed=6)
        with PeakMemory() as peak:
            bench.score(rows, "memory", about["folder"], dtype="bf16", batch_tokens=sizes.batch_tokens)
        above = peak.bytes - about["bytes"]
        text = f"model + {above / GB:.2f} GB = {peak.bytes / GB:.2f} GB, batches of {sizes.batch_tokens} tokens"
        report(OLMO[2], text, above <= 6 * GB)
    short = rate(bench, "olmo2-1b", sizes.short_seq_len, sizes.repeats)
    report(OLMO[3], f"{short / ours:.1%}: {short:,.0f} tokens/s", short >= 0.8 * ours)
    theirs = bench.theirs(
        "rate", model=about["folder"], seq_len=sizes.seq_len, batch_tokens=sizes.batch_tokens // 2,
        repeats=sizes.repeats, device=bench.torch_device,
    )  # fmt: skip
    if not bench.emulated:
        reasons = "".join(f"; {name}: {reason}" for name, reason in theirs["reasons"].items())
        if not theirs["rates"]:
            raise Failed(f"transformers runs with no attention{reasons}")
        best = max(theirs["rates"], key=theirs["rates"].get)
        ratio = ours / theirs["rates"][best]
        report(OLMO[1], f"{ratio:.2f} x {theirs['rates'][best]:,.0f} tokens/s with {best}{reasons}", ratio >= 1.3)


def scoring_qwen(bench, report):
    ours = rate(bench, "qwen3-0.6b", bench.sizes.seq_len, bench.sizes.repeats)
    if not bench.emulated:
        part, text = share(bench, "qwen3-0.6b", ours)
        report(QWEN[0], text, part >= 0.45)
