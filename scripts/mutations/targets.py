"""What is damaged, where it lies, and the command lines that read it."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from . import flatbuffer, plain, seeds, text, thrift


@dataclass
class Case:
    """A file that is damaged, and the command lines that are run on it."""

    path: Path
    data: bytes
    #: Any of several lists of command lines, all of which of one are run.
    commands: list
    #: What is removed after each input.
    outputs: list = field(default_factory=list)
    #: Called before each input, and with the bytes before the command lines.
    prepare: Callable | None = None
    #: Called with the damaged bytes and all ends; tells what is wrong with them.
    check: Callable | None = None
    #: Names one of which an error has to have; the file's and its folder's if there are none.
    names: tuple = ()


@dataclass
class Target:
    name: str
    kinds: list
    cases: list
    #: Exit codes that a damaged file may have.
    codes: tuple = (0, 65)
    #: Share of all inputs.
    share: int = 10


def score(folder, path, *more, model="models/tiny-llama", out="out"):
    return ["remit-score", str(path), "-o", str(folder / out), "--rl-model", str(folder / model), "--seq-len", "256", *map(str, more)]


def corpora(folder):
    """Corpus files of every format."""
    made = {"jsonl": seeds.jsonl(), "parquet": seeds.parquet(), "arrow": seeds.arrow(), "token ids": seeds.arrays()}
    bad = {path.name: path.read_bytes() for path in seeds.BAD.iterdir() if path.stat().st_size < 20_000}
    for end in ("parquet", "arrow"):
        made[end] |= {f"bad-{name}": data for name, data in bad.items() if name.endswith(end)}
    kinds = {
        "jsonl": plain.KINDS + text.LINES * 4,
        "parquet": plain.KINDS + thrift.KINDS * 3,
        "arrow": plain.KINDS + flatbuffer.KINDS * 4,
        "token ids": plain.KINDS + [text.header_of_npy] * 8,
    }
    shares = {"jsonl": 10, "parquet": 16, "arrow": 14, "token ids": 6}
    targets = []
    for name, files in made.items():
        cases = []
        for file, data in files.items():
            path = folder / "corpus" / name.replace(" ", "-") / file
            more = ["--token-dtype", "uint16", "--separator", "0"] if file.endswith(".bin") else []
            if file.startswith(("chat", "messages")):
                more += ["--chat-template", folder / "chat.jinja"]
            command = score(folder, path, *more)
            skipping = [*command, "--on-bad-record", "skip"]
            commands = [[skipping]] if file.startswith("nulls") else [[command], [skipping]]
            cases.append(Case(path, data, commands, [folder / "out"]))
        targets.append(Target(name, kinds[name], cases, share=shares[name]))
    return targets


def models(folder):
    """config.json, the weights' headers, and all that says what a tokenizer is."""
    names = sorted(path.name for path in seeds.MODELS.iterdir() if path.name.startswith(("tiny-", "odd-")))
    configs = []
    for name in names:
        seeds.link_model(name, folder / "models" / name)
        model = folder / "models" / name
        configs.append(Case(model / "config.json", (model / "config.json").read_bytes(), [[["remit-inspect", "model", str(model)]]]))
    small = folder / "models" / "tiny-llama" / "config.json"
    # A model of few positions is too small for an option, which is exit code 2.
    names = ("config.json", "tiny-llama", "--seq-len")
    configs += [Case(small, small.read_bytes(), [[score(folder, folder / "good.jsonl")]], [folder / "out"], names=names)] * 8
    for path in (seeds.FIXTURES / "configs").iterdir():
        model = folder / "configs" / path.stem
        model.mkdir(parents=True)
        configs.append(Case(model / "config.json", path.read_bytes(), [[["remit-inspect", "model", str(model)]]]))

    weights = []
    for name in ("tiny-llama", "tiny-gemma3", "tiny-youtu"):
        model = folder / "weights" / name
        seeds.link_model(name, model)
        path = model / "model.safetensors"
        commands = [[["remit-inspect", "model", str(model), "--check-values"]], [score(folder, folder / "good.jsonl", model=f"weights/{name}")]]
        weights.append(Case(path, path.read_bytes(), commands, [folder / "out"]))
    model = seeds.link_model("tiny-llama", folder / "weights" / "sharded")
    seeds.sharded(model)
    for path in (model / "model.safetensors.index.json", model / "model-00001-of-00002.safetensors"):
        commands = [[["remit-inspect", "model", str(model), "--check-values"]], [score(folder, folder / "good.jsonl", model="weights/sharded")]]
        weights.append(Case(path, path.read_bytes(), commands, [folder / "out"]))

    tokenizers = []
    for name, data in seeds.tokenizers().items():
        model = seeds.link_model("tiny-llama", folder / "tokenizers" / name)
        (model / "tokenizer.json").write_bytes(data)
        (model / "tokenizer_config.json").write_bytes(seeds.tokenizer_config())
        (model / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "additional_special_tokens": ["a"]}')
        (model / "added_tokens.json").write_text('{"<s>": 11}')
        commands = [[score(folder, folder / "mixed.jsonl", "--on-bad-record", skip, model=f"tokenizers/{name}")] for skip in ("fail", "skip")]
        for file in ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            # A chat template that can't be applied to a record is named with the record, and by the log before.
            names = (file, f"tokenizers/{name}", "mixed.jsonl, record ")
            tokenizers.append(Case(model / file, (model / file).read_bytes(), commands, [folder / "out"], names=names))
    template = folder / "damaged.jinja"
    commands = [[score(folder, folder / "chat.jsonl", "--chat-template", template)]]
    tokenizers += [Case(template, seeds.TEMPLATE.encode(), commands, [folder / "out"], names=("damaged.jinja", "chat.jsonl, record "))] * 3
    headers = [text.header_of_safetensors] * 14
    return [
        Target("config.json", plain.KINDS[:4] + text.JSON * 4, configs, codes=(0, 2, 65), share=14),
        Target("weights", plain.KINDS + headers + text.JSON, weights, codes=(0, 65, 66), share=8),
        Target("tokenizers", plain.KINDS[:6] + text.JSON * 5, tokenizers, share=14),
    ]


