"""`Snapshot`: one file, opened, mapped and never trusted blindly. `Collection`: the records of one kind in it.

Opening reads header, table and meta with `pread` and checks them; after that everything is read in place through
one read-only shared map. Nothing is decoded or copied that grows with the file.

What is verified when. A record's checksum is checked on every get, in every mode. Everything else is verified at
open, or in blocks of 64 KiB when first touched. An id that is found needs no block: the record's own checksum
and the key in it prove the whole way there. An id that is not found does, and so does every array handed out.

Call grammar: open (read | verify)* close. After close reads raise ClosedError, and arrays handed out stay valid.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from array import array
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from functools import partial, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NamedTuple, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

import msgpack
import numpy as np
from msgpack import unpackb
from xxhash import xxh3_64_intdigest

from ..additive import seen_in
from ..errors import ClosedError, CorruptFileError, GenerationGoneError, MmcacheError, UnusableFileError
from ..format.frame import place_arrays
from ..format.header import BLOCK, Header
from ..format.keys import Key
from ..format.layout import ROW_SIZE, CollectionLayout, Layout, ids_sizes, validate
from ..format.postings import IndexReader, select
from ..format.records import MAX_RECORD_BYTES, checksum, decode, key_offset
from ..format.slots import EMPTY
from ..schema import Query, Schema, Term, parse_query, terms_of
from ..words import ago, bytes_of, html_of
from .blocks import Blocks
from .fs import Identity, ReadFile, backup_name
from .record import Record, RecordItems, RecordValues
from .selection import Selection
from .verify import verify_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from .arrow import Vectors

__all__ = ["Collection", "DirtyError", "EmbeddingRef", "Record", "Selection", "Snapshot", "UnverifiedError"]

AUTO_FULL_BYTES = 64 * 2**20
"""verify="auto" checksums files up to this size whole at open, which takes a few ms in the page cache."""

_BATCH = 2048
"""Records decoded at a time by whatever reads many."""

_SMALL_BATCH = 24
"""Below so many keys, one get after the other is faster than numpy."""

_SHORT_KEY = 64
_MANY_KEYS = 256
"""Up to so many bytes, from so many keys on, gathering them as a matrix is faster than slicing them out one by one."""

_new = object.__new__
_ONE = np.uint64(1)
_unpack_row = struct.Struct("<QIHHQ").unpack_from
_unpack_record = struct.Struct("<QI2xHQ").unpack_from
"""Of a row entry, all but the key's length."""
_unpack_key = struct.Struct("<Q4xHH").unpack_from
"""Of a row entry, what leads to the key: offset, length of the key, shape."""
_ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("key_length", "<u2"), ("shape", "<u2"), ("checksum", "<u8")])
_UNEXPECTED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, msgpack.UnpackException)
"""What reading hostile, damaged or closed memory can raise before the careful path has looked at it."""

Verify = Literal["auto", "full", "lazy"]
Access = Literal["mmap", "copy"]

P = ParamSpec("P")
T = TypeVar("T")


class DirtyError(Exception):
    """The key was invalidated after the file was built: its source has to answer. Never leaves a `Cache`."""


class UnverifiedError(Exception):
    """The file was not verified on this machine since it started, and opening it now would take a while."""


class _Any(dict[int, object]):
    """Has every key."""

    def __contains__(self, _: object) -> bool:
        return True

    def keys(self) -> Any:
        return self

    def isdisjoint(self, _: object) -> bool:
        return False


