"""`Selection`: the records that match a query, as one sequence in every state of the cache.

A selection has two kinds of records. Those of a file are rows, and are read when they are asked for. Those that a
source gave are held by value (`Given`), each at its place in the sequence. Without any of them a selection is its rows
alone. A selection never changes, so threads may share it.

The canonical order is that of a look-up: ascending by the row of the key, then the keys without a row in the order of
the source. The rows of one selection are distinct; unless it was ordered by a field, they ascend or descend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from operator import index
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from ..arrays import np
from ..errors import UnusableFileError
from ..format.keys import Key
from ..format.records import Names
from ..query import path_of
from ..schema import R_co
from ..shown import internal, made_here
from ..sources.base import SourceRecord, flat
from .asked import one_of
from .mending import Instead, after, falls_back, going_on
from .mixing import interleaved, mixed_embeddings, mixed_table, place_among
from .ordering import Ordering
from .record import UNNAMED, Record, copied, parts_of
from .rows import NO_ROW, File, Given, NoFile, Ref, Rows, Unplaced, merged, row_of
from .unread import Packed, Ranged

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from ..schema import Schema
    from ..search.neighbours import Neighbours
    from .asked import SearchOptions

__all__ = ["NO_ROW", "Given", "Selection", "again", "in_order", "or_else", "rows_in", "unread"]

S = TypeVar("S")


@made_here
@internal("from_source")
class Selection(Sequence[R_co]):
    """Records of one collection. Making one reads no record; iterating decodes them as it goes.

    Belongs to the generation that its rows came from, and keeps it mapped. Records that a source gave are in it by
    value. Pickles to the path, what identifies that generation, the rows (4 bytes each), and the source's records.
    Where it arrives, that generation is mapped at the first use, from the path or, if a newer one was published
    meanwhile, from its backup; GenerationGoneError if it is neither any more.

    `|`, `&` and `-` go by key; of a key in both, the record of the left one is taken. Of two selections of one
    generation they read no record, and give the canonical order: rows, then records without one; but what `order_by`
    gave keeps its order on the left, and what only the right one has follows. So it does in selections of two
    generations, by value.

    >>> tools = cache.where(kind="tool")
    >>> len(tools), tools.ids, tools[0]["size"], tools.order_by("size", descending=True).limit(1).ids
    (2, ['a', 'b'], 1, ['b'])
    >>> tools.rows.tolist(), tools.complete, tools.embeddings.tolist(), tools.nearest([1, 0], k=1).ids
    ([0, 1], True, [[1.0, 0.0], [0.0, 1.0]], ['a'])
    >>> tools.embeddings_of("vector").shape, len(tools.nearest_many([[1, 0], [0, 1]])), tools.to_arrow(["id"]).num_rows
    ((2, 2), 2, 2)
    >>> (tools - cache.where(size=1)).ids, (tools | cache.where(size=3)).ids
    (['b'], ['a', 'b', 'c'])
    """

    __slots__ = ("_collection", "_found", "_held", "_instead", "_is_ordered")
    __array_ufunc__ = None  # that numpy does not take `selection | array` for an operation on its elements

    def __init__(
        self,
        collection: Rows,
        rows: NDArray[np.uint32] | Packed | Ranged | Ordering,
        given: Given | Unplaced | None = None,
        is_ordered: bool = False,  # noqa: FBT001, FBT002 (as it pickles)
    ) -> None:
        self._collection = collection
        self._found = rows
        self._held = given
        self._is_ordered = is_ordered
        self._instead: Instead = None

    @classmethod
    def from_source(cls, records: Iterable[SourceRecord], schema: Schema) -> Selection[R_co]:
        """What a source gave, in its order, where no file may answer."""
        found = list(records)
        places = np.arange(len(found))
        return cls(NoFile.of(schema), np.empty(0, np.uint32), Given(found, places, NO_ROW + places))

    @property
    @falls_back
    def rows(self) -> NDArray[np.uint32]:
        """uint32, read-only: the rows of the records that are of the file, in their order here.

        They are ordinals, the same in `embeddings` and every other array of the collection. See `complete`.
        """
        view = self._rows.view()
        view.flags.writeable = False
        return view

    @property
    @falls_back
    def complete(self) -> bool:
        """Whether all records are of the file, so that `rows` has one for each."""
        return not self._from_source

    @property
    @falls_back
    def ids(self) -> list[Key]:
        """The keys, in order. O(len)."""
        given = self._given
        if given is None:
            return self._collection.ids_at(_found_in(self))
        ids = self._collection.ids_at(self._rows) if len(self._rows) else []
        return merged(ids, given.keys, given.at)

    @property
    @falls_back
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (len, dim), read-only: of consecutive rows alone (see `cluster_by`) a view of the file, else a copy.

        A record without an embedding has zeros. Raises SourceError for one of another length. Of several embeddings the
        first.
        """
        return self._embeddings(None)

    @falls_back
    def embeddings_of(self, field: str) -> NDArray[np.float32]:
        """The same of one of several embeddings. Raises ValueError for a field that is none."""
        return self._embeddings(field)

    def _embeddings(self, field: str | None) -> NDArray[np.float32]:
        given = self._given
        if given is None:
            vectors = self._collection.embeddings_at(self._rows, field)
        else:
            vectors = mixed_embeddings(self._collection, self._file(), self._rows, given, field)
        vectors.flags.writeable = False
        return vectors

    @falls_back
    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of these records, with the columns of `Collection.to_arrow`; the embeddings as `embeddings`
        has them, but null for none. Further fields of the source's records are further columns."""
        rows, given = self._rows, self._given
        if given is None:
            return self._collection.table_at(rows, columns)
        return mixed_table(self._file(), rows, given, columns, records=self._read(), vectors_of=self._embeddings)

    @falls_back
    def order_by(self, field: str, *, descending: bool = False) -> Selection[R_co]:
        """The same records by the values of a field: null, then numbers, then text by its bytes; or descending.

        Of a list the smallest counts, descending the largest. Records with an empty list, or with a value that is no
        term, come last. Ties are in the order of rows.

        By the index, and read from the file only as far as they are asked for: `.limit(10)` of a million costs about as
        much as of a thousand. Where that is cheaper, for few records or a field without an index, the records are read.
        Raises ValueError for a field that no record has.
        """
        found = self._rows if isinstance(self._found, Ordering) else self._found
        file, given = self._file(), self._held
        if field not in file.schema.index:
            names = [name for shape in file.layout.shapes for name in shape.names]
            names += [name for record in (given.records if given else ()) for name in flat(record.names)]
            if field not in names and path_of(field)[0] not in names:
                known = ", ".join(dict.fromkeys((*file.schema.index, *names))) or "none"
                raise ValueError(f"no record has a field {field!r} to be ordered by; there are: {known}")
        return Selection(self._collection, Ordering(file, found, given, field, descending), None, True)  # noqa: FBT003

    @falls_back
    def limit(self, n: int) -> Selection[R_co]:
        """The first n records, or all where there are fewer. Raises ValueError for a number below 0."""
        if index(n) < 0:
            raise ValueError(f"limit({n}): a number of records is 0 or more")
        found = self._found
        return self._settled(*found.first(index(n))) if isinstance(found, Ordering) else self[: index(n)]

    def nearest(self, vector: ArrayLike, k: int = 10, **options: Unpack[SearchOptions]) -> Neighbours[R_co]:
        """The k of these records whose embeddings are nearest to a vector, (dim,): see `Collection.nearest`."""
        return self.nearest_many(one_of(vector), k, **options)[0]

    @falls_back
    def nearest_many(self, matrix: ArrayLike, k: int = 10, **options: Unpack[SearchOptions]) -> list[Neighbours[R_co]]:
        """The same for each row of a matrix, (queries, dim), which is read once for many of them."""
        from ..search.neighbours import nearest_in  # gives selections, and is loaded by the first search

        return nearest_in(self, matrix, k, options)

    @falls_back
    def __len__(self) -> int:
        return self._found.size + self._from_source

    def __iter__(self) -> Iterator[R_co]:
        return cast("Iterator[R_co]", self._records())

    def _records(self) -> Iterator[Record]:
        if self._instead is None:
            return self._read()
        if not callable(self._instead):
            return self._instead._records()
        return going_on(self._read, lambda record: record.id, lambda error: after(error, self)._records())

    def _read(self) -> Iterator[Record]:
        given = self._given
        if given is None:
            return self._collection.records_at(_found_in(self))
        return interleaved(_of_file(self), given, _fields(self, given))

    @overload
    def __getitem__(self, i: int) -> R_co: ...
    @overload
    def __getitem__(self, i: slice) -> Selection[R_co]: ...
    @falls_back
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            if isinstance(self._found, Ordering) and (end := _end_of(i)) is not None:
                return self._settled(*self._found.first(end))[i]
            if self._given is None:
                rows = found.part(i) if isinstance(found := self._found, Packed) else self._rows[i]
                return Selection(self._collection, rows, None, self._is_ordered)
            return self._taken(np.arange(*i.indices(len(self))))
        given = self._given
        at = place_among(i, len(self))
        if given is not None:
            before = int(np.searchsorted(given.at, at))
            if before < len(given.at) and given.at[before] == at:
                return copied(*given.records[before], _fields(self, given))
            at -= before
        return next(self._collection.records_at(self._rows[at : at + 1]))

    @falls_back
    def __or__(self, other: Selection[S]) -> Selection[R_co | S]:
        if not isinstance(other, Selection):
            return NotImplemented
        rest = other._taken(np.flatnonzero(~_shared(other, self)))
        return _united(self, rest) if _is_canonical(self, other) else _appended(self, rest)

    @falls_back
    def __and__(self, other: Selection[object]) -> Selection[R_co]:
        if not isinstance(other, Selection):
            return NotImplemented
        kept = self._taken(np.flatnonzero(_shared(self, other)))
        return _sorted(kept) if _is_canonical(self, other) else kept

    @falls_back
    def __sub__(self, other: Selection[object]) -> Selection[R_co]:
        if not isinstance(other, Selection):
            return NotImplemented
        kept = self._taken(np.flatnonzero(~_shared(self, other)))
        return _sorted(kept) if _is_canonical(self, other) else kept

    @falls_back
    def __reduce__(self) -> tuple[Any, ...]:
        ref, given, ordered = self._collection.ref(), self._given, (True,) if self._is_ordered else ()
        if given is None:
            return Selection, (ref, self._rows, *((None, True) if ordered else ()))
        records = list(map(tuple, given.records))
        return _arrived, (ref, self._rows, records, given.at.tolist(), given.order.tolist(), *ordered)

    def __repr__(self) -> str:
        source = f", {self._from_source} from the source" if self._from_source else ""
        return f"<Selection of {len(self)} records{source}>"

    # --- what was put off

    @property
    def _rows(self) -> NDArray[np.uint32]:
        found = self._found
        if isinstance(found, Ordering):
            # Two threads may both put it into order; the two results are equal. The rows say that all is there.
            settled = self._settled(*found.first(len(self)))
            self._held = settled._held
            self._found = found = settled._rows
        elif isinstance(found, Ranged):
            return found.rows()  # which it remembers; to be put into order it is worth more as it is
        elif isinstance(found, Packed):
            self._found = found = found.rows()
        return found

    def _settled(self, rows: NDArray[np.uint32], given: Given | None) -> Selection[Any]:
        return _selection(self._collection, rows, given, is_ordered=True)

    @property
    def _given(self) -> Given | None:
        if isinstance(self._found, Ordering):
            _ = self._rows
        held = self._held
        if isinstance(held, Unplaced):
            self._held = held = held.among(self._rows)
        return held

    @property
    def _from_source(self) -> int:
        """How many records are not of the file."""
        found = self._found
        held = found.given if isinstance(found, Ordering) else self._held
        return 0 if held is None else len(held.records)

    # --- with records of a source

    def _taken(self, places: NDArray[np.intp]) -> Selection[Any]:
        """The records at these places, each below the length, in the order of the places."""
        given = self._given
        if given is None:
            return Selection(self._collection, self._rows[places], None, self._is_ordered)
        before = np.searchsorted(given.at, places)
        is_given = given.at.take(before, mode="clip") == places
        at = np.flatnonzero(is_given)
        chosen = before[at]
        records = [given.records[i] for i in chosen.tolist()]
        rows = self._rows[(places - before)[~is_given]]
        given = Given(records, at, given.order[chosen])
        return _selection(self._collection, rows, given, is_ordered=self._is_ordered)

    # --- the file

    def _file(self) -> File:
        """The collection, also where the selection arrived from another process. Raises GenerationGoneError."""
        ref = self._collection.ref()
        return ref.collection() if ref is self._collection else cast("File", self._collection)


