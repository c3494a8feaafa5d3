"""The records of a selection by the terms of one field: as many of the first as are asked for.

Rows of a file come by the order of the terms in its index, walked from one end until there are enough; or, where the
selection is a small part of the file, by the terms of its records, which are read. The records of a source are put
among them by their terms. Of several terms the smallest counts, or the largest where the order descends; records
without a term are last, and ties are in the canonical order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..arrays import np
from ..format.postings import LIST, IndexReader, Postings
from ..format.select import is_single, walk
from ..query import Term, follow, order_key, place_of, terms_in, terms_of
from .rows import File, Given, Unplaced
from .unread import Packed, Ranged, is_among

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..sources.base import SourceRecord

    _Mask = Callable[[NDArray[np.uint32]], NDArray[np.bool_]]

__all__ = ["Ordering", "by_terms", "terms_given"]

_PER_RECORD: Final = 2500
_PER_WALKED_ROW: Final = 15
_TO_BEGIN: Final = 30_000
"""Nanoseconds, about: which of the two ways is the shorter."""

_ONE_BY_ONE: Final = 1024
"""Up to so many rows of a walk are collected without an array of all rows of the file."""


_IN_TURN: Final = 32
"""Up to so many rows are taken from one posting list after the other: that is less than numpy needs to begin."""


def terms_given(record: SourceRecord, field: str) -> tuple[Term, ...] | None:
    """None for a value that is no term."""
    place = place_of(field, record.names)
    try:
        return (None,) if place is None else terms_of(follow(record.values[place[0]], place[1]))
    except TypeError:
        return None


def by_terms(carried: Sequence[Sequence[Term] | None], canonical: Iterable[int], *, descending: bool) -> list[int]:
    """Ordinals in canonical order by the terms that they carry, those without at the end."""
    best = max if descending else min
    keys: dict[int, Any] = {}
    rest = []
    for i in canonical:
        if terms := carried[i]:
            keys[i] = order_key(terms[0]) if len(terms) == 1 else best(map(order_key, terms))
        else:
            rest.append(i)
    return sorted(keys, key=keys.__getitem__, reverse=descending) + rest  # stable in either direction


def _terms_in(record: Mapping[str, Any], field: str) -> tuple[Term, ...]:
    """A value that is no term counts as none, also in a file that was made to have one."""
    try:
        return terms_in(record, field)
    except TypeError:
        return ()


class Ordering(NamedTuple):
    """Records that are to be put into order: rows of a file, and records that a source gave."""

    file: File
    rows: NDArray[np.uint32] | Packed | Ranged
    given: Given | Unplaced | None
    field: str
    descending: bool

    @property
    def size(self) -> int:
        """How many are rows."""
        return self.rows.size

    def first(self, count: int) -> tuple[NDArray[np.uint32], Given | None]:
        """The rows and the given records of the first so many."""
        rows, n = self.rows, len(self.file)
        if isinstance(rows, Ranged) and rows.field == self.field and is_single(reader := self.file.index(self.field)):
            return self._by_index(_Walk(self, reader, rows.span, n), count)
        size = rows.size
        if size and self.field in self.file.schema.index:
            reader = self.file.index(self.field)
            ends = reader.ends.get(self.descending)
            if ends is not None and size == n and self.given is None and count <= len(ends[0]):
                return ends[0][:count], None  # what most pages that show the latest ask for
            worth = n * n
            if size < n:
                worth = (_PER_RECORD * size - _TO_BEGIN) // _PER_WALKED_ROW
            if min(count, size) * n // size < worth:
                with contextlib.suppress(_TooFarError):
                    return self._by_index(_Walk(self, reader, None, worth), count)
        return self._by_value(count)

    # --- by the terms of the records

    def _by_value(self, count: int) -> tuple[NDArray[np.uint32], Given | None]:
        rows = np.sort(self.unpacked())
        order = rows.tolist()
        carried = [_terms_in(record, self.field) for record in self.file.records_at(rows)] if order else []
        if self.given is not None:
            order += self.given.order.tolist()
            carried += [terms_given(record, self.field) or () for record in self.given.records]
        canonical = sorted(range(len(order)), key=order.__getitem__)
        chosen = by_terms(carried, canonical, descending=self.descending)[:count]
        of_file = [i < len(rows) for i in chosen]
        kept = rows[[i for i in chosen if i < len(rows)]]
        if self.given is None:
            return kept, None
        at = [place for place, is_row in enumerate(of_file) if not is_row]
        return kept, self._chosen([chosen[place] - len(rows) for place in at], at)

    def _chosen(self, which: list[int], at: Sequence[int] | NDArray[np.intp]) -> Given:
        given = self.given
        assert given is not None
        return Given([given.records[i] for i in which], np.array(at, np.intp), given.order[which])

    def unpacked(self) -> NDArray[np.uint32]:
        return self.rows.rows() if isinstance(self.rows, (Packed, Ranged)) else self.rows

    # --- by the index

    def _by_index(self, walk: _Walk, count: int) -> tuple[NDArray[np.uint32], Given | None]:
        need = count if walk.span else min(count, self.rows.size)  # of a range, the number is dear
        rows, places = walk.first(need)
        with_term = len(rows)
        if with_term < need and not walk.span:
            mask = np.zeros(walk.reader.n, np.bool_)
            mask[self.unpacked()] = True
            mask[rows] = False
            rows = np.concatenate((rows, np.flatnonzero(mask)[: need - with_term].astype(np.uint32)))
        if self.given is None or not self.given.records:
            return rows, None
        return self._merged(walk.reader, rows, places, count)

    def _merged(
        self, reader: IndexReader, rows: NDArray[np.uint32], places: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.uint32], Given]:
        """The given records among rows that are in order; places: of their terms, fewer than rows as some have none.

        On a scale of twice the places, a term of the file is odd, and one between two of them even.
        """
        assert self.given is not None
        sign = -1 if self.descending else 1
        scale = sign * (2 * places + 1)
        order, which = self.given.order.tolist(), self._given_by_terms(self.given)
        best = max if self.descending else min
        at = []
        for turn, i in enumerate(which):
            begin, end = len(places), len(rows)
            if carried := terms_given(self.given.records[i], self.field):
                value = sign * _scaled(reader, best(carried, key=order_key))
                begin, end = (int(np.searchsorted(scale, value, side)) for side in ("left", "right"))
            place = begin + int(np.searchsorted(rows[begin:end], order[i])) + turn
            if place >= count:
                break
            at.append(place)
        return rows[: count - len(at)], self._chosen(which[: len(at)], at)

    def _given_by_terms(self, given: Given | Unplaced) -> list[int]:
        if isinstance(given, Unplaced) and given.ranks is not None:
            ranked: list[int] = given.ranks(self.field, self.descending).argsort().tolist()
            return ranked
        carried = [terms_given(record, self.field) for record in given.records]
        return by_terms(carried, given.order.argsort(kind="stable").tolist(), descending=self.descending)


class _TooFarError(Exception):
    """The walk has taken longer than to read the records."""


class _Walk:
    """The rows of a selection by the order of terms, and the places of these; those without a term left out."""

    def __init__(self, asked: Ordering, reader: IndexReader, span: tuple[int, int] | None, worth: int) -> None:
        """span: of the only terms that need be walked, of which each row has but one; all rows but dirty ones are of
        the selection. worth: rows to walk, before it is given up."""
        self.reader = reader
        self._asked = asked
        self.span = span
        self._worth = worth

    def first(self, need: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        wanted = self._filter(need)
        n, likely = self.reader.n, _IN_TURN // 2
        if need <= _IN_TURN and (wanted is None or self.span or need * n <= likely * self._asked.size):
            rows, places = self._in_turn(need)
            if wanted is None:
                return rows[:need], places[:need]
            keep = wanted(rows)
            if int(keep.sum()) >= need:
                return rows[keep][:need], places[keep][:need]
        return self._few(wanted, need) if need <= _ONE_BY_ONE else self._many(wanted, need)

    def _filter(self, need: int) -> _Mask | None:
        """Tells which rows are of the selection; None if all are."""
        chosen = self._asked.rows
        if self.span:
            assert isinstance(chosen, Ranged)
            dirty = chosen.dirty
            return (lambda rows: ~is_among(rows, dirty)) if len(dirty) else None
        if chosen.size == self.reader.n:
            return None
        if isinstance(chosen, Packed) and (chosen.found.kind != LIST or need <= _ONE_BY_ONE):
            return chosen.found.mask
        rows = self._asked.unpacked()
        if need <= _ONE_BY_ONE:
            return Postings(LIST, len(rows), 0, np.sort(rows)).mask
        mask = np.zeros(self.reader.n, np.bool_)
        mask[rows] = True
        return mask.__getitem__

    def _steps(self, wanted: _Mask | None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
        """Places and rows of the selection, some at a time; a row with several terms as often. Raises _TooFarError."""
        most = self._asked.file.layout.sections["records"].length
        left = self._worth
        for places, rows in walk(self.reader, descending=self._asked.descending, most=most, span=self.span):
            if wanted is None:
                yield places, rows
                continue
            keep = wanted(rows)
            yield places[keep], rows[keep]
            left -= len(rows)
            if left < 0:
                raise _TooFarError

    def _few(self, wanted: _Mask | None, need: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        found: dict[int, int] = {}
        for places, rows in self._steps(wanted):
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                if len(found) == need:
                    break
                found.setdefault(row, place)
            if len(found) == need:
                break
        return np.array([*found], np.uint32), np.array([*found.values()], np.int64)

    def _in_turn(self, need: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The first rows, dirty ones too, one term after the other; without a span remembered by the reader."""
        reader, descending, chosen = self.reader, self._asked.descending, self._asked.rows
        if not self.span and (ends := reader.ends.get(descending)) is not None:
            return ends
        codes = range(*(self.span or (0, reader.size)))
        count = min(need + len(chosen.dirty), _IN_TURN) if self.span and isinstance(chosen, Ranged) else _IN_TURN
        rows, their_places = reader.first_rows(codes[::-1] if descending else codes, count)
        ends = np.array(rows, np.uint32), np.array(their_places, np.int64)
        if not self.span:
            reader.ends[descending] = ends
        return ends

    def _many(self, wanted: _Mask | None, need: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        n = self.reader.n
        seen = np.zeros(n, np.bool_)
        latest = np.empty(n, np.int64)
        found: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        their_places: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        left = need
        for places, rows in self._steps(wanted):
            keep = ~seen[rows]
            places, rows = places[keep], rows[keep]
            turns = np.arange(len(rows))
            latest[rows[::-1]] = turns[::-1]  # of a row that comes twice, the first one stays
            is_first = latest[rows] == turns
            places, rows = places[is_first][:left], rows[is_first][:left]
            seen[rows] = True
            found.append(rows)
            their_places.append(places)
            left -= len(rows)
            if not left:
                break
        return np.concatenate(found), np.concatenate(their_places)


def _scaled(reader: IndexReader, term: Any) -> int:
    key = order_key(term)
    place = reader.first_not_before(key)
    is_there = place < reader.size and order_key(reader.term(place)) == key
    return 2 * place + is_there
