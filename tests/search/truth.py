"""The neighbours of a vector by brute force, one record after the other, in Python's own numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from mmcache.types import Metric

Vector = Sequence[float]
METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclidean")


def score(metric: str, vector: Vector, query: Vector) -> float:
    """With each sum rounded once: of small whole numbers it is the very number that a search gives."""
    if metric == "euclidean":
        return 0.0 - math.sqrt(math.fsum((x - q) * (x - q) for x, q in zip(vector, query, strict=True)))
    dot = math.fsum(x * q for x, q in zip(vector, query, strict=True)) + 0.0
    if metric == "dot":
        return dot
    squares = math.fsum(x * x for x in vector) * math.fsum(q * q for q in query)
    return max(-1.0, min(1.0, dot / math.sqrt(squares))) + 0.0 if squares else 0.0


def nearest(
    vectors: Mapping[Any, Vector | None],
    query: Vector,
    metric: str,
    k: int,
    *,
    min_score: float = -math.inf,
    last: Iterable[Hashable] = (),
) -> list[tuple[Any, float]]:
    """Key and score of the k nearest. vectors: by key, in the order of the file. last: keys that come after others of
    the same score, as those of records that the source gave do, by their bytes; of ASCII and one length here."""
    after = dict.fromkeys(last, 1)
    places = {key: i for i, key in enumerate(vectors)}
    scored = [(key, score(metric, vector, query)) for key, vector in vectors.items() if vector is not None]
    found = [(key, value) for key, value in scored if value >= min_score]
    found.sort(key=lambda one: (-one[1], after.get(one[0], 0), one[0] if one[0] in after else places[one[0]]))
    return found[:k]