def _found_in(one: Selection[Any]) -> Any:
    """The rows, or where the compiled core has found them, the same as bytes: without numpy."""
    return found.packed() if isinstance(found := one._found, Packed) else one._rows


def _is_canonical(one: Selection[Any], other: Selection[Any]) -> bool:
    """Whether what an operation makes of both is in canonical order."""
    return not one._is_ordered and _are_beside(one, other)


def _are_beside(one: Selection[Any], other: Selection[Any]) -> bool:
    """Whether the rows of both are of one generation."""
    ref = one._collection.ref()
    return ref == other._collection.ref() and not isinstance(ref, NoFile)


def _fields(one: Selection[Any], given: Given) -> Sequence[str]:
    """Of the embeddings, where records of the source have several."""
    several = len(given.records) and isinstance(given.records[0].vector, tuple)
    return one._file().embedding_fields if several else UNNAMED


def _of_file(one: Selection[Any]) -> Iterator[Record]:
    """The records of the file; without any, the file is not needed."""
    return one._collection.records_at(one._rows) if len(one._rows) else iter(())


def _order(one: Selection[Any]) -> NDArray[np.uint32] | NDArray[np.int64]:
    """(len,): what `Given.order` is, of every record."""
    given = one._given
    if given is None:
        return one._rows
    order = np.empty(len(one), np.int64)
    order[given.at] = given.order
    order[given.others(len(one))] = one._rows
    return order


