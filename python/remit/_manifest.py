"""The manifest of a set: found, checked against its own digest, and checked against itself.

A file of the description is a shard without rows, its JSON in the footer's metadata. Its bytes are compared with the
digest in it before a parser sees them.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ._errors import REMAKE, DamagedError, MissingError, UsageError, shown

FORMAT_VERSION = 2
SHARD_VERSION = "1"
DESCRIPTION_FOLDER = "_remit"
FORMATS = ("parquet", "arrow")
SEAL_KEY = b"remit.content_blake3"
_DIGITS = re.compile(rb"[0-9a-f]{64}")
_ZEROS = b"0" * 64

Json = dict[str, Any]


class ShardEntry(NamedTuple):
    """A shard, as the manifest describes it."""

    file: str
    part: int
    rows: int
    tokens: int
    targets: int
    size_bytes: int
    blake3: str


class Manifest(NamedTuple):
    """The manifest of a finished set."""

    content_blake3: str
    plan: Json
    shards: tuple[ShardEntry, ...]
    documents: Json
    rejects: Json | None
    totals: Json
    sources: dict[str, Json]
    plan_identity: str

    @property
    def format(self) -> str:
        """Returns `parquet` or `arrow`."""
        return str(self.plan["format"])

    @property
    def has_base(self) -> bool:
        """Returns whether a base was scored, so that rows have base log-probs and weights."""
        return self.plan["base"] is not None


class _Decimal(float):
    """A number with the digits that it was written with."""

    text: str

    def __new__(cls, text: str) -> "_Decimal":
        self = super().__new__(cls, text)
        self.text = text
        return self


def load(folder: str) -> Manifest:
    """Reads and checks the manifest of a set.

    Raises:
        MissingError: There is no set, or it is not finished.
        DamagedError: The manifest was changed after it was written, or contradicts itself.
    """
    if "://" in folder:
        raise UsageError(
            f"{shown(folder)} is in an object store, and this package reads folders\n"
            "hint: copy the set to a local folder, or mount the store as one"
        )
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise DamagedError(
                f"{shown(folder)} is a file, and a set is a folder\nhint: remit-score INPUT -o DIR makes a set"
            )
        raise MissingError(f"no such folder: {shown(folder)}\nhint: remit-score INPUT -o {shown(folder)} makes it")
    found = _description(folder, "manifest")
    if found is not None:
        path, text = found
        return _parse(path, text, FORMAT_VERSION)
    path = os.path.join(folder, "manifest.json")
    if os.path.exists(path):
        with open(path, "rb") as file:
            return _parse(path, file.read(), 1)
    if any(os.path.exists(path) for path in _paths(folder, "plan")):
        raise MissingError(
            f"the set in {shown(folder)} is not finished: it has a plan in {DESCRIPTION_FOLDER}/, but no manifest yet\n"
            "hint: run the same remit-score command again to finish it"
        )
    if os.path.exists(os.path.join(folder, "plan.json")):
        raise MissingError(
            f"the set in {shown(folder)} is not finished, and of version 1 of the format: it has a plan.json, but no "
            "manifest.json\nhint: finish it with the remit that began it, or score the corpus again into another folder"
        )
    raise MissingError(
        f"{shown(folder)} has no {DESCRIPTION_FOLDER}/manifest, so it is not a set of shards\n"
        f"hint: {_what_else(folder)}"
    )


def _what_else(folder: str) -> str:
    if os.path.exists(os.path.join(folder, "config.json")):
        return f"it is a model: remit-inspect model {shown(folder)} describes it"
    for name in sorted(os.listdir(folder)):
        if os.path.isdir(os.path.join(folder, name, DESCRIPTION_FOLDER)):
            return f"there is a set further down: {shown(os.path.join(folder, name))}"
    return "remit-score INPUT -o DIR makes one"


def _paths(folder: str, name: str) -> list[str]:
    return [os.path.join(folder, DESCRIPTION_FOLDER, f"{name}.{ending}") for ending in FORMATS]


def _damaged(path: str, reason: str) -> DamagedError:
    return DamagedError(
        f"{shown(path)} is damaged: {reason}\nhint: remove it and run the same remit-score command again; it makes "
        "what is missing"
    )


def _description(folder: str, name: str) -> tuple[str, bytes] | None:
    """Returns path and JSON text of a file of the description; None when there is none."""
    found = [path for path in _paths(folder, name) if os.path.exists(path)]
    if not found:
        return None
    if len(found) > 1:
        raise _damaged(
            found[1],
            f"{shown(found[0])} is there too, and a set has one {name}; were two workers started with different "
            "--format?",
        )
    [path] = found
    with open(path, "rb") as file:
        content = file.read()
    if not is_sealed(content):
        raise _damaged(path, "its bytes have another BLAKE3 than its footer says")
    try:
        metadata = footer_of(pa.py_buffer(content), path.rsplit(".", 1)[1])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, f"it can't be parsed: {error}") from None
    text = metadata.get(f"remit.{name}".encode())
    if text is None:
        raise _damaged(path, f"its footer has no remit.{name}")
    return path, text


def is_sealed(content: bytes) -> bool:
    """Returns whether bytes hold their own BLAKE3, its 64 digits read as zeros where they occur last."""
    at = content.rfind(SEAL_KEY)
    # In Parquet the digits come after the key; in an Arrow file, they may stand before it.
    for place in _DIGITS.finditer(content, max(0, at - 4096)) if at >= 0 else ():
        digits = place.group()
        last = content.rfind(digits)
        hasher = blake3(content[:last])
        hasher.update(_ZEROS)
        hasher.update(content[last + 64 :])
        if hasher.hexdigest().encode() == digits:
            return True
    return False


def footer_of(buffer: pa.Buffer, file_format: str) -> Mapping[bytes, bytes]:
    """Returns the metadata in the footer of a Parquet or Arrow file."""
    if file_format == "parquet":
        return dict(pq.ParquetFile(pa.BufferReader(buffer)).metadata.metadata or {})
    return dict(pa.ipc.open_file(buffer).metadata or {})


def _parse(path: str, text: bytes, version: int) -> Manifest:
    try:
        value = json.loads(text, parse_float=_Decimal)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{shown(path)} is not what remit writes: {error}\n{REMAKE}") from None
    plan = value.get("plan") if isinstance(value, dict) else None
    if not isinstance(plan, dict):
        raise DamagedError(f"{shown(path)} is not what remit writes: it has no plan\n{REMAKE}")
    if plan.get("format_version") != version:
        raise DamagedError(
            f"{shown(path)} has format version {plan.get('format_version')}; this remit reads version {version}\n"
            "hint: read the set with the remit that made it, or score the corpus again"
        )
    _check_digest(path, text, value.get("content_blake3"))
    if version == 1 and "reference" in plan:
        plan = {("rl" if key == "reference" else key): entry for key, entry in plan.items()}
    try:
        manifest = Manifest(
            content_blake3=value["content_blake3"],
            plan=plan,
            shards=tuple(ShardEntry(*(entry[name] for name in ShardEntry._fields)) for entry in value["shards"]),
            documents=value["documents"],
            rejects=value["rejects"],
            totals=value["totals"],
            sources=value["sources"],
            plan_identity=identity(plan),
        )
        problem = _contradiction(manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{shown(path)} is not what remit writes: {type(error).__name__}: {error}\n{REMAKE}"
        ) from None
    if problem is not None:
        raise _damaged(path, problem)
    return manifest


def _check_digest(path: str, text: bytes, written: object) -> None:
    """Compares the text with the digest in it, whose digits count as zeros."""
    place = f'"content_blake3": "{written}"'.encode()
    if not isinstance(written, str) or not _DIGITS.fullmatch(written.encode()) or text.count(place) != 1:
        raise _damaged(path, "it does not hold its own digest once")
    end = text.index(place) + len(place) - 1
    found = blake3(text[: end - 64] + _ZEROS + text[end:]).hexdigest()
    if found != written:
        raise _damaged(
            path,
            f"its content has the digest {found}, but it says {written}; it was changed after it was written",
        )


def _contradiction(manifest: Manifest) -> str | None:
    """Returns in what a manifest contradicts itself."""
    plan, shards = manifest.plan, manifest.shards
    if len(shards) != plan["num_parts"]:
        return f"it lists {len(shards)} shards, but the plan has {plan['num_parts']} parts"
    if plan["format"] not in FORMATS:
        return f"its format is {plan['format']!r}, and there are {' and '.join(FORMATS)}"
    rejected = manifest.rejects["records"] if manifest.rejects else 0
    if rejected != manifest.documents.get("rejected_records", 0):
        return f"{manifest.documents.get('rejected_records', 0)} records could not be read, but {rejected} are listed"
    if (plan["base"] is None) != (plan["formula"] is None):
        return "a formula and a base come together or not at all"
    for part, shard in enumerate(shards):
        if shard.part != part or shard.file != f"part-{part:06}.{plan['format']}":
            return f"shard {part} is called {shard.file!r} and says it is part {shard.part}"
    for what in ("rows", "tokens", "targets"):
        total = sum(getattr(shard, what) for shard in shards)
        if total != manifest.totals[what]:
            return f"its shards have {total} {what}, but the totals say {manifest.totals[what]}"
    return None


def identity(plan: Json) -> str:
    """Returns the digest that every shard carries of the plan it was made under.

    It is the BLAKE3 of the plan as version 1 of the format wrote it, with the paths of models empty.
    """
    # The keys keep their places.
    old: Json = {("reference" if key == "rl" else key): value for key, value in plan.items()}
    old["format_version"] = 1
    for name in ("reference", "base", "tokenizer"):
        if old[name] is not None:
            old[name] = {**old[name], "path": ""}
    old["tokenizer"].pop("document_tokens", None)
    return str(blake3((_pretty(old, "") + "\n").encode()).hexdigest())


def _pretty(value: object, indent: str) -> str:
    """Returns JSON as remit writes it: two spaces a level, and numbers with the digits that they were read with."""
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{_pretty(key, inner)}: {_pretty(entry, inner)}" for key, entry in value.items()]
        opening, closing = "{}"
    elif isinstance(value, list):
        items = [_pretty(entry, inner) for entry in value]
        opening, closing = "[]"
    elif isinstance(value, _Decimal):
        return value.text
    else:
        return json.dumps(value, ensure_ascii=False)
    if not items:
        return opening + closing
    return opening + ",".join(f"\n{inner}{item}" for item in items) + f"\n{indent}{closing}"
