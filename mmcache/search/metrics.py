"""What a score is, in float64, and what BLAS makes of it in float32, with a bound for the difference.

A higher score is nearer in each metric:

    cosine      the cosine of the angle, -1 to 1; 0 of a vector of zeros, which has no direction
    dot         the product
    euclidean   the distance, negated: 0 at most

A score is a sum of float64 products in the order of `np.add.reduce`, which depends on their number alone. So it is a
function of row and query, whatever is scored beside it, and the same on all machines. The compiled core adds in the
same order.

The *value* of a row orders rows as its score does, up to rounding: x·q / |x| for cosine, x·q for dot, 2 x·q - |x|² for
euclidean. BLAS sums the dim products of x·q in an order of its own. Whatever that is, the sum is wrong by at most
g |x| |q| with g = dim u / (1 - dim u), u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1, and
Cauchy-Schwarz).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np

from ..native import core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Metric

__all__ = ["LARGEST", "SMALLEST", "Query", "exact_scores"]

SMALLEST: Final = 1e-15
LARGEST: Final = 1e15
"""Lengths of vectors between which no product or square in float32 overflows, or loses more than the bound allows."""

_PIECE: Final = 2**16
"""Bytes of float64 that are made of rows at a time, at most, unless one has more: memory that malloc keeps."""

_U: Final = 2.0**-24
_SAFE: Final = 1.01
"""Bounds are computed in floating point themselves."""
_TINY: Final = 2.0**-125
"""More than a product below the range of float32 loses."""


def exact_scores(
    vectors: NDArray[np.float32],
    query: NDArray[np.float64],
    metric: Metric,
    rows: NDArray[np.uint32] | None = None,
) -> NDArray[np.float64]:
    """float64, (number of rows,): the score of each of some rows of a matrix, (n, dim); of all where `rows` is None.

    Of a row with NaN or infinite numbers it is not finite. Other rows are not read.
    """
    count = len(vectors) if rows is None else len(rows)
    sums = np.empty(count, np.float64)
    squares = np.empty(count, np.float64) if metric == "cosine" else None
    with np.errstate(all="ignore"):  # of embeddings with NaN, which some libraries warn of
        if core is not None and vectors.flags.c_contiguous and vectors.flags.aligned:
            core.sums(vectors, rows, query, sums, squares, metric == "euclidean")
        else:
            _sum(vectors, query, rows, (sums, squares), is_apart=metric == "euclidean")
        if metric == "euclidean":
            return 0.0 - np.sqrt(sums)
        if squares is None:
            return sums + 0.0  # so that no score is -0.0
        # Not the product of two roots: of equal vectors the root of a square is exactly their product.
        squares *= np.add.reduce(query * query)
        cosines: NDArray[np.float64] = np.zeros(count)
        np.divide(sums, np.sqrt(squares), out=cosines, where=squares != 0)
        return np.minimum(np.maximum(cosines, -1.0), 1.0) + 0.0


def _sum(
    vectors: NDArray[np.float32],
    query: NDArray[np.float64],
    rows: NDArray[np.uint32] | None,
    out: tuple[NDArray[np.float64], NDArray[np.float64] | None],
    *,
    is_apart: bool,
) -> None:
    """What the core does. out: of each row the sum of its products with the query, or of the squared differences; and
    that of its squares."""
    sums, squares = out
    size = max(1, _PIECE // (8 * len(query)))
    for begin in range(0, len(sums), size):
        piece = slice(begin, begin + size)
        wide = (vectors[piece] if rows is None else vectors[rows[piece]]).astype(np.float64, order="C")
        if is_apart:
            wide -= query
            sums[piece] = np.add.reduce(wide * wide, axis=1)
            continue
        sums[piece] = np.add.reduce(wide * query, axis=1)
        if squares is not None:
            squares[piece] = np.add.reduce(wide * wide, axis=1)


class Query(NamedTuple):
    """One vector that is searched for. wide: float64, (dim,). scaled: float32, (dim,), what BLAS multiplies by: of
    cosine and dot times the power of two `scale`, so that its length is between 1/2 and 1 if it is not 0. length: of
    that."""

    metric: Metric
    wide: NDArray[np.float64]
    scaled: NDArray[np.float32]
    scale: float
    length: float

    @classmethod
    def of(cls, vector: NDArray[np.float32], metric: Metric) -> Self:
        """vector: float32, (dim,), finite."""
        wide = vector.astype(np.float64)
        length = float(np.sqrt(np.add.reduce(wide * wide)))
        scale = 1.0
        if metric != "euclidean" and length:
            scale = float(2.0 ** -np.frexp(length)[1])
        return cls(metric, wide, (wide * scale).astype(np.float32), scale, length * scale)

    @property
    def is_plain(self) -> bool:
        """Whether the bounds hold: float32 has room for what BLAS makes of it."""
        return self.metric != "euclidean" or not self.length or SMALLEST <= self.length <= LARGEST

    def margins(self, lengths: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, (len(lengths),): how far the value of a row of this length is from what BLAS says, at most."""
        dim, q = len(self.wide), self.length
        gamma = dim * _U / (1 - dim * _U)
        tiny = np.float32(_SAFE * dim * _TINY)
        if self.metric == "cosine":  # and three roundings of the length, of its inverse, and of the quotient
            return np.full(len(lengths), _SAFE * q * (gamma + 8 * _U), np.float32)
        if self.metric == "dot":
            return lengths * np.float32(_SAFE * q * (gamma + 4 * _U)) + tiny
        # The doubled product, the square of a rounded length, and their difference.
        return lengths * (np.float32(_SAFE * q * (2 * gamma + 8 * _U)) + np.float32(_SAFE * 8 * _U) * lengths) + tiny

    def least(self, score: float) -> float:
        """The value of a row with this score, or a little less."""
        if self.metric == "dot":
            return score * self.scale
        if self.metric == "cosine":
            return score * self.length - 1e-15
        square, apart = self.length**2, score * score
        return square - apart - 2.0**-52 * (len(self.wide) + 16) * (square + apart)
