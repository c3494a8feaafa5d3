"""Approximate search: rows that are near by their signs are the candidates. They are scored as by an exact search.

How many candidates there are follows from the `recall` that is asked for, and from the curve that the file has: what
was measured when it was built. Whatever else is in the sketch, a row that is found has its own score.

A search is exact all the same where a filter chooses the rows, where these are few, and where the file has no sketch
that this version knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ..errors import RecallError
from ..format.curves import WHOLE
from ..format.sketch import TILE, words_in
from ..schema import AnySchema
from ..storage.signing import signs_of
from .asked import Search
from .best import Best
from .chunks import READ, Block, Span, wanted_in
from .distances import Nearby
from .scan import is_plain, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sketched", "candidates_for", "check_sketch", "search_nearby"]

TOGETHER: Final = 64
"""Queries that one reading of the sketch answers, at most."""
_TOGETHER_BYTES: Final = 2**20
"""Of signs that several queries read one after the other, at most, unless a tile has more: they stay in the cache."""
_TOGETHER_ROWS: Final = 2**18
"""Rows whose signs are read at a time, at most: what is known of each takes a byte."""
_HELD: Final = 2**17
"""Candidates of all of them, at most, unless one has more: 2 MB."""

_WORTH: Final = 4
"""Where one row in so many would be a candidate, or more, all rows are scored."""


class Sketched(Block, Protocol):
    """Embeddings with a sketch."""

    def signs(self, begin: int, end: int) -> NDArray[np.uint64]: ...


def check_sketch(asked: Search, schema: AnySchema) -> None:
    """Raises RecallError where a recall is asked for, and the schema has no sketch."""
    if asked.recall is not None and not schema.sketch:
        raise RecallError(
            f"collection {schema.name!r} has no sketch, which a recall needs: build it with Schema(sketch=True), or "
            "leave recall out"
        )


def candidates_for(asked: Search, file: Any, which: Span | NDArray[np.uint32]) -> int | None:
    """How many rows are scored; None for all. file: a `FileCollection`, or none.

    Raises RecallError for what it does not promise.
    """
    check_sketch(asked, file.schema)
    recall, sketch = asked.recall, file.layout.sketches.get(asked.field)
    if recall is None or not (isinstance(which, Span) and which.is_everything) or sketch is None or not sketch.curves:
        return None
    measured = min((k for k in sketch.curves if k >= asked.k), default=None)
    if measured is None:
        raise RecallError(
            f"k={asked.k}: a recall was measured for k up to {max(sketch.curves)}; leave recall out",
            path=file.file.path,
        )
    curve = sketch.curves[measured]
    point = next((point for point in curve if point.least / WHOLE >= recall), None)
    if point is None:
        most = max((point.least for point in curve), default=0) / WHOLE
        raise RecallError(
            f"a recall of {recall:g} is more than the file promises for k={asked.k}, {most:g}: ask for that, or leave "
            "recall out",
            path=file.file.path,
        )
    vectors, few = file.vectors(asked.field), max(point.candidates, asked.k) + len(asked.skip)
    return few if vectors.has_sketch and _WORTH * few < len(file) and is_plain(vectors) else None


def search_nearby(
    vectors: Sketched, which: Span, found: Sequence[Best], few: int, *, between: Callable[[], object]
) -> None:
    """Offer each of `found` the rows of a span that are nearest by their signs, so many. See `scan.search`."""
    size = max(1, min(TOGETHER, _HELD // few))
    for begin in range(0, len(found), size):
        together = found[begin : begin + size]
        near = [Nearby(query, few) for query in signs_of(np.array([best.query.wide for best in together], np.float32))]
        _read(vectors, which, near, between=between)
        for best, one in zip(together, near, strict=True):
            search(vectors, one.rows, [best], threads=1, between=between)


def _read(vectors: Sketched, which: Span, found: Sequence[Nearby], *, between: Callable[[], object]) -> None:
    """Offer all rows of a span that have an embedding, some tiles at a time."""
    bits, most = vectors.bitmap(), READ if len(found) == 1 else _TOGETHER_BYTES
    size = TILE * max(1, min(most // (8 * words_in(vectors.dim)), _TOGETHER_ROWS) // TILE)
    for begin in range(which.begin, which.end, size):
        between()
        end = min(begin + size, which.end)
        signs, wanted = vectors.signs(begin, end), wanted_in(which, bits, begin, end)
        for one in found:
            one.offer(signs, begin, wanted)
