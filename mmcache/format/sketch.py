"""The `sketch` section: one bit for the sign of each number of an embedding, and which rows are near by these bits.

    a tile for each `TILE` rows, the last of fewer:  u64, (words, rows of the tile)

Bit b of word w of a row is set where number 64 w + b is above 0; bits beyond the last number are 0. So the bits of a
row follow from its embedding alone. The number of bits in which two rows differ, their *distance*, grows with their
angle.

Words lie beside those of other rows, for numpy counts bits of long arrays at once; in tiles, so that what is compared
at a time lies together, and a section is written from its beginning to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TILE", "Distances", "Nearby", "signs_of", "words_in"]

TILE: Final = 8192
"""Rows of a tile: their bits, and what is made of them, stay in the CPU's cache."""

_AT_ONCE: Final = 2**17
"""Words that are compared at a time, at most, unless a tile has more rows: 1 MB."""


def words_in(dim: int) -> int:
    """Of a row of so many numbers."""
    return -(-dim // 64)


def signs_of(matrix: NDArray[Any]) -> NDArray[np.uint64]:
    """u64, (words, rows), C-contiguous: the bits of these rows, (rows, dim), of one tile or of less."""
    rows, dim = matrix.shape
    padded = np.zeros((rows, 8 * words_in(dim)), np.uint8)
    padded[:, : -(-dim // 8)] = np.packbits(matrix > 0, axis=1, bitorder="little")
    return np.ascontiguousarray(padded.view("<u8").T)


class Distances:
    """Of all rows of a tile to one query after the other. Holds what it computes in: some MB at most.

    queries: (queries, dim).
    """

    def __init__(self, queries: NDArray[Any]) -> None:
        self._signs = np.ascontiguousarray(signs_of(queries).T)
        self._kind: Any = np.uint16 if queries.shape[1] < 2**16 else np.uint32
        self._words = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.uint8)

    def to(self, query: int, tile: NDArray[np.uint64]) -> NDArray[Any]:
        """u16 or u32, (rows,). tile: u64, (words, rows)."""
        words, rows = tile.shape
        step = max(1, _AT_ONCE // rows)
        if len(self._words) < min(step, words) * rows:
            self._words = np.empty(min(step, words) * rows, np.uint64)
            self._counts = np.empty(min(step, words) * rows, np.uint8)
        found: NDArray[Any] | None = None
        for begin in range(0, words, step):
            some = tile[begin : begin + step]
            differ = self._words[: some.size].reshape(some.shape)
            counts = self._counts[: some.size].reshape(some.shape)
            np.bitwise_xor(some, self._signs[query, begin : begin + step, None], out=differ)
            np.bitwise_count(differ, out=counts)
            part: NDArray[Any] = np.add.reduce(counts, axis=0, dtype=self._kind)
            found = part if found is None else found + part
        assert found is not None
        return found


class Nearby:
    """The rows of the least distance that were met so far, `most` of them at most: by distance, then by row."""

    __slots__ = ("_distances", "_limit", "_most", "rows")

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit: int | None = None
        self._distances = np.empty(0, np.uint16)
        self.rows = np.empty(0, np.int64)

    def offer(self, distances: NDArray[Any], begin: int, wanted: NDArray[np.bool_] | None) -> None:
        """The next rows, from `begin` on. wanted: bool, (len(distances),): which of them count; None where all do."""
        # A later row of the same distance as the last one comes after it.
        near = np.arange(len(distances)) if self._limit is None else np.flatnonzero(distances < self._limit)
        if wanted is not None:
            near = near[wanted[near]]
        if not len(near):
            return
        distances = np.concatenate((self._distances, distances[near]))
        rows = np.concatenate((self.rows, near + begin))
        order = np.argsort(distances, kind="stable")[: self._most]
        self._distances, self.rows = distances[order], rows[order]
        if len(order) == self._most:
            self._limit = int(self._distances[-1])
