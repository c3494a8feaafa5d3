"""`Overlay`: a collection of a file as a view shows it while some of its ids are dirty.

It is the file's rows without the dirty ones and those that have expired, plus the records that the source has for the
dirty ids. A look-up costs that of the file and set operations on the dirty ids: no record is read, and the source is
not asked. Threads may share an overlay: after it is made it only collects the terms of a field, at the first query for
that field or by its order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays import np
from ..query import (
    Alternative,
    Excluding,
    Interval,
    Prefix,
    Query,
    Term,
    holds,
    order_key,
    terms_in,
)
from .ordering import by_terms, terms_given
from .rows import NO_ROW, Unplaced, joined, row_of
from .selection import Selection, again, unread
from .unread import Packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Schema
    from ..sources.base import SourceRecord
    from .record import Record
    from .snapshot import FileCollection

__all__ = ["Overlay"]

_LONGEST_ANSWER = 4096
"""Records of an answer that is remembered."""
_ROOM = 524_288
"""Rows of all answers that are remembered: 2 MB."""
_OF_AN_ANSWER = 256
"""Rows that the objects of an answer count for, besides its own."""

_BATCH = 2048
"""Keys read at a time by an iteration over all."""


class Overlay:
    """The records of a collection as of now: those of the file, those of the source for dirty ids.

    Its selections are in canonical order: a dirty record stands at its old row, those without a row at the end.
    """

    __slots__ = ("_answers", "_collection", "_dirty", "_length", "_order", "_records", "_room", "_sorted", "_terms")

    def __init__(
        self,
        collection: FileCollection,
        keys: Iterable[Hashable],
        records: Iterable[SourceRecord],
        gone: NDArray[np.uint32] | None = None,
    ) -> None:
        """keys: the dirty ones; of a type that the file cannot have, they have no row. records: all that the source
        has for them, those without a row in the source's order. gone: rows of records that have expired.

        One look-up in the file for each key. Raises UnusableFileError where the file is damaged.
        """
        given = list(records)
        order = {record.values[0]: row_of(collection, record.values[0], i) for i, record in enumerate(given)}
        known = [order[key] if key in order else row_of(collection, key, 0) for key in keys]
        # A record counts by its own key too, in case that is not exactly one of the keys.
        rows = [row for row in (*known, *order.values()) if row < NO_ROW]
        places = np.array([order[record.values[0]] for record in given], np.int64)
        sequence = np.argsort(places, kind="stable")
        self._collection = collection
        dirty = np.array(sorted(set(rows)), np.uint32)
        self._dirty = dirty if gone is None else joined(gone, dirty)
        self._order = places[sequence]
        self._records = [given[i] for i in sequence.tolist()]
        self._terms: dict[str, _Carriers] = {}
        self._sorted: dict[tuple[str, bool], NDArray[np.intp]] = {}
        self._answers: dict[tuple[Any, ...], Selection] = {}
        self._room = _ROOM
        self._length = len(collection) - len(self._dirty) + len(given)

    @property
    def collection(self) -> FileCollection:
        """The file's, dirty rows included."""
        return self._collection

    @property
    def schema(self) -> Schema:
        return self._collection.schema

    def __len__(self) -> int:
        return self._length

    def find(self, query: Query) -> Selection:
        """The records that answer a query as `parse_query` gives it; of an empty one, all.

        An indexed field of a source's record with a value that is no term matches nothing, as in the sources. Short
        answers are remembered for as long as the overlay lives.
        """
        asked = tuple(query.items())
        answer = self._answers.get(asked)
        if answer is None:
            found = unread(self._collection.find(query)).without(self._dirty)
            is_short = found.is_within(_LONGEST_ANSWER)
            rows = found.rows() if is_short and isinstance(found, Packed) else found
            answer = Selection(self._collection, rows, self._given(query))
            room = self._room - len(answer) - _OF_AN_ANSWER if is_short else -1
            if room < 0:
                return answer
            self._answers[asked], self._room = answer, room  # two threads may count one of two: the bound is soft
        return again(answer)

    def _given(self, query: Query) -> Unplaced | None:
        if not query:
            return Unplaced(self._records, self._order, self._ranks) if self._records else None
        chosen = self._matching(query)
        if not chosen:
            return None
        records, order = [self._records[i] for i in chosen], self._order.take(chosen)
        return Unplaced(records, order, lambda field, descending: self._ranks(field, descending).take(chosen))

    def _ranks(self, field: str, descending: bool) -> NDArray[np.intp]:  # noqa: FBT001 (a key)
        """intp: of each of the source's records, its place in the order by a field."""
        ranks = self._sorted.get((field, descending))
        if ranks is None:
            carried = [terms_given(record, field) for record in self._records]
            which = by_terms(carried, range(len(carried)), descending=descending)
            ranks = self._sorted[field, descending] = np.argsort(which)  # by two threads perhaps, with equal results
        return ranks

    def everything(self) -> Selection:
        """All records. 4 bytes a row, once one of them is asked for."""
        return self.find({})

    def all_records(self) -> Iterator[Record]:
        """All records, in order."""
        return iter(self.everything())

    def keys(self) -> Iterator[Any]:
        """The keys, in order, read in batches."""
        everything = self.everything()
        for begin in range(0, len(everything), _BATCH):
            yield from everything[begin : begin + _BATCH].ids

    def _matching(self, query: Query) -> list[int]:
        """Which of the source's records answer a query, ascending."""
        fields = []
        for field, wanted in query.items():
            carriers = self._carriers(field)
            carry = [carriers.of(one) for one in wanted]
            fields.append(carry[0] if len(carry) == 1 else set[int]().union(*carry))
        fewest, *others = sorted(fields, key=len)
        return sorted(fewest.intersection(*others))

    def terms(self, field: str) -> dict[Term, int]:
        """See `Collection.terms`. Reads the records that the file has of the dirty ids."""
        counts = self._collection.terms(field)
        for record in self._collection.records_at(self._dirty):
            for term in terms_in(record, field):
                counts[term] = counts.get(term, 0) - 1
        for term, carriers in self._carriers(field).by_term.items():
            counts[term] = counts.get(term, 0) + len(carriers)
        return {term: counts[term] for term in sorted(counts, key=order_key) if counts[term] > 0}

    def _carriers(self, field: str) -> _Carriers:
        carriers = self._terms.get(field)
        if carriers is None:
            carriers = _Carriers({}, set())
            for i, record in enumerate(self._records):
                terms = terms_given(record, field)
                if terms is None:
                    continue
                carriers.all.add(i)
                for term in terms:
                    carriers.by_term.setdefault(term, set()).add(i)
            self._terms[field] = carriers  # two threads may both collect them; one of the two equal results stays
        return carriers


class _Carriers(NamedTuple):
    """Of one field, by ordinal: the source's records that carry each term; all whose value can be in an index."""

    by_term: dict[Term, set[int]]
    all: set[int]

    def of(self, wanted: Alternative) -> set[int]:
        if isinstance(wanted, Excluding):
            return self.all.difference(*(self.of(one) for one in wanted.what))
        if isinstance(wanted, (Interval, Prefix, range)):
            return set[int]().union(*(found for term, found in self.by_term.items() if holds(wanted, (term,))))
        return self.by_term.get(wanted, set())
