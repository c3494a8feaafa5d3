"""The `sketch` of a file that is being built: made of its embeddings in their order, and measured.

Both follow from the rows of the file alone. So a build of several sources, shards and a merge write what one build of
all records writes: nothing is taken over from the files that are merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..format.curves import SketchLayout
from ..format.sketch import TILE, words_in
from .fs import CHUNK
from .signing import signs_of
from .spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Metric

__all__ = ["Ordered", "sketched"]


class Ordered:
    """The embeddings of one field, staged, in the order of the file: what a search asks of those of a file.

    signs: of the embeddings, row by row; nothing where they were not taken when these were staged. places: of its rows
    in the scratch files, by ordinal; None where they lie there in this order. present: a bitmap of
    the rows that have one; None where all have.
    """

    has_norms = True

    def __init__(
        self,
        spool: Spool,
        signs: Spool | None,
        dim: int,
        *,
        places: NDArray[np.int64] | None,
        norms: NDArray[np.float32],
        present: NDArray[np.uint8] | None,
    ) -> None:
        self.dim = dim
        self.stride = 4 * dim
        self.extremes: tuple[float, float] | None = None
        self._spool, self._signs = spool, signs if signs is not None and signs.size else None
        self._places, self._norms, self._present = places, norms, present

    def __len__(self) -> int:
        return len(self._norms)

    def norms(self) -> NDArray[np.float32]:
        return self._norms

    def bitmap(self) -> NDArray[np.uint8] | None:
        return self._present

    def part(self, begin: int, end: int) -> NDArray[np.float32]:
        """float32, (end - begin, dim): consecutive rows."""
        return self._read(self._spool, "<f4", self.dim, self._placed(slice(begin, end)))

    def take(self, rows: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Copy these rows."""
        places = rows if self._places is None else self._places[rows]
        out[:] = self._read(self._spool, "<f4", self.dim, places)

    def placed(self, rows: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """A matrix of these rows alone, and their places in it."""
        matrix = np.empty((len(rows), self.dim), np.float32)
        self.take(rows, matrix)
        return matrix, np.arange(len(rows), dtype=np.uint32)

    def signs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """u64, (end - begin, words): the bits of consecutive rows."""
        words = words_in(self.dim)
        if self._signs is not None:
            return self._read(self._signs, "<u8", words, self._placed(slice(begin, end)))
        step = max(1, CHUNK // self.stride)
        found = np.empty((end - begin, words), np.uint64)
        for at in range(begin, end, step):
            some = self.part(at, min(at + step, end))
            found[at - begin : at - begin + len(some)] = signs_of(some)
        return found

    def _placed(self, rows: slice) -> slice | NDArray[np.int64]:
        return rows if self._places is None else self._places[rows]

    @staticmethod
    def _read(spool: Spool, kind: str, width: int, places: slice | NDArray[Any]) -> NDArray[Any]:
        """What lies at these places of a scratch file, so many numbers at each."""
        stride = np.dtype(kind).itemsize * width
        if isinstance(places, slice):
            pieces: Iterable[bytes] = [spool.read(places.start * stride, (places.stop - places.start) * stride)]
        else:
            offsets = (places.astype(np.int64) * stride).tolist()
            pieces = spool.permuted(offsets, itertools.repeat(stride, len(offsets)))
        return np.frombuffer(b"".join(pieces), kind).reshape(-1, width)


def sketched(vectors: Ordered, metric: Metric) -> tuple[SketchLayout, Callable[[], Iterator[NDArray[np.uint64]]]]:
    """What was measured, and what gives the tiles of the section.

    To measure, of more than some thousand rows, reads the embeddings some times.
    """
    from ..search.measuring import Measuring  # a build measures by searching; loaded where one has a sketch

    measuring = Measuring(vectors, metric, len(vectors))
    if measuring.is_needed:
        for i, tile in enumerate(_tiles(vectors)):
            measuring.offer(tile, TILE * i)
    return measuring.end(), lambda: _tiles(vectors)


def _tiles(vectors: Ordered) -> Iterator[NDArray[np.uint64]]:
    """u64, (words, rows), C-contiguous."""
    for begin in range(0, len(vectors), TILE):
        yield np.ascontiguousarray(vectors.signs(begin, min(begin + TILE, len(vectors))).T)