def is_damage(case_data):
    """A set that is not what was written is never taken for one that is."""

    def check(data, ends):
        if data != case_data and ends[0].code == 0:
            return "damage passed remit-inspect verify"

    return check


def sets(folder, run, harness):
    """Sets that were damaged, first as accidents do, then with all digests made right again."""
    damaged, forged = [], []
    corpus = folder / "good.jsonl"
    for form in ("parquet", "arrow"):
        bad = ["--part-bytes", 700, "--format", form, "--on-bad-record", "skip", "--base-model", folder / "models/tiny-llama-base"]
        command = score(folder, folder / "some-bad.jsonl", *bad, out=f"set-{form}")
        run(*command)
        intact = folder / f"set-{form}"
        files = sorted(path for path in intact.rglob("*") if path.is_file())
        verify = ["remit-inspect", "verify"]
        anneal = ["remit-anneal", "--steps", "1", "--batch-tokens", "64", "-o", str(folder / "model-out"), "--model", str(folder / "models/tiny-llama")]

        def readers(set_):
            again = [*command[:3], str(set_), *command[4:]]
            return [
                [[*verify, str(set_)], ["remit-inspect", str(set_)]],
                [[*verify, str(set_)], ["remit-inspect", "show", str(set_), "--row", "0"]],
                [[*verify, str(set_)], ["remit-inspect", "rejects", str(set_)]],
                [[*verify, str(set_)], [*again, "--verify"]],
                [[*verify, str(set_)], ["remit-inspect", "order", str(set_), "--batch-tokens", "64"]],
                [[*verify, str(set_)], ["remit-inspect", "export", str(set_), "--tokens", str(folder / "table.csv")]],
                [[*verify, str(set_)], [*anneal, "--weights", str(set_)]],
            ]

        outputs = [folder / "model-out", folder / "table.csv"]
        for path in files:
            data = path.read_bytes()
            damaged.append(Case(path, data, readers(intact), outputs, check=is_damage(data)))

        # Before there is a manifest, nothing but a shard's own digest tells.
        part = folder / f"part-of-set-{form}"
        shutil.copytree(intact, part)
        (part / "_remit" / f"manifest.{form}").unlink()
        manifest, again = part / "_remit" / f"manifest.{form}", [*command[:3], str(part), *command[4:]]
        for path in (file for file in files if file.name.startswith("part-")):
            data = path.read_bytes()

            def unfinished(changed, ends, data=data):
                if changed != data and ends[0].code == 0:
                    return "a damaged shard got into a manifest"

            damaged.append(Case(part / path.name, data, [[again]], [manifest], check=unfinished))

        other = folder / f"forged-{form}"
        shutil.copytree(intact, other)
        manifest = other / "_remit" / f"manifest.{form}"
        original = manifest.read_bytes()
        described = {}
        for what in ("manifest", "plan", "rejects"):
            ended = harness.run(["describe", str(intact), what])
            described[what] = ended.stdout
        scratch, entries = folder / "text", json.loads(described["manifest"])

        def pack(what, content, path, form=form):
            own = re.search(rb'"content_blake3": "([0-9a-f]{64})"', content)
            if what == "manifest" and own:
                scratch.write_bytes(content[: own.start(1)] + b"0" * 64 + content[own.end(1) :])
                digest = harness.run(["digest", str(scratch)]).stdout.strip()
                content = content[: own.start(1)] + digest + content[own.end(1) :]
            scratch.write_bytes(content)
            return harness.run(["pack", what, form, str(scratch), str(path)]).code == 0

        def with_digests(name, path, entries=entries, manifest=manifest, pack=pack):
            """Makes the manifest that a file with these bytes would have."""
            changed = json.loads(json.dumps(entries))
            digest = harness.run(["digest", str(path)]).stdout.decode().strip()
            for entry in (shard for shard in changed["shards"] if shard["file"] == name):
                entry["blake3"], entry["size_bytes"] = digest, path.stat().st_size
            if name == "rejects":
                changed["rejects"]["blake3"], changed["rejects"]["size_bytes"] = digest, path.stat().st_size
            return pack("manifest", json.dumps(changed).encode(), manifest)

        for what in ("manifest", "manifest", "plan", "rejects"):
            path = other / "_remit" / f"{what}.{form}"

            def prepare(data, what=what, path=path, pack=pack, manifest=manifest, original=original, with_digests=with_digests):
                manifest.write_bytes(original)
                if pack(what, data, path) and what == "rejects":
                    with_digests("rejects", scratch)

            forged.append(Case(path, described[what], readers(other), outputs, prepare=prepare, names=(other.name,)))
        for file in (file for file in files if file.name.startswith("part-")):
            path = other / file.name

            def prepare(data, path=path, file=file, with_digests=with_digests):
                harness.run(["seal", str(path), str(file)])
                with_digests(file.name, path)

            forged.append(Case(path, file.read_bytes(), readers(other), outputs, prepare=prepare, names=(other.name,)))
    tables = thrift.KINDS * 2 + flatbuffer.KINDS * 2
    return [
        Target("sets", plain.KINDS * 2 + tables, damaged, codes=(0, 65), share=22),
        Target("sets, digests right", plain.KINDS[:10] + tables + text.JSON * 4, forged, codes=(0, 2, 65, 66), share=12),
    ]


