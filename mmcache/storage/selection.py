"""`Selection`: the records that match a query, as one sequence in every state of the cache.

A selection has two kinds of records. Those of a file are rows, and are read when they are asked for. Those that a
source gave are held by value (`Given`), each at its place in the sequence. Without any of them a selection is its rows
alone. A selection never changes, so threads may share it.

The canonical order is that of a look-up: ascending by the row of the key, then the keys without a row in the order of
the source. The rows of one selection are distinct, and ascend or descend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import numpy as np

from ..errors import SourceError
from ..sources.base import SourceRecord
from .record import Record, detached
from .rows import File, NoFile, Place, Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ..schema import Schema

__all__ = ["NO_ROW", "Given", "Selection", "in_order", "row_of"]

NO_ROW = 2**32
"""Above every row. Added to a place in the source's order, it orders a key that the file does not have."""

_NO_ROWS = np.empty(0, np.uint32)


class Given(NamedTuple):
    """The records of a selection that are not of its file.

    records: as the source gave them; never handed out, nor changed.
    at: intp, ascending: the place of each one in the sequence.
    order: int64: the row of its key in the file of the selection, or NO_ROW plus its place in the source's order.
    """

    records: Sequence[SourceRecord]
    at: NDArray[np.intp]
    order: NDArray[np.int64]

    @property
    def keys(self) -> list[Any]:
        return [record.values[0] for record in self.records]