def _sorted(one: Selection[Any]) -> Selection[Any]:
    """In canonical order."""
    rows, given = np.sort(one._rows), one._given
    if given is None:
        return Selection(one._collection, rows)
    return in_order(one._collection, rows, given.records, given.order)


def rows_in(found: Selection[Any]) -> NDArray[np.uint32] | Packed | Ranged:
    """The rows of a selection, as they are held by now; of one that was put into order, the rows."""
    return found._rows if isinstance(found._found, Ordering) else found._found


def or_else(found: Selection[R_co], ask: Callable[[UnusableFileError], Selection[Any]]) -> Selection[R_co]:
    """What was just found, and what takes its place where the file is damaged."""
    found._instead = ask
    return found


def again(found: Selection[R_co]) -> Selection[R_co]:
    """The same records, whose places are settled for both, in another object."""
    return Selection(found._collection, found._found, found._given, found._is_ordered)


def unread(found: Selection[Any]) -> Packed | Ranged:
    """The rows of what a look-up in a file has just found."""
    assert isinstance(found._found, (Packed, Ranged))
    return found._found


def in_order(
    collection: Rows, rows: NDArray[np.uint32], records: Sequence[SourceRecord], order: NDArray[np.int64]
) -> Selection[Any]:
    """A selection in canonical order. rows: ascending. records, order: see `Given`; in any order, of other keys."""
    if not len(records):
        return Selection(collection, rows)
    return Selection(collection, rows, Unplaced.of(records, order))


