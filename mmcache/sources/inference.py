"""What type the columns of a text table have: decided by all values of a column, and by nothing else.

A column is int if all values, NULLs apart, are whole numbers of 64 bits, written as JSON writes them: "007", "+1" and
"1e3" are none. Else float, if all are numbers, and none is a whole number that float64 may not represent. Else bool, if
all are true or false, in any case. Else str, as is one of NULLs only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .casts import BOOLS

__all__ = ["Guess", "read_by"]

_NARROW = re.compile(r"(?:(?:0|-?[1-9][0-9]{0,17})\n)+")
_INTS = re.compile(r"(?:(?:0|-?[1-9][0-9]{0,19})\n)+")
_FLOATS = re.compile(
    r"(?:-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?\n|-?(?:inf|infinity)\n|nan\n)+", re.IGNORECASE
)
_BOOLS = re.compile(r"(?:(?:true|false)\n)+", re.IGNORECASE)
_LONG = re.compile(r"(?:^|\n)-?[0-9]{16,}\n")
_DIGIT = re.compile(r"[0-9]")


def _boolean(text: str) -> bool:
    return BOOLS[text.lower()]


read_by: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _boolean, "str": str}
"""How a text is read that `Guess` has seen."""


class Guess:
    """The type of one column, so far."""

    __slots__ = ("_digits", "_left", "_long")

    def __init__(self) -> None:
        self._left = {"int", "float", "bool"}
        self._long = False
        self._digits = False

    @property
    def is_settled(self) -> bool:
        """Whether no other value can change it."""
        return not self._left

    def see(self, texts: Sequence[str], nulls: Collection[str]) -> None:
        """Some more of its values."""
        if not self._left:
            return
        there = [text for text in texts if text not in nulls]
        if not there:
            return
        joined = "\n".join(there) + "\n"
        left = self._left if joined.count("\n") == len(there) else set()
        self._left = {kind for kind in left if _fits(kind, joined, there)}
        if "float" in self._left:
            self._long = self._long or _LONG.search(joined) is not None
            self._digits = self._digits or _DIGIT.search(joined) is not None

    @property
    def kind(self) -> str:
        """int, float, bool or str."""
        if "int" in self._left:
            return "int" if self._digits else "str"
        if "float" in self._left:
            return "float" if self._digits and not self._long else "str"
        return "bool" if "bool" in self._left else "str"


def _fits(kind: str, joined: str, texts: list[str]) -> bool:
    if kind == "int":
        if _NARROW.fullmatch(joined):
            return True
        return _INTS.fullmatch(joined) is not None and all(-(2**63) <= int(text) < 2**64 for text in texts)
    if kind == "float":
        if not _FLOATS.fullmatch(joined):
            return False
        return "e" not in joined.lower() or not any("e" in text.lower() and math.isinf(float(text)) for text in texts)
    return _BOOLS.fullmatch(joined) is not None
