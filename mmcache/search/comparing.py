"""How much of an exact search a sketch finds for queries of a user's own, and in which share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import RecallError
from ..format.curves import Point, SketchLayout
from .asked import Search
from .best import Best
from .chunks import Span
from .measuring import candidates_of, points_of
from .scan import is_plain, search
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
    everything = Span(0, n, None, is_everything=True)
    exact, seconds = _timed(asked, lambda best: search(vectors, everything, [best], threads=1, between=_nothing))
    promised = _promised(file.layout.sketches.get(asked.field), k)
    points = []
    for few in (few for few in candidates_of(n) if few >= k and is_plain(vectors)):

        def find(best: Best, few: int = few) -> None:
            search_nearby(vectors, everything, [best], few, between=_nothing)

        near, spent = _timed(asked, find)
        # A row that is found counts as the first candidate, any other as one behind the last.
        places = np.array([~np.isin(rows, other) for rows, other in zip(exact, near, strict=True)], np.intp)
        point = points_of(places, [1])[0]._replace(candidates=few)
        points.append(Compared(point, promised.get(few), spent / seconds))
    return Comparison(asked.field, asked.metric, len(exact), seconds, points)


def _timed(asked: Search, find: Callable[[Best], object]) -> tuple[list[NDArray[np.int64]], float]:
    """The rows that are found for each query, the best first; and CPU seconds of one."""
    find(asked.best()[0])  # the first search of a process does more
    found = asked.best()
    begun = time.thread_time()
    for best in found:
        find(best)
    return [best.rows for best in found], (time.thread_time() - begun) / len(found)


def _promised(sketch: SketchLayout | None, k: int) -> dict[int, int]:
    """By candidates."""
    curves = {} if sketch is None else sketch.curves
    measured = min((one for one in curves if one >= k), default=0)
    return {point.candidates: point.least for point in curves.get(measured, ())}


def _nothing() -> None:
    pass
