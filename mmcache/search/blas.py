"""Whether a product may be left to BLAS, which multiplies with threads of its own, as many as it was told.

Threads of BLAS are of the whole process. A small product is slower on several of them. Where other processes keep
the machine busy slower by far, since each waits for a thread that does not run. So one vector is never multiplied by a
matrix in BLAS: the compiled core, or `np.vecdot`, takes one row after the other, in the thread that calls, and in less
time for rows that are read from memory. Nor are small matrices. What is left to BLAS are several vectors at once over
many rows.

How many threads BLAS has is read, by threadpoolctl, and never set: that would concern all threads of the process.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

__all__ = ["SMALL", "Library", "libraries", "may_multiply"]

SMALL: Final = 4 * 2**20
"""Bytes of rows in a product that one thread makes in the time in which others begin."""


class Library(NamedTuple):
    """name: as threadpoolctl has it, such as "openblas". threads: as many as it was told, or has cores."""

    name: str
    version: str
    threads: int


def libraries() -> list[Library] | None:
    """Those of BLAS that are loaded; None without threadpoolctl."""
    found = _libraries()
    if found is None:
        return None
    return [Library(one.internal_api, one.version or "", one.get_num_threads()) for one in found]


@cache
def _libraries() -> list[Any] | None:
    """Those of BLAS that are loaded, of which numpy's is one; None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return [one for one in ThreadpoolController().lib_controllers if one.user_api == "blas"]


def may_multiply(threads: int | None) -> bool:
    """Whether BLAS has no more threads than are wanted; None: as many as it likes."""
    if threads is None:
        return True
    if threads == 1:
        return False  # whatever BLAS says now, another thread may tell it otherwise meanwhile
    found = _libraries()
    return found is not None and all(one.get_num_threads() <= threads for one in found)
