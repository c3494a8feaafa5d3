"""SQLite as the source of truth.

A build is one read transaction over all collections, streamed row by row. Lookups use the same statements with a
condition, and every row that they give is checked by the same rules as the file's (`query.terms_of`, keys equal by
type and value), so that affinities, collations and JSON1 never make the two tiers differ.

The database is opened read-only and never through anything but SQLite: to open and close its file by other means in a
process that has connections to it would drop their locks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, Unpack, overload

from ..errors import BuildError, SourceError
from ..query import Query, matcher
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from .base import Changes, Invalid, Key, Reading, Row, Source, SourceRecord, Where, path_in, plain_path, told
from .casts import check_unmapped
from .catalog import Catalog
from .connections import Connection, Connections
from .decoding import source_records
from .mappings import only_chosen, replaces
from .names import attached_names, quoted, reduced
from .opening import Connect, Hook, SQLiteOptions, path_of_database
from .planned import Plans
from .rowkeys import lookable, of_keys
from .statements import Plan, by_key, condition, keys_in_order
from .tables import TableReading
from .tolerant import tolerant
from .tracking import LIMIT, Tracking
from .writes import Writes

__all__ = ["SQLiteSource"]

MAX_IDS = 512


@internal("given", "kind", "remade", "with_rules")
class SQLiteSource(Generic[R_co]):
    """The tables, views or queries of one SQLite database, one collection for each schema.

    path: of the database; made absolute at once, opened when first needed, never created.
    schemas: where and how each collection is read (`key`, `table`, `query`, `columns`, `json`, `dtype`). Without a
        key a table's primary key is taken, or its rowid; of a view or query the column `id`. The case of names does not
        matter.
    timeout: seconds to wait for a writer's lock.
    connect: called in the place of `sqlite3.connect`, with its arguments, for each connection; a function, or its name
        "module:function". It registers collations and functions, loads extensions, attaches databases, or connects by
        another module that is made like sqlite3 (SQLCipher):

            def connect(*args, **options):
                connection = sqlite3.connect(*args, **options)
                connection.create_collation("by_locale", locale.strcoll)
                return connection

        Without a name (a lambda) rebuilds run in this process. What a file says of it is not imported: `mmcache
        rebuild --connect` does.
    immutable: no program writes to the database while it is read. It is not locked, and nothing is made beside it: for
        databases in WAL mode on read-only media.

    Records come by rowid, or by primary key from a WITHOUT ROWID table, or as a query or view gives them; `find` keeps
    that order, which for a query or view means to run it whole. While a database in a rollback-journal mode is being
    read, its writers cannot commit; in WAL mode they can.

    Safe to use from several threads. After a fork the child opens connections of its own. Pickles to its arguments.

    >>> mmcache.build("two.mmc", SQLiteSource("items.db", Schema("items"), Schema("b", table="items"))).records
    {'items': 3, 'b': 3}
    """

    kind: ClassVar[str] = "sqlite"
    _shard: int | None = None
    _gives_plain: ClassVar[bool] = True

    @overload
    def __init__(
        self, path: Where, first: Schema[R_co], /, *others: AnySchema, **options: Unpack[SQLiteOptions]
    ) -> None: ...
    @overload
    def __init__(self, path: Where, *schemas: Schema[R_co], **options: Unpack[SQLiteOptions]) -> None: ...
    def __init__(
        self,
        path: Where,
        *schemas: AnySchema,
        timeout: float = 5.0,
        connect: Connect | str | None = None,
        immutable: bool = False,
    ) -> None:
        self.path = path_of_database(path)
        self._catalog = Catalog(schemas)
        check_unmapped(self._catalog.values(), "SQLite")
        self._hook = Hook.of(connect)
        self._connections = Connections(self.path, timeout, connect=self._hook.function, immutable=immutable)
        self._plans = Plans(self._connections, self._catalog)
        self._writes = Writes(self._connections, self._catalog)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {', '.join(self._catalog)})"

    def __getstate__(self) -> dict[str, Any]:
        schemas, opening = tuple(self._catalog.values()), self._connections.opening
        given = {
            name: value
            for name, value in {"connect": self._hook.given, "immutable": opening.immutable}.items()
            if value
        }
        return {"path": self.path, "schemas": schemas, "timeout": opening.timeout, **given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = {name: state[name] for name in ("timeout", "connect", "immutable") if name in state}
        SQLiteSource.__init__(self, state["path"], *state["schemas"], **options)

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """With their keys, and names as the database spells them. The database is asked for that when it is first
        needed, waiting for no writer, and again when its tables have changed; as given while it cannot be asked."""
        return self._plans.schemas

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One read transaction, begun here. Raises SourceError, or BuildError for a schema the database cannot meet."""
        with self._connections.take() as connection:
            try:
                connection.execute("BEGIN")  # locks nothing yet; looking at the tables does
                if self._connections.attached:
                    for name in attached_names(connection):  # each is as of this moment, too
                        connection.execute(f"SELECT 1 FROM {quoted(name)}.sqlite_master LIMIT 1").close()
                plans = self._plans.of_all(connection)
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            reading = TableReading(self._connections, connection, self._catalog, plans, self._shard)
            try:
                yield reading
            finally:
                reading.close()

    def shards(self, n: int) -> Sequence[Source]:
        """See `ShardedSource`: ranges of rowids. Views and queries, and tables without rowids, are not cut."""
        from .sqlite_shards import shards_of

        return shards_of(self, n)

    def with_rules(self, **rules: Any) -> Self:
        """See `sources.with_rules`. With connections of its own."""
        other = self.__class__.__new__(self.__class__)
        other.__setstate__(self.__getstate__() | {"schemas": [replace(one, **rules) for one in self._catalog.values()]})
        return other

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[Row | None]:
        """Looked up by the index of the key's columns, `MAX_IDS` at a time; one consistent read if there are more. Of
        several rows with one key the first or last in the order of all is looked for, where that matters; in a query or
        view that means to run it whole."""
        schema = self._catalog[collection]
        with self._connections.take() as connection:
            try:
                if len(ids) > MAX_IDS or schema.on_invalid == "skip":
                    connection.execute("BEGIN")
                found = self._looked_up(connection, self._plans.of(connection, schema), ids)
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            except BuildError as error:
                raise SourceError(error.message, path=self.path) from error
        return [found.get(key) for key in ids]

    def _looked_up(self, connection: Connection, plan: Plan, ids: Iterable[Key]) -> dict[Key, SourceRecord | Invalid]:
        found: dict[Key, SourceRecord | Invalid] = {}
        wanted, decoders = lookable(ids, plan.width), self._plans.decoders(connection, plan)
        for start in range(0, len(wanted), MAX_IDS):
            some = wanted[start : start + MAX_IDS]
            rows = tolerant(connection, plan, *by_key(plan, some, MAX_IDS * plan.width))
            for row in source_records(plan, of_keys(plan, rows, frozenset(some)), decoders):
                key = row.key if isinstance(row, Invalid) else row.values[0]
                assert key is not None
                if replaces(plan.schema, found.get(key)):
                    found[key] = row
        return found

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`. One statement. A table is asked by the index of the key's columns; a query or view is
        run whole, as is a table for more keys than one statement of SQLite takes (32,766 by default)."""
        schema = self._catalog[collection]
        found: dict[Key, None] = {}
        with self._connections.take() as connection:
            try:
                plan = self._plans.of(connection, schema)
                wanted = lookable(ids, plan.width)
                if not wanted:
                    return []
                limit = connection.raw.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
                rows = connection.execute(*keys_in_order(plan, wanted, limit))
                is_last = schema.on_duplicate == "last"
                for row in of_keys(plan, rows, frozenset(wanted)):
                    if is_last:
                        found.pop(row[0], None)
                    found[row[0]] = None
                    if len(found) == len(wanted) and not is_last:
                        break
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
        return list(found)

    def scans(self, collection: str) -> bool:
        """See `ScanningSource`: of a query or view into which SQLite cannot push the key down, such as one that casts
        it, and of a table without an index on the key. As of the last look at the database; no, before the first."""
        return self._plans.scans(collection)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """Streams, and holds a connection until it is exhausted or closed."""
        schema = self._catalog[collection]
        with self._connections.take() as connection:
            try:
                if schema.on_invalid == "skip" or schema.on_duplicate != "raise":
                    connection.execute("BEGIN")
                plan = self._plans.of(connection, schema)
                matches = self._matches(connection, plan, query)
                if schema.on_duplicate == "raise":
                    yield from matches
                else:
                    yield from only_chosen(schema, matches, lambda keys: self._looked_up(connection, plan, keys))
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            except BuildError as error:
                raise SourceError(error.message, path=self.path) from error

    def _matches(self, connection: Connection, plan: Plan, query: Query) -> Iterator[SourceRecord]:
        where = condition(plan, query)
        if where is None:
            return
        sql, parameters = where
        rows = tolerant(connection, plan, f"{plan.select} {plan.stable} WHERE {sql} {plan.order}", parameters)
        answers = matcher(query)
        for record in source_records(plan, of_keys(plan, rows), self._plans.decoders(connection, plan)):
            if not isinstance(record, Invalid) and answers(record.names, record.values):
                yield record

    def fingerprint(self) -> bytes:
        """Exact where the tables of all collections are tracked (`track`): it moves when a tracked table of the
        database was written, or the database's schema changed. Otherwise of the identity, size and times of the
        database and its -wal file, which move with every write.

        Two `stat` calls if the files are as they were at the last call, else a few look-ups by SQL as well.

        Times cannot tell two writes within one tick of the file system's clock apart. Of an untracked database that was
        written within the last 20 ms, the answer is therefore one that is never given again: what is built now counts
        as changed at the next look. Ask again a moment later for one that lasts.

        So it is where a writer holds the database locked: nothing here waits for it.

        Raises SourceError when there is no database, and when a tracked one cannot be asked.
        """
        return self._writes.fingerprint()

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. None for a database that is not tracked, or not all along, or another one; for a
        `since` that the log no longer reaches back to, or from another history (a backup was put back); and after
        its schema changed or a VACUUM; and while a writer holds the database locked. Reads the log from `since` on.
        Raises SourceError."""
        return self._writes.changes(since)

    def track(self, *, limit: int = LIMIT) -> Tracking:
        """Install in the database what tells which records any writer changes; docs/tracking.md says what and at what
        cost. Idempotent, and the repair when a table was made anew. `limit`: changes that are remembered.

        Raises SourceError for a view, a query, a virtual table or an odd unique index, and where it cannot write.

        >>> source = SQLiteSource("items.db", Schema("items"))
        >>> source.track().changed, source.track().changed, len(source.untrack()) > 0
        (True, False, True)
        """
        return self._writes.track(limit)

    def untrack(self) -> tuple[str, ...]:
        """Remove all that `track` installed, for whichever tables; the names. Raises SourceError."""
        return self._writes.untrack()

    def spec(self) -> dict[str, Any] | None:
        """What stands in a file so that `mmcache rebuild` finds the database again."""
        spec: dict[str, Any] = {"kind": self.kind, "path": plain_path(self.path)}
        if self._hook.function is not None:
            spec["connect"] = self._hook.name or "a function without a name"
        if self._connections.opening.immutable:
            spec["immutable"] = True
        return spec

    def given(self) -> dict[str, Any] | None:
        """The name of `connect`; None where it has none."""
        if self._hook.function is None:
            return {}
        return None if self._hook.name is None else {"connect": self._hook.name}

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Sequence[AnySchema], given: Mapping[str, Any]) -> Self:
        """See `sources.from_spec`."""
        options: dict[str, Any] = {"connect": told(spec, given, "connect")}
        if spec.get("immutable") is True:
            options["immutable"] = True
        return cls(path_in(spec), *schemas, **options)

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """See `EvolvingSource`. Asks the database for its columns, and reads no row. Raises SourceError."""
        with self._connections.take() as connection:
            try:
                found = [reduced(connection, schema) for schema in schemas]
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
        return tuple(schema for schema in found if schema is not None)

    def close(self) -> None:
        """Close the connections. Not final: a later call opens new ones.

        >>> SQLiteSource("items.db", Schema("items")).close()
        """
        self._connections.close()
