"""How much of an exact search a sketch finds: measured on rows of a file while it is built, or on queries of a user's.

What is found is a function of the embeddings and their order alone, and is counted in whole numbers. So builds of the
same records write the same curves on all machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..format.curves import WHOLE, Point, SketchLayout
from ..storage.signing import signs_of
from .best import Best
from .chunks import Block, Span, wanted_in
from .distances import Nearby
from .metrics import Query
from .scan import is_plain, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Metric

__all__ = ["MEASURED", "Measuring", "candidates_of", "places_in", "points_of"]

MEASURED: Final = (10, 100)
"""How many nearest are searched for."""
SMALL: Final = 4096
"""Rows up to which a search scores them all, whatever recall it asks for."""
_FEWEST: Final = 32
_MOST: Final = 4096
"""Candidates of the first and the last point of a curve."""
_QUERIES: Final = 200
"""Rows that are searched for, at most."""
_LEAST_QUERIES: Final = 32
_PAIRS: Final = 2**26
"""Queries times rows, at most, unless there are more rows for each of the least queries."""
_STEP: Final = (math.sqrt(5) - 1) / 2
"""Its multiples fall evenly between whole numbers, and never into step with anything periodic."""


def candidates_of(n: int) -> list[int]:
    """Of the points of a curve of n rows: every second one has twice as many."""
    return [few for i in range(8) for few in (_FEWEST << i, 181 * _FEWEST // 128 << i) if few <= min(_MOST, n // 8)]


class Measuring:
    """Of a sketch whose tiles go by. vectors: the embeddings, all of them."""

    def __init__(self, vectors: Block, metric: Metric, n: int) -> None:
        norms = vectors.norms()
        there = np.flatnonzero(norms > 0) if n > SMALL and is_plain(vectors) else np.empty(0, np.intp)
        self._vectors, self._n, self._everything = vectors, n, Span(0, n)
        self._rows = _chosen(there, n) if len(there) > SMALL else np.empty(0, np.uint32)
        matrix = np.empty((len(self._rows), vectors.dim), np.float32)
        vectors.take(self._rows, matrix)
        self._found = [Best(Query.of(vector, metric), MEASURED[-1] + 1, None) for vector in matrix]
        self._near = [Nearby(signs, max(candidates_of(n)) + 1) for signs in signs_of(matrix)]

    @property
    def is_needed(self) -> bool:
        """Whether there are enough rows."""
        return len(self._rows) > 0

    def offer(self, tile: NDArray[np.uint64], begin: int) -> None:
        """The next tile: u64, (words, rows), C-contiguous."""
        wanted = wanted_in(self._everything, self._vectors.bitmap(), begin, begin + tile.shape[1])
        for one in self._near:
            one.offer(tile.reshape(-1), begin, wanted)

    def end(self) -> SketchLayout:
        """All tiles have gone by. Searches exactly for the same rows. Of a row's answer the row itself is no part."""
        if not self.is_needed:
            return SketchLayout(0, {})
        search(self._vectors, self._everything, self._found, threads=None, between=lambda: None)
        places = np.array(
            [
                places_in(_but(near.ranked, row), _but(best.rows, row)[: MEASURED[-1]])
                for row, near, best in zip(self._rows.tolist(), self._near, self._found, strict=True)
            ]
        )
        few = candidates_of(self._n)
        return SketchLayout(len(places), {k: points_of(places[:, :k], few) for k in MEASURED})


def _but(rows: NDArray[Any], row: int) -> NDArray[Any]:
    others: NDArray[Any] = rows[rows != row]
    return others


def _chosen(there: NDArray[np.intp], n: int) -> NDArray[np.uint32]:
    """Rows to search for, all over the file."""
    count = min(_QUERIES, max(_LEAST_QUERIES, _PAIRS // n))
    return there[np.unique((np.arange(count) * _STEP % 1 * len(there)).astype(np.intp))].astype(np.uint32)


def places_in(near: NDArray[np.uint32], rows: NDArray[np.int64]) -> NDArray[np.intp]:
    """intp, (len(rows),): where each row is among the candidates; their number for one that is not."""
    order = np.argsort(near)
    at = np.minimum(near[order].searchsorted(rows), len(near) - 1)
    return np.where(near[order][at] == rows, order[at], len(near))


def points_of(places: NDArray[np.intp], candidates: Sequence[int]) -> tuple[Point, ...]:
    """places: (queries, k): of the k nearest to each query among its candidates."""
    queries, k = places.shape
    points = []
    for few in candidates:
        hits = (places < few).sum(axis=1)
        total, squares = int(hits.sum()), int((hits * hits).sum())
        spread = max(0, queries * squares - total * total) / (queries * queries * max(1, queries - 1))
        recall = WHOLE * total // (queries * k)
        points.append(Point(few, recall, max(0, recall - math.ceil(2 * WHOLE * math.sqrt(spread) / k))))
    return tuple(points)
