"""`FileCollection`: the records of one kind in a file, a read-only mapping that reads everything in place.

What is verified when. A record's checksum is checked on every get, in every mode. Everything else is verified at
open, or in blocks of 64 KiB when first touched. An id that is found needs no block: the record's own checksum
and the key in it prove the whole way there. An id that is not found does, and so does every array handed out.

The parts: `Lookup` finds rows by key, `IndexReader` by term, `Batches` reads many rows at once; `Vectors` an embedding,
and `Mapped` is the bytes that all of them read.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..arrays import np
from ..errors import CorruptFileError
from ..format.keys import Key, check_key, check_keys, is_key
from ..format.layout import CollectionLayout, EmbeddingLayout
from ..format.postings import BITMAP, IndexReader, Postings
from ..format.select import Found, everything, select, span_of, union
from ..native import bound, core
from ..query import Query, Term, parse_query
from ..schema import Schema
from ..shown import internal, made_here
from .batches import SMALL_BATCH, Batches
from .bykey import ByKey
from .lookup import Lookup
from .mapped import UNEXPECTED, Mapped, careful
from .readable import Collection, EmbeddingRef
from .record import Record, RecordItems, RecordValues
from .rows import FileRef
from .selection import Selection
from .unread import Packed, Ranged
from .vectors import Vectors

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from .arrow import Vectors as ArrowVectors

__all__ = ["FileCollection"]

T = TypeVar("T")
_new = object.__new__
_unpack_record = struct.Struct("<QI2xHQ").unpack_from
"""Of a row entry, all but the key's length."""