def checkpoints(folder, run, harness):
    """A training run that was interrupted after two of three steps."""
    intact, live = folder / "interrupted", folder / "resumed"
    words = ["remit-anneal", "--weights", str(folder / "set-parquet"), "--model", str(folder / "models/tiny-llama"), "-o", str(live)]
    words += ["--steps", "3", "--save-every", "1", "--keep", "5", "--batch-tokens", "300", "--lr", "1e-3"]
    run(*words)
    weights = (live / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "remit.json"):
        (live / name).unlink()
    for path in (live / "checkpoints").glob("step-00000003*"):
        path.unlink()
    live.rename(intact)

    def before(path):
        def fresh(data):
            shutil.rmtree(live, ignore_errors=True)
            shutil.copytree(intact, live)
            (live / path).write_bytes(data)

        return fresh

    def check(data, ends):
        done = live / "model.safetensors"
        if ends[0].code == 0 and not (done.exists() and done.read_bytes() == weights):
            return "a damaged checkpoint gave other weights"

    def with_digest(path):
        inner = before(path)

        def fresh(data):
            inner(data)
            digest = harness.run(["digest", str(live / path)]).stdout.decode().strip()
            (live / f"{path}.b3").write_text(f"{digest}  {Path(path).name}\n")

        return fresh

    cases, forged = [], []
    for path in ("checkpoints/step-00000002.safetensors", "checkpoints/step-00000002.safetensors.b3", "run.json", "metrics.jsonl"):
        cases.append(Case(live / path, (intact / path).read_bytes(), [[words]], [live], prepare=before(path), check=check))
    path = "checkpoints/step-00000002.safetensors"
    names = (Path(path).name, "has become ", "gives NaN", "was started with other settings")
    forged.append(Case(live / path, (intact / path).read_bytes(), [[words]], [live], prepare=with_digest(path), names=names))
    headers = [text.header_of_safetensors] * 10
    # Whoever writes the digest can also write weights that training does not survive, which is exit code 1.
    return [
        Target("checkpoints", plain.KINDS + headers[:4] + text.JSON, cases, codes=(0, 2, 65), share=4),
        Target("checkpoints, digest right", headers + plain.KINDS[:4], forged, codes=(0, 1, 2, 65), share=3),
    ]


