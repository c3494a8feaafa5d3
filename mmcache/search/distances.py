"""Which rows are near by their signs: in how many bits each differs from a query, and those that differ in the fewest.

Bits are counted by the compiled core, or by numpy, which takes about five times as long. Both count the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..format.sketch import signs_of
from ..native import core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Distances", "Nearby", "count"]

_AT_ONCE: Final = 2**17
"""Words that numpy compares at a time, at most, unless a tile has more rows: 1 MB."""


class Distances:
    """Of all rows of a tile to one query after the other. queries: (queries, dim)."""

    def __init__(self, queries: NDArray[Any]) -> None:
        self._signs = signs_of(queries)
        self._distances = np.empty(0, np.uint16)

    def to(self, query: int, tile: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """u16, (rows,), at most 65,535 each, which the next call overwrites. tile: u64, (words, rows), C-contiguous."""
        rows = tile.shape[1]
        if len(self._distances) < rows:
            self._distances = np.empty(rows, np.uint16)
        found = self._distances[:rows]
        if core is not None:
            core.distances(tile, self._signs[query], found)
        else:
            count(tile, self._signs[query], found)
        return found


def count(tile: NDArray[np.uint64], query: NDArray[np.uint64], found: NDArray[np.uint16]) -> None:
    """What the core does."""
    words, rows = tile.shape
    kind = np.uint16 if 64 * words < 2**16 else np.uint32
    step, total = max(1, _AT_ONCE // rows), np.zeros(rows, kind)
    for begin in range(0, words, step):
        counts = np.bitwise_count(tile[begin : begin + step] ^ query[begin : begin + step, None])
        np.add(total, np.add.reduce(counts, axis=0, dtype=kind), out=total)
    np.copyto(found, np.minimum(total, 2**16 - 1), casting="unsafe")


class Nearby:
    """The rows of the least distance that were met so far, `most` of them at most: by distance, then by row."""

    __slots__ = ("_found", "_limit", "_most", "_size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = 2**16
        self._found: list[tuple[NDArray[np.uint16], NDArray[np.int64]]] = []
        self._size = 0

    def offer(self, distances: NDArray[np.uint16], begin: int, wanted: NDArray[np.bool_] | None) -> None:
        """The next rows, from `begin` on. wanted: bool, (len(distances),): which of them count; None where all do."""
        if not self._size:
            self._guess(distances if wanted is None else distances[wanted])
        near = np.flatnonzero(distances < self._limit)
        if wanted is not None:
            near = near[wanted[near]]
        if len(near):
            self._found.append((distances[near], near + begin))
            self._size += len(near)
            if self._size >= 2 * self._most:
                self._choose()

    def _guess(self, distances: NDArray[np.uint16]) -> None:
        """A limit below which there are enough, by the first of the rows: sorting all of a tile takes longer."""
        some = distances[: 8 * self._most]
        if len(some) > self._most:
            self._limit = min(self._limit, int(np.partition(some, self._most)[self._most]) + 1)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64, `most` or all that there were."""
        if len(self._found) > 1 or self._size > self._most:
            self._choose()
        return self._found[0][1] if self._found else np.empty(0, np.int64)

    def _choose(self) -> None:
        distances, rows = map(np.concatenate, zip(*self._found, strict=True))
        order = np.argsort(distances, kind="stable")[: self._most]
        self._found, self._size = [(distances[order], rows[order])], len(order)
        if len(order) == self._most:
            # A later row of the same distance as the last one comes after it.
            self._limit = int(distances[order[-1]])
