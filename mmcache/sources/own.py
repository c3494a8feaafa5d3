"""`BaseSource`: a source of one's own, of which only `read` has to be written.

    class Orders(mmcache.BaseSource):
        @contextmanager
        def read(self):
            with connect() as db:
                yield self.reading(db.rows("SELECT * FROM orders"))

All else has a default that is right, and costs a read of everything; each method can be overridden by one that costs
less. `mmcache.testing.check_source` says whether it then still answers as it must. docs/sources.md has the rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, Self, overload

from ..errors import BuildError, SourceError
from ..format.keys import is_key
from ..query import Query, matcher
from ..schema import AnySchema, R_co, Schema
from ..values import Default
from .base import Invalid, Key, Reading, Row, SourceRecord, flat, refused
from .catalog import Catalog
from .iterable import Embeddings, IterableSource, Records
from .loads import Loads
from .mappings import LOOKED_AT, Keyed, Sought, unknown_to, without
from .plain import plain_rows

__all__ = ["BaseSource"]


class BaseSource(ABC, Generic[R_co]):
    """A source of one's own: `read` is enough.

    schemas: one for each collection, the default collection first. A key that is not named is the field `id`.

    By default, a lookup reads everything anew, so that it gives what the source holds now; lookups at the same time
    share a read. A key that the file lacks is then not looked for, until something is invalidated or `fingerprint` has
    changed: see `ScanningSource`. Override `fetch` where single records can be had for less.

    >>> class Lines(mmcache.BaseSource):
    ...     @contextmanager
    ...     def read(self):
    ...         with open("items.jsonl") as file:
    ...             yield self.reading(map(json.loads, file))
    >>> source = Lines(Schema("items", index=("kind",)))
    >>> with mmcache.open("items.mmc", source) as items:
    ...     items["a"]["size"], items.where(kind="prompt").ids
    (1, ['c'])
    >>> other = source.with_schemas(Schema("items", index=("kind", "size")))
    >>> other.schema.index, source.scans("items"), source.fingerprint() == bytes(32), source.spec()
    (('kind', 'size'), True, True, None)
    """

    @overload
    def __init__(self, first: Schema[R_co], /, *others: AnySchema) -> None: ...
    @overload
    def __init__(self, *schemas: Schema[R_co]) -> None: ...
    def __init__(self, *schemas: AnySchema) -> None:
        self._catalog = Catalog(schemas, key="id")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_loads"}

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """As given, with their keys."""
        return tuple(self._by_name.values())

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    @property
    def _by_name(self) -> Catalog:
        try:
            return self._catalog
        except AttributeError:
            name = type(self).__name__
            raise TypeError(f"{name}.__init__ must call super().__init__(Schema(...)), with its schemas") from None

    # --- what has to be written

    @abstractmethod
    def read(self) -> AbstractContextManager[Reading]:
        """One consistent read of all collections: a context manager that gives `self.reading(records)`, or a `Reading`
        of one's own. Called for each build and each lookup, in any thread; what was written before the call must be in
        it, and nothing of what is written during it."""

    def reading(
        self,
        records: Records | Mapping[str, Records],
        *,
        embeddings: Embeddings | None = None,
        default: Default | str | None = None,
    ) -> Reading:
        """What `read` gives. The arguments are those of `IterableSource`: an iterable of mappings, or a mapping from
        collection to these. Raises SourceError for anything else."""
        try:
            return IterableSource(records, *self.schemas, embeddings=embeddings, default=default)
        except ValueError as error:
            raise SourceError(f"{self._called()}: {error}") from error

    def _called(self) -> str:
        """What messages call the source."""
        return f"read() of {type(self).__name__}"

    # --- what may be written better

    def fetch(self, collection: str, ids: Sequence[Key]) -> Sequence[Row | None]:
        """See `Source.fetch`. One read of everything."""
        return self._looked_up(collection, ids).fetch(ids)

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`. One read of everything."""
        return self._looked_up(collection, ids).in_order(ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """See `Source.find`. One read of everything, of which only the records that answer are kept, unless one key
        may have several rows."""
        schema = self._by_name[collection]
        if schema.on_duplicate != "raise":
            return self._read(collection, None).find(query)
        return self._matching(collection, query)

    def scans(self, collection: str) -> bool:
        """See `ScanningSource`. Whether `fetch` is that of this class."""
        self._by_name[collection]
        return type(self).fetch is BaseSource.fetch

    def fingerprint(self) -> bytes:
        """See `Source.fingerprint`. By default constant: only what is invalidated, and age, make a file be built
        again."""
        return bytes(32)

    def spec(self) -> dict[str, Any] | None:
        """See `Source.spec`. By default a file cannot name the source, and a rebuild in the background is a thread."""
        return None

    def with_rules(self, **rules: Any) -> Self:
        """See `mmcache.open` (on_invalid, max_invalid, on_duplicate). By default `with_schemas`.

        >>> mmcache.CallableSource(list, Schema("items")).with_rules(on_invalid="skip").schema.on_invalid
        'skip'
        """
        return self.with_schemas(*(replace(schema, **rules) for schema in self._by_name.values()))

    def with_schemas(self, *schemas: AnySchema) -> Self:
        """A source like this one with other schemas of the same collections: other versions of a program may want more
        indexes. By default a shallow copy, of which `close` does nothing, as it shares what this one has open."""
        other = copy(self)
        other.__dict__.pop("_loads", None)  # which give records by these schemas
        other._catalog = Catalog(schemas)
        if hasattr(other, "close"):
            other.__dict__["close"] = _nothing
        return other

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """See `EvolvingSource`. The first records say which fields there are; they are read only if one is asked for
        that the schemas of this source do not name."""
        asked = [schema for schema in schemas if schema.name in self._by_name]
        sought = {schema.name: Sought(schema, unknown_to(self._by_name[schema.name], schema)) for schema in asked}
        if any(one.fields for one in sought.values()):
            whole = self.with_schemas(*(replace(schema, columns=None) for schema in self.schemas))
            with whole.read() as reading:
                for schema in asked:
                    if sought[schema.name].fields:
                        _see(sought[schema.name], plain_rows(self, schema, reading.records(schema.name)))
        return tuple(without(schema, sought[schema.name].fields) for schema in asked)

    # --- one read

    def _looked_up(self, collection: str, ids: Sequence[Key]) -> Keyed:
        if not ids:
            return Keyed(self._by_name[collection], ())
        loads: Loads = self.__dict__.get("_loads") or self.__dict__.setdefault("_loads", Loads())
        return loads.find(collection, ids, lambda wanted: self._read(collection, wanted))

    def _read(self, collection: str, wanted: Collection[Key] | None) -> Keyed:
        schema = self._by_name[collection]
        try:
            with self.read() as reading:
                rows = plain_rows(self, schema, reading.records(collection))
                return Keyed(schema, _with_keys(schema, rows), None if wanted is None else frozenset(wanted))
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error

    def _matching(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        schema, answers = self._by_name[collection], matcher(query)
        try:
            with self.read() as reading:
                for row in plain_rows(self, schema, reading.records(collection)):
                    if not isinstance(row, Invalid) and answers(row.names, row.values):
                        yield row
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error


def _nothing() -> None:
    """In the place of `close`."""


def _see(sought: Sought, rows: Iterable[Any]) -> None:
    """The first rows. What is wrong with them, the build says."""
    with suppress(BuildError):
        for row in islice(rows, LOOKED_AT - 1):
            if not isinstance(row, Invalid):
                sought.see(flat(row.names), row.names, row.values)


def _with_keys(schema: Schema, rows: Iterable[Any]) -> Iterator[SourceRecord | Invalid]:
    """The rows; one whose key is none, as a `Reading` of one's own may give it, as `refused`."""
    for row in rows:
        if isinstance(row, Invalid) or is_key(row.values[0]):
            yield row
        else:
            yield refused(schema, row.values[0], f"a key cannot be {row.values[0]!r:.80}", row)
