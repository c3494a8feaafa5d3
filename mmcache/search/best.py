"""`Best`: the k best rows that were met so far, by their score in float64."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .metrics import Query, exact_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Best", "not_above"]

_LEAST: Final = -sys.float_info.max
"""The least score that is one."""
_SORTED: Final = 4
"""Where there are more than so many times k, the k best are chosen before they are sorted."""
_GROUP: Final = 32
"""Values of which one is looked at, where there are many."""


class Best:
    """Of one query. scores: float64, descending. rows: int64; of equal scores they ascend.

    floor: scores below it cannot be among the k best any more; -inf while each can.
    """

    __slots__ = ("_min_score", "floor", "k", "query", "rows", "scores")

    def __init__(self, query: Query, k: int, min_score: float | None) -> None:
        self.query = query
        self.k = k
        self._min_score = self.floor = -math.inf if min_score is None else min_score
        self.scores = np.empty(0, np.float64)
        self.rows = np.empty(0, np.int64)

    def offer(self, vectors: NDArray[np.float32], places: NDArray[np.uint32], rows: NDArray[Any]) -> None:
        """Score what lies at these places of a matrix, (n, dim), and keep the best. One with NaN or infinite numbers is
        none of them. rows: their ordinals."""
        self.add(exact_scores(vectors, self.query.wide, self.query.metric, places), rows)

    def add(self, scores: NDArray[np.float64], rows: NDArray[Any]) -> None:
        """The same of rows whose scores are there already."""
        keep = np.flatnonzero((scores >= max(self.floor, _LEAST)) & (scores < math.inf))  # NaN is neither
        if not len(keep):
            return
        if len(keep) > _SORTED * self.k:
            some = scores[keep]
            keep = keep[some >= np.partition(some, len(some) - self.k)[len(some) - self.k]]
        scores, rows = np.concatenate((self.scores, scores[keep])), np.concatenate((self.rows, rows[keep]))
        chosen = np.lexsort((rows, -scores))[: self.k]
        self.scores, self.rows = scores[chosen], rows[chosen]
        if len(chosen) == self.k:
            self.floor = max(self._min_score, float(self.scores[-1]))

    def least(self) -> float:
        """Rows whose value is below it cannot be among the k best any more; -inf while each can."""
        return self.query.least(self.floor) if self.floor > -math.inf else -math.inf

    def sift(self, values: NDArray[np.float32], lengths: NDArray[np.float32]) -> NDArray[np.intp]:
        """Which rows of a chunk may be among the k best, by their values from BLAS; -inf: certainly not.

        lengths: float32, (len(values),): of their vectors.
        """
        least, margins = self.least(), self.query.margins
        most = float(margins(lengths.max(keepdims=True))[0])
        if len(self.scores) < self.k < len(values):
            # k rows of this chunk are no worse than this, whatever BLAS has rounded.
            least = max(least, _kth(_highest(values, self.k), self.k) - most)
        if least == -math.inf:
            return np.flatnonzero(values > -math.inf)
        few = np.flatnonzero(values >= not_above(least - most))
        if len(self.scores) < self.k < len(few):
            least = max(least, _kth(values[few] - margins(lengths[few]), self.k))
        return few[values[few] + margins(lengths[few]) >= not_above(least)]


def _kth(values: NDArray[np.float32], k: int) -> float:
    """The k-th highest."""
    return float(np.partition(values, len(values) - k)[-k])


def _highest(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The highest value of each of some groups, where there are enough groups: no fewer than k values are as high as
    the k-th of these. To partition all values takes longer than to multiply them."""
    groups = len(values) // _GROUP
    return values if groups < _SORTED * k else values[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)


def not_above(value: float) -> np.float32:
    """A float32 that is less."""
    return np.float32(np.nextafter(np.float32(max(value, -3e38)), np.float32(-math.inf)))
