"""The k best rows of a file for each of some queries: candidates by BLAS, decided in float64, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..native import core
from .best import Best, not_above
from .blas import SMALL, may_multiply
from .chunks import Block, Chunk, Span, chunks, pieces
from .metrics import LARGEST, SMALLEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["is_plain", "search"]

TOGETHER: Final = 64
"""Queries that one reading of the block answers."""

FEW: Final = 64
"""Rows that are scored in float64 at once: choosing candidates among them takes longer."""

_LOOKED_AT: Final = 2**16
"""Lengths of vectors that are compared at a time."""


def search(
    vectors: Block,
    which: Span | NDArray[np.uint32],
    found: Sequence[Best],
    *,
    threads: int | None,
    between: Callable[[], object],
) -> None:
    """Offer each of `found` all rows that may be among its best. Between two chunks `between` is called.

    Raises UnusableFileError, and what `between` raises.
    """
    count = which.end - which.begin if isinstance(which, Span) else len(which)
    if not count or not vectors.dim:
        return
    for begin in range(0, len(found), TOGETHER):
        together = found[begin : begin + TOGETHER]
        if core is not None and len(together) == 1 and not isinstance(which, Span):
            _score(vectors, which, together[0], between)
            continue
        offer = _offer_all
        if count > FEW and all(best.query.is_plain for best in together) and is_plain(vectors):
            offer = _Multiplied(together, vectors.norms(), is_parallel=may_multiply(threads)).offer
        with np.errstate(all="ignore"):  # of embeddings with NaN, which some libraries warn of
            for chunk in chunks(vectors, which, len(together)):
                between()
                offer(together, chunk)


def _score(vectors: Block, rows: NDArray[np.uint32], best: Best, between: Callable[[], object]) -> None:
    """Score rows where they lie, all in float64: what the core does faster than others copy them."""
    for some in pieces(vectors, rows):
        between()
        whole, places = vectors.placed(some)
        best.offer(whole, places, some)


def is_plain(vectors: Block) -> bool:
    """Whether the bounds hold for all rows: see `metrics`. Looks at all lengths, once; without them, they are not known
    to hold."""
    if not vectors.has_norms:
        return False
    if vectors.extremes is None:
        norms = vectors.norms()
        least, most = math.inf, 0.0
        for begin in range(0, len(norms), _LOOKED_AT):
            some = norms[begin : begin + _LOOKED_AT]
            least = min(least, float(np.min(some, where=some != 0, initial=math.inf)))
            most = max(most, math.inf if np.isnan(some).any() else float(some.max()))
        vectors.extremes = least, most
    least, most = vectors.extremes
    return least >= SMALLEST and most <= LARGEST


def _offer_all(found: Sequence[Best], chunk: Chunk) -> None:
    """Score every row in float64."""
    everything = np.arange(len(chunk.vectors)) if chunk.wanted is None else np.flatnonzero(chunk.wanted)
    for begin in range(0, len(everything), _LOOKED_AT):
        places = everything[begin : begin + _LOOKED_AT]
        for best in found:
            _offer(best, chunk, places)


def _offer(best: Best, chunk: Chunk, places: NDArray[np.intp]) -> None:
    best.offer(chunk.vectors, places.astype(np.uint32), chunk.ordinals(places))


_CACHED: Final = 2**18
"""Bytes of rows that are multiplied by one query after the other."""


class _Multiplied:
    """Finds candidates by one product of all queries and a chunk. norms: of all rows.
    is_parallel: whether BLAS may use its threads for large ones."""

    def __init__(self, found: Sequence[Best], norms: NDArray[np.float32], *, is_parallel: bool) -> None:
        self._is_parallel = is_parallel
        self._norms = norms
        self._queries = np.stack([best.query.scaled for best in found])
        self._metric = found[0].query.metric
        self._values = np.empty(0, np.float32)

    def offer(self, found: Sequence[Best], chunk: Chunk) -> None:
        lengths = chunk.lengths(self._norms)
        if not len(lengths):
            return
        values = self._product(chunk.vectors)
        if self._metric == "cosine":
            with np.errstate(divide="ignore"):
                inverse = np.divide(np.float32(1), lengths)
            inverse[lengths == 0] = 0
            values *= inverse
        elif self._metric == "euclidean":
            values *= np.float32(2)
            values -= lengths * lengths
        if chunk.wanted is not None:
            np.copyto(values, np.float32(-math.inf), where=~chunk.wanted)
        highest, longest = values.max(axis=1), lengths.max(keepdims=True)
        for best, own, top in zip(found, values, highest, strict=True):
            least = best.least()
            if least > -math.inf and top < not_above(least - float(best.query.margins(longest)[0])):
                continue
            if top > -math.inf:
                _offer(best, chunk, best.sift(own, lengths))

    def _product(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, (queries, rows), which the next chunk overwrites."""
        size = len(self._queries) * len(vectors)
        if len(self._values) < size:
            self._values = np.empty(size, np.float32)
        values = self._values[:size].reshape(len(self._queries), len(vectors))
        if len(self._queries) > 1 and self._is_parallel and vectors.nbytes >= SMALL:
            return np.matmul(self._queries, vectors.T, out=values)
        # Few rows at a time stay in the CPU's cache for all queries.
        rows = len(vectors) if len(self._queries) == 1 else max(1, _CACHED // vectors[:1].nbytes)
        for begin in range(0, len(vectors), rows):
            part = vectors[begin : begin + rows]
            for query, own in zip(self._queries, values, strict=True):
                _multiply(part, query, own[begin : begin + rows])
        return values


def _multiply(rows: NDArray[np.float32], query: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """The products of consecutive rows and a query, added in some order, in the thread that calls."""
    if core is not None and rows.flags.c_contiguous and rows.flags.aligned:
        core.products(rows, query, out)
    else:
        np.vecdot(rows, query, out=out)
