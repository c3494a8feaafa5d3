"""How many threads BLAS multiplies with while a search runs.

A library of BLAS has a pool of threads for the whole process. A small product is slower on several of them, and where
other processes keep the machine busy it is slower by far, since each waits for a thread that does not run. So products
below `SMALL` run on one thread, if threadpoolctl is installed, which knows how each library is told. No number is ever
raised. Searches of several threads may be under way at once: the number is put back by the last one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from ..forks import Lock, in_child

__all__ = ["SMALL", "Limited"]

SMALL: Final = 4 * 2**20
"""Bytes of rows in a product."""


class _State:
    """What holds in this process. searches: the ids of those that limit it. found: each library of BLAS, with its
    number of threads before the first of them."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.searches: set[int] = set()
        self.found: list[tuple[Any, int]] = []

    def begin(self, search: int, threads: int) -> None:
        with self.lock:
            if not self.searches:
                self.found = [(library, library.get_num_threads()) for library in _libraries()]
            self.searches.add(search)
            for library, before in self.found:
                if threads < before:
                    library.set_num_threads(min(threads, library.get_num_threads()))

    def end(self, search: int) -> None:
        with self.lock:
            self.searches.discard(search)
            if not self.searches:
                for library, before in self.found:
                    library.set_num_threads(before)
                self.found = []

    def begin_process(self) -> None:
        """In a forked child, where the searches of the parent's threads never end."""
        self.searches.clear()
        self.end(0)


_state: Final = _State()
in_child(_state.begin_process)


@cache
def _libraries() -> list[Any]:
    """Those of BLAS that are loaded; none without threadpoolctl. Found once: numpy has loaded its own."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return [one for one in ThreadpoolController().lib_controllers if one.user_api == "blas"]


class Limited:
    """BLAS uses at most so many threads while this object lives; None: as many as before.

    An object and no context manager: wherever an interrupt strikes, it ends with its last reference.
    """

    __slots__ = ("_is_begun",)

    def __init__(self, threads: int | None) -> None:
        self._is_begun = threads is not None and bool(_libraries())
        if threads is not None and self._is_begun:
            _state.begin(id(self), threads)

    def __del__(self) -> None:
        if self._is_begun:
            _state.end(id(self))
