"""SQLite as the source of truth.

A build is one read transaction over all collections, streamed row by row. Lookups use the same statements with a
condition, and every row that they give is checked by the same rules as the file's (`schema.terms_of`, keys equal as
text), so that affinities, collations and JSON1 never make the two tiers differ.

The database is opened read-only and never through anything but SQLite: to open and close its file by other means in a
process that has connections to it would drop their locks.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from ..errors import BuildError, SourceError
from ..schema import Query, Schema, Term, terms_of
from .base import Changes, Key, Reading, SourceRecord, plain_path
from .catalog import Catalog
from .connections import Connection, Connections
from .fingerprint import fingerprint_of, once_only, stamp_of, unsettled
from .statements import Plan, by_key, condition, keys_in_order, make_plan, reduced, storable
from .tracking import LIMIT, Tracking, changes_since, track, tracked, untrack
from .vectors import VectorDecoder

__all__ = ["SQLiteSource"]

MAX_IDS = 512

_RUN = 512
"""Rows whose JSON is decoded together: enough to be quick, few enough that a lookup does not wait for many."""

_TOGETHER = 8
_TEXT_OR_NULL = {str, type(None)}


class _Look(NamedTuple):
    """What the files looked like from outside, once their times could tell, and what `fingerprint` made of it."""

    outside: bytes
    answer: bytes


class _BusyError(Exception):
    """A writer holds the database locked."""


class SQLiteSource:
    """The tables, views or queries of one SQLite database, one collection for each schema.

    path: of the database; made absolute at once, opened when first needed, never created.
    schemas: where and how each collection is read (`table`, `query`, `columns`, `json`, `dtype`).
    timeout: seconds to wait for a writer's lock.

    Records come by rowid, or by primary key from a WITHOUT ROWID table, or as a query or view gives them; `find` keeps
    that order, which for a query or view means to run it whole. While a database in a rollback-journal mode is being
    read, its writers cannot commit; in WAL mode they can.

    Safe to use from several threads. After a fork the child opens connections of its own. Pickles to its arguments.
    """

    kind: ClassVar[str] = "sqlite"

    def __init__(self, path: str | os.PathLike[str], *schemas: Schema, timeout: float = 5.0) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if "\0" in self.path:
            raise ValueError(f"a path cannot hold a NUL character: {self.path!r}")
        self._catalog = Catalog(schemas)
        self._connections = Connections(self.path, timeout)
        self._plans: dict[str, tuple[tuple[int, int], Plan]] = {}
        # Each is replaced whole, so that threads need no lock, and is as true in a forked child.
        self._look: _Look | None = None
        self._identity: tuple[int, int] | None = None
        self._tracked = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {', '.join(self._catalog)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "schemas": self.schemas, "timeout": self._connections.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SQLiteSource.__init__(self, state["path"], *state["schemas"], timeout=state["timeout"])

    @property
    def schemas(self) -> tuple[Schema, ...]:
        return tuple(self._catalog.values())

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One read transaction, begun here. Raises SourceError, or BuildError for a schema the database cannot meet."""
        with self._connections.take() as connection:
            try:
                connection.execute("BEGIN")  # locks nothing yet; looking at the tables does
                plans = {name: self._make_plan(connection, schema) for name, schema in self._catalog.items()}
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            reading = SQLiteReading(self._connections, connection, self._catalog, plans)
            try:
                yield reading
            finally:
                reading.close()

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[SourceRecord | None]:
        """Looked up by the key column's index, `MAX_IDS` at a time; one consistent read if there are more."""
        schema = self._catalog[collection]
        wanted = _lookable(ids)
        found: dict[Key, SourceRecord] = {}
        with self._connections.take() as connection:
            try:
                if len(wanted) > MAX_IDS:
                    connection.execute("BEGIN")
                plan = self._plan(connection, schema)
                for start in range(0, len(wanted), MAX_IDS):
                    rows = connection.execute(*by_key(plan, wanted[start : start + MAX_IDS], MAX_IDS))
                    texts = (row for row in rows if type(row[0]) is str)
                    for record in _records(schema, plan, texts):
                        found.setdefault(record.values[0], record)
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            except BuildError as error:
                raise SourceError(error.message, path=self.path) from error
        return [found.get(key) for key in ids]

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`. One statement. A table is asked by the key column's index; a query or view is run whole,
        as is a table for more keys than one statement of SQLite takes (32,766 by default)."""
        schema = self._catalog[collection]
        wanted = dict.fromkeys(_lookable(ids))
        found: dict[Key, None] = {}
        if not wanted:
            return []
        with self._connections.take() as connection:
            try:
                plan = self._plan(connection, schema)
                limit = connection.raw.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
                for row in connection.execute(*keys_in_order(plan, list(wanted), limit)):
                    if type(row[0]) is str and row[0] in wanted:  # and not only by an affinity or collation
                        found[row[0]] = None
                        if len(found) == len(wanted):
                            break
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
        return list(found)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """Streams, and holds a connection until it is exhausted or closed."""
        schema = self._catalog[collection]
        with self._connections.take() as connection:
            try:
                plan = self._plan(connection, schema)
                where = condition(schema, query)
                if where is None:
                    return
                sql, parameters = where
                cursor = connection.execute(f"{plan.select} {plan.stable} WHERE {sql} {plan.order}", parameters)
                wanted = [(plan.names.index(field), frozenset(terms)) for field, terms in query.items()]
                for record in _records(schema, plan, cursor):
                    if all(_holds(record.values[position], terms) for position, terms in wanted):
                        yield record
            except sqlite3.Error as error:
                raise self._connections.error(error) from error
            except BuildError as error:
                raise SourceError(error.message, path=self.path) from error

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
            self._look = _Look(outside, answer)
        return answer

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. None for a database that is not tracked, or not all along, or another one; for a
        `since` that the log no longer reaches back to, or from another history (a backup was put back); and after
        its schema changed or a VACUUM; and while a writer holds the database locked. Reads the log from `since` on.
        Raises SourceError."""
        self._outside()
        try:
            with self._at_once() as connection:
                return changes_since(connection, self.schemas, since)
        except _BusyError:
            return None

    def track(self, *, limit: int = LIMIT) -> Tracking:
        """Install in the database what tells which records any writer changes; docs/tracking.md says what and at what
        cost. Idempotent, and the repair when a table was made anew. `limit`: changes that are remembered.

        Raises SourceError for a view, a query, a virtual table or an odd unique index, and where it cannot write.
        """
        return track(self.path, self.schemas, limit=limit, timeout=self._connections.timeout)

    def untrack(self) -> tuple[str, ...]:
        """Remove all that `track` installed, for whichever tables; the names. Raises SourceError."""
        return untrack(self.path, timeout=self._connections.timeout)

    def spec(self) -> dict[str, Any] | None:
        return {"kind": self.kind, "path": plain_path(self.path)}

    def available(self, schemas: Iterable[Schema]) -> tuple[Schema, ...]:
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
        """What the database and its -wal look like, and `unsettled`. Closes connections to a file that was replaced.

        An empty -wal is as good as none, since a reader creates one.
        """
        begun = time.time_ns()
        real = os.path.realpath(self.path)
        try:
            database = os.stat(real)
        except OSError as error:
            self._connections.close()  # or they would go on reading a database that is gone
            self._identity = None
            raise SourceError(f"cannot look at the database: {error.strerror}", path=self.path) from error
        try:
            wal = os.stat(real + "-wal")
        except OSError:
            wal = None
        identity = database.st_dev, database.st_ino
        if identity != self._identity:
            self._connections.close()
            self._identity = identity
        # A process that opens a -wal as root calls chown on it, which sets its ctime: not a write.
        files = stamp_of(database), stamp_of(wal, by_ctime=False) if wal and wal.st_size else None
        return fingerprint_of(*files), unsettled(begun, *files)

    def _exact(self) -> bytes | None:
        """The fingerprint of a tracked database; None for another, or one that cannot be read and never was tracked."""
        try:
            with self._at_once() as connection:
                position = tracked(connection, self.schemas)
        except SourceError:
            if self._tracked:
                raise
            return None
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

    def _make_plan(self, connection: Connection, schema: Schema) -> Plan:
        try:
            return make_plan(connection, schema)
        except ValueError as error:
            failure = BuildError.of(schema.name, None, str(error))
            failure.path = self.path
            raise failure from error

    def _plan(self, connection: Connection, schema: Schema) -> Plan:
        """The plan for lookups: kept for as long as the database's own schema stays as it is."""
        version = connection.epoch, connection.execute("PRAGMA schema_version").fetchone()[0]
        known = self._plans.get(schema.name)
        if known is not None and known[0] == version:
            return known[1]
        plan = self._make_plan(connection, schema)
        self._plans[schema.name] = version, plan
        return plan


class SQLiteReading:
    """One read transaction; made by `SQLiteSource.read`, and good until that ends."""

    def __init__(
        self, connections: Connections, connection: Connection, catalog: Catalog, plans: dict[str, Plan]
    ) -> None:
        self._connections = connections
        self._connection: Connection | None = connection
        self._catalog = catalog
        self._plans = plans

    def close(self) -> None:
        """The connection is another reader's from now on."""
        self._connection = None

    def count(self, collection: str) -> int | None:
        """Exact for a table, from its smallest index where it has one; None for a query or view."""
        sql = self._plans[self._catalog[collection].name].count
        if sql is None:
            return None
        try:
            return int(self._lent().execute(sql).fetchone()[0])
        except sqlite3.Error as error:
            raise self._connections.error(error) from error

    def records(self, collection: str) -> Iterator[SourceRecord]:
        schema = self._catalog[collection]
        plan = self._plans[schema.name]
        try:
            yield from _records(schema, plan, self._lent().execute(plan.all))
        except BuildError as error:
            error.path = self._connections.path
            raise
        except sqlite3.Error as error:
            if "Could not decode" in str(error):
                raise self._undecodable(schema, plan) from error
            raise self._connections.error(error) from error

    def _lent(self) -> Connection:
        if self._connection is None:
            raise SourceError("the read is over; use it inside `with source.read()`", path=self._connections.path)
        return self._connection

    def _undecodable(self, schema: Schema, plan: Plan) -> BuildError:
        """Whose text is not UTF-8. sqlite3 does not say, so read again, to the first row that has such text."""
        connection = self._lent()
        connection.raw.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            for row in connection.execute(plan.all):
                for name, value in zip((*plan.names, schema.embedding), row, strict=False):
                    if isinstance(value, str) and not storable(value):
                        reason = f"the text of column {name!r} is not valid UTF-8; store such bytes as a BLOB"
                        error = BuildError.of(schema.name, row[0], reason)
                        error.path = self._connections.path
                        return error
        finally:
            connection.raw.text_factory = str
        return BuildError.of(schema.name, None, "text that is not valid UTF-8")


def _lookable(ids: Iterable[Key]) -> list[str]:
    """Those that a record can have for its key, each once."""
    return [key for key in dict.fromkeys(ids) if isinstance(key, str) and storable(key)]


def _holds(value: object, wanted: frozenset[Term]) -> bool:
    try:
        return not wanted.isdisjoint(terms_of(value))
    except TypeError:
        return False  # not a term, so it is not in an index either


def _records(schema: Schema, plan: Plan, rows: Iterable[tuple[Any, ...]]) -> Iterator[SourceRecord]:
    """The rows of a statement, decoded and checked. Raises BuildError; sqlite3's own errors pass.

    A build spends its time here. A row is handed on as a slice of the tuple that sqlite3 made; `tuple.__new__` skips
    the Python-level constructor of the NamedTuple.
    """
    if plan.decode:
        return _decoded_rows(schema, plan, rows)
    if schema.embedding is None:
        return _bare_rows(schema, plan, rows)
    return _vector_rows(schema, plan, rows)


def _bare_rows(schema: Schema, plan: Plan, rows: Iterable[tuple[Any, ...]]) -> Iterator[SourceRecord]:
    new, record, names = tuple.__new__, SourceRecord, plan.names
    for row in rows:
        key = row[0]
        if type(key) is not str or not key:
            raise _bad_key(schema, key)
        yield new(record, (names, row, None))


def _vector_rows(schema: Schema, plan: Plan, rows: Iterable[tuple[Any, ...]]) -> Iterator[SourceRecord]:
    new, record, names = tuple.__new__, SourceRecord, plan.names
    decode = VectorDecoder(schema.dim, schema.dtype)
    size = 4 * decode.dim if decode.dim and decode.dtype == "f4" else -1
    for row in rows:
        key, vector = row[0], row[-1]
        if type(key) is not str or not key:
            raise _bad_key(schema, key)
        if type(vector) is not bytes or len(vector) != size:
            try:
                vector = decode(vector)
            except ValueError as error:
                raise BuildError.of(schema.name, key, str(error)) from error
            size = 4 * decode.dim if decode.dim and decode.dtype == "f4" else -1
        yield new(record, (names, row[:-1], vector))


def _decoded_rows(schema: Schema, plan: Plan, rows: Iterable[tuple[Any, ...]]) -> Iterator[SourceRecord]:
    new, record, names = tuple.__new__, SourceRecord, plan.names
    width = len(names)
    vector_of = VectorDecoder(schema.dim, schema.dtype)
    vector = None
    remaining = iter(rows)
    while run := list(islice(remaining, _RUN)):
        columns = [(position, _decoded_together([row[position] for row in run])) for position in plan.decode]
        for i, row in enumerate(run):
            key = row[0]
            if type(key) is not str or not key:
                raise _bad_key(schema, key)
            values = list(row)
            position = -1
            try:
                if len(row) > width:
                    vector = vector_of(values.pop())
                for position, column in columns:
                    values[position] = _decoded(values[position]) if column is None else column[i]
            except (ValueError, RecursionError) as error:
                reason = str(error) if position < 0 else f"column {names[position]!r} is not JSON text: {error}"
                raise BuildError.of(schema.name, key, reason) from error
            yield new(record, (names, values, vector))


def _decoded_together(texts: list[Any]) -> list[Any] | None:
    """What many JSON texts say, read as one array, in half the time; None if they must be looked at one by one.

    Between any two stands a string that no text can contain, so what is not JSON by itself shows: it swallows that
    string, or is an error, or shifts it from its place.
    """
    if len(texts) < _TOGETHER or not _TEXT_OR_NULL.issuperset(map(type, texts)):
        return None
    mark = os.urandom(16).hex()
    joined = f',"{mark}",'.join(["null" if text is None else text for text in texts])
    try:
        items = json.loads(f"[{joined}]")
    except (ValueError, RecursionError):
        return None
    if len(items) != 2 * len(texts) - 1 or items[1::2] != [mark] * (len(texts) - 1):
        return None
    return items[::2]  # type: ignore[no-any-return]


def _decoded(value: Any) -> Any:
    """What the JSON text says; a number stands for itself, as a column of type JSON turns numeric text into numbers."""
    if type(value) is str:
        # Faster than json.loads, which also skips leading blanks, minds what follows and says well what is wrong.
        try:
            found, end = _scan(value)
        except ValueError:
            found, end = None, -1
        return found if end == len(value) else json.loads(value)
    if type(value) is bytes:
        raise ValueError(f"a BLOB of {len(value)} bytes")
    return value


_scan = json.JSONDecoder().raw_decode


def _bad_key(schema: Schema, key: object) -> BuildError:
    name = schema.key
    if key is None or key == "":
        found = "empty" if key == "" else "NULL"
        reason = f"the key {name!r} is {found}; give every record a key, or leave it out by query="
    else:
        reason = (
            f"non-string key: {name!r} holds {type(key).__name__}, expected text; "
            f"give a query= that selects CAST({name} AS TEXT) AS {name}"
        )
    return BuildError.of(schema.name, key, reason)
