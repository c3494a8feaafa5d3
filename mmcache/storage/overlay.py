"""`Overlay`: a collection of a file as a view shows it while some of its ids are dirty.

It is the file's rows without the dirty ones, plus the records that the source has for the dirty ids. A look-up costs
that of the file and set operations on the dirty ids: no record is read, and the source is not asked. Threads may share
an overlay: after it is made it only collects the terms of a field, at the first query for that field.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schema import Query, Term, terms_of
from .selection import NO_ROW, Selection, in_order, row_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..sources.base import SourceRecord
    from .snapshot import Collection

__all__ = ["Overlay"]

_BATCH = 2048
"""Keys read at a time by an iteration over all."""


class Overlay:
    """The records of a collection as of now: those of the file, those of the source for dirty ids.

    Its selections are in canonical order: a dirty record stands at its old row, those without a row at the end.
    """

    __slots__ = ("_collection", "_dirty", "_length", "_order", "_records", "_terms")

    def __init__(self, collection: Collection, keys: Iterable[Hashable], records: Iterable[SourceRecord]) -> None:
        """keys: the dirty ones; of a type that the file cannot have, they have no row. records: all that the source
        has for them, those without a row in the source's order.

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
        self._dirty = np.array(sorted(set(rows)), np.uint32)
        self._order = places[sequence]
        self._records = [given[i] for i in sequence.tolist()]
        self._terms: dict[str, dict[Term, set[int]]] = {}
        self._length = len(collection) - len(self._dirty) + len(given)

    @property
    def collection(self) -> Collection:
        """The file's, dirty rows included."""
        return self._collection

    def __len__(self) -> int:
        return self._length

    def find(self, query: Query) -> Selection:
        """The records that answer a query as `parse_query` gives it; of an empty one, all.

        An indexed field of a source's record with a value that is no term matches nothing, as in the sources.
        """
        rows = self._clean(self._collection.find(query).rows)
        chosen = self._matching(query) if query else range(len(self._records))
        if not chosen:
            return Selection(self._collection, rows)
        records = [self._records[i] for i in chosen]
        return in_order(self._collection, rows, records, self._order.take(chosen))

    def everything(self) -> Selection:
        """All records. 4 bytes a row."""
        return self.find({})

    def keys(self) -> Iterator[Any]:
        """The keys, in order, read in batches."""
        everything = self.everything()
        for begin in range(0, len(everything), _BATCH):
            yield from everything[begin : begin + _BATCH].ids

    def _clean(self, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Ascending rows without the dirty ones."""
        dirty = self._dirty
        if not len(rows) or not len(dirty):
            return rows
        at = rows.searchsorted(dirty)
        is_there = rows.take(at, mode="clip") == dirty
        if not is_there.any():
            return rows
        keep = np.ones(len(rows), np.bool_)
        keep[at[is_there]] = False
        return rows[keep]

    def _matching(self, query: Query) -> list[int]:
        """Which of the source's records answer a query, ascending."""
        found: set[int] | None = None
        for field, terms in query.items():
            carriers = self._carriers(field)
            carry = set[int]().union(*(carriers[term] for term in terms if term in carriers))
            found = carry if found is None else found & carry
            if not found:
                return []
        return sorted(found or ())

    def _carriers(self, field: str) -> dict[Term, set[int]]:
        """Term -> the source's records that carry it."""
        carriers = self._terms.get(field)
        if carriers is None:
            carriers = {}
            for i, record in enumerate(self._records):
                for term in _terms_of(record, field):
                    carriers.setdefault(term, set()).add(i)
            self._terms[field] = carriers  # two threads may both collect them; one of the two equal results stays
        return carriers


def _terms_of(record: SourceRecord, field: str) -> tuple[Term, ...]:
    value = record.values[record.names.index(field)] if field in record.names else None
    try:
        return terms_of(value)
    except TypeError:
        return ()
