"""Records that are mappings, in memory. See `mappings` for how they are read and looked up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, Self, overload

from ..errors import BuildError, SourceError
from ..query import Query
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from ..values import Default, Values, importable
from .base import Key, Reading, Row, SourceRecord
from .catalog import Catalog
from .mappings import Keyed, shape_records
from .slices import first_of, slice_of, slice_of_arrays
from .vectors import NOTHING_LEARNED, Decoders, Learned, Vector, float32_bytes

__all__ = ["Embeddings", "IterableSource", "Records"]

_BLOCK_ROWS = 1024
_TABLES = {
    "pyarrow": (
        "Dataset",
        "FileSystemDataset",
        "InMemoryDataset",
        "UnionDataset",
        "Scanner",
        "ParquetFile",
        "RecordBatchFileReader",
    ),
    "polars": ("LazyFrame",),
}
"""What gives rows of Arrow, and does not speak its interface."""


class ArrowStream(Protocol):
    """What speaks Arrow's PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


class SupportsArray(Protocol):
    """What numpy takes for an array, as its own, or a tensor in memory."""

    def __array__(self) -> Any: ...


class SupportsKeys(Protocol):
    """A `sqlite3.Row`, and what is made like it."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str, /) -> Any: ...


class SupportsAsDict(Protocol):
    """A named tuple."""

    def _asdict(self) -> Mapping[str, Any]: ...


class DataclassInstance(Protocol):
    """Of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Records = Iterable[Mapping[str, Any] | SupportsKeys | SupportsAsDict | DataclassInstance] | ArrowStream
Array = Sequence[Sequence[float]] | SupportsArray
Embeddings = Array | Mapping[str, Array | Mapping[str, Array]]


