"""Change tracking: triggers that log which keys were written, whatever writes, in the writer's own transaction.

`track` installs them in a user's database, `untrack` removes every trace, `tracked` and `changes_since` read the log.
docs/tracking.md shows the SQL, the cost and the limits. What the rest relies on:

- A log entry commits and rolls back with the write that it tells of. Too many keys may be logged, never too few:
  where triggers could miss one, `track` refuses the table.
- Every entry carries a random mark, so that an entry which is still there, mark and all, proves that everything up to
  it is the same history. A backup put back and written on reuses numbers, not marks.
- The log is never empty: the first entry is its beginning, and trimming leaves the newest.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from itertools import product
from typing import Any, NamedTuple, Protocol

from ..errors import SourceError
from ..logs import log
from ..schema import Schema
from .base import Changes, Key
from .bases import bases_of, check_keys, spellings
from .connections import Connections
from .names import quoted
from .opening import Connect
from .triggers import PARTS, PREFIX, key_name, part, triggers_of

__all__ = [
    "LIMIT",
    "TRIM_EVERY",
    "Position",
    "TrackedTable",
    "Tracking",
    "changes_since",
    "track",
    "tracked",
    "untrack",
]

LIMIT = 65_536
"""Log entries that are kept, by default."""

TRIM_EVERY = 256
"""Entries between two trims, so many of which may stand in the log beyond its limit."""

_FORMAT = 2
_MAGIC = b"\xf5mmt"

_TABLES = {
    "_mmcache_changes": (
        'CREATE TABLE "_mmcache_changes" (seq INTEGER PRIMARY KEY AUTOINCREMENT, mark INTEGER NOT NULL, '
        f"tbl_name TEXT NOT NULL, key_name TEXT NOT NULL, {', '.join(PARTS)})"
    ),
    "_mmcache_tracking": (
        'CREATE TABLE "_mmcache_tracking" (format INTEGER NOT NULL, instance BLOB NOT NULL, kept INTEGER NOT NULL)'
    ),
}

_TRIM = {
    "_mmcache_trim": f"""\
CREATE TRIGGER "_mmcache_trim" AFTER INSERT ON "_mmcache_changes" WHEN NEW.seq % {TRIM_EVERY} = 0 BEGIN
  DELETE FROM "_mmcache_changes" WHERE seq <= NEW.seq - (SELECT kept FROM "_mmcache_tracking");
END"""
}

_KEYS = frozenset({str, int, bytes})
"""Types of logged values that the key of a record can have."""


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


class TrackedTable(NamedTuple):
    """A table, and the columns whose values are logged when its rows are written; one by its name alone, none where any
    write may change every record. `triggers`: by their names."""

    table: str
    key: str | tuple[str, ...]
    triggers: tuple[str, ...]


class Tracking(NamedTuple):
    """What `track` found or made. limit: entries kept in the log. changed: whether anything had to be written."""

    path: str
    tables: tuple[TrackedTable, ...]
    limit: int
    changed: bool


class Position(NamedTuple):
    """A moment in the history of a tracked database.

    instance: 8 random bytes, other ones each time that tracking was installed or repaired. seq, mark: of the newest
    log entry. schema: digest of the database's schema and of its version number.
    """

    instance: bytes
    seq: int
    mark: int
    schema: bytes

    @property
    def fingerprint(self) -> bytes:
        """32 bytes, equal for equal positions only: magic, instance, seq, and a digest of mark and schema."""
        digest = blake2b(self.mark.to_bytes(8, "little", signed=True) + self.schema, digest_size=12).digest()
        return _MAGIC + self.instance + self.seq.to_bytes(8, "little") + digest


# --- reading ----------------------------------------------------------------------------------------------------------


def tracked(connection: _Executes, schemas: Sequence[Schema]) -> Position | None:
    """Where the database stands, if the tables of all schemas are tracked and all triggers whole; else None.

    To be called within a transaction, as it reads several times. Raises what sqlite3 raises.
    """
    master = _Master(connection)
    if not master.holds(_TABLES) or not master.holds(_TRIM):
        return None
    try:
        for schema in schemas:
            for origin, key in bases_of(connection, master.sql, schema).tables:
                if not master.holds(triggers_of(connection, origin, key)):
                    return None
    except ValueError:
        return None
    state = _state(connection)
    return state and Position(*state[:3], master.digest())


def changes_since(connection: _Executes, schemas: Sequence[Schema], since: bytes) -> Changes | None:
    """`TrackedSource.changes`, within a transaction of the caller's. Raises what sqlite3 raises."""
    now = tracked(connection, schemas)
    if now is None or len(since) != 32 or since[:12] != _MAGIC + now.instance:
        return None
    seq = int.from_bytes(since[12:20], "little")
    if seq > now.seq:
        return None
    entry = connection.execute('SELECT mark FROM "_mmcache_changes" WHERE seq = ?', (seq,)).fetchone()
    if entry is None or now._replace(seq=seq, mark=entry[0]).fingerprint != since:
        return None
    keys: dict[tuple[str, str], set[tuple[Any, ...]]] = {}
    parts = ", ".join(PARTS)
    entries = connection.execute(f'SELECT tbl_name, key_name, {parts} FROM "_mmcache_changes" WHERE seq > ?', (seq,))
    count = 0
    try:
        for table, column, *key in entries:
            count += 1
            keys.setdefault((table, column), set()).add(tuple(key))
    except sqlite3.OperationalError as error:
        if "Could not decode" in str(error):
            return None
        raise
    if count != now.seq - seq:
        return None  # entries were removed
    master = _Master(connection)
    changed = {}
    for schema in schemas:
        bases = bases_of(connection, master.sql, schema)
        found: set[Key] = set()
        for origin, columns in bases.tables:
            logged = keys.get((origin.name or "", key_name(columns)), ())
            if logged and not columns:
                return None  # in which any write may change every record
            found.update(key for values in logged if (key := _key(values[: len(columns)])) is not None)
        changed[schema.name] = frozenset(_respelled(found) if bases.respells else found)
    return Changes(now.fingerprint, changed)


