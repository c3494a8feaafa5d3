"""How much of an exact search a sketch finds for queries of a user's own, and in which share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import RecallError
from ..format.curves import Point
from .asked import Search
from .best import Best
from .chunks import Span
from .measuring import candidates_of, points_of
from .metrics import Query
from .scan import search
from .sketched import check_sketch, search_nearby

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ..storage.snapshot import FileCollection

__all__ = ["Compared", "Comparison", "compared"]


class Compared(NamedTuple):
    """point: what was found of the nearest among so many candidates. promised: what the file promises of it, as
    `Point.least`; None where it says nothing. time: of an exact search, the share of CPU time."""

    point: Point
    promised: int | None
    time: float


class Comparison(NamedTuple):
    """queries: that were searched for. exact_seconds: CPU time of an exact search for one of them."""

    field: str
    metric: str
    queries: int
    exact_seconds: float
    points: list[Compared]


def compared(file: FileCollection, matrix: ArrayLike, k: int, field: str | None = None) -> Comparison:
    """Search for each row of a matrix, (queries, dim), exactly, and by as many candidates as each point of a curve has.

    Each query is searched for alone. Raises RecallError for a file without a sketch, ValueError for what cannot be
    searched for, UnusableFileError.
    """
    asked = Search.of(file, matrix, k, {"embedding": field})
    vectors, n = file.vectors(asked.field), len(file)
    check_sketch(asked._replace(recall=0.5), file.schema)
    if not vectors.has_sketch:
        raise RecallError("the file has no sketch that this version knows: build it anew", path=file.file.path)
    if not len(asked.matrix):
        raise ValueError("there are no queries")
    sketch = file.layout.sketches.get(asked.field)
    curves = {} if sketch is None else sketch.curves
    promised = {
        point.candidates: point.least for point in curves.get(min((m for m in curves if m >= k), default=0), ())
    }

    def timed(find: Callable[[Best], object]) -> tuple[list[NDArray[np.int64]], float]:
        found = [Best(Query.of(vector, asked.metric), k, None) for vector in asked.matrix]
        find(Best(found[0].query, k, None))  # what the first search of a process does is not of the search
        begun = time.thread_time()
        for best in found:
            find(best)
        return [best.rows for best in found], (time.thread_time() - begun) / len(found)

    everything = Span(0, n, None, is_everything=True)
    exact, seconds = timed(lambda best: search(vectors, everything, [best], threads=1, between=_nothing))
    points = []
    for few in (few for few in candidates_of(n) if few >= k):
        near, spent = timed(lambda best, few=few: search_nearby(vectors, everything, [best], few, between=_nothing))  # type: ignore[misc]
        # A row that is found counts as the first candidate, any other as none.
        places = np.array(
            [np.isin(rows, other, invert=True).astype(np.intp) for rows, other in zip(exact, near, strict=True)]
        )
        points.append(Compared(points_of(places, [1])[0]._replace(candidates=few), promised.get(few), spent / seconds))
    return Comparison(asked.field, asked.metric, len(exact), seconds, points)


def _nothing() -> None:
    pass