def _careful(method: Callable[Concatenate[Collection, P], T]) -> Callable[Concatenate[Collection, P], T]:
    """For the slow path: whatever reading raises leaves as an MmcacheError that names the path, or a KeyError.

    Another thread may close the snapshot at any point; what fails then, fails because of that.
    """

    @wraps(method)
    def checked(self: Collection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except MmcacheError as error:
            self._check_open()  # what looked like damage may be the empty tables that closing leaves
            error.path = error.path or self._path
            raise
        except KeyError:
            self._check_open()
            raise
        except _UNEXPECTED as error:
            self._check_open()
            raise CorruptFileError(f"cannot be read as written ({error})", path=self._path) from None

    return checked


class Place(NamedTuple):
    """Which collection of which generation, for another process: there it stands in for the collection."""

    path: str
    name: str
    generation: int
    build_id: bytes

    def collection(self) -> Collection:
        """Mapped once in a process, while anybody uses it; the last one stays. Raises GenerationGoneError."""
        found = _arrived.get(self)
        if found is None or found._closed:
            found = _arrived[self] = self._open()  # two threads may, and one of the two maps is dropped
        _last[:] = [found]
        return found

    def _open(self) -> Collection:
        found = []
        for path in (self.path, backup_name(self.path)):
            try:
                snapshot = Snapshot.open(path, verify="lazy")
            except UnusableFileError as error:
                found.append(error.cause)
                continue
            if snapshot.header.build_id == self.build_id:
                return snapshot.collection(self.name)
            found.append(f"generation {snapshot.generation}")
            snapshot.close()
        raise GenerationGoneError(
            f"expected generation {self.generation}, found {found[0]}, as backup {found[1]}: ask again for what came "
            "from it",
            path=self.path,
        )

    def place(self) -> Place:
        return self

    def ids_at(self, rows: NDArray[np.uint32]) -> list[str]:
        return self.collection().ids_at(rows)

    def records_at(self, rows: NDArray[np.uint32]) -> Iterator[Record]:
        return self.collection().records_at(rows)

    def embeddings_at(self, rows: NDArray[np.uint32]) -> NDArray[np.float32]:
        return self.collection().embeddings_at(rows)

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        return self.collection().table_at(rows, columns)


_arrived: WeakValueDictionary[Place, Collection] = WeakValueDictionary()
_last: list[Collection] = []


class EmbeddingRef(NamedTuple):
    """An embedding to be sent to another process of the machine: some hundred bytes, whatever its length."""

    place: Place
    row: int

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file, mapped at the first use; None for a record without one.

        Raises GenerationGoneError when the generation it came from is neither the published file nor its backup.
        """
        return self.place.collection().vector(self.row)


class Collection(Mapping[str, Record]):
    """The records of one collection: a read-only mapping from key to `Record`, in the order of its rows.

    Takes no lock and may be used from any thread. A get costs one hash, a slot or two, one checksum and one
    decode; nothing is kept per record. Raises CorruptFileError where the file is not what was written, and
    ClosedError after its snapshot was closed.
    """

    # fmt: off
    __slots__ = (  # a dict of attributes would make a copy of a collection slower than the original: see `around`
        "__weakref__", "_blocks", "_buffer", "_closed", "_digest", "_dirty", "_hash", "_hash_at", "_ids_verified",
        "_indexes", "_is_plain", "_layout", "_matrix", "_max_probe", "_n", "_path", "_place", "_prefixes", "_row",
        "_row_at", "_rows_at", "_shapes", "_shift", "_stride", "_vectors_at", "_verified", "_view",
    )
    # fmt: on

    def __init__(
        self,
        path: str,
        buffer: Any,
        view: memoryview,
        layout: CollectionLayout,
        blocks: Blocks | None,
        *,
        place: Place,
        ids_verified: bool,
    ) -> None:
        ids, rows = layout.sections["ids"], layout.sections["rows"]
        arrays = place_arrays(ids_sizes(ids.count)).offsets
        self._hash_at, self._row_at = ids.offset + arrays["hash"], ids.offset + arrays["row"]
        self._path = path
        self._place = place
        self._buffer = buffer
        self._view = view
        self._layout = layout
        self._blocks = blocks
        self._closed = False
        self._n = layout.n
        self._shapes = layout.shapes
        self._prefixes = [shape.prefix for shape in layout.shapes]
        self._shift = 64 - layout.ids.bits
        self._max_probe = layout.ids.max_probe
        self._digest = partial(xxh3_64_intdigest, seed=layout.ids.seed) if layout.ids.seed else xxh3_64_intdigest
        self._hash = view[self._hash_at : self._hash_at + 8 * ids.count].cast("Q")
        self._row = view[self._row_at : self._row_at + 4 * ids.count].cast("I")
        self._rows_at = rows.offset
        self._indexes: dict[str, IndexReader] = {}
        self._matrix: NDArray[np.float32] | None = None
        self._ids_verified = ids_verified
        self._verified = None if blocks is None else blocks.verified
        self._stride = 4 * layout.dim
        self._is_plain = 0 < self._stride <= BLOCK and not layout.missing
        self._dirty: Mapping[int, object] | None = None
        self._vectors_at = layout.sections["embeddings"].offset if layout.dim else 0

    def around(self, dirty: Mapping[int, Sequence[Key | None]]) -> Collection:
        """The same collection, whose look-ups by key raise DirtyError for these keys. All else is as in the file.

        dirty: hash of a key -> the keys that have it; it may grow while the collection is used.
        """
        twin = _new(Collection)
        for name in Collection.__slots__[1:]:
            setattr(twin, name, getattr(self, name))
        twin._dirty = dirty
        if self._layout.ids.seed:
            keys = [key for one in dirty.values() for key in one]
            if None in keys:  # known by a hash that this table does not use: it may be any key
                twin._dirty = _Any()
            else:
                twin._dirty = {
                    self._digest(key.encode("utf-8", "surrogatepass")): 0 for key in keys if type(key) is str
                }
        return twin

    def is_dirty(self, key: object) -> bool:
        """Whether a lookup of this key raises DirtyError."""
        if self._dirty is None or not isinstance(key, str):
            return False
        return self._digest(key.encode("utf-8", "surrogatepass")) in self._dirty

    # --- look-ups by key

    def __getitem__(self, key: str) -> Record:
        absent = False
        try:
            hashed = self._digest(key.encode())
            dirty = self._dirty
            if dirty is not None and hashed in dirty:
                raise DirtyError
            home = slot = hashed >> self._shift
            found = self._hash[slot]
            while found < hashed and slot - home <= self._max_probe:
                slot += 1
                found = self._hash[slot]
            if found == hashed:
                row = self._row[slot]
                offset, length, number, expected = _unpack_record(self._buffer, self._rows_at + ROW_SIZE * row)
                if length <= MAX_RECORD_BYTES:
                    raw = self._buffer[offset : offset + length]
                    if xxh3_64_intdigest(raw) ^ number == expected:
                        values = unpackb(raw)
                        shape = self._shapes[number]
                        if values[0] == key and len(values) == shape.count and row < self._n:
                            record = _new(Record)  # as Record() does, without a call from C into Python
                            record._shape = shape
                            record._values = values
                            record._owner = self
                            record._row = row
                            return record
            else:
                absent = self._ids_verified and found > hashed
        except _UNEXPECTED:
            pass
        if absent:
            raise KeyError(key)
        # Two keys with one hash, a map with keys that are not text, damage, a closed snapshot, or a miss in a
        # part of the file that is not verified yet.
        return self._record(self._locate(key))

    def get(self, key: str, default: Any = None) -> Any:
        """The record, or a default where there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        try:
            self._find(key)
        except KeyError:
            return False
        return True

    def get_many(self, keys: Iterable[str]) -> list[Record | None]:
        """The records of these keys, in their order, None where there is none. Cheaper than one by one."""
        wanted = list(keys)
        if len(wanted) < _SMALL_BATCH:
            return [self.get(key) for key in wanted]
        found: list[Record | None] = []
        for begin in range(0, len(wanted), _BATCH):
            batch = wanted[begin : begin + _BATCH]
            try:
                found += self._get_batch(batch)
            except _UNEXPECTED:
                found += [self.get(key) for key in batch]
        return found

    def row(self, key: str) -> int:
        """The row of a key: its place in `embeddings` and every other array. Raises KeyError."""
        return self._find(key)

    def embedding(self, key: str) -> NDArray[np.float32] | None:
        """float32, (dim,), a read-only view of the file; None for a record without one. Raises KeyError."""
        row = self._find(key)
        matrix = self._matrix
        if matrix is not None and self._is_plain:
            verified = self._verified
            if verified is None:
                return matrix[row]  # type: ignore[no-any-return]
            at = self._vectors_at + self._stride * row
            if verified[at >> 16] and verified[(at + self._stride - 1) >> 16]:
                return matrix[row]  # type: ignore[no-any-return]
        return self._vector(row)

    def get_embeddings(self, keys: Iterable[str]) -> NDArray[np.float32]:
        """float32, (number of keys, dim): the embeddings of these keys in their order, zeros where a record has none.

        A copy made at the speed of memory; a read-only view where the rows follow each other. Raises KeyError for a
        key that is not there.
        """
        return self.embeddings_at(self._rows_of(list(keys)))

    def embedding_ref(self, key: str) -> EmbeddingRef:
        """What to send to another process in place of an embedding. Raises KeyError."""
        return EmbeddingRef(self._place, self._find(key))

    def place(self) -> Place:
        """Where another process finds this collection."""
        return self._place

    # --- all of it

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[str]:
        for rows in self._batches(np.arange(len(self), dtype=np.uint32)):
            yield from self.ids_at(rows)

    def values(self) -> ValuesView[Record]:
        """The records, in row order, decoded in batches."""
        return RecordValues(self)

    def items(self) -> ItemsView[str, Record]:
        """Keys and records, in row order, decoded in batches."""
        return RecordItems(self)

    def all_records(self) -> Iterator[Record]:
        """What `values` iterates over."""
        return self.records_at(np.arange(len(self), dtype=np.uint32))

    @property
    def schema(self) -> Schema:
        """As it was given to the build."""
        return self._layout.schema

    @property
    def layout(self) -> CollectionLayout:
        """Its sections, and everything else that `validate` found of it."""
        return self._layout

    @property
    def name(self) -> str:
        return self._layout.schema.name

    @property
    def dim(self) -> int:
        """Numbers in an embedding; 0 for a collection without."""
        return self._layout.dim

    @property
    def cluster_by(self) -> str | None:
        """The field whose records stand together, or None."""
        return self._layout.cluster_by

    # --- look-ups by field

    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        Reads posting lists, no record. Raises ValueError for a field without an index, TypeError for a value
        that cannot be indexed.
        """
        return self.find(parse_query(self.schema, terms, more))

    def find(self, query: Query) -> Selection:
        """The same for a query that was parsed."""
        return Selection(self, self._select(query))

    @_careful
    def _select(self, query: Query) -> NDArray[np.uint32]:
        return select({field: self._index(field) for field in query}, query, len(self))

    def terms(self, field: str) -> dict[Term, int]:
        """The values of an indexed field and how many records have each, in order of first appearance. O(terms)."""
        parse_query(self.schema, {field: None}, {})
        return self._terms(field)

    @_careful
    def _terms(self, field: str) -> dict[Term, int]:
        return dict(self._index(field).terms())

    # --- arrays

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), C-contiguous, read-only view of the file, rows without an embedding zero.

        Keeps its generation mapped while it is referenced. (n, 0) for a collection without embeddings.
        """
        return self._all_vectors()

    @_careful
    def _all_vectors(self) -> NDArray[np.float32]:
        self._check_open()
        self._touch_section("embeddings")
        return self._vectors()

    @property
    def norms(self) -> NDArray[np.float32]:
        """float32, (n,): the Euclidean length of every embedding; a read-only view of the file."""
        return self._array("norms", "<f4") if self.dim else np.zeros(len(self), np.float32)

    @property
    def has_embedding(self) -> NDArray[np.bool_]:
        """bool, (n,): whether a row has an embedding. O(n)."""
        if not self.dim:
            return np.zeros(len(self), np.bool_)
        if not self._layout.missing:
            return np.ones(len(self), np.bool_)
        bits = np.unpackbits(self._array("presence", "u1"), count=len(self), bitorder="little")
        return bits.astype(np.bool_)

    def vector(self, row: int) -> NDArray[np.float32] | None:
        """float32, (dim,): the embedding of a row, a read-only view; None without one."""
        return self._vector(row)

    @_careful
    def _vector(self, row: int) -> NDArray[np.float32] | None:
        self._check_open()
        if not self.dim:
            return None
        if not self._ids_verified:  # the row entry is what binds a key to a row, and so to an embedding
            self._touch(self._rows_at + ROW_SIZE * row, ROW_SIZE)
        if self._layout.missing:
            presence = self._layout.sections["presence"]
            self._touch(presence.offset + (row >> 3), 1)
            if not self._view[presence.offset + (row >> 3)] >> (row & 7) & 1:
                return None
        self._touch(self._vectors_at + self._stride * row, self._stride)
        return self._vectors()[row]  # type: ignore[no-any-return]

    # --- Arrow

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of one batch, in row order: the fields, decoded and copied, and the embeddings without a
        copy: a FixedSizeList over the file, which stays mapped while the column is referenced. Null for none.

        columns: only these, in this order, the embedding field among them if it is wanted; by default all, a field that
        only some records have being null in the others. O(n). Raises ValueError for a column that there is not, or
        whose values have no common Arrow type, and ImportError without the extra `arrow`.
        """
        return self._table(self.all_records(), self._all_with_presence, columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow PyCapsule interface, through which pandas and DuckDB take a collection as it is.

        Each call is a `to_arrow`, and DuckDB makes three in a query: for more than one query give it that table. Polars
        wants the table in any case, since a mapping is to it one of columns.
        """
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def _table(
        self, records: Iterable[Record], vectors: Callable[[], Vectors], columns: Iterable[str] | None
    ) -> pa.Table:
        from .arrow import table_of

        names = list(dict.fromkeys(name for shape in self._shapes for name in shape.names))
        return table_of(records, names, self.schema.embedding if self.dim else None, vectors, columns)

    def _all_with_presence(self) -> Vectors:
        return self.embeddings, self._array("presence", "u1") if self._layout.missing else None

    # --- what a selection asks; rows are uint32 and below n

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        """See `Selection.to_arrow`."""

        def vectors() -> Vectors:
            bits = np.packbits(self.has_embedding[rows], bitorder="little") if self._layout.missing else None
            return self.embeddings_at(rows), bits

        return self._table(self.records_at(rows), vectors, columns)

    @_careful
    def ids_at(self, rows: NDArray[np.uint32]) -> list[str]:
        """The keys of rows."""
        self._touch_section("rows")
        prefixes = np.array(self._prefixes, np.uint64)
        ids: list[str] = []
        for batch in self._batches(rows):
            entries = np.frombuffer(self._buffer, _ROW, self._n, self._rows_at)[batch]
            lengths = entries["key_length"].astype(np.uint64)
            begins = entries["offset"] + prefixes[entries["shape"]] + _ONE  # as key_offset has it
            begins += lengths >= 32
            begins += lengths >= 256
            if self._blocks is not None:
                self._blocks.touch_many(begins, lengths)
            ids += self._texts(begins, lengths)
        return ids

    def _texts(self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> list[str]:
        """The texts at these places; short ones gathered by numpy, a line each, and decoded together."""
        longest = int(lengths.max(initial=0))
        # A window must not reach beyond the file, as one of a short key in the last bytes would.
        if (
            longest <= _SHORT_KEY
            and len(begins) >= _MANY_KEYS
            and int(begins.max(initial=0)) + longest < len(self._buffer)
        ):
            data = np.frombuffer(self._buffer, np.uint8)
            # What sliding_window_view gives, in a third of its time.
            windows = np.ndarray((len(data) - longest, longest + 1), np.uint8, data, 0, (1, 1))
            lines = windows[begins.astype(np.int64)]
            lines[np.arange(len(lines)), lengths.astype(np.int64)] = ord("\n")
            if int(lengths.min()) != longest:
                lines = lines[np.arange(longest + 1) <= lengths.astype(np.int64)[:, None]]
            keys = lines.tobytes().decode().split("\n")
            if len(keys) == len(lengths) + 1:  # unless a key has a line feed
                return keys[:-1]
        ends = begins + lengths
        return [self._buffer[i:j].decode() for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]

    def records_at(self, rows: NDArray[np.uint32]) -> Iterator[Record]:
        """The records of rows, decoded in batches."""
        end = 0
        for batch in self._batches(rows):
            end = self._check_rows(batch, end)
            records: Iterable[Record]
            try:
                records = self._decode_batch(batch)
            except _UNEXPECTED:
                records = map(self._record, batch.tolist())
            yield from records

    @_careful
    def embeddings_at(self, rows: NDArray[np.uint32]) -> NDArray[np.float32]:
        """float32, (len(rows), dim): a view for consecutive rows, else a copy."""
        self._check_open()
        if self._blocks is not None and self.dim:
            if self._stride <= BLOCK:
                begins = rows.astype(np.uint64) * np.uint64(self._stride) + np.uint64(self._vectors_at)
                self._blocks.touch_many(begins, np.full(len(rows), self._stride, np.uint64))
            else:
                for row in rows.tolist():
                    self._touch(self._vectors_at + self._stride * row, self._stride)
        if len(rows) and (rows[1:] == rows[:-1] + 1).all():
            return self._vectors()[int(rows[0]) : int(rows[-1]) + 1]
        return self._vectors()[rows]

    # --- the careful path

    def _find(self, key: object) -> int:
        """The row of a key, proved by comparing the key's bytes. Raises KeyError."""
        absent = False
        try:
            raw = key.encode()  # type: ignore[attr-defined]
            hashed = self._digest(raw)
            dirty = self._dirty
            if dirty is not None and hashed in dirty:
                raise DirtyError
            home = slot = hashed >> self._shift
            found = self._hash[slot]
            while found < hashed and slot - home <= self._max_probe:
                slot += 1
                found = self._hash[slot]
            if found == hashed:
                row = self._row[slot]
                offset, length, number = _unpack_key(self._buffer, self._rows_at + ROW_SIZE * row)
                # As key_offset has it, without the call.
                at = offset + self._prefixes[number] + (1 if length < 32 else 2 if length < 256 else 3)
                if self._buffer[at : at + length] == raw and row < self._n:
                    if not self._ids_verified:
                        self._touch(self._rows_at + ROW_SIZE * row, ROW_SIZE)
                    return row
            else:
                absent = self._ids_verified and found > hashed
        except _UNEXPECTED:
            pass
        if absent:
            raise KeyError(key)
        return self._locate(key)

    @_careful
    def _locate(self, key: object) -> int:
        """The row of a key, every byte on the way verified and every number checked before it is used."""
        self._check_open()
        if not isinstance(key, str):
            raise KeyError(key)
        try:
            raw = key.encode()
        except UnicodeEncodeError:
            raise KeyError(key) from None
        hashed = self._digest(raw)
        home = hashed >> self._shift
        self._touch(self._hash_at + 8 * home, 8 * (self._max_probe + 2))
        try:
            for slot in range(home, home + self._max_probe + 2):
                found = self._hash[slot]
                if found > hashed:
                    break
                if found == hashed:
                    self._touch(self._row_at + 4 * slot, 4)
                    row = self._row[slot]
                    if row == EMPTY:
                        break
                    if self._key(row) == raw:
                        return row
                    self._record(row)  # of another key with the same hash, which is rare; or it is damaged, and says so
        except IndexError:
            raise self.corrupt("ids", f"a slot lies outside of the table of {len(self._hash)}") from None
        raise KeyError(key)

    def _row_entry(self, row: int) -> tuple[int, int, int, int, int]:
        """offset, length, key length, shape and checksum of a row, checked."""
        if row >= len(self):
            raise self.corrupt("ids", f"row {row} of {len(self)}")
        self._touch(self._rows_at + ROW_SIZE * row, ROW_SIZE)
        entry: tuple[int, int, int, int, int] = _unpack_row(self._view, self._rows_at + ROW_SIZE * row)
        offset, length, key_length, number, _ = entry
        records = self._layout.sections["records"]
        if length > MAX_RECORD_BYTES or not records.offset <= offset <= records.end - length:
            raise self.corrupt("rows", f"record {row} of {length} bytes at {offset} lies outside of the records")
        if number >= len(self._shapes) or key_length > length:
            raise self.corrupt("rows", f"record {row} has shape {number} and a key of {key_length} bytes")
        return entry

    def _key(self, row: int) -> bytes:
        offset, _, length, number, _ = self._row_entry(row)
        at = offset + key_offset(self._shapes[number].prefix, length)
        self._touch(at, length)
        return bytes(self._view[at : at + length])

    @_careful
    def _record(self, row: int) -> Record:
        """The record of a row. Raises CorruptFileError with the reason."""
        self._check_open()
        offset, length, _, number, expected = self._row_entry(row)
        raw = bytes(self._view[offset : offset + length])
        if checksum(raw, number) != expected:
            raise self.corrupt("records", f"record {row} does not match its checksum")
        values = decode(raw)
        shape = self._shapes[number]
        if type(values) is not list or len(values) != shape.count or type(values[0]) is not str:
            raise self.corrupt("records", f"record {row} does not have the {shape.count} values of its shape")
        return Record(shape, values, self, row)

    # --- in batches

    def _get_batch(self, keys: list[str]) -> list[Record | None]:
        """Many look-ups at once. Raises one of _UNEXPECTED where single ones must tell what is wrong."""
        rows, hit = self._probe(list(map(self._digest, map(str.encode, keys))))
        if hit.all():
            records = self._decode_batch(rows)
            if [record._values[0] for record in records] != keys:
                raise LookupError("two keys have one hash")
            return records  # type: ignore[return-value]
        if not self._ids_verified:
            raise LookupError("a miss is looked at one by one in a file that is not wholly verified")
        found: list[Record | None] = [None] * len(keys)
        where = np.flatnonzero(hit).tolist()
        for i, record in zip(where, self._get_batch([keys[i] for i in where]) if where else (), strict=True):
            found[i] = record
        return found

    def _probe(self, digests: list[int]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """The rows of many keys, and whether there is one: by their hashes alone. Raises DirtyError."""
        if self._dirty is not None and not self._dirty.keys().isdisjoint(digests):
            raise DirtyError
        hashed = np.array(digests, np.uint64)
        hashes = np.frombuffer(self._hash, np.uint64)
        slots = (hashed >> np.uint64(self._shift)).view(np.int64)
        found = hashes.take(slots, mode="clip")
        for _ in range(self._max_probe + 1):
            smaller = found < hashed
            if not smaller.any():
                break
            slots += smaller
            found = hashes.take(slots, mode="clip")
        return np.frombuffer(self._row, np.uint32).take(slots, mode="clip"), found == hashed

    def _rows_of(self, keys: list[str]) -> NDArray[np.uint32]:
        """The rows of keys, each proved by the key's bytes. Raises KeyError."""
        if len(keys) >= _SMALL_BATCH:
            with contextlib.suppress(*_UNEXPECTED):  # one by one tells what is wrong
                rows, hit = self._probe(list(map(self._digest, map(str.encode, keys))))
                if hit.all() and self.ids_at(rows) == keys:
                    return rows
        return np.fromiter(map(self._find, keys), np.uint32, len(keys))

    def _decode_batch(self, rows: NDArray[np.uint32]) -> list[Record]:
        """Many records with one decode. Raises one of _UNEXPECTED where any of them is not right."""
        entries = np.frombuffer(self._buffer, _ROW, self._n, self._rows_at)[rows]
        begins, lengths, numbers = entries["offset"], entries["length"], entries["shape"]
        if lengths.sum() > MAX_RECORD_BYTES:
            raise ValueError("more than is decoded at once")
        buffer = self._buffer
        raw = [buffer[begin:end] for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)]
        checksums = np.fromiter(map(xxh3_64_intdigest, raw), np.uint64, len(raw))
        if not (checksums ^ numbers == entries["checksum"]).all():
            raise ValueError("a record does not match its checksum")
        decoded = unpackb(b"\xdd" + len(raw).to_bytes(4, "big") + b"".join(raw))
        one, shapes = self._shapes[0], self._shapes
        found: list[Record] = []
        add = found.append
        for values, row, number in zip(decoded, rows.tolist(), numbers.tolist(), strict=True):
            shape = shapes[number] if number else one
            if len(values) != shape.count:
                raise ValueError("a record does not have the values of its shape")
            record = _new(Record)
            record._shape = shape
            record._values = values
            record._owner = self
            record._row = row
            add(record)
        return found

    def _batches(self, rows: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
        self._check_open()
        average = self._layout.sections["records"].length // max(1, self._n)
        size = max(1, min(_BATCH, MAX_RECORD_BYTES // 2 // max(1, average)))
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]

    # --- parts of the file

    def _index(self, field: str) -> IndexReader:
        self._check_open()
        reader = self._indexes.get(field)
        if reader is None:
            section = self._layout.sections[f"index.{field}"]
            self._touch(section.offset, section.length)
            reader = IndexReader(self._view[section.offset : section.end], self._layout.index[field], len(self))
            self._indexes[field] = reader
        return reader

    def _vectors(self) -> NDArray[np.float32]:
        """The whole matrix; the caller that hands out a part of it has touched that part."""
        if self._matrix is None:
            if not self.dim:
                self._matrix = np.zeros((len(self), 0), np.float32)
                self._matrix.flags.writeable = False
            else:
                at = self._layout.sections["embeddings"].offset
                flat = np.frombuffer(self._view, "<f4", len(self) * self.dim, at)
                self._matrix = flat.reshape(len(self), self.dim)
        return self._matrix

    @_careful
    def _array(self, part: str, dtype: str) -> NDArray[Any]:
        self._check_open()
        section = self._layout.sections.get(part)
        if section is None:
            return np.empty(0, dtype)
        self._touch_section(part)
        return np.frombuffer(self._view[section.offset : section.end], dtype)

    def _touch_section(self, part: str) -> None:
        section = self._layout.sections.get(part)
        if section is not None:
            self._touch(section.offset, section.length)

    @_careful
    def _check_rows(self, rows: NDArray[np.uint32], end: int) -> int:
        """Verify the entries of these rows, and that ascending ones lead to records that follow each other.

        end: where the last record before them ends. Gives where theirs end. Records that overlap would decode to
        more than a file of this size can hold.
        """
        self._check_open()
        if self._blocks is not None:
            begins = rows.astype(np.uint64) * np.uint64(ROW_SIZE) + np.uint64(self._rows_at)
            self._blocks.touch_many(begins, np.full(len(rows), ROW_SIZE, np.uint64))
        entries = np.frombuffer(self._buffer, _ROW, self._n, self._rows_at)[rows]
        begins, ends = entries["offset"], entries["offset"] + entries["length"]
        if rows[0] > rows[-1]:
            return 0
        if begins[0] < end or (begins[1:] < ends[:-1]).any():
            raise self.corrupt("rows", "two records lie in the same place")
        return int(ends[-1])

    def _touch(self, offset: int, length: int) -> None:
        if self._blocks is not None:
            self._blocks.touch(offset, length)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the snapshot was closed: open it again with Snapshot.open(path)", path=self._path)

    def corrupt(self, part: str, reason: str) -> CorruptFileError:
        """What to raise about a part of this collection."""
        name = f"{self.name}/{part}"
        return CorruptFileError(f"section {name!r}: {reason}", path=self._path, section=name)

    def close(self) -> None:
        """For the snapshot to call."""
        self._closed = True
        # Every read from here on fails, and then looks whether it fails because of this.
        self._hash = memoryview(b"").cast("Q")
        self._row = memoryview(b"").cast("I")
        self._indexes = {}
        self._buffer = self._view = self._matrix = self._blocks = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Collection {self.name!r}: {len(self)} records>"


Choose = Callable[[Layout], Sequence[Schema]]


def _narrowed(layout: Layout, schemas: Sequence[Schema]) -> dict[str, CollectionLayout]:
    """What a worker sees of a file: the collections, indexes and columns that it asked for."""
    narrowed = {}
    for ours in schemas:
        found = layout.collections[ours.name]
        seen = seen_in(found.schema, ours)
        if seen != found.schema:
            shapes = found.shapes
            if ours.columns is not None and ours.columns != found.schema.columns:
                shapes = tuple(shape.narrowed(ours.columns) for shape in shapes)
            found = replace(
                found,
                schema=seen,
                shapes=shapes,
                index={field: found.index[field] for field in seen.index},
                cluster_by=found.cluster_by if found.cluster_by in seen.index else None,
            )
        narrowed[ours.name] = found
    return narrowed


class Host(Protocol):
    """Who remembers, for all processes of a machine, which file was verified."""

    def knows(self, header: Header, identity: Identity) -> bool: ...
    def verified(self, header: Header, identity: Identity) -> None: ...


class Snapshot(Mapping[str, Record]):
    """One generation of a file, with no source, no lock and no control page; a mapping of its first collection.

    Make one with `Snapshot.open`. A context manager. Safe in threads and after a fork; does not pickle, because
    the path may hold another generation by then.
    """

    def __init__(
        self, file: ReadFile, layout: Layout, collections: dict[str, Collection], in_memory: bytes | None
    ) -> None:
        self._file = file
        self._layout = layout
        self._collections = collections
        self.default = next(iter(collections.values()))
        """The first collection, which the snapshot itself is a mapping of."""
        self._in_memory = in_memory
        self._closed = False
        self.opened_in = 0.0
        """Seconds that opening took."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: Verify = "auto", access: Access = "mmap") -> Self:
        """Open a file.

        verify: what is checksummed now, beyond header, table and meta, which always are. "full": every byte. "lazy":
        nothing; a block of 64 KiB is when it is first touched. "auto": every byte of a file up to 64 MB, and of a
        larger one ids, rows and indexes, the rest when touched.
        access: "mmap" shares the pages with every process; "copy" reads the file into memory of our own, checksummed
        in full, for file systems whose files may change under a map.

        Raises MissingFileError, CorruptFileError, IncompatibleFormatError, UntrustedPathError, or their base
        UnusableFileError for a file that the system does not let us read.
        """
        if verify not in ("auto", "full", "lazy"):
            raise ValueError(f"verify must be 'auto', 'full' or 'lazy', not {verify!r}")
        if access not in ("mmap", "copy"):
            raise ValueError(f"access must be 'mmap' or 'copy', not {access!r}")
        return cls.attach(path, verify, access, None)

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        verify: Verify,
        access: Access,
        host: Host | None,
        *,
        known: bool = False,
        choose: Choose | None = None,
    ) -> Self:
        """`open`, with a host that knows what was verified on this machine already: "auto" then checksums nothing.

        known: raises UnverifiedError where anything but header, table and meta would have to be read. choose: gives the
        schemas that are to be seen, the default first; may raise IncompatibleFormatError.
        """
        return cls._from(ReadFile(os.fspath(path)), verify, access, host, only_known=known, choose=choose)

    @classmethod
    def _from(
        cls,
        file: ReadFile,
        verify: Verify,
        access: Access,
        host: Host | None = None,
        *,
        only_known: bool = False,
        choose: Choose | None = None,
    ) -> Self:
        begun = time.perf_counter()
        try:
            layout = validate(file.read, file.size)
            seen = layout.collections if choose is None else _narrowed(layout, choose(layout))
            known = verify == "auto" and host is not None and host.knows(layout.header, file.identity)
            if only_known and not (access == "mmap" and (known or verify == "lazy")):
                raise UnverifiedError
            in_memory = _whole(file) if access == "copy" else None
            buffer: Any = file.map() if in_memory is None else in_memory
            view = memoryview(buffer)
            blocks = None if known and access == "mmap" else Blocks(view, layout)
            if blocks is not None:
                if verify == "full" or access == "copy" or (verify == "auto" and file.size <= AUTO_FULL_BYTES):
                    blocks.verify_all()
                    blocks = None
                    if host is not None:
                        host.verified(layout.header, file.identity)
                elif verify == "auto":
                    _verify_indexes(layout, view, blocks)
            ids_verified = blocks is None or verify == "auto"
            generation, build_id = layout.header.generation, layout.header.build_id
            path = os.path.abspath(file.path)
            collections = {
                name: Collection(
                    file.path,
                    buffer,
                    view,
                    described,
                    blocks,
                    place=Place(path, name, generation, build_id),
                    ids_verified=ids_verified,
                )
                for name, described in seen.items()
            }
        except UnverifiedError:
            file.close()
            raise
        except UnusableFileError as error:
            file.close()
            error.path = error.path or file.path
            raise
        snapshot = cls(file, layout, collections, in_memory)
        snapshot.opened_in = time.perf_counter() - begun
        return snapshot

    # --- what it is

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def identity(self) -> Identity:
        """Device, inode, size and time of the last write (ns) of the file that was opened."""
        return self._file.identity

    @property
    def header(self) -> Header:
        """Format version, sizes, build id, SHA-256 and times, as they stand in the file."""
        return self._layout.header

    @property
    def generation(self) -> int:
        """Grows by one per publish."""
        return self._layout.header.generation

    @property
    def created(self) -> float:
        """Wall-clock time (seconds since the epoch) at which the build began to read the source."""
        return self._layout.header.created_ns / 1e9

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the build was given as metadata=."""
        return MappingProxyType(self._layout.metadata)

    @property
    def source(self) -> Mapping[str, Any] | None:
        """The source's spec, as plain data; None if the file was built from records in memory."""
        return None if self._layout.source is None else MappingProxyType(self._layout.source)

    @property
    def layout(self) -> Layout:
        """Sections and everything else that `validate` found."""
        return self._layout

    @property
    def schema(self) -> Schema:
        """Of the first collection."""
        return self.default.schema

    @property
    def collections(self) -> Mapping[str, Collection]:
        """Every collection by name, the default one first."""
        return MappingProxyType(self._collections)

    def collection(self, name: str) -> Collection:
        """A collection by name. Raises KeyError naming those that there are."""
        try:
            return self._collections[name]
        except KeyError:
            raise KeyError(f"no collection {name!r}; there are: {', '.join(self._collections)}") from None

    # --- the first collection

    def __getitem__(self, key: str) -> Record:
        return self.default[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.default)

    def __len__(self) -> int:
        return len(self.default)

    def __contains__(self, key: object) -> bool:
        return key in self.default

    def get(self, key: str, default: Any = None) -> Any:
        """The record, or a default where there is none."""
        try:
            return self.default[key]
        except KeyError:
            return default

    def get_many(self, keys: Iterable[str]) -> list[Record | None]:
        """See `Collection.get_many`."""
        return self.default.get_many(keys)

    def values(self) -> ValuesView[Record]:
        return self.default.values()

    def items(self) -> ItemsView[str, Record]:
        return self.default.items()

    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection:
        """See `Collection.where`."""
        return self.default.where(terms, **more)

    def embedding(self, key: str) -> NDArray[np.float32] | None:
        """See `Collection.embedding`."""
        return self.default.embedding(key)

    def get_embeddings(self, keys: Iterable[str]) -> NDArray[np.float32]:
        """See `Collection.get_embeddings`."""
        return self.default.get_embeddings(keys)

    def embedding_ref(self, key: str) -> EmbeddingRef:
        """See `Collection.embedding_ref`."""
        return self.default.embedding_ref(key)

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """See `Collection.to_arrow`."""
        return self.default.to_arrow(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """See `Collection.__arrow_c_stream__`."""
        return self.default.__arrow_c_stream__(requested_schema)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """See `Collection.embeddings`."""
        return self.default.embeddings

    # --- verification

    def verify(self, *, deep: bool = False) -> None:
        """Recompute every checksum over every byte, padding included. O(file), with 1 MiB of memory.

        deep: also decode every record, find it by its key, and check every posting list. O(n).
        Raises CorruptFileError naming what is wrong.
        """
        if self._closed:
            raise ClosedError("the snapshot was closed: open it again with Snapshot.open(path)", path=self.path)
        try:
            if self._in_memory is None:
                verify_bytes(self._file.read, self._file.size)
            else:
                data = self._in_memory
                verify_bytes(lambda offset, length: data[offset : offset + length], len(data))
            if deep:
                for collection in self._collections.values():
                    _verify_deep(collection)
        except UnusableFileError as error:
            error.path = error.path or self.path
            raise

    # --- lifetime

    def close(self) -> None:
        """Let go of the file. Arrays handed out stay valid, and keep it mapped, until they are dropped."""
        if not self._closed:
            self._closed = True
            for collection in self._collections.values():
                collection.close()
            self._file.close()
            self._in_memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Snapshot does not pickle, because its path may hold another generation when it arrives: "
            f"send the path and use Snapshot.open({self.path!r}), or send a Cache"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: one line of facts, and a table of the collections."""
        facts = {
            "generation": f"{self.generation:,}",
            "built": ago(time.time() - self.created),
            "size": bytes_of(self.header.file_size),
            "format": ".".join(map(str, self.header.version)),
        }
        rows = [
            (
                collection.name,
                f"{len(collection):,}",
                str(collection.dim or "-"),
                ", ".join(collection.schema.index) or "-",
                bytes_of(sum(section.length for section in collection.layout.sections.values())),
            )
            for collection in self._collections.values()
        ]
        return html_of(self.path, facts, ("collection", "records", "dim", "indexes", "size"), rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(collection)}" for name, collection in self._collections.items())
        return f"<Snapshot {self.path!r}, generation {self.generation}, {counts}>"


def _whole(file: ReadFile) -> bytes:
    data = file.read(0, file.size)
    if len(data) != file.size:
        raise CorruptFileError(f"expected {file.size} bytes, found {len(data)}: it shrinks while read")
    return data


def _verify_indexes(layout: Layout, view: memoryview, blocks: Blocks) -> None:
    """Checksum the sections that look-ups go through: ids, rows and indexes."""
    for section in layout.sections.values():
        part = section.name.partition("/")[2]
        if part in ("ids", "rows") or part.startswith("index."):
            if xxh3_64_intdigest(view[section.offset : section.end]) != section.checksum:
                raise CorruptFileError(f"section {section.name!r}: checksum does not match", section=section.name)
            blocks.mark(section)


def _verify_deep(collection: Collection) -> None:
    """Every record decodes, is found by its key, and stands in exactly the posting lists of its terms."""
    carried: dict[str, dict[Term, array[int]]] = {field: {} for field in collection.schema.index}
    for row, record in enumerate(collection.values()):
        if record.id not in collection or collection.row(record.id) != row:
            raise collection.corrupt("ids", f"key {record.id!r} does not lead to its row {row}")
        for field, lists in carried.items():
            try:
                terms = terms_of(record.get(field))
            except TypeError as error:
                raise collection.corrupt("records", f"record {row}, indexed field {field!r}: {error}") from None
            for term in terms:
                lists.setdefault(term, array("I")).append(row)
    for field, lists in carried.items():
        counts = collection.terms(field)
        for term, rows in lists.items():
            if counts.pop(term, 0) != len(rows) or collection.where({field: term}).rows.tolist() != rows.tolist():
                raise collection.corrupt(f"index.{field}", f"the list of term {term!r} is not that of the records")
        if counts:
            raise collection.corrupt(f"index.{field}", f"no record carries the term {next(iter(counts))!r}")