def _respelled(keys: Iterable[Key]) -> Iterator[Key]:
    """These keys, and what a CAST or a concatenation may make of them."""
    for key in keys:
        if isinstance(key, tuple):
            yield from product(*map(spellings, key))
        else:
            yield from spellings(key)


def _key(values: tuple[Any, ...]) -> Key | None:
    """The key that a row had; None if it was none. What REPLACE compared as equal is logged by the new row's value, so
    that of a whole REAL is the integer's."""
    whole = [int(value) if type(value) is float and value.is_integer() else value for value in values]
    if not _KEYS.issuperset(map(type, whole)):
        return None
    return whole[0] if len(whole) == 1 else tuple(whole)


def _state(connection: _Executes) -> tuple[bytes, int, int, int] | None:
    """Instance, seq and mark of the newest entry, limit; None if the tables were emptied."""
    rows = connection.execute('SELECT format, instance, kept FROM "_mmcache_tracking"').fetchall()
    entry = connection.execute('SELECT seq, mark FROM "_mmcache_changes" ORDER BY seq DESC LIMIT 1').fetchone()
    if len(rows) != 1 or entry is None:
        return None
    format_, instance, kept = rows[0]
    if format_ != _FORMAT or not isinstance(instance, bytes) or len(instance) != 8:
        return None
    return instance, entry[0], entry[1], kept


class _Master:
    """What `sqlite_master` holds."""

    def __init__(self, connection: _Executes) -> None:
        self._version: int = connection.execute("PRAGMA schema_version").fetchone()[0]
        self.rows: list[tuple[str, str, str, str | None]] = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        self._sql = {name: sql for _, name, _, sql in self.rows}

    def sql(self, name: str) -> str | None:
        return self._sql.get(name)

    def holds(self, wanted: Mapping[str, str]) -> bool:
        return all(self._sql.get(name) == sql for name, sql in wanted.items())

    def digest(self) -> bytes:
        """The version number alone would not do: after a backup was put back it can be reached by another way."""
        return blake2b(repr((self._version, self.rows)).encode(), digest_size=16).digest()


# --- installing and removing ------------------------------------------------------------------------------------------


