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
from urllib.parse import quote

from ..errors import SourceError
from ..logs import escape_paths
from ..schema import Schema
from .base import Changes, Key
from .connections import Connections

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
_FORMAT = 1
_MAGIC = b"\xf5mmt"

_TABLES = {
    "_mmcache_changes": (
        'CREATE TABLE "_mmcache_changes" (seq INTEGER PRIMARY KEY AUTOINCREMENT, mark INTEGER NOT NULL, '
        "tbl_name TEXT NOT NULL, key_name TEXT NOT NULL, key)"
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
"""Types of logged keys that are keys of records: no record has NULL or a float for its key."""

_INSERT = 'INSERT INTO "_mmcache_changes" (mark, tbl_name, key_name, key)'

escape_paths()
_log = logging.getLogger("mmcache")


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


class TrackedTable(NamedTuple):
    """A table, and the column whose values are logged when its rows are written. `triggers`: by their names."""

    table: str
    key: str
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
    keys: dict[tuple[str, str], set[Key]] = {}
    entries = connection.execute('SELECT tbl_name, key_name, key FROM "_mmcache_changes" WHERE seq > ?', (seq,))
    count = 0
    try:
        for table, column, key in entries:
            count += 1
            if type(key) in _KEYS:
                keys.setdefault((table, column), set()).add(key)
    except sqlite3.OperationalError as error:
        if "Could not decode" in str(error):
            return None
        raise
    if count != now.seq - seq:
        return None  # entries were removed
    master = _Master(connection)
    return Changes(
        now.fingerprint,
        {schema.name: frozenset(keys.get(_base(connection, master, schema), ())) for schema in schemas},
    )


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

    def holds(self, wanted: Mapping[str, str]) -> bool:
        return all(self._sql.get(name) == sql for name, sql in wanted.items())

    def digest(self) -> bytes:
        """The version number alone would not do: after a backup was put back it can be reached by another way."""
        return blake2b(repr((self._version, self.rows)).encode(), digest_size=16).digest()


# --- what belongs into the database -----------------------------------------------------------------------------------


def _base(connection: _Executes, master: _Master, schema: Schema) -> tuple[str, str]:
    """Table and key column of a schema, as the database writes them. Raises ValueError with the reason."""
    if schema.query is not None:
        raise ValueError("a query cannot be tracked; track the tables that it reads, each with a schema of its own")
    wanted = schema.table or schema.name
    found = [row for row in master.rows if row[0] in ("table", "view") and row[1].lower() == wanted.lower()]
    if not found:
        raise ValueError(f"the database has no table {wanted!r}; name it with Schema(table=...)")
    kind, name, _, sql = found[0]
    if kind == "view":
        raise ValueError(f"{name!r} is a view, which cannot be tracked; track its base table: Schema(table=...)")
    if (sql or "").upper().startswith("CREATE VIRTUAL"):
        raise ValueError(f"{name!r} is a virtual table, which cannot have triggers; track the table that it indexes")
    if name.lower().startswith((_PREFIX, "sqlite_")):
        raise ValueError(f"{name!r} is not a table of records")
    columns = [column for (column,) in connection.execute("SELECT name FROM pragma_table_xinfo(?)", (name,))]
    if schema.key not in columns:
        raise ValueError(f"key: table {name!r} has no column {schema.key!r}; it has: {', '.join(columns)}")
    return name, schema.key


def _triggers(connection: _Executes, table: str, key: str) -> dict[str, str]:
    """Trigger name -> the statement that makes it. Raises ValueError where triggers could miss a key."""
    name, column, values = _name(table), _name(key), f"random(), {_text(table)}, {_text(key)}"

    def written(which: str) -> str:
        return f"{_INSERT}\n    VALUES ({values}, {which}.{column});"

    made = {
        "insert": (f"AFTER INSERT ON {name}", written("NEW")),
        "delete": (f"AFTER DELETE ON {name}", written("OLD")),
        "update": (f"AFTER UPDATE ON {name}", written("OLD")),
        "rekey": (f"AFTER UPDATE ON {name} WHEN NEW.{column} IS NOT OLD.{column} COLLATE BINARY", written("NEW")),
    }
    conditions, columns = _conflicts(connection, table, key)
    if conditions:
        # A row that REPLACE is about to remove for another reason than its key: no trigger will tell of its going.
        rows = (
            f"FROM {name} AS s\n    WHERE ({' OR '.join(conditions)}) AND s.{column} IS NOT NEW.{column} COLLATE BINARY"
        )
        moved = f"{rows} AND s.{column} IS NOT OLD.{column} COLLATE BINARY"
        of = ", ".join(map(_name, columns))
        for event, when, found in (
            ("replace", f"BEFORE INSERT ON {name}", rows),
            ("displace", f"BEFORE UPDATE OF {of} ON {name}", moved),
        ):
            body = f"{_INSERT}\n    SELECT {values}, s.{column} {found};"
            made[event] = f"{when} WHEN EXISTS (\n    SELECT 1 {found})", body
    return {
        (called := _called(event, table, key)): f"CREATE TRIGGER {_name(called)} {when} BEGIN\n  {body}\nEND"
        for event, (when, body) in made.items()
    }


def _conflicts(connection: _Executes, table: str, key: str) -> tuple[list[str], list[str]]:
    """Conditions under which a row `s` stands in the way of NEW while its key is another, and the columns in them."""
    described = connection.execute(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (table,)
    )
    columns = {row[0]: row[1:] for row in described.fetchall()}
    conditions, involved = [], {}
    rowid = _rowid(connection, table, columns)
    if rowid is not None:
        conditions.append(f"s.{rowid} = NEW.{rowid}")
        involved.update(
            dict.fromkeys(["rowid", "oid", "_rowid_", *(name for name, about in columns.items() if about[3])])
        )
    indexes = connection.execute('SELECT name, partial FROM pragma_index_list(?) WHERE "unique" ORDER BY 1', (table,))
    for index, partial in indexes.fetchall():
        terms = connection.execute("SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
        if any(name == key and collation.upper() == "BINARY" for _, name, collation in terms):
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
    name = _name(column)
    new = f"coalesce(NEW.{name}, ({default}))" if not_null and default is not None else f"NEW.{name}"
    return f"s.{name} = {new} COLLATE {_name(collation)}"


def _rowid(connection: _Executes, table: str, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """What a statement can call the rowid by, quoted; None if no statement can set it."""
    taken = {name.lower() for name in columns}
    for alias in ("rowid", "_rowid_", "oid"):
        if alias not in taken:
            try:
                connection.execute(f"SELECT s.{alias} FROM {_name(table)} AS s LIMIT 0")
            except sqlite3.OperationalError as error:
                if "no such column" not in str(error):
                    raise
                return None  # WITHOUT ROWID
            return alias
    keys = [name for name, about in columns.items() if about[3] and about[0].upper() == "INTEGER"]
    return _name(keys[0]) if len(keys) == 1 else None


def _called(event: str, table: str, key: str) -> str:
    return f"{_PREFIX}{event}_{_part(table)}.{_part(key)}"


def _part(name: str) -> str:
    """Without dots, so that "a.b" and "c" are not named as "a" and "b.c"."""
    return name.replace("%", "%25").replace(".", "%2E")


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# --- installing and removing ------------------------------------------------------------------------------------------


def track(
    path: str | os.PathLike[str], schemas: Sequence[Schema], *, limit: int = LIMIT, timeout: float = 5.0
) -> Tracking:
    """Install, complete or repair the tracking of the schemas' tables, in one transaction; nothing if all is well.

    limit: log entries to keep; a file that is further behind is rebuilt whole. timeout: seconds to wait for a writer.

    Tables that are tracked already stay so. Whenever something was missing, changes may have been missed, and every
    earlier fingerprint counts as unknown. Raises SourceError with the reason for what cannot be tracked.
    """
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit: expected a number of log entries from 1 to {2**31 - 1}, found {limit!r}")
    path = os.path.abspath(os.fspath(path))
    with _writing(path, timeout) as connection:
        master = _Master(connection)
        wanted = dict(_TRIM)
        tables = []
        for schema in schemas:
            try:
                table, key = _base(connection, master, schema)
                triggers = _triggers(connection, table, key)
            except ValueError as error:
                raise SourceError(str(error), path=path) from error
            wanted |= triggers
            tables.append(TrackedTable(table, key, tuple(triggers)))
        changed = _install(connection, master, wanted, limit)
    if changed:
        names = ", ".join(dict.fromkeys(found.table for found in tables))
        _log.info("%s: changes of %s are tracked", path, names, extra={"event": "track", "path": path})
    return Tracking(path, tuple(dict.fromkeys(tables)), limit, changed)


def untrack(path: str | os.PathLike[str], *, timeout: float = 5.0) -> tuple[str, ...]:
    """Remove all triggers and tables of `track`; their names. Raises SourceError."""
    path = os.path.abspath(os.fspath(path))
    with _writing(path, timeout) as connection:
        master = _Master(connection)
        triggers = _own_triggers(master)
        tables = [name for kind, name, _, _ in master.rows if kind == "table" and name in _TABLES]
        for kind, names in (("TRIGGER", triggers), ("TABLE", tables)):
            for name in names:
                connection.execute(f"DROP {kind} {_name(name)}")
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
        connection.execute(f"DROP TRIGGER {_name(name)}")
    if not tables_whole:
        for name, sql in _TABLES.items():
            connection.execute(f"DROP TABLE IF EXISTS {_name(name)}")
            connection.execute(sql)
        missing |= _TRIM  # which went with its table
    for sql in missing.values():
        connection.execute(sql)
    connection.execute('DELETE FROM "_mmcache_changes"')
    connection.execute('DELETE FROM "_mmcache_tracking"')
    connection.execute('INSERT INTO "_mmcache_tracking" VALUES (?, ?, ?)', (_FORMAT, os.urandom(8), limit))
    connection.execute(f"{_INSERT} VALUES (random(), '', '', NULL)")
    return True


def _own_triggers(master: _Master) -> dict[str, str]:
    """Name -> its table."""
    return {name: table for kind, name, table, _ in master.rows if kind == "trigger" and name.startswith(_PREFIX)}


def _belongs(trigger: str, table: str) -> bool:
    """False for a trigger that went with its table when that was renamed: it logs under the old name."""
    return trigger in _TRIM or f"_{_part(table)}.".lower() in trigger.lower()


@contextmanager
def _writing(path: str, timeout: float) -> Iterator[sqlite3.Connection]:
    """A connection in a transaction, which ends with the block. Raises SourceError for whatever SQLite says."""
    connections = Connections(path, timeout)
    try:
        # Whether it can be read, and whether SQLite may be used here after a fork, in the words for it.
        with connections.take() as reader:
            reader.execute("PRAGMA schema_version")
        uri = "file://" + quote(os.fsencode(path)) + "?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)) as connection:
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
