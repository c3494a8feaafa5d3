"""`Neighbours`: the records that a search found, as a selection with scores; and the search of a selection.

Order: the score, descending; of equal scores the file's rows, ascending; then the source's records, by key bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, cast, overload

import numpy as np

from ..errors import UnusableFileError
from ..format.keys import pack_key
from ..models import M, Model
from ..schema import R_co
from ..shown import internal, made_here
from ..sources.base import SourceRecord
from ..storage.asked import SearchOptions
from ..storage.mending import after, falls_back, going_on
from ..storage.modelled import modelled
from ..storage.record import Record
from ..storage.rows import Given, NoFile, Rows
from ..storage.selection import Selection, or_else, rows_in
from .asked import Search
from .best import Best
from .chunks import Span, chosen
from .metrics import exact_scores
from .scan import search
from .sketched import candidates_for, search_nearby

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Neighbours", "Offered", "joined", "nearest_in", "neighbours", "scored", "skipped"]


@made_here
@internal("of")
class Neighbours(Selection[R_co]):
    """The records that are nearest to a vector, the nearest first: a `Selection`, with their scores.

    Fewer than were asked for only where fewer match. A slice has the scores of its records. `|`, `&`, `-` and
    `order_by` give a `Selection`. Pickles as one, with the scores by value.

    >>> near = cache.nearest([1.0, 0.2], k=2)
    >>> near.ids, near.scores.round(3).tolist(), [(record.id, round(score, 3)) for record, score in near.pairs()]
    (['a', 'c'], [0.981, 0.832], [('a', 0.981), ('c', 0.832)])
    """

    __slots__ = ("_model", "_scores")
    _model: Model[R_co] | None
    _scores: NDArray[np.float64]

    @property
    @falls_back
    def scores(self) -> NDArray[np.float64]:
        """float64, (len,), read-only, descending: of cosine and dot the value, of euclidean the negated distance."""
        return self._scores

    def pairs(self) -> Iterator[tuple[R_co, float]]:
        """Each record with its score."""
        pairs: Iterator[Any] = self._pairs()
        model = self._model
        return pairs if model is None else ((model(record), score) for record, score in pairs)

    def _pairs(self) -> Iterator[tuple[Record, float]]:
        if self._instead is None:
            return self._scored()
        if not callable(self._instead):
            return cast("Neighbours[Any]", self._instead)._pairs()
        return going_on(
            self._scored, lambda pair: pair[0].id, lambda error: cast("Neighbours[Any]", after(error, self))._pairs()
        )

    def _scored(self) -> Iterator[tuple[Record, float]]:
        return zip(self._read(), self._scores.tolist(), strict=True)

    @falls_back
    def of(self, model: Model[M]) -> Neighbours[M]:
        """The same, as instances of a model."""
        return neighbours(self, self._scores, model)

    def __iter__(self) -> Iterator[R_co]:
        records: Iterator[Any] = super().__iter__()
        return records if self._model is None else map(self._model, records)

    @overload
    def __getitem__(self, i: int) -> R_co: ...
    @overload
    def __getitem__(self, i: slice) -> Neighbours[R_co]: ...
    @falls_back
    def __getitem__(self, i: int | slice) -> Any:
        found: Any = super().__getitem__(i)
        if isinstance(i, slice):
            return neighbours(found, self.scores[i], self._model)
        return found if self._model is None else self._model(found)

    def order_by(self, field: str, *, descending: bool = False) -> Selection[R_co]:
        return self._with(super().order_by(field, descending=descending))  # type: ignore[no-any-return]

    def nearest_many(self, matrix: ArrayLike, k: int = 10, **options: Unpack[SearchOptions]) -> list[Neighbours[R_co]]:
        found: list[Neighbours[Any]] = super().nearest_many(matrix, k, **options)
        return found if self._model is None else [one.of(self._model) for one in found]

    def limit(self, n: int) -> Neighbours[R_co]:
        found: Any = super().limit(n)
        return found  # type: ignore[no-any-return]

    def __or__(self, other: Any) -> Any:
        return self._with(super().__or__(other))

    def __and__(self, other: Any) -> Any:
        return self._with(super().__and__(other))

    def __sub__(self, other: Any) -> Any:
        return self._with(super().__sub__(other))

    def _with(self, found: Any) -> Any:
        return found if found is NotImplemented or self._model is None else modelled(found, self._model)

    @falls_back
    def __reduce__(self) -> tuple[Any, ...]:
        reduced = super().__reduce__()  # which may put other records into the place of these, with scores of their own
        return _arrived, (reduced, self.scores.tobytes(), self._model)

    def __repr__(self) -> str:
        scores = self.scores
        if not len(scores):
            return "<Neighbours: none>"
        return f"<Neighbours: {len(scores)} records, scores {scores[0]:.6g} to {scores[-1]:.6g}>"


def neighbours(
    found: Selection[Any], scores: NDArray[np.float64], model: Model[R_co] | None = None
) -> Neighbours[R_co]:
    """The same records, with their scores, as instances of a model if there is one."""
    made: Neighbours[R_co] = object.__new__(Neighbours)
    for name in Selection.__slots__:
        setattr(made, name, getattr(found, name))
    view = scores.view()
    view.flags.writeable = False
    made._scores, made._model = view, model
    made._instead = None  # what would take its place has scores: `falls_back` says so of what makes one
    return made


def _arrived(
    reduced: tuple[Callable[..., Selection[Any]], tuple[Any, ...]], scores: bytes, model: Model[Any] | None
) -> Neighbours[Any]:
    """What `Neighbours.__reduce__` sent."""
    make, arguments = reduced
    return neighbours(make(*arguments), np.frombuffer(scores, np.float64), model)


class Offered(NamedTuple):
    """A record that a source gave, with its score. order: as of `Given`."""

    score: float
    key: bytes
    order: int
    record: SourceRecord

    @property
    def rank(self) -> tuple[float, bytes]:
        """Ascends as neighbours do."""
        return -self.score, self.key


def nearest_in(
    selection: Selection[Any], matrix: ArrayLike, k: int, options: Mapping[str, Any]
) -> list[Neighbours[Any]]:
    """The k nearest of a selection to each row of a matrix. Raises what `Collection.nearest` raises."""
    file: Any = selection._file()
    asked = Search.of(file, matrix, k, options)
    found = asked.best()
    is_none = isinstance(file, NoFile)
    if not is_none:
        which = chosen(rows_in(selection), len(file))
        vectors = file.vectors(asked.field)
        few = candidates_for(asked, file, which)
        if few is None:
            search(vectors, which, found, threads=asked.threads, between=asked.between)
        else:
            assert isinstance(which, Span)
            search_nearby(vectors, which, found, few, between=asked.between)
    given = selection._given
    offered = [scored(given, best, asked, file.embedding_fields) for best in found] if given is not None else None
    without = skipped(file, asked)
    near = [
        joined(selection._collection, best, [] if offered is None else offered[i], asked.k, without)
        for i, best in enumerate(found)
    ]
    if callable(selection._instead):
        for vector, one in zip(asked.matrix.copy(), near, strict=True):
            or_else(one, partial(_nearest_instead, selection, vector, k, options))
    return near


def _nearest_instead(
    selection: Selection[Any], vector: NDArray[np.float32], k: int, options: Mapping[str, Any], error: UnusableFileError
) -> Selection[Any]:
    """The same of what takes the place of the selection."""
    return after(error, selection).nearest(vector, k, **options)


class Skipped(NamedTuple):
    """Rows and key bytes of what is no answer."""

    rows: set[int]
    keys: set[bytes]


def skipped(file: Any, asked: Search) -> Skipped:
    """What the keys that are skipped have in a file. Raises UnusableFileError."""
    rows = set()
    for key in asked.skip:
        try:
            rows.add(file.row(key))
        except (KeyError, TypeError):
            continue
    return Skipped(rows, set(map(pack_key, asked.skip)))


def scored(given: Given, best: Best, asked: Search, fields: Sequence[str]) -> list[Offered]:
    """The source's records that have an embedding and are good enough."""
    data = given.vectors(fields, asked.field)
    block = given.block(fields, asked.field, asked.matrix.shape[1])
    scores = exact_scores(block, best.query.wide, asked.metric).tolist()
    return [
        Offered(score, pack_key(key), order, record)
        for score, vector, key, order, record in zip(
            scores, data, given.keys, given.order.tolist(), given.records, strict=True
        )
        if vector is not None and math.isfinite(score) and score >= best.floor
    ]


def joined(
    collection: Rows,
    best: Best,
    offered: Sequence[Offered],
    k: int,
    without: Skipped,
) -> Neighbours[Any]:
    """The k best of the file's rows and the source's records, as one selection."""
    rows, keys = without.rows, without.keys
    ranked: list[tuple[float, int, Any, Any]] = [
        (-score, 0, row, None)
        for score, row in zip(best.scores.tolist(), best.rows.tolist(), strict=True)
        if row not in rows
    ]
    ranked += [(-one.score, 1, one.key, one) for one in offered if one.key not in keys]
    ranked = sorted(ranked, key=lambda one: one[:3])[:k]
    scores = np.array([0.0 - one[0] for one in ranked], np.float64)
    of_file = np.array([row for _, is_given, row, _ in ranked if not is_given], np.uint32)
    chosen_ones = [(place, one) for place, (_, _, _, one) in enumerate(ranked) if one is not None]
    given = None
    if chosen_ones or isinstance(collection, NoFile):
        given = Given(
            [one.record for _, one in chosen_ones],
            np.array([place for place, _ in chosen_ones], np.intp),
            np.array([one.order for _, one in chosen_ones], np.int64),
        )
    return neighbours(Selection(collection, of_file, given, True), scores)  # noqa: FBT003