@internal("count", "dtypes", "learned", "records", "with_rules")
class IterableSource(Generic[R_co]):
    """Mappings with a key field, from any iterable; or the rows of anything that speaks Arrow's PyCapsule interface, as
    the data frames of pandas and polars, the relations of DuckDB and the tables of pyarrow do (extra `arrow`).

    records: the records of the one schema; or, for several collections, a mapping {collection: records}. A mapping is
        always taken for the latter, so pass `records.values()` of a dict of records.
    embeddings: an (n, dim) array of any integer or floating dtype: row i is the embedding of record i, in place of
        embeddings inside the records; or, for several collections, {collection: array}; or, for a collection of several
        embeddings, {collection: {field: array}}.
    default: makes of a value that the rule of `values` does not know one that it does, and of a record that is no
        mapping one; a function, or its name "module:function", which every process can import.

    A list can be read again and looked up; an iterator such as a generator can be read once. An iterable cannot tell
    that it changed, so the fingerprint is constant: after a change, rebuild, and use a new source for lookups.

    >>> source = IterableSource([{"id": 7, "size": 1}], Schema("items"))
    >>> mmcache.open("memory.mmc", source, executor="thread")[7]["size"]
    1
    """

    _gives_plain: ClassVar[bool] = True

    @overload
    def __init__(
        self,
        records: Records | Mapping[str, Records],
        first: Schema[R_co],
        /,
        *others: AnySchema,
        embeddings: Embeddings | None = None,
        default: Default | str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        records: Records | Mapping[str, Records],
        *schemas: Schema[R_co],
        embeddings: Embeddings | None = None,
        default: Default | str | None = None,
    ) -> None: ...
    def __init__(
        self,
        records: Records | Mapping[str, Records],
        *schemas: AnySchema,
        embeddings: Embeddings | None = None,
        default: Default | str | None = None,
    ) -> None:
        self._catalog = Catalog(schemas, key="id")
        self._records = self._by_collection(records, "records")
        self._embeddings = {} if embeddings is None else self._by_collection(embeddings, "embeddings")
        missing = [name for name in self._catalog if name not in self._records]
        if missing:
            known = ", ".join(self._records) or "none"
            raise ValueError(f"no records for collection {', '.join(missing)}; records= has: {known}")
        for name in self._embeddings:
            if not self._catalog[name].embeddings:
                raise ValueError(f"embeddings= for collection {name!r}, whose Schema names no embedding field")
        self._values = Values(importable(default)[0])
        self._shard: int | None = None
        self._firsts: dict[str, int] = {}
        self._decoders: dict[str, Decoders] = {}
        self._spent: set[str] = set()
        self._streamed: set[str] = set()
        self._lookup: dict[str, Keyed] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lookup": {}, "_decoders": {}}

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """With their keys."""
        return tuple(self._catalog.values())

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    def with_rules(self, **rules: Any) -> Self:
        """See `sources.with_rules`. An iterator that was read once was read for both."""
        other = copy(self)
        other._catalog = Catalog(replace(schema, **rules) for schema in self._catalog.values())
        return other

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """The source itself: consistent for as long as what is iterated does not change."""
        yield self

    def count(self, collection: str) -> int | None:
        records = self._records[self._catalog[collection].name]
        return len(records) if isinstance(records, Sized) else None

    def records(self, collection: str) -> Iterator[Row]:
        schema = self._catalog[collection]
        records = self._records[collection]
        try:
            is_stream = hasattr(records, "__arrow_c_stream__") or is_table(records)
            iterator = self._arrow_rows(records, schema) if is_stream else iter(records)
        except TypeError:
            raise BuildError.of(
                collection, None, f"records is of type {type(records).__name__}, expected an iterable of mappings"
            ) from None
        if isinstance(records, Iterator):
            if collection in self._spent:
                raise SourceError(
                    f"the records of collection {collection!r} are an iterator ({type(records).__name__}), which can "
                    "be read once and was; give a list, or a new source for each build"
                )
            self._spent.add(collection)
        vectors = None
        if collection in self._embeddings:
            vectors = _vectors(self._embeddings[collection], schema)
        decoders = self._decoders[collection] = Decoders(schema)
        first = self._firsts.get(collection, 0)
        return shape_records(
            schema,
            iterator,
            lambda ordinal: f"record {first + ordinal}",
            vectors,
            decoders=decoders,
            values_by=self._values,
            shard=self._shard,
        )

    def shards(self, n: int) -> list[Self]:
        """See `ShardedSource`: slices of lists, tuples and tables of Arrow, and of their embeddings."""
        found = []
        for i in range(n):
            part = copy(self)
            part._shard, part._lookup, part._decoders, part._spent, part._streamed = i, {}, {}, set(), set()
            part._firsts = {name: first_of(records, i, n) for name, records in self._records.items()}
            part._records = {name: slice_of(name, records, i, n) for name, records in self._records.items()}
            part._embeddings = {
                name: slice_of_arrays(given, len(self._records[name]), i, n) for name, given in self._embeddings.items()
            }
            found.append(part)
        return found

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """Embedding -> what its bytes were read as, in the last read; of those that were bytes."""
        return self._decoders[collection].dtypes if collection in self._decoders else {}

    def learned(self, collection: str) -> Learned:
        """What the last read has learned besides its records."""
        return self._decoders[collection].learned if collection in self._decoders else NOTHING_LEARNED

    def _arrow_rows(self, stream: Any, schema: Schema) -> Iterator[Mapping[str, Any]]:
        try:
            from .arrow import rows_of
        except ImportError as error:
            raise SourceError(f"records of Arrow need pyarrow: pip install 'mmcache[arrow]' ({error})") from error
        is_empty = True
        for row in rows_of(stream, schema):
            if is_empty:
                is_empty = False
                self._streamed.add(schema.name)
            yield row
        if is_empty and schema.name in self._streamed:
            raise SourceError(
                f"the records of collection {schema.name!r} were read from a {type(stream).__name__} before, and now "
                "there are none: it can be read once, or was emptied; give a table, or a new source for each build"
            )

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[Row | None]:
        """From an index by key that the first call makes; O(records) then, and O(ids) after it."""
        return self._by_key(collection).fetch(ids)

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`."""
        return self._by_key(collection).in_order(ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """All records are compared."""
        return self._by_key(collection).find(query)

    def fingerprint(self) -> bytes:
        """Zeros: records in memory cannot tell whether they have changed."""
        return bytes(32)

    def spec(self) -> dict[str, Any] | None:
        """None: no other process can make them again."""
        return None

    def _by_collection(self, value: Any, argument: str) -> dict[str, Any]:
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in self._catalog]
            if unknown:
                raise ValueError(
                    f"{argument}= is a mapping, so its keys are collections; no schema is named {unknown[0]!r}. "
                    "For a mapping from key to record pass its values()"
                )
            return dict(value)
        if len(self._catalog) > 1:
            raise ValueError(
                f"{argument}= must be a mapping from collection to {argument} for {len(self._catalog)} schemas: "
                + ", ".join(self._catalog)
            )
        return {next(iter(self._catalog)): value}

    def _by_key(self, collection: str) -> Keyed:
        self._catalog[collection]
        records = self._records[collection]
        if isinstance(records, Iterator):
            raise SourceError(
                f"the records of collection {collection!r} are an iterator ({type(records).__name__}), in which "
                "nothing can be looked up; give a list"
            )
        if collection not in self._lookup:
            self._lookup[collection] = Keyed(self._catalog[collection], self.records(collection))
        return self._lookup[collection]


def is_table(records: object) -> bool:
    """Whether `arrow.rows_of` takes it, without the interface. By name, so that nothing is imported for it."""
    return any(kind.__name__ in _TABLES.get(kind.__module__.partition(".")[0], ()) for kind in type(records).__mro__)


def _vectors(embeddings: Any, schema: Schema) -> Iterator[Vector]:
    """The vectors of records, from an array for each embedding."""
    fields = schema.embeddings
    if len(fields) == 1 and not isinstance(embeddings, Mapping):
        return _rows(embeddings, schema, fields[0])
    if not isinstance(embeddings, Mapping) or {*embeddings} != {*fields}:
        raise BuildError.of(schema.name, None, f"embeddings= must give an array for each of {', '.join(fields)}")
    return _together(schema, [_rows(embeddings[field], schema, field) for field in fields])


def _together(schema: Schema, columns: list[Iterator[bytes]]) -> Iterator[Vector]:
    try:
        yield from zip(*columns, strict=True)
    except ValueError:
        raise BuildError.of(schema.name, None, "embeddings= has arrays of different lengths") from None


def _rows(embeddings: Any, schema: Schema, field: str) -> Iterator[bytes]:
    """The rows of an (n, dim) array as float32 bytes, converted a block at a time."""
    import numpy as np

    array, dim = np.asanyarray(embeddings), schema.dim_of(field)
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        array = array.astype("f4")
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] != (dim or array.shape[1] or None):
        raise BuildError.of(
            schema.name,
            None,
            f"embeddings= is an array of shape {array.shape} and dtype {array.dtype}, expected "
            f"(n, {dim or 'dim'}) numbers",
        )
    if np.ma.is_masked(array):
        raise BuildError.of(schema.name, None, "embeddings= is an array of which some numbers are masked")
    width = 4 * array.shape[1]
    for start in range(0, len(array), _BLOCK_ROWS):
        try:
            block = float32_bytes(array[start : start + _BLOCK_ROWS])
        except ValueError as error:
            raise BuildError.of(schema.name, None, f"embeddings= from row {start} on: {error}") from error
        for offset in range(0, len(block), width):
            yield block[offset : offset + width]
