"""What `meta` says of a sketch: how much of an exact search it finds. Without numpy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

__all__ = ["MAX_CANDIDATES", "WHOLE", "Point", "SketchLayout"]

WHOLE: Final = 10_000
"""A recall of 1, as it is stored."""
MAX_CANDIDATES: Final = 65_536
"""Rows that one search scores because of a curve, at most."""


class Point(NamedTuple):
    """candidates: rows that are scored. recall: the share of the nearest that is among them, the mean of all queries.
    least: the same less two standard errors. Both in 1/10,000."""

    candidates: int
    recall: int
    least: int


class SketchLayout(NamedTuple):
    """What was measured of a sketch when it was made.

    queries: rows of the file that were searched for. curves: how many nearest -> points by ascending candidates; empty
    where the rows are too few for a sketch to be worth it.
    """

    queries: int
    curves: Mapping[int, tuple[Point, ...]]

    def to_plain(self) -> list[Any]:
        return [self.queries, [[k, [list(point) for point in points]] for k, points in self.curves.items()]]

    @classmethod
    def from_plain(cls, plain: Any) -> Self:
        """Raises TypeError and ValueError for what is none."""
        queries, curves = plain
        return cls(_count(queries), {_count(k): _curve(points) for k, points in curves})


def _curve(plain: Any) -> tuple[Point, ...]:
    points = tuple(Point(*map(_count, point)) for point in plain)
    if any(one.candidates >= other.candidates for one, other in itertools.pairwise(points)):
        raise ValueError("the candidates of a sketch do not ascend")
    if not all(0 < one.candidates <= MAX_CANDIDATES and one.least <= one.recall <= WHOLE for one in points):
        raise ValueError("a point of a sketch's curve is none")
    return points


def _count(plain: Any) -> int:
    if type(plain) is not int or not 0 <= plain < 2**63:
        raise TypeError(f"expected a count, found {plain!r:.80}")
    return plain