def _end_of(part: slice) -> int | None:
    """Up to where a slice takes from the beginning on; None for any other."""
    begin, end, step = part.start, part.stop, part.step
    if end is None or any(index(one) < 0 for one in (begin, end, step) if one is not None):
        return None
    return index(end)


def _selection(collection: Rows, rows: NDArray[np.uint32], given: Given | None, *, is_ordered: bool) -> Selection[Any]:
    """Rows alone, where there is a file and no other record."""
    is_mixed = given is not None and (len(given.records) or isinstance(collection, NoFile))
    return Selection(collection, rows, given if is_mixed else None, is_ordered)


def _without_rows(file: File, records: Sequence[SourceRecord], *, is_ordered: bool) -> Selection[Any]:
    order = [row_of(file, record.values[0], i) for i, record in enumerate(records)]
    given = Given(records, np.arange(len(records)), np.array(order, np.int64))
    return _selection(file, np.empty(0, np.uint32), given, is_ordered=is_ordered)


def _arrived(
    ref: Ref,
    rows: NDArray[np.uint32],
    records: Sequence[Any],
    at: Sequence[int],
    order: Sequence[int],
    *ordered: bool,
) -> Selection[Any]:
    """What `Selection.__reduce__` sent."""
    given = Given(list(map(SourceRecord._make, records)), np.array(at, np.intp), np.array(order, np.int64))
    return Selection(ref, rows, given, *ordered)


