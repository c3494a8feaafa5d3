"""What a search was asked, checked before anything is read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from ..errors import RecallError, SearchTimeoutError
from ..format.keys import Key, check_keys
from ..schema import METRICS
from ..storage.record import place_of_embedding
from .best import Best
from .metrics import Query

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ..schema import Metric

__all__ = ["Search"]


class _Fields(Protocol):
    """What is known of a collection before it is read."""

    @property
    def embedding_fields(self) -> tuple[str, ...]: ...

    def dim_of(self, field: str | None = None) -> int: ...

    @property
    def schema(self) -> Any: ...


class Search(NamedTuple):
    """field: of the embeddings that are searched. matrix: float32, (queries, dim), finite. k: how many are wanted of
    each. skip: keys that are no answer. threads: of BLAS, at most; None leaves it to BLAS. until: the
    `time.monotonic` at which it is given up. recall: above 0, below 1; None for an exact search."""

    field: str
    metric: Metric
    matrix: NDArray[np.float32]
    k: int
    min_score: float | None
    skip: tuple[Key, ...]
    threads: int | None
    until: float
    recall: float | None

    @classmethod
    def of(cls, file: _Fields, matrix: ArrayLike, k: int, options: Mapping[str, Any]) -> Self:
        """Raises ValueError for what cannot be searched for, TypeError for what is no number."""
        begun = time.monotonic()
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(f"nearest() takes no {min(unknown)!r}; there are: {', '.join(sorted(_OPTIONS))}")
        fields, field = file.embedding_fields, options.get("embedding")
        if not fields:
            raise ValueError("the collection has no embeddings: name their field by Schema(embedding=...)")
        field = fields[0] if field is None else fields[place_of_embedding(fields, field)]
        metric = options.get("metric")
        if metric is None:
            metric = file.schema.metric_of(field)
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
        if index(k) < 1:
            raise ValueError(f"k={k}: a search is for one record or more")
        return cls(
            field,
            metric,
            _checked(matrix, file.dim_of(field), metric),
            index(k),
            _score(options.get("min_score")),
            tuple(check_keys(options.get("skip", ()))),
            _threads(options.get("threads")),
            begun + _seconds(options.get("deadline")),
            _recall(options.get("recall"), metric, file.schema.metric_of(field)),
        )

    def best(self) -> list[Best]:
        """For each query: nothing yet. Those that are skipped are found, too, and taken out at the end."""
        k = self.k + len(self.skip)
        return [Best(Query.of(vector, self.metric), k, self.min_score) for vector in self.matrix]

    @property
    def between(self) -> Callable[[], None]:
        """To be called between two chunks. Raises SearchTimeoutError."""
        return self._check_deadline

    def _check_deadline(self) -> None:
        if time.monotonic() >= self.until:
            raise SearchTimeoutError("the deadline has passed before all records were searched; none of them is given")


_OPTIONS = {"embedding", "metric", "min_score", "skip", "threads", "deadline", "recall"}


def _checked(matrix: ArrayLike, dim: int, metric: Metric) -> NDArray[np.float32]:
    """float32, (queries, dim), C-contiguous. dim: 0 where it is not known."""
    try:
        given = np.asarray(matrix)
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"vectors of several lengths, or no vectors ({error})") from None
    if any(map(np.ma.is_masked, matrix if isinstance(matrix, (list, tuple)) else [matrix])):  # numpy drops the mask
        raise ValueError("the vector has masked numbers: fill them first")
    if given.dtype.kind not in "fiub":
        raise TypeError(f"a vector has numbers, not {given.dtype}")
    if dim and given.shape == (dim,):
        raise ValueError(f"one vector of {dim} numbers, where a list of vectors is expected")
    if given.ndim != 2 or given.shape[1] != (dim or max(1, given.shape[1])):
        shape = given.shape[1:] if given.shape[:1] == (1,) else given.shape
        expected = f"({dim},)" if dim else "(dim,)"
        raise ValueError(f"a vector of shape {expected} is expected, one for each search; found {shape}")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(given, np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError("the vector has NaN or infinite numbers, or some beyond float32: nothing is near to it")
    if metric == "cosine" and not vectors.any(axis=1).all():
        raise ValueError("a vector of zeros has no direction, and so no cosine: use metric='dot' or 'euclidean'")
    return vectors


def _score(value: Any) -> float | None:
    if value is None:
        return None
    score = _float(value, "min_score")
    if math.isnan(score):
        raise ValueError("min_score must be a number, not NaN")
    return score


def _float(value: Any, name: str) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):  # texts, and integers beyond float64
        raise ValueError(f"{name} must be a number, not {value!r:.100}") from None


def _threads(value: Any) -> int | None:
    if value is None:
        return None
    if index(value) < 1:
        raise ValueError(f"threads must be 1 or more, or None, not {value!r}")
    return index(value)


def _recall(value: Any, metric: Metric, measured: Metric) -> float | None:
    """measured: the metric for which a file says what its sketch finds."""
    if value is None:
        return None
    recall = _float(value, "recall")
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, or None, not {value!r}")
    if recall == 1:
        return None
    if metric != measured:
        raise RecallError(
            f"a recall was measured for the schema's metric {measured!r}, not for {metric!r}: leave recall out, or "
            f"build with Schema(metric={metric!r})"
        )
    return recall


def _seconds(value: Any) -> float:
    if value is None:
        return math.inf
    seconds = _float(value, "deadline")
    if not seconds >= 0:
        raise ValueError(f"deadline must be seconds, 0 or more, or None, not {value!r}")
    return seconds