def track(
    path: str | os.PathLike[str],
    schemas: Sequence[Schema],
    *,
    limit: int = LIMIT,
    timeout: float = 5.0,
    connect: Connect | None = None,
) -> Tracking:
    """Install, complete or repair the tracking of the schemas' tables, in one transaction; nothing if all is well.

    limit: log entries to keep; a file that is further behind is rebuilt whole. timeout: seconds to wait for a writer.
    connect: as of `SQLiteSource`.

    Tables that are tracked already stay so. Whenever something was missing, changes may have been missed, and every
    earlier fingerprint counts as unknown. Raises SourceError with the reason for what cannot be tracked.
    """
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit: expected a number of log entries from 1 to {2**31 - 1}, found {limit!r}")
    path = os.path.abspath(os.fspath(path))
    with _writing(path, timeout, connect) as connection:
        master = _Master(connection)
        wanted = dict(_TRIM)
        tables = []
        for schema in schemas:
            try:
                bases = bases_of(connection, master.sql, schema)
                check_keys(connection, schema, bases)
                for origin, key in bases.tables:
                    triggers = triggers_of(connection, origin, key)
                    wanted |= triggers
                    tables.append(TrackedTable(origin.name or "", key if len(key) != 1 else key[0], tuple(triggers)))
            except ValueError as error:
                raise SourceError(str(error), path=path) from error
        changed = _install(connection, master, wanted, limit)
    if changed:
        names = ", ".join(dict.fromkeys(found.table for found in tables))
        log.info("%s: changes of %s are tracked", path, names, extra={"event": "track", "path": path})
    return Tracking(path, tuple(dict.fromkeys(tables)), limit, changed)


def untrack(path: str | os.PathLike[str], *, timeout: float = 5.0, connect: Connect | None = None) -> tuple[str, ...]:
    """Remove all triggers and tables of `track`; their names. Raises SourceError."""
    path = os.path.abspath(os.fspath(path))
    with _writing(path, timeout, connect) as connection:
        master = _Master(connection)
        triggers = _own_triggers(master)
        tables = [name for kind, name, _, _ in master.rows if kind == "table" and name in _TABLES]
        for kind, names in (("TRIGGER", triggers), ("TABLE", tables)):
            for name in names:
                connection.execute(f"DROP {kind} {quoted(name)}")
    removed = (*triggers, *tables)
    if removed:
        log.info("%s: changes are no longer tracked", path, extra={"event": "untrack", "path": path})
    return removed


def _install(connection: sqlite3.Connection, master: _Master, wanted: Mapping[str, str], limit: int) -> bool:
    tables_whole = master.holds(_TABLES)
    stale = [
        name
        for name, table in _own_triggers(master).items()
        if (name in wanted and not master.holds({name: wanted[name]})) or not _belongs(name, table)
    ]
    missing = {name: sql for name, sql in wanted.items() if not master.holds({name: sql})}
    state = _state(connection) if tables_whole else None
    if state is not None and not stale and not missing:
        if state[3] == limit:
            return False
        connection.execute('UPDATE "_mmcache_tracking" SET kept = ?', (limit,))
        return True
    for name in stale:
        connection.execute(f"DROP TRIGGER {quoted(name)}")
    if not tables_whole:
        for name, sql in _TABLES.items():
            connection.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
            connection.execute(sql)
        missing |= _TRIM  # which went with its table
    for sql in missing.values():
        connection.execute(sql)
    connection.execute('DELETE FROM "_mmcache_changes"')
    connection.execute('DELETE FROM "_mmcache_tracking"')
    connection.execute('INSERT INTO "_mmcache_tracking" VALUES (?, ?, ?)', (_FORMAT, os.urandom(8), limit))
    connection.execute("INSERT INTO \"_mmcache_changes\" (mark, tbl_name, key_name) VALUES (random(), '', '')")
    return True


def _own_triggers(master: _Master) -> dict[str, str]:
    """Name -> its table."""
    return {name: table for kind, name, table, _ in master.rows if kind == "trigger" and name.startswith(PREFIX)}


def _belongs(trigger: str, table: str) -> bool:
    """False for a trigger that went with its table when that was renamed: it logs under the old name."""
    return trigger in _TRIM or f"_{part(table)}.".lower() in trigger.lower()


@contextmanager
def _writing(path: str, timeout: float, connect: Connect | None) -> Iterator[sqlite3.Connection]:
    """A connection in a transaction, which ends with the block. Raises SourceError for whatever SQLite says."""
    connections = Connections(path, timeout, connect=connect)
    try:
        # Whether it can be read, and whether SQLite may be used here after a fork, in the words for it.
        with connections.take() as reader:
            reader.execute("PRAGMA schema_version")
        with closing(connections.opening.writable()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_READONLY", "SQLITE_PERM")):
            reason = "tracking writes into the database, and this one cannot be written; check who may write to it"
            raise SourceError(f"{reason} ({error})", path=path) from error
        raise connections.error(error) from error
    finally:
        connections.close()