@made_here
@internal("all_records", "around", "close", "corrupt", "embeddings_at", "file", "find", "ids_at", "index", "is_dirty")
@internal("layout", "ref", "records_at", "rows_between", "table_at", "vector", "vectors")
class FileCollection(ByKey, Collection[Record]):
    """The records of one collection: a read-only mapping from key to `Record`, in the order of its rows.

    Takes no lock and may be used from any thread. A get costs one hash, a slot or two, one checksum and one
    decode; nothing is kept per record. A value that is no key is a TypeError, and False for `in`; so is a tuple of
    another length than the keys have. A key of another type that no record has is a plain miss. Raises CorruptFileError
    where the file is not what was written, and ClosedError after its snapshot was closed.

    >>> items = snapshot.collection("items")
    >>> items.name, len(items), items.dim, items.key_types, items.embedding_fields, items.row("b")
    ('items', 3, 2, ('str',), ('vector',), 1)
    >>> (items.norms**2).round().tolist(), items.norms_of("vector").dtype, items.dim_of("vector"), items.cluster_by
    ([1.0, 1.0, 2.0], dtype('float32'), 2, None)
    """

    # A dict of attributes would make a copy of a collection slower than the original: see `around`.
    __slots__ = ("__weakref__", "_batches", "_first", "_indexes", "_lookup", "_ref", "_vectors", "file")

    _lookup: Lookup
    _batches: Batches

    def __init__(self, file: Mapped, ref: FileRef) -> None:
        self.file = file
        """For the parts of this package."""
        self._ref = ref
        self._lookup = Lookup(file)
        self._batches = Batches(file)
        self._indexes: dict[str, IndexReader] = {}
        self._vectors = {name: Vectors(file, name, layout) for name, layout in file.layout.embeddings.items()}
        self._core = file.table
        self._first = next(iter(self._vectors.values()), Vectors(file, "", EmbeddingLayout(0, 0)))

    def around(
        self, dirty: Mapping[int, Sequence[Key | None]], kind: type[FileCollection] | None = None
    ) -> FileCollection:
        """The same collection, whose look-ups by key raise DirtyError for these keys. All else is as in the file.

        dirty: hash of a key -> the keys that have it; it may grow while the collection is used. kind: a subclass, whose
        look-ups are others.
        """
        twin = _new(kind or FileCollection)
        for name in FileCollection.__slots__[1:]:
            setattr(twin, name, getattr(self, name))
        twin._core = self._core
        twin._dirty = dirty
        twin._lookup = self._lookup.around(dirty)
        return twin

    def is_dirty(self, key: object) -> bool:
        """Whether a lookup of this key raises DirtyError."""
        return is_key(key) and self._lookup.is_dirty(check_key(key))

    # --- look-ups by key: what `ByKey` cannot prove

    def _carefully(self, key: Key) -> Record:
        """Two keys with one hash, a map with keys that are not text, damage, a closed snapshot, a miss in a part of the
        file that is not verified yet, a key of another type than others, or what is no key at all."""
        look = self._lookup
        return self._batches.record(look.locate(look.checked(key)), self)

    def _contains_carefully(self, key: object) -> bool:
        try:
            self._lookup.find(key)
        except (KeyError, TypeError):
            return False
        return True

    def _row_carefully(self, key: Key) -> int:
        return self._lookup.find(key)

    def _embedding_carefully(self, key: Key, field: str | None) -> NDArray[np.float32] | None:
        self._vectors_of(field)  # the field is looked at first
        return self.vector(self._lookup.find(key), field)

    def _rows_of(self, keys: Iterable[Key]) -> NDArray[np.uint32]:
        """The rows of keys, each proved by the key's bytes. Raises KeyError."""
        wanted = check_keys(keys) if isinstance(keys, (str, bytes)) else list(keys)
        if self.file.table is not None:
            found = self._rows_quickly(wanted)
            if found is not None:
                return np.frombuffer(found, np.uint32)
        elif len(wanted) >= SMALL_BATCH:
            with contextlib.suppress(*UNEXPECTED):  # one by one tells what is wrong
                rows, hit = self._lookup.probe(wanted)
                if hit.all() and self._batches.keys(rows) == wanted:
                    return rows
        return np.fromiter(map(self._lookup.find, wanted), np.uint32, len(wanted))

    # --- embeddings

    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """float32, (number of keys, dim): the embeddings of these keys in their order, zeros where a record has none.

        A copy made at the speed of memory; a read-only view where the rows follow each other. Raises KeyError for a
        key that is not there.
        """
        return self._vectors_of(field).at_rows(self._rows_of(keys))

    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """What to send to another process in place of an embedding. Raises KeyError."""
        self._vectors_of(field)
        return EmbeddingRef(self._ref, self._lookup.find(key), field)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), C-contiguous, read-only view of the file, rows without an embedding zero.

        Keeps its generation mapped while it is referenced. (n, 0) for a collection without embeddings; of several
        embeddings the first.
        """
        return self._first.everything()

    def embeddings_of(self, field: str) -> NDArray[np.float32]:
        """The same of one of several embeddings. Raises ValueError for a field that is none."""
        return self._vectors_of(field).everything()

    @property
    def norms(self) -> NDArray[np.float32]:
        """float32, (n,): the Euclidean length of every embedding; a read-only view of the file."""
        return self._first.norms()

    def norms_of(self, field: str) -> NDArray[np.float32]:
        """The same of one of several embeddings."""
        return self._vectors_of(field).norms()

    @property
    def has_embedding(self) -> NDArray[np.bool_]:
        """bool, (n,): whether a row has an embedding. O(n)."""
        return self._first.present()

    def has_embedding_of(self, field: str) -> NDArray[np.bool_]:
        """The same of one of several embeddings."""
        return self._vectors_of(field).present()

    def vector(self, row: int, field: str | None = None) -> NDArray[np.float32] | None:
        """float32, (dim,): the embedding of a row, a read-only view; None without one."""
        vectors = self._vectors_of(field)
        found = vectors.of(row)
        if self.file.table is not None and vectors is self._first and vectors.is_plain and vectors.matrix is not None:
            self.file.table.show(vectors.matrix, vectors.at, vectors.stride)
        return found

    def vectors(self, field: str | None = None) -> Vectors:
        """The embeddings of one field, as a search reads them. Raises ValueError for a field that is none."""
        return self._vectors_of(field)

    @property
    def embedding_fields(self) -> tuple[str, ...]:
        """The fields that hold embeddings, in the order of the schema."""
        return tuple(self._vectors)

    def _vectors_of(self, field: str | None) -> Vectors:
        if field is None:
            return self._first
        try:
            return self._vectors[field]
        except KeyError:
            known = ", ".join(self._vectors) or "none"
            raise ValueError(f"collection {self.name!r} has no embedding {field!r}; there are: {known}") from None

    # --- all of it

    def __len__(self) -> int:
        return self.file.n

    def __iter__(self) -> Iterator[Key]:
        for rows in self._batches.split(self._batches.everything()):
            yield from self._batches.keys(rows)

    def values(self) -> ValuesView[Record]:
        """The records, in row order, decoded in batches."""
        return RecordValues(self)

    def items(self) -> ItemsView[Key, Record]:
        """Keys and records, in row order, decoded in batches."""
        return RecordItems(self)

    def all_records(self) -> Iterator[Record]:
        """What `values` iterates over."""
        return self.records_at(self._batches.everything())

    @property
    def schema(self) -> Schema:
        """As it was given to the build."""
        return self.file.layout.schema

    @property
    def layout(self) -> CollectionLayout:
        """Its sections, and everything else that `validate` found of it."""
        return self.file.layout

    @property
    def name(self) -> str:
        """As in the schema."""
        return self.file.layout.schema.name

    @property
    def dim(self) -> int:
        """Numbers in an embedding, of several the first; 0 for a collection without."""
        return self._first.dim

    def dim_of(self, field: str | None = None) -> int:
        """The same of one of several embeddings."""
        return self._vectors_of(field).dim

    @property
    def key_types(self) -> tuple[str, ...] | None:
        """The types of its keys, such as "str" or "(str, int)"; None for more than 16."""
        return self.file.layout.key_types

    @property
    def cluster_by(self) -> str | None:
        """The field whose records stand together, or None."""
        return self.file.layout.cluster_by

    # --- look-ups by field

    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        A value may be a range: `between` and its like, `startswith`, a `range` of ints; or `excluding`. Reads posting
        lists, no record. Raises ValueError for a field without an index, TypeError for a value that cannot be indexed.
        """
        return self.find(parse_query(self.schema, terms, more))

    def find(self, query: Query) -> Selection:
        """The same for a query that was parsed."""
        self.file.check_open()
        if query and core is not None and (quick := self._quickly(query)) is not None:
            return Selection(self, Packed(quick, self.file.n))
        found = self._select(query) if query else everything(self.file.n)
        if isinstance(found, Ranged):
            return Selection(self, found)
        if found.kind == BITMAP:  # so that a selection that is kept does not keep the map of a snapshot that was closed
            assert isinstance(found, Postings)
            found = found._replace(raw=found.data.copy())
        return Selection(self, Packed(found, self.file.n, is_everything=not query))

    def _quickly(self, query: Query) -> Postings | None:
        """What the compiled core finds for one plain term a field; None: the careful way answers or raises."""
        pairs: list[Any] = []
        for field, wanted in query.items():
            if len(wanted) != 1:
                return None
            pairs += (self._indexes.get(field) or self._index(field)).compiled, wanted[0]
        found = core.select(*pairs)
        return None if found is None else Postings._make(found)

    @careful
    def _select(self, query: Query) -> Found | Ranged:
        readers = {field: self.index(field) for field in query}
        if len(query) == 1:
            ((field, wanted),) = query.items()
            if len(wanted) == 1 and (span := span_of(readers[field], wanted[0])) is not None:
                return Ranged(self, field, span)
        return select(readers, query, self.file.n)

    @careful
    def rows_between(self, field: str, span: tuple[int, int]) -> NDArray[np.uint32]:
        """The ascending rows that carry a term from one ordinal to another."""
        return union(self.index(field), range(*span))

    def terms(self, field: str) -> dict[Term, int]:
        """The values of an indexed field and how many records have each, in the order of terms. O(terms)."""
        parse_query(self.schema, {field: None}, {})
        return self._terms(field)

    @careful
    def _terms(self, field: str) -> dict[Term, int]:
        return dict(self.index(field).terms())

    def index(self, field: str) -> IndexReader:
        """The reader of an index, which is verified when it is first asked for."""
        self.file.check_open()
        reader = self._indexes.get(field)
        if reader is None:
            whole = self.file.bytes_of(f"index.{field}")
            reader = self._indexes[field] = IndexReader(whole, self.layout.index[field], len(self))
        return reader

    _index = careful(index)

    # --- Arrow

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of one batch, in row order: the fields, decoded and copied, and the embeddings without a
        copy: a FixedSizeList over the file, which stays mapped while the column is referenced. Null for none.

        columns: only these, in this order, the embedding field among them if it is wanted; by default all, a field that
        only some records have being null in the others. O(n). Raises ValueError for a column that there is not, or
        whose values have no common Arrow type, and ImportError without the extra `arrow`.
        """
        vectors = self._arrow_vectors(lambda one: (one.everything(), one.bitmap()))
        return self._table(self.all_records(), vectors, columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow PyCapsule interface, through which pandas and DuckDB take a collection as it is.

        Each call is a `to_arrow`, and DuckDB makes three in a query: for more than one query give it that table. Polars
        wants the table in any case, since a mapping is to it one of columns.
        """
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        """See `Selection.to_arrow`."""

        def vectors(one: Vectors) -> ArrowVectors:
            bits = np.packbits(one.present()[rows], bitorder="little") if one.missing else None
            return one.at_rows(rows), bits

        return self._table(self.records_at(rows), self._arrow_vectors(vectors), columns)

    def _arrow_vectors(self, read: Callable[[Vectors], ArrowVectors]) -> dict[str, Callable[[], ArrowVectors]]:
        return {name: partial(read, one) for name, one in self._vectors.items() if one.dim}

    def _table(
        self,
        records: Iterable[Record],
        vectors: Mapping[str, Callable[[], ArrowVectors]],
        columns: Iterable[str] | None,
    ) -> pa.Table:
        from .arrow import table_of

        names = list(dict.fromkeys(name for shape in self.file.shapes for name in shape.names))
        return table_of(records, names, vectors, columns)

    # --- what a selection asks; rows are uint32 and below n

    def ref(self) -> FileRef:
        """Where another process finds this collection."""
        return self._ref

    def ids_at(self, rows: NDArray[np.uint32] | bytes) -> list[Key]:
        """The keys of rows; bytes of them, as the compiled core gives them, need no numpy."""
        return self._batches.keys(rows)

    def records_at(self, rows: NDArray[np.uint32] | bytes) -> Iterator[Record]:
        """The records of rows, decoded in batches."""
        return self._batches.records(rows, self)

    def embeddings_at(self, rows: NDArray[np.uint32], field: str | None = None) -> NDArray[np.float32]:
        """float32, (len(rows), dim): a view for consecutive rows, else a copy."""
        return self._vectors_of(field).at_rows(rows)

    def corrupt(self, part: str, reason: str) -> CorruptFileError:
        """What to raise about a part of this collection."""
        return self.file.corrupt(part, reason)

    def close(self) -> None:
        """For the snapshot to call."""
        self.file.close()
        self._lookup.close()
        self._indexes = {}
        for vectors in (self._first, *self._vectors.values()):
            vectors.close()

    def __repr__(self) -> str:
        return f"<Collection {self.name!r}: {len(self)} records>"


bound(FileCollection, "FileCollection")