class Selection(Sequence[Record]):
    """Records of one collection. Making one reads no record; iterating decodes them as it goes.

    Belongs to the generation that its rows came from, and keeps it mapped. Records that a source gave are in it by
    value. Pickles to the path, what identifies that generation, the rows (4 bytes each), and the source's records.
    Where it arrives, that generation is mapped at the first use, from the path or, if a newer one was published
    meanwhile, from its backup; GenerationGoneError if it is neither any more.

    `|`, `&` and `-` go by key; of a key in both, the record of the left one is taken. Of two selections of one
    generation they read no record, and give the canonical order: rows, then records without one. Otherwise the result
    has the left one's order, then what only the right one has, by value.
    """

    __slots__ = ("_collection", "_given", "_rows")
    __array_ufunc__ = None  # that numpy does not take `selection | array` for an operation on its elements

    def __init__(self, collection: Rows, rows: NDArray[np.uint32], given: Given | None = None) -> None:
        self._collection = collection
        self._rows = rows
        self._given = given

    @classmethod
    def from_source(cls, records: Iterable[SourceRecord], schema: Schema) -> Selection:
        """What a source gave, in its order, where no file may answer."""
        found = list(records)
        places = np.arange(len(found))
        return cls(NoFile(schema.embedding, schema.dim or 0), _NO_ROWS, Given(found, places, NO_ROW + places))

    @property
    def rows(self) -> NDArray[np.uint32]:
        """uint32, read-only: the rows of the records that are of the file, in their order here.

        They are ordinals, the same in `embeddings` and every other array of the collection. See `complete`.
        """
        view = self._rows.view()
        view.flags.writeable = False
        return view

    @property
    def complete(self) -> bool:
        """Whether all records are of the file, so that `rows` has one for each."""
        return self._given is None or not self._given.records

    @property
    def ids(self) -> list[str]:
        """The keys, in order. O(len)."""
        given = self._given
        if given is None:
            return self._collection.ids_at(self._rows)
        ids = self._collection.ids_at(self._rows) if len(self._rows) else []
        return _merged(ids, given.keys, given.at)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (len, dim), read-only: of consecutive rows alone (see `cluster_by`) a view of the file, else a copy.

        A record without an embedding has zeros. Raises SourceError for one of another length.
        """
        given = self._given
        vectors = self._collection.embeddings_at(self._rows) if given is None else self._mixed(given)
        vectors.flags.writeable = False
        return vectors

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of these records, with the columns of `Collection.to_arrow`; the embeddings as `embeddings`
        has them, but null for none. Further fields of the source's records are further columns."""
        if self._given is None:
            return self._collection.table_at(self._rows, columns)
        return self._table(self._given, columns)

    def __len__(self) -> int:
        return len(self._rows) if self._given is None else len(self._rows) + len(self._given.records)

    def __iter__(self) -> Iterator[Record]:
        return self._collection.records_at(self._rows) if self._given is None else self._interleaved(self._given)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> Selection: ...
    def __getitem__(self, i: int | slice) -> Record | Selection:
        given = self._given
        if isinstance(i, slice):
            if given is None:
                return Selection(self._collection, self._rows[i])
            return self._taken(np.arange(*i.indices(len(self))))
        at = self._place_of(i)
        if given is not None:
            before = int(np.searchsorted(given.at, at))
            if before < len(given.at) and given.at[before] == at:
                return _record_of(given.records[before])
            at -= before
        return next(self._collection.records_at(self._rows[at : at + 1]))

    def __or__(self, other: Selection) -> Selection:
        if not isinstance(other, Selection):
            return NotImplemented
        rest = other._taken(np.flatnonzero(~_shared(other, self)))
        return _united(self, rest) if self._is_beside(other) else _appended(self, rest)

    def __and__(self, other: Selection) -> Selection:
        if not isinstance(other, Selection):
            return NotImplemented
        kept = self._taken(np.flatnonzero(_shared(self, other)))
        return kept._sorted() if self._is_beside(other) else kept

    def __sub__(self, other: Selection) -> Selection:
        if not isinstance(other, Selection):
            return NotImplemented
        kept = self._taken(np.flatnonzero(~_shared(self, other)))
        return kept._sorted() if self._is_beside(other) else kept

    def __reduce__(self) -> tuple[Any, ...]:
        place, given = self._collection.place(), self._given
        if given is None:
            return Selection, (place, self._rows)
        records = list(map(tuple, given.records))
        return _arrived, (place, self._rows, records, given.at.tolist(), given.order.tolist())

    def __repr__(self) -> str:
        source = "" if self.complete or self._given is None else f", {len(self._given.records)} from the source"
        return f"<Selection of {len(self)} records{source}>"

    # --- with records of a source

    def _place_of(self, i: int) -> int:
        n = len(self)
        try:
            at = index(i)
        except TypeError:
            raise TypeError(
                f"a Selection takes an int or a slice, not {type(i).__name__}: index its arrays (rows, embeddings) by "
                "arrays"
            ) from None
        if not -n <= at < n:
            raise IndexError(f"record {at} of a Selection of {n}")
        return at % n

    def _taken(self, places: NDArray[np.intp]) -> Selection:
        """The records at these places, each below the length, in the order of the places."""
        given = self._given
        if given is None:
            return Selection(self._collection, self._rows[places])
        before = np.searchsorted(given.at, places)
        is_given = given.at.take(before, mode="clip") == places
        at = np.flatnonzero(is_given)
        chosen = before[at]
        records = [given.records[i] for i in chosen.tolist()]
        rows = self._rows[(places - before)[~is_given]]
        return _selection(self._collection, rows, Given(records, at, given.order[chosen]))

    def _of_file(self) -> Iterator[Record]:
        """The records of the file; without any, the file is not needed."""
        return self._collection.records_at(self._rows) if len(self._rows) else iter(())

    def _interleaved(self, given: Given) -> Iterator[Record]:
        of_file = self._of_file()
        here = 0
        for at, record in zip(given.at.tolist(), given.records, strict=True):
            yield from islice(of_file, at - here)
            yield _record_of(record)
            here = at + 1
        yield from of_file

    def _is_of_file(self, given: Given) -> NDArray[np.bool_]:
        """bool, (len,)."""
        mask = np.ones(len(self), np.bool_)
        mask[given.at] = False
        return mask

    def _mixed(self, given: Given) -> NDArray[np.float32]:
        """See `embeddings`. One gather of rows, where a neighbour keeps the place of each record of the source."""
        rows = self._rows
        if len(rows):
            rows = np.empty(len(self), np.uint32)
            rows[self._is_of_file(given)] = self._rows
            rows[given.at] = self._rows.take(given.at - np.arange(len(given.at)), mode="clip")
        vectors = self._collection.embeddings_at(rows)
        dim = vectors.shape[1] or self._file().schema.dim or 0
        dim = dim or next((len(record.vector) // 4 for record in given.records if record.vector is not None), 0)
        zeros = bytes(4 * dim)
        parts = [zeros if record.vector is None else record.vector for record in given.records]
        for part, key in zip(parts, given.keys, strict=True):
            if len(part) != 4 * dim:
                raise SourceError(f"the embedding of {key!r} has {len(part) // 4} numbers, where others have {dim}")
        block = np.frombuffer(b"".join(parts), "<f4").reshape(len(parts), dim)
        if not len(rows):
            return block
        matrix = vectors if vectors.shape[1] else np.zeros((len(self), dim), np.float32)
        matrix[given.at] = block
        return matrix

    def _table(self, given: Given, columns: Iterable[str] | None) -> pa.Table:
        from .arrow import Vectors, table_of

        file = self._file()
        there = [record.vector is not None for record in given.records]

        def vectors() -> Vectors:
            presence = np.zeros(len(self), np.bool_)
            presence[given.at] = there
            presence[self._is_of_file(given)] = file.has_embedding[self._rows]
            return self.embeddings, None if presence.all() else np.packbits(presence, bitorder="little")

        shapes = [shape.names for shape in file.layout.shapes]
        shapes += dict.fromkeys(record.names for record in given.records)
        names = list(dict.fromkeys(name for shape in shapes for name in shape))
        embedding = file.schema.embedding if file.dim or any(there) else None
        return table_of(self, names, embedding, vectors, columns)

    # --- and another

    def _file(self) -> File:
        """The collection, also where the selection arrived from another process. Raises GenerationGoneError."""
        place = self._collection.place()
        return place.collection() if place is self._collection else cast("File", self._collection)

    def _is_beside(self, other: Selection) -> bool:
        """Whether the rows of both are of one generation."""
        place = self._collection.place()
        return place == other._collection.place() and not isinstance(place, NoFile)

    def _order(self) -> NDArray[np.uint32] | NDArray[np.int64]:
        """(len,): what `Given.order` is, of every record."""
        given = self._given
        if given is None:
            return self._rows
        order = np.empty(len(self), np.int64)
        order[given.at] = given.order
        order[self._is_of_file(given)] = self._rows
        return order

    def _sorted(self) -> Selection:
        """In canonical order."""
        rows, given = np.sort(self._rows), self._given
        if given is None:
            return Selection(self._collection, rows)
        return in_order(self._collection, rows, given.records, given.order)


def in_order(
    collection: Rows, rows: NDArray[np.uint32], records: Sequence[SourceRecord], order: NDArray[np.int64]
) -> Selection:
    """A selection in canonical order. rows: ascending. records, order: see `Given`; in any order, of other keys."""
    if not len(records):
        return Selection(collection, rows)
    if not (order[1:] >= order[:-1]).all():
        sequence = np.argsort(order, kind="stable")
        records, order = [records[i] for i in sequence.tolist()], order[sequence]
    at = np.searchsorted(rows, order) + np.arange(len(order))
    return Selection(collection, rows, Given(records, at, order))


def row_of(file: File, key: Any, place: int) -> int:
    """The row of a key or, without one, what orders it by its place in the source's order."""
    try:
        return file.row(key)
    except KeyError:
        return NO_ROW + place


def _selection(collection: Rows, rows: NDArray[np.uint32], given: Given) -> Selection:
    """Rows alone, where there is a file and no other record."""
    is_mixed = len(given.records) or isinstance(collection, NoFile)
    return Selection(collection, rows, given if is_mixed else None)


def _without_rows(file: File, records: Sequence[SourceRecord]) -> Selection:
    order = [row_of(file, record.values[0], i) for i, record in enumerate(records)]
    return _selection(file, _NO_ROWS, Given(records, np.arange(len(records)), np.array(order, np.int64)))


def _arrived(
    place: Place, rows: NDArray[np.uint32], records: Sequence[Any], at: Sequence[int], order: Sequence[int]
) -> Selection:
    """What `Selection.__reduce__` sent."""
    given = Given(list(map(SourceRecord._make, records)), np.array(at, np.intp), np.array(order, np.int64))
    return Selection(place, rows, given)


def _shared(one: Selection, other: Selection) -> NDArray[np.bool_]:
    """bool, (len(one),): whether the other has the key too."""
    if not one._is_beside(other):
        keys = set(other.ids)
        return np.fromiter((key in keys for key in one.ids), np.bool_, len(one))
    order = one._order()
    shared = np.isin(order, other._order())
    if one._given is not None:
        keys = set() if other._given is None else set(other._given.keys)
        is_new = one._given.order >= NO_ROW
        shared[one._given.at[is_new]] = [key in keys for key in compress(one._given.keys, is_new.tolist())]
    return shared


def _united(one: Selection, rest: Selection) -> Selection:
    """In canonical order: two of one generation, without a common key."""
    rows = np.sort(np.concatenate((one._rows, rest._rows)))
    given = [selection._given for selection in (one, rest) if selection._given is not None]
    if not given:
        return Selection(one._collection, rows)
    records = [record for part in given for record in part.records]
    return in_order(one._collection, rows, records, np.concatenate([part.order for part in given]))


def _appended(one: Selection, rest: Selection) -> Selection:
    """One after the other, without a common key. The rows are of one file: of the first one's, if it has one."""
    if not len(rest):
        return one
    if not len(one):
        return rest
    if isinstance(one._collection, NoFile):
        one = _without_rows(rest._file(), _values_of(one))
    else:
        rest = _without_rows(one._file(), _values_of(rest))
    rows = np.concatenate((one._rows, rest._rows))
    records: list[SourceRecord] = []
    at, order = [], []
    for selection, begin in ((one, 0), (rest, len(one))):
        if (given := selection._given) is not None:
            records += given.records
            at.append(given.at + begin)
            order.append(given.order)
    return Selection(one._collection, rows, Given(records, np.concatenate(at), np.concatenate(order)))


def _values_of(selection: Selection) -> list[SourceRecord]:
    """All records by value. One tuple of names for each shape."""
    given = selection._given
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    values = []
    for record in selection._of_file():
        shape = tuple(record)
        embedding = record.embedding
        vector = None if embedding is None else embedding.tobytes()
        values.append(SourceRecord(names.setdefault(shape, shape), list(record.asdict().values()), vector))
    return values if given is None else _merged(values, given.records, given.at)


def _merged(of_file: list[Any], of_source: Sequence[Any], at: NDArray[np.intp]) -> list[Any]:
    """One list of both, with those of the source at these places."""
    merged: list[Any] = []
    here = 0
    for i, (place, value) in enumerate(zip(at.tolist(), of_source, strict=True)):
        merged += of_file[here : place - i]
        merged.append(value)
        here = place - i
    return merged + of_file[here:]


def _record_of(record: SourceRecord) -> Record:
    """A record of its own: what a caller changes in it changes no other."""
    return detached(record.names, [_copy(value) for value in record.values], record.vector)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return tuple(map(_copy, value)) if isinstance(value, tuple) else value
