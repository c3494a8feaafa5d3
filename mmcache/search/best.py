"""`Best`: the k best rows that were met so far, by their score in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .metrics import Query, exact_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Best", "not_above"]


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

    def offer(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Score these rows, (len(rows), dim), and keep the best. One with NaN or infinite numbers is none of them."""
        self.add(exact_scores(vectors, self.query.wide, self.query.metric), rows)

    def add(self, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        """The same of rows whose scores are there already."""
        keep = (scores >= self.floor) & (scores < math.inf)  # neither NaN nor -inf is either
        if self.floor == -math.inf:
            keep &= scores > -math.inf
        if not keep.any():
            return
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
        if len(self.scores) < self.k < len(values):
            # k rows of this chunk are no worse than this, whatever BLAS has rounded.
            lowest = values - margins(lengths)
            least = max(least, float(np.partition(lowest, len(lowest) - self.k)[-self.k]))
        if least == -math.inf:
            return np.flatnonzero(values > -math.inf)
        few = np.flatnonzero(values >= not_above(least - float(margins(lengths.max(keepdims=True))[0])))
        return few[values[few] + margins(lengths[few]) >= not_above(least)]


def not_above(value: float) -> np.float32:
    """A float32 that is less."""
    return np.float32(np.nextafter(np.float32(max(value, -3e38)), np.float32(-math.inf)))
