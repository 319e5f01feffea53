"""Writes what a set says beside the token files of its corpus, token by token: for loaders of files of ids (OLMo-core).

    python -m remit.npy weights/ corpus/ -o aligned/

For `corpus/a.npy` it writes, in the form of that file (with a header of NumPy's, or none, as OLMo-core has it), an
element for each of its ids:

    a.rl_logprob.npy   float32; NaN where there is no target
    a.weight.npy       float32; 0 where there is no target; if a base was scored
    a.label_mask.npy   bool; where there is a target
    a.position.npy     uint32; position in the row, the one context that the log-prob holds in; 2^32 - 1 where no row is

So a token sees, at most, the `position` tokens before it: whoever trains with more or less context trains on other
weights than were computed.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._errors import DamagedError, Error, MissingError, UsageError, shown
from ._group import I64
from ._set import Row, WeightSet

NO_ROW = np.uint32(0xFFFFFFFF)


class TokenFile(NamedTuple):
    """The ids of a file, whether it has a header, and where its documents begin."""

    ids: npt.NDArray[Any]
    has_header: bool
    starts: I64


def read_tokens(path: Path, token_dtype: str | None, separator: int | None) -> TokenFile:
    """Reads a flat file of ids, whose documents each end with the separator."""
    if not path.exists():
        raise MissingError(f"{shown(path)} is missing\nhint: give the folder of the corpus that the set was made of")
    with path.open("rb") as file:
        has_header = file.read(6) == b"\x93NUMPY"
    ids: npt.NDArray[Any]
    if has_header:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        ids = np.memmap(path, np.dtype(token_dtype), "r")
    if ids.ndim != 1:
        raise UsageError(f"{shown(path)} has {ids.ndim} dimensions\nhint: rows of such a file are rows of the set")
    ends = np.flatnonzero(ids == separator) + 1
    starts = np.concatenate([[0], ends]).astype(np.int64)
    return TokenFile(ids, has_header, starts[starts < len(ids)])


class Aligned:
    """What the set says of the ids of one file."""

    def __init__(self, source: str, tokens: TokenFile, has_base: bool) -> None:
        """Begins with nothing known."""
        self.source, self.tokens = source, tokens
        count = len(tokens.ids)
        self.rl_logprob = np.full(count, np.nan, np.float32)
        self.weight = np.zeros(count, np.float32) if has_base else None
        self.label_mask = np.zeros(count, np.bool_)
        self.position = np.full(count, NO_ROW, np.uint32)

    def put(self, row: Row, at: int, first: int, count: int) -> None:
        """Takes `count` tokens of a row, from its token `first` on, which stand at `at` in the file.

        Raises:
            DamagedError: The file has other ids there.
        """
        to, of = slice(at, at + count), slice(first, first + count)
        found = self.tokens.ids[to]
        if not np.array_equal(found, row.input_ids[of]):
            raise DamagedError(
                f"{shown(self.source)} has other ids at {at} than row {row.row_id} of the set\n"
                "hint: give the corpus that the set was made of"
            )
        self.rl_logprob[to] = row.rl_logprob[of]
        if self.weight is not None and row.weight is not None:
            self.weight[to] = row.weight[of]
        self.label_mask[to] = row.is_target[of]
        self.position[to] = np.arange(first, first + count)

    def write(self, folder: Path) -> None:
        """Writes the arrays."""
        base = folder / self.source
        base.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"rl_logprob": self.rl_logprob, "weight": self.weight, "label_mask": self.label_mask}
        for name, array in {**arrays, "position": self.position}.items():
            if array is None:
                continue
            path = base.with_name(f"{base.stem}.{name}.npy")
            if self.tokens.has_header:
                np.save(path, array)
            else:
                array.tofile(path)


def export(ws: WeightSet, corpus: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[str]:
    """Writes the arrays of every token file of a set's corpus; returns the sources.

    Raises:
        UsageError: The corpus has no token files, or documents stand in rows in a way that says not where.
        DamagedError: A file is not that of the corpus.
    """
    plan = ws.plan
    sources = [entry["source"] for entry in plan["corpus"] if entry["source"].endswith((".npy", ".bin"))]
    if not sources:
        raise UsageError(f"no file of the corpus of {shown(ws.folder)} holds ids\nhint: it is for .npy and .bin files")
    files: dict[str, Aligned] = {}
    for source in sources:
        tokens = read_tokens(Path(corpus) / source, plan["token_dtype"], plan["separator"])
        files[source] = Aligned(source, tokens, ws.has_base)
    least = max(1, int(plan["min_tokens"]))
    # Where the row before ended: its file, and the place in it.
    source, end = "", 0
    for row in ws:
        if row.source not in files:
            source = ""
            continue
        segments = [0, *(int(start) for start in row.doc_starts if start > 0), len(row.input_ids)]
        begins = len(row.doc_starts) > 0 and row.doc_starts[0] == 0
        for number, (first, stop) in enumerate(itertools.pairwise(segments)):
            if number == 0 and begins:
                source, end = row.source, int(files[row.source].tokens.starts[row.doc_index])
            elif number == 0 and source != row.source:
                raise UsageError(f"row {row.row_id} goes on with a document of which no row has the beginning")
            elif number > 0:
                source, end = _next_document(files, sources, source, end, least)
            files[source].put(row, end, first, stop - first)
            end += stop - first
    for aligned in files.values():
        aligned.write(Path(output))
    return sources


def _next_document(files: dict[str, Aligned], sources: list[str], source: str, at: int, least: int) -> tuple[str, int]:
    """Returns where the next document begins that was long enough, in this file or the one after it."""
    for name in sources[sources.index(source) :]:
        starts, count = files[name].tokens.starts, len(files[name].tokens.ids)
        lengths = np.diff(np.append(starts, count))
        later = np.flatnonzero((starts >= at) & (lengths >= least))
        if len(later):
            return name, int(starts[later[0]])
        at = 0
    raise UsageError("a row has more documents than the corpus\nhint: give the corpus that the set was made of")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m remit.npy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", help="folder that remit-score made")
    parser.add_argument("corpus", help="folder that it was made of")
    parser.add_argument("-o", "--output", default="aligned", help="folder for the arrays")
    args = parser.parse_args()
    try:
        for source in export(WeightSet(args.set), args.corpus, args.output):
            print(source)
    except Error as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
