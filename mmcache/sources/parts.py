"""The files of a source: one, those that a pattern matches, or those below a directory, in the order of their paths.

Directories of the form `name=value` (hive partitions) give each record below them a field, as `pyarrow.dataset` has it:
an int where all values of the name are ints of 32 bits, else text; `__HIVE_DEFAULT_PARTITION__` is None. Hidden files,
and those whose name or directory begins with `_` or `.`, are none of the data.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import SourceError
from ..store import Found
from .streams import STDIN, is_pipe

__all__ = ["COMPRESSED", "Part", "absolute", "is_pattern", "joined", "parts_of", "typed"]

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_NOTHING = "__HIVE_DEFAULT_PARTITION__"
_NUMBER = re.compile(r"-?[0-9]{1,10}")


class Part(NamedTuple):
    """One file. fields: what its directories say of all its records. piece: what is read of it, in units of its format
    from the first on to before the last; None for all. found: the object of a store that it is; None for a file."""

    path: str
    fields: Mapping[str, int | str | None] = {}
    piece: tuple[int, int] | None = None
    found: Found | None = None


def absolute(path: str) -> str:
    """A path, a pattern, or "-", independent of the current directory."""
    if path == STDIN:
        return path
    if is_pattern(path) and not os.path.isabs(path):
        return os.path.join(glob.escape(os.getcwd()), path)
    return os.path.abspath(path)


def is_pattern(path: str) -> bool:
    """Whether files are to be found by it: no file of that very name is there."""
    return glob.has_magic(path) and not os.path.lexists(path)


def parts_of(path: str, suffixes: tuple[str, ...]) -> list[Part]:
    """The files at a path, one or more. suffixes: what names in a directory end with, compressed or not.

    Raises SourceError, where there is none."""
    if is_pipe(path) or os.path.isfile(path):
        return [Part(path)]
    if os.path.isdir(path):
        base, found = path, sorted(_below(path, suffixes))
        what = f"this directory holds no file *{' or *'.join(suffixes)}"
    elif is_pattern(path):
        base, found = _fixed(path), sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        what = "no file matches the pattern"
    else:
        return [Part(path)]  # which opening it says all about
    if not found:
        raise SourceError(f"{what}; check the path", path=path)
    names = [os.path.relpath(name, base) for name in found]
    return [Part(name, fields) for name, fields in zip(found, typed(names), strict=True)]


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same, with pieces of one file that follow each other as one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if last and last.path == part.path and last.piece and part.piece and last.piece[1] == part.piece[0]:
            found[-1] = last._replace(piece=(last.piece[0], part.piece[1]))
        else:
            found.append(part)
    return found


def _below(path: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    endings = (*suffixes, *(suffix + ending for suffix in suffixes for ending in COMPRESSED))
    seen: set[tuple[int, int]] = set()
    for directory, names, files in os.walk(path, followlinks=True):
        found = os.stat(directory)
        identity = found.st_dev, found.st_ino
        if identity in seen:  # by a link to a directory above, or a second time
            names.clear()
            continue
        seen.add(identity)
        names[:] = sorted(name for name in names if not name.startswith((".", "_")))
        for name in files:
            if not name.startswith((".", "_")) and name.lower().endswith(endings):
                yield os.path.join(directory, name)


def _fixed(pattern: str) -> str:
    """The directory that a pattern begins with."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern


def typed(names: list[str]) -> list[dict[str, int | str | None]]:
    """What the directories of each of these relative paths say of its records."""
    told = [dict(_said(name)) for name in names]
    values: dict[str, set[str]] = {}
    for fields in told:
        for name, value in fields.items():
            values.setdefault(name, set()).add(value)
    numbers = {name for name, texts in values.items() if _are_numbers(texts - {_NOTHING})}
    return [
        {
            name: None if value == _NOTHING else int(value) if name in numbers else value
            for name, value in fields.items()
        }
        for fields in told
    ]


def _said(path: str) -> Iterator[tuple[str, str]]:
    for step in os.path.dirname(path).split(os.sep):
        name, equals, value = step.partition("=")
        if name and equals:
            yield unquote(name), unquote(value)


def _are_numbers(texts: set[str]) -> bool:
    return all(_NUMBER.fullmatch(text) and -(2**31) <= int(text) < 2**31 for text in texts)
