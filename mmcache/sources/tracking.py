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

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from ..errors import SourceError
from ..logs import escape_paths
from ..schema import MAX_KEY_FIELDS, Schema
from .base import Changes, Key
from .connections import Connections
from .names import Origin, origin_of, quoted, resolved, rowid_of
from .opening import Connect

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

_PREFIX = "_mmcache_"
_FORMAT = 2
_MAGIC = b"\xf5mmt"

_PARTS = ("key", *(f"key{i}" for i in range(2, MAX_KEY_FIELDS + 1)))
"""Columns of the log for the values of a key; those that a key does not need hold NULL."""

_TABLES = {
    "_mmcache_changes": (
        'CREATE TABLE "_mmcache_changes" (seq INTEGER PRIMARY KEY AUTOINCREMENT, mark INTEGER NOT NULL, '
        f"tbl_name TEXT NOT NULL, key_name TEXT NOT NULL, {', '.join(_PARTS)})"
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

escape_paths()
_log = logging.getLogger("mmcache")


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


class TrackedTable(NamedTuple):
    """A table, and the columns whose values are logged when its rows are written; one by its name alone. `triggers`: by
    their names."""

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
            if not master.holds(_triggers(connection, *_base(connection, master, schema))):
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
    parts = ", ".join(_PARTS)
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
        origin, columns = _base(connection, master, schema)
        logged = keys.get((origin.name or "", _key_name(columns)), ())
        changed[schema.name] = frozenset(key for values in logged if (key := _key(values[: len(columns)])) is not None)
    return Changes(now.fingerprint, changed)


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


# --- what belongs into the database -----------------------------------------------------------------------------------


def _base(connection: _Executes, master: _Master, schema: Schema) -> tuple[Origin, tuple[str, ...]]:
    """The table of a schema, and the columns of its key, as the database writes them. Raises ValueError."""
    if schema.query is not None:
        raise ValueError("a query cannot be tracked; track the tables that it reads, each with a schema of its own")
    origin = origin_of(connection, schema)
    name = origin.name or ""
    if origin.kind == "view":
        raise ValueError(f"{name!r} is a view, which cannot be tracked; track its base table: Schema(table=...)")
    if (master.sql(name) or "").upper().startswith("CREATE VIRTUAL"):
        raise ValueError(f"{name!r} is a virtual table, which cannot have triggers; track the table that it indexes")
    if name.lower().startswith((_PREFIX, "sqlite_")):
        raise ValueError(f"{name!r} is not a table of records")
    return origin, resolved(connection, schema, origin).key_fields


def _triggers(connection: _Executes, origin: Origin, key: tuple[str, ...]) -> dict[str, str]:
    """Trigger name -> the statement that makes it. Raises ValueError where triggers could miss a key."""
    table = origin.name or ""
    name, insert = (
        quoted(table),
        f'INSERT INTO "_mmcache_changes" (mark, tbl_name, key_name, {", ".join(_PARTS[: len(key)])})',
    )
    values = f"random(), {_text(table)}, {_text(_key_name(key))}"

    def columns(of: str) -> str:
        return ", ".join(f"{of}.{quoted(column)}" for column in key)

    def written(which: str) -> str:
        return f"{insert}\n    VALUES ({values}, {columns(which)});"

    made = {
        "insert": (f"AFTER INSERT ON {name}", written("NEW")),
        "delete": (f"AFTER DELETE ON {name}", written("OLD")),
        "update": (f"AFTER UPDATE ON {name}", written("OLD")),
        "rekey": (f"AFTER UPDATE ON {name} WHEN {_differ('NEW', 'OLD', key)}", written("NEW")),
    }
    rowid = _rowid(connection, origin)
    conditions, involved = _conflicts(connection, origin, key, rowid)
    if conditions:
        # A row that REPLACE is about to remove for another reason than its key: no trigger will tell of its going.
        rows = f"FROM {name} AS s\n    WHERE ({' OR '.join(conditions)})"
        # Before a row is inserted, its rowid is not known, if that is not given.
        other = rows if _is_rowid(rowid, key) else f"{rows} AND {_differ('s', 'NEW', key)}"
        moved = f"{rows} AND {_differ('s', 'NEW', key)} AND {_differ('s', 'OLD', key)}"
        of = ", ".join(map(quoted, involved))
        for event, when, found in (
            ("replace", f"BEFORE INSERT ON {name}", other),
            ("displace", f"BEFORE UPDATE OF {of} ON {name}", moved),
        ):
            body = f"{insert}\n    SELECT {values}, {columns('s')} {found};"
            made[event] = f"{when} WHEN EXISTS (\n    SELECT 1 {found})", body
    return {
        (called := _called(event, table, key)): f"CREATE TRIGGER {quoted(called)} {when} BEGIN\n  {body}\nEND"
        for event, (when, body) in made.items()
    }


def _differ(one: str, other: str, key: Sequence[str]) -> str:
    """That two rows have different keys."""
    parts = [f"{one}.{quoted(column)} IS NOT {other}.{quoted(column)} COLLATE BINARY" for column in key]
    return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"


def _conflicts(
    connection: _Executes, origin: Origin, key: tuple[str, ...], rowid: _Rowid | None
) -> tuple[list[str], list[str]]:
    """Conditions under which a row `s` stands in the way of NEW while its key is another, and the columns in them."""
    table = origin.name or ""
    described = connection.execute(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (table,)
    )
    columns = {row[0]: row[1:] for row in described.fetchall()}
    conditions, involved = [], {}
    if rowid is not None and not (len(key) == 1 and _is_rowid(rowid, key)):
        conditions.append(f"s.{quoted(rowid.name)} = NEW.{quoted(rowid.name)}")
        involved.update(dict.fromkeys(["rowid", "oid", "_rowid_", *origin.primary]))
    indexes = connection.execute('SELECT name, partial FROM pragma_index_list(?) WHERE "unique" ORDER BY 1', (table,))
    for index, partial in indexes.fetchall():
        terms = connection.execute("SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
        if set(key) <= {name for _, name, collation in terms if collation.upper() == "BINARY"}:
            continue  # rows that conflict have the same key
        if any(cid == -1 for cid, _, _ in terms):
            continue  # they have the same rowid
        if partial or any(cid < 0 or columns[name][4] for cid, name, _ in terms):
            raise ValueError(
                f"table {table!r} cannot be tracked: its unique index {index!r} has a WHERE clause, an expression or a "
                "generated column, and INSERT OR REPLACE could remove a row by it that no trigger would see"
            )
        conditions.append(
            "(" + " AND ".join(_equal(name, collation, *columns[name][1:3]) for _, name, collation in terms) + ")"
        )
        involved.update(dict.fromkeys(name for _, name, _ in terms))
    return conditions, list(involved)


def _equal(column: str, collation: str, not_null: int, default: str | None) -> str:
    """As the unique index compares. REPLACE puts the default where NULL is given to a NOT NULL column."""
    name = quoted(column)
    new = f"coalesce(NEW.{name}, ({default}))" if not_null and default is not None else f"NEW.{name}"
    return f"s.{name} = {new} COLLATE {quoted(collation)}"


class _Rowid(NamedTuple):
    """name: what a statement can call the rowid by. alias: the INTEGER PRIMARY KEY, if there is one."""

    name: str
    alias: str | None


def _rowid(connection: _Executes, origin: Origin) -> _Rowid | None:
    """None where no statement can set it: of a table without one, or whose columns have taken all its names."""
    alias = None
    if len(origin.primary) == 1:
        (name,) = origin.primary
        # The primary key of any other type, or with DESC in an old form, has an index of its own.
        kind = connection.execute("SELECT upper(type) FROM pragma_table_xinfo(?) WHERE pk", (origin.name,)).fetchone()[
            0
        ]
        own = connection.execute("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", (origin.name,)).fetchone()
        alias = name if kind == "INTEGER" and own is None else None
    name_of = rowid_of(connection, origin) or alias
    return None if name_of is None else _Rowid(name_of, alias)


def _is_rowid(rowid: _Rowid | None, key: Sequence[str]) -> bool:
    """Whether the rowid is the key, or a part of it."""
    return rowid is not None and not {rowid.name, rowid.alias}.isdisjoint(key)


def _called(event: str, table: str, key: Sequence[str]) -> str:
    return f"{_PREFIX}{event}_{_part(table)}.{_key_name(key)}"


def _key_name(key: Sequence[str]) -> str:
    return ".".join(map(_part, key))


def _part(name: str) -> str:
    """Without dots, so that "a.b" and "c" are not named as "a" and "b.c"."""
    return name.replace("%", "%25").replace(".", "%2E")


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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
                origin, key = _base(connection, master, schema)
                triggers = _triggers(connection, origin, key)
            except ValueError as error:
                raise SourceError(str(error), path=path) from error
            wanted |= triggers
            tables.append(TrackedTable(origin.name or "", key if len(key) > 1 else key[0], tuple(triggers)))
        changed = _install(connection, master, wanted, limit)
    if changed:
        names = ", ".join(dict.fromkeys(found.table for found in tables))
        _log.info("%s: changes of %s are tracked", path, names, extra={"event": "track", "path": path})
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
        _log.info("%s: changes are no longer tracked", path, extra={"event": "untrack", "path": path})
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
    return {name: table for kind, name, table, _ in master.rows if kind == "trigger" and name.startswith(_PREFIX)}


def _belongs(trigger: str, table: str) -> bool:
    """False for a trigger that went with its table when that was renamed: it logs under the old name."""
    return trigger in _TRIM or f"_{_part(table)}.".lower() in trigger.lower()


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
