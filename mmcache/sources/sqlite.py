"""SQLite as the source of truth.

A build is one read transaction over all collections, streamed row by row. Lookups use the same statements with a
condition, and every row that they give is checked by the same rules as the file's (`query.terms_of`, keys equal by
type and value), so that affinities, collations and JSON1 never make the two tiers differ.

The database is opened read-only and never through anything but SQLite: to open and close its file by other means in a
process that has connections to it would drop their locks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, Unpack, overload

from ..errors import BuildError, SourceError
from ..logs import log
from ..query import Query, matcher
from ..schema import AnySchema, R_co, Schema
from .base import Changes, Invalid, Key, Reading, Row, Source, SourceRecord, Where, path_in, plain_path, told
from .casts import check_unmapped
from .catalog import Catalog
from .connections import Connection, Connections
from .decoding import source_records
from .fingerprint import once_only
from .mappings import replaces
from .names import NoKeyError, attached_names, keys_of_view, origin_of, quoted, reduced, resolved
from .opening import Connect, Hook, SQLiteOptions, path_of_database
from .outside import Look, look_at
from .rowkeys import lookable, of_keys
from .statements import Plan, by_key, condition, keys_in_order, make_plan
from .tables import TableReading
from .tolerant import tolerant
from .tracking import LIMIT, Tracking, changes_since, track, tracked, untrack
from .vectors import MAX_DOUBTS, Decoders

__all__ = ["SQLiteSource"]

MAX_IDS = 512


class _BusyError(Exception):
    """A writer holds the database locked."""


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
        self._plans: dict[str, tuple[tuple[int, ...], Plan]] = {}
        # Each is replaced whole, so that threads need no lock, and is as true in a forked child.
        self._resolved: dict[str, Schema] = {}
        self._learned: dict[str, tuple[Plan, Decoders]] = {}
        self._look: Look | None = None
        self._identity: tuple[object, ...] | None = None
        self._tracked = False
        self._told: frozenset[str] = frozenset()

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
        if len(self._resolved) < len(self._catalog):
            self._resolve()
        return tuple(self._resolved.get(name, schema) for name, schema in self._catalog.items())

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    def _resolve(self) -> None:
        found = {}
        with contextlib.suppress(SourceError, _BusyError), self._at_once() as connection:
            for name, schema in self._catalog.items():
                with contextlib.suppress(ValueError):  # no such table yet
                    found[name] = resolved(connection, schema)
        self._resolved = self._resolved | found

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One read transaction, begun here. Raises SourceError, or BuildError for a schema the database cannot meet."""
        with self._connections.take() as connection:
            try:
                connection.execute("BEGIN")  # locks nothing yet; looking at the tables does
                if self._connections.attached:
                    for name in attached_names(connection):  # each is as of this moment, too
                        connection.execute(f"SELECT 1 FROM {quoted(name)}.sqlite_master LIMIT 1").close()
                plans = {name: self._make_plan(connection, schema, look=True) for name, schema in self._catalog.items()}
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            self._tell_collations(plans)
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
        other = copy(self)
        other._catalog = Catalog(replace(schema, **rules) for schema in self._catalog.values())
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
                found = self._looked_up(connection, self._plan(connection, schema), ids)
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            except BuildError as error:
                raise SourceError(error.message, path=self.path) from error
        return [found.get(key) for key in ids]

    def _looked_up(self, connection: Connection, plan: Plan, ids: Iterable[Key]) -> dict[Key, SourceRecord | Invalid]:
        found: dict[Key, SourceRecord | Invalid] = {}
        wanted, decoders = lookable(ids, plan.width), self._decoders(connection, plan)
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
                plan = self._plan(connection, schema)
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
        schema = self._catalog[collection]
        known = self._plans.get(schema.name)
        if known is None:
            with contextlib.suppress(SourceError, BuildError, _BusyError), self._at_once() as connection:
                return self._plan(connection, schema).scans
        return known is not None and known[1].scans

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """Streams, and holds a connection until it is exhausted or closed."""
        schema = self._catalog[collection]
        with self._connections.take() as connection:
            try:
                if schema.on_invalid == "skip" or schema.on_duplicate != "raise":
                    connection.execute("BEGIN")
                plan = self._plan(connection, schema)
                matches = self._matches(connection, plan, query)
                yield from matches if schema.on_duplicate == "raise" else self._only_chosen(connection, plan, matches)
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
        for record in source_records(plan, of_keys(plan, rows), self._decoders(connection, plan)):
            if not isinstance(record, Invalid) and answers(record.names, record.values):
                yield record

    def _only_chosen(
        self, connection: Connection, plan: Plan, matches: Iterator[SourceRecord]
    ) -> Iterable[SourceRecord]:
        """Those that are what a lookup of their key gives. All are held."""
        found = list(matches)
        chosen = self._looked_up(connection, plan, [record.values[0] for record in found])
        kept: dict[Key, SourceRecord] = {}
        for record in found:
            key = record.values[0]
            if record == chosen.get(key) and replaces(plan.schema, kept.get(key)):
                kept.pop(key, None)  # the last of several comes at its own place
                kept[key] = record
        return kept.values()

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
        outside, wait = self._outside()
        look = self._look
        if look is not None and look.outside == outside and not wait:
            return look.answer
        # Looked at from outside first: a write in between makes the next look ask again, and never goes unseen.
        try:
            exact = self._exact()
        except _BusyError:
            return once_only(outside)
        if exact is None and wait:
            return once_only(outside)
        answer = outside if exact is None else exact
        if not wait:
            self._look = Look(outside, answer)
        return answer

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. None for a database that is not tracked, or not all along, or another one; for a
        `since` that the log no longer reaches back to, or from another history (a backup was put back); and after
        its schema changed or a VACUUM; and while a writer holds the database locked. Reads the log from `since` on.
        Raises SourceError."""
        self._outside()
        try:
            with self._at_once() as connection:
                return changes_since(connection, tuple(self._catalog.values()), since)
        except _BusyError:
            return None

    def track(self, *, limit: int = LIMIT) -> Tracking:
        """Install in the database what tells which records any writer changes; docs/tracking.md says what and at what
        cost. Idempotent, and the repair when a table was made anew. `limit`: changes that are remembered.

        Raises SourceError for a view, a query, a virtual table or an odd unique index, and where it cannot write.
        """
        opening = self._connections.opening
        if opening.immutable:
            raise SourceError("tracking writes into the database, which immutable=True rules out", path=self.path)
        return track(
            self.path, tuple(self._catalog.values()), limit=limit, timeout=opening.timeout, connect=opening.connect
        )

    def untrack(self) -> tuple[str, ...]:
        """Remove all that `track` installed, for whichever tables; the names. Raises SourceError."""
        opening = self._connections.opening
        return untrack(self.path, timeout=opening.timeout, connect=opening.connect)

    def spec(self) -> dict[str, Any] | None:
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
        """Close the connections. Not final: a later call opens new ones."""
        self._connections.close()

    def _outside(self) -> tuple[bytes, float]:
        """What the database and its -wal look like, and `unsettled`. Closes connections to a file that was replaced."""
        try:
            outside = look_at(self.path, self._attached())
        except OSError as error:
            self._connections.close()  # or they would go on reading a database that is gone
            self._identity = None
            raise SourceError(f"cannot look at the database: {error.strerror}", path=self.path) from error
        if outside.identity != self._identity:
            self._connections.close()
            self._identity = outside.identity
        return outside.fingerprint, outside.wait

    def _attached(self) -> tuple[str, ...]:
        """The files of databases that `connect` attaches. Raises SourceError."""
        if self._connections.attached is None:
            with self._connections.take():
                pass
        return self._connections.attached or ()

    def _exact(self) -> bytes | None:
        """The fingerprint of a tracked database; None for another, or one that cannot be read and never was tracked."""
        try:
            with self._at_once() as connection:
                position = tracked(connection, tuple(self._catalog.values()))
        except SourceError:
            if self._tracked:
                raise
            return None
        if position is None and self._tracked:
            text = "%s: is not tracked any more: a table was altered or made anew; `mmcache track` repairs that"
            log.warning(text, self.path, extra={"event": "untracked", "path": self.path})
        self._tracked = position is not None
        return position.fingerprint if position is not None else None

    @contextmanager
    def _at_once(self) -> Iterator[Connection]:
        """A read transaction that does not wait for a writer's lock, for a get may be waiting. Raises _BusyError."""
        with self._connections.take() as connection:
            try:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("BEGIN")
                yield connection
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise _BusyError from error
                raise self._connections.error(error) from error
            finally:
                connection.execute(f"PRAGMA busy_timeout = {round(1000 * self._connections.timeout)}")

    def _make_plan(self, connection: Connection, schema: Schema, *, look: bool = False) -> Plan:
        """look: at the rows of a view without a key, to name columns that could be it. Raises BuildError."""
        try:
            plan = make_plan(connection, schema)
        except ValueError as error:
            reason = str(error)
            if look and isinstance(error, NoKeyError):
                reason += f"; {keys_of_view(connection, origin_of(connection, schema))}"
            failure = BuildError.of(schema.name, None, reason)
            failure.path = self.path
            raise failure from error
        self._resolved = self._resolved | {schema.name: plan.schema}
        return plan

    def _tell_collations(self, plans: dict[str, Plan]) -> None:
        """Once for each collection, as it is what a database was made with."""
        for name, plan in plans.items():
            if plan.collations and name not in self._told:
                self._told |= {name}
                log.warning(
                    "%s: collection %r: the key %s has the collation %s in the database; here keys are equal only as "
                    "BINARY has it",
                    self.path,
                    name,
                    ", ".join(plan.schema.key_fields),
                    ", ".join(plan.collations),
                    extra={"event": "collation", "path": self.path},
                )

    def _plan(self, connection: Connection, schema: Schema) -> Plan:
        """The plan for lookups: kept for as long as the database's own schema stays as it is."""
        names = attached_names(connection) if self._connections.attached else ()
        versions = [f"PRAGMA {quoted(name)}.schema_version" for name in ("main", *names)]
        version = connection.epoch, *(connection.execute(sql).fetchone()[0] for sql in versions)
        known = self._plans.get(schema.name)
        if known is not None and known[0] == version:
            return known[1]
        plan = self._make_plan(connection, schema)
        self._plans[schema.name] = version, plan
        return plan

    def _decoders(self, connection: Connection, plan: Plan) -> Decoders:
        """Those that have learned from the first embeddings, as those of a build do, so that both tiers read alike."""
        if not plan.schema.embeddings:
            return Decoders(plan.schema)
        name = plan.schema.name
        known = self._learned.get(name)
        if known is not None and known[0] is plan:
            return known[1].like()
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        unsettled: tuple[Plan, int, Decoders] | None = connection.notes.get(name)
        if unsettled is not None and unsettled[0] is plan and unsettled[1] == version:
            return unsettled[2].like()
        decoders = Decoders(plan.schema)
        if not decoders.is_settled:
            width = len(plan.schema.embeddings)
            for row in connection.execute(f"{plan.all} LIMIT {MAX_DOUBTS}"):
                with contextlib.suppress(ValueError):  # a build refuses it
                    decoders(row[-width:])
        if decoders.is_settled:
            self._learned = self._learned | {name: (plan, decoders)}
        else:
            connection.notes[name] = plan, version, decoders
        return decoders.like()