def _shared(one: Selection[Any], other: Selection[Any]) -> NDArray[np.bool_]:
    """bool, (len(one),): whether the other has the key too."""
    if not _are_beside(one, other):
        keys = set(other.ids)
        return np.fromiter((key in keys for key in one.ids), np.bool_, len(one))
    order = _order(one)
    shared = np.isin(order, _order(other))
    if one._given is not None:
        keys = set() if other._given is None else set(other._given.keys)
        is_new = one._given.order >= NO_ROW
        shared[one._given.at[is_new]] = [key in keys for key in compress(one._given.keys, is_new.tolist())]
    return shared


def _united(one: Selection[Any], rest: Selection[Any]) -> Selection[Any]:
    """In canonical order: two of one generation, without a common key."""
    rows = np.sort(np.concatenate((one._rows, rest._rows)))
    given = [selection._given for selection in (one, rest) if selection._given is not None]
    if not given:
        return Selection(one._collection, rows)
    records = [record for part in given for record in part.records]
    return in_order(one._collection, rows, records, np.concatenate([part.order for part in given]))


def _appended(one: Selection[Any], rest: Selection[Any]) -> Selection[Any]:
    """One after the other, without a common key. The rows are of one file: of the first one's, if it has one."""
    if not len(rest):
        return one
    if not len(one):
        return rest
    if isinstance(one._collection, NoFile):
        one = _without_rows(rest._file(), _values_of(one), is_ordered=one._is_ordered)
    elif not _are_beside(one, rest):
        rest = _without_rows(one._file(), _values_of(rest), is_ordered=False)
    rows = np.concatenate((one._rows, rest._rows))
    records: list[SourceRecord] = []
    at, order = [], []
    for selection, begin in ((one, 0), (rest, len(one))):
        if (given := selection._given) is not None:
            records += given.records
            at.append(given.at + begin)
            order.append(given.order)
    both = Given(records, np.concatenate(at), np.concatenate(order)) if at else None
    return Selection(one._collection, rows, both, one._is_ordered)


def _values_of(selection: Selection[Any]) -> list[SourceRecord]:
    """All records by value. One tuple of names for each shape."""
    given = selection._given
    names: dict[Names, Names] = {}
    values = []
    for record in _of_file(selection):
        shape, fields, vector = parts_of(record)
        values.append(SourceRecord(names.setdefault(shape, shape), fields, vector))
    return values if given is None else merged(values, given.records, given.at)
