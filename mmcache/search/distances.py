"""Which rows are near by their signs: those that differ from a query in the fewest bits.

The compiled core counts the bits and chooses the rows, or numpy, which takes about five times as long. Both find the
same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..format.sketch import TILE
from ..native import core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Nearby", "nearby"]

_AT_ONCE: Final = 2**17
"""Words that numpy compares at a time, at most, unless a tile has more rows: 1 MB."""
_FARTHEST: Final = 2**64 - 1
"""More than any distance."""
_ROW: Final = np.uint64(2**32 - 1)
"""The bits of a row in an entry; above them is its distance. So entries are in the order of distance, then of row."""


class Nearby:
    """The rows of the least distance to a query that were met so far, `few` of them at most: by distance, then by row.

    query: u64, (words,): its signs.
    """

    __slots__ = ("_entries", "_limit", "_query", "_size")

    def __init__(self, query: NDArray[np.uint64], few: int) -> None:
        self._query = query
        self._entries = np.empty(2 * few, np.uint64)
        self._size, self._limit = 0, _FARTHEST

    def offer(self, signs: NDArray[np.uint64], begin: int, wanted: NDArray[np.bool_] | None) -> None:
        """The next rows, from `begin` on. signs: of whole tiles, the last of which may be that of the file. wanted:
        bool, (rows,): which of them count; None where all do."""
        find = nearby if core is None else core.nearby
        state = TILE, begin, self._size, self._limit
        self._size, self._limit = find(signs, self._query, wanted, self._entries, state)

    @property
    def rows(self) -> NDArray[np.uint32]:
        """uint32, ascending: `few`, or all that there were."""
        return np.sort(_rows_of(self._entries[: self._size]))

    @property
    def ranked(self) -> NDArray[np.uint32]:
        """The same, by distance."""
        return _rows_of(np.sort(self._entries[: self._size]))


def _rows_of(entries: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (entries & _ROW).astype(np.uint32)


def nearby(
    signs: NDArray[np.uint64],
    query: NDArray[np.uint64],
    wanted: NDArray[np.bool_] | None,
    entries: NDArray[np.uint64],
    state: tuple[int, int, int, int],
) -> tuple[int, int]:
    """What the core does: take the rows of these signs into the entries.

    entries: u64, room for twice the rows that are wanted. state: rows of a tile, the number of the first row, entries
    that are there already, and the distance from which on rows are not among the wanted ones any more. Gives the last
    two as they are now; the wanted rows come first, in any order.
    """
    tile, begin, size, limit = state
    words, few = len(query), len(entries) // 2
    for at in range(0, len(signs) // words, tile):
        part = signs[words * at : words * (at + tile)].reshape(words, -1)
        distances = _distances(part, query)
        near = np.flatnonzero(distances < min(limit, int(np.iinfo(distances.dtype).max)))
        if wanted is not None:
            near = near[wanted[at : at + tile][near]]
        found = distances[near].astype(np.uint64) << np.uint64(32) | (near + (begin + at)).astype(np.uint64)
        found = np.concatenate((entries[:size], found))
        if len(found) > few:
            found = np.partition(found, few - 1)[:few]
            limit = int(found[-1] >> np.uint64(32))
        size = len(found)
        entries[:size] = found
    return size, limit


def _distances(tile: NDArray[np.uint64], query: NDArray[np.uint64]) -> NDArray[Any]:
    """(rows,): in how many bits each row of a tile, (words, rows), differs."""
    words, rows = tile.shape
    kind = np.uint16 if 64 * words < 2**16 else np.uint32
    step, total = max(1, _AT_ONCE // rows), np.zeros(rows, kind)
    for begin in range(0, words, step):
        counts = np.bitwise_count(tile[begin : begin + step] ^ query[begin : begin + step, None])
        np.add(total, np.add.reduce(counts, axis=0, dtype=kind), out=total)
    return total