def small(folder):
    """Options in a file, and lists of files."""
    config, listed = folder / "c.toml", folder / "list"
    command = ["remit-anneal", "--weights", str(folder / "set-parquet"), "--config", str(config), "--print-config"]
    # Options that are right one by one, and not together, are named as the flags that they are.
    toml = [Case(config, seeds.CONFIG.encode(), [[command]], names=(config.name, "error: --"))]
    names = f"{folder}/good.jsonl\n{folder}/a.txt\n".encode()
    lists = [Case(listed, names, [[["remit-score", "--files-from", str(listed), *score(folder, "x")[2:]]]], [folder / "out"], names=(str(listed), "no such file or folder: ", "cannot open ", "cannot look at ", str(folder)))]
    return [
        Target("config.toml", plain.KINDS + text.TEXT * 8, toml, codes=(0, 2, 65), share=6),
        Target("list files", plain.KINDS + text.TEXT * 4, lists, codes=(0, 65, 66), share=3),
    ]


def make(folder, run, harness):
    """All targets, with their files in a folder."""
    corpus = seeds.jsonl()
    good = "\n".join(seeds.lines(4)) + "\n"
    (folder / "good.jsonl").write_text(good)
    (folder / "some-bad.jsonl").write_text(good + "{\n" + good)
    (folder / "chat.jsonl").write_bytes(corpus["chat.jsonl"])
    (folder / "mixed.jsonl").write_bytes(good.encode() + corpus["chat.jsonl"])
    (folder / "a.txt").write_bytes(corpus["a.txt"])
    (folder / "chat.jinja").write_text(seeds.TEMPLATE)
    made = models(folder)
    made = corpora(folder) + made
    for target in (sets, checkpoints):
        made += target(folder, run, harness)
    return made + small(folder)
