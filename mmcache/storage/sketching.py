"""The `sketch` of a file that is being built: made of its embeddings in their order, and measured.

Both follow from the rows of the file alone. So a build of several sources, shards and a merge write what one build of
all records writes: nothing is taken over from the files that are merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..format.curves import SketchLayout
from ..format.sketch import TILE, signs_of, words_in
from .fs import CHUNK
from .spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Metric

__all__ = ["Ordered", "sketched"]

_READ: Final = CHUNK
"""Bytes of embeddings that are read at a time, unless one has more."""
_TOGETHER: Final = 8 * CHUNK
"""Bytes of tiles that are put aside together."""


class Ordered:
    """The embeddings of one field, staged, in the order of the file: what a search asks of those of a file.

    places: of its rows in the scratch file, by ordinal; None where they lie there in this order. present: a bitmap of
    the rows that have one; None where all have.
    """

    has_norms = True

    def __init__(
        self,
        spool: Spool,
        dim: int,
        places: NDArray[np.int64] | None,
        norms: NDArray[np.float32],
        present: NDArray[np.uint8] | None,
    ) -> None:
        self.dim = dim
        self.stride = 4 * dim
        self.extremes: tuple[float, float] | None = None
        self._spool, self._places, self._norms, self._present = spool, places, norms, present

    def __len__(self) -> int:
        return len(self._norms)

    def norms(self) -> NDArray[np.float32]:
        return self._norms

    def bitmap(self) -> NDArray[np.uint8] | None:
        return self._present

    def part(self, begin: int, end: int) -> NDArray[np.float32]:
        """float32, (end - begin, dim): consecutive rows."""
        if self._places is not None:
            return self._at(self._places[begin:end])
        return self._as_rows([self._spool.read(begin * self.stride, (end - begin) * self.stride)])

    def take(self, rows: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Copy these rows."""
        out[:] = self._at(rows if self._places is None else self._places[rows])

    def _at(self, places: NDArray[Any]) -> NDArray[np.float32]:
        offsets = (places.astype(np.int64) * self.stride).tolist()
        return self._as_rows(self._spool.permuted(offsets, itertools.repeat(self.stride, len(offsets))))

    def _as_rows(self, pieces: Iterable[bytes]) -> NDArray[np.float32]:
        return np.frombuffer(b"".join(pieces), "<f4").reshape(-1, self.dim)


def sketched(
    vectors: Ordered, metric: Metric, aside: Callable[[bytes], Callable[[], Iterable[Any]]]
) -> tuple[SketchLayout, Callable[[], Iterator[Any]]]:
    """What was measured, and what gives the bytes of the section. aside: keeps bytes until they are written.

    One reading of the embeddings; and some more to measure, of files of more than some thousand rows.
    """
    from ..search.measuring import Measuring  # a build measures by searching; loaded where one has a sketch

    measuring = Measuring(vectors, metric, len(vectors))
    kept: list[Callable[[], Iterable[Any]]] = []
    pending = bytearray()
    for begin in range(0, len(vectors), TILE):
        end = min(begin + TILE, len(vectors))
        tile = _tile(vectors, begin, end)
        measuring.offer(tile, begin)
        pending += tile.data.cast("B")
        if len(pending) >= _TOGETHER:
            kept.append(aside(bytes(pending)))
            pending.clear()
    kept.append(aside(bytes(pending)))
    return measuring.end(), lambda: itertools.chain.from_iterable(give() for give in kept)


def _tile(vectors: Ordered, begin: int, end: int) -> NDArray[np.uint64]:
    """u64, (words, end - begin)."""
    tile = np.empty((words_in(vectors.dim), end - begin), np.uint64)
    step = max(1, _READ // vectors.stride)
    for at in range(begin, end, step):
        some = vectors.part(at, min(at + step, end))
        tile[:, at - begin : at - begin + len(some)] = signs_of(some)
    return tile
