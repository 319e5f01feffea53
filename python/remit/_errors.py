"""Errors: each names the object, what was expected, what was found, and in a last line the way out."""

import os
from collections.abc import Sequence

_REMAKE = "run the same remit-score command again; it makes what is missing"
REMAKE = f"hint: {_REMAKE}"
REMOVE_AND_REMAKE = f"hint: remove this file and {_REMAKE}"


class Error(Exception):
    """Something that this package refuses, and why."""


class MissingError(Error):
    """A set, or a file of one, is not there."""


class DamagedError(Error):
    """A file is there, but is not what it has to be."""


class NoRowError(Error, LookupError):
    """A set has no such row."""


class UsageError(Error, ValueError):
    """Arguments that contradict each other, or the set."""


def shown(path: str | os.PathLike[str]) -> str:
    """Returns a path with control characters written as escapes, so that it is safe on a terminal."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def of_several(folder: str, problems: Sequence[Error]) -> Error:
    """Makes one error of those of several shards."""
    if len(problems) == 1:
        return problems[0]
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else DamagedError
    lines = "".join(f"\n  {str(problem).splitlines()[0]}" for problem in problems)
    return kind(
        f"{len(problems)} shards in {shown(folder)} are not what they should be:{lines}\n"
        f"hint: remove these files and {_REMAKE}"
    )
