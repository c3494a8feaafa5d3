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
from ..format.sketch import TILE
from ..schema import AnySchema
from .asked import Search
from .best import Best
from .chunks import Block, Span, wanted_in
from .distances import Distances, Nearby
from .scan import is_plain, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sketched", "candidates_for", "check_sketch", "nearby", "search_nearby"]

TOGETHER: Final = 64
"""Queries that one reading of the sketch answers, at most."""
_HELD: Final = 2**17
"""Candidates of all of them, at most, unless one has more: some 2 MB."""

_WORTH: Final = 4
"""Where one row in so many would be a candidate, or more, all rows are scored."""


class Sketched(Block, Protocol):
    """Embeddings with a sketch."""

    def tile(self, begin: int, end: int) -> NDArray[np.uint64]: ...


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
        near = [Nearby(few) for _ in together]
        nearby(vectors, which, np.stack([best.query.wide for best in together]), near, between=between)
        for best, one in zip(together, near, strict=True):
            search(vectors, np.sort(one.rows).astype(np.uint32), [best], threads=1, between=between)


def nearby(
    vectors: Sketched,
    which: Span,
    queries: NDArray[Any],
    found: Sequence[Nearby],
    *,
    between: Callable[[], object],
) -> None:
    """Offer all rows of a span that have an embedding, tile by tile. queries: (len(found), dim)."""
    distances, bits = Distances(queries), vectors.bitmap()
    for begin in range(which.begin, which.end, TILE):
        between()
        end = min(begin + TILE, which.end)
        tile, wanted = vectors.tile(begin, end), wanted_in(which, bits, begin, end)
        for i, one in enumerate(found):
            one.offer(distances.to(i, tile), begin, wanted)
