"""What a statement reads, and what a connection lacks for it: a collation that only the program knows that made it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["ReadColumn", "read_by", "unknown_collation"]

_UNKNOWN = "no such collation sequence: "


class ReadColumn(NamedTuple):
    """column: "" where only the table's rows count."""

    database: str
    table: str
    column: str


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


def read_by(connection: _Executes, sql: str) -> list[ReadColumn] | None:
    """The columns of tables and views that a statement reads, as far as SQLite can prepare it; None where the module
    does not tell. Reads no row, and has the connection prepare its statements anew."""
    raw: Any = getattr(connection, "raw", connection)
    found: dict[ReadColumn, None] = {}

    def note(action: int, table: str | None, column: str | None, database: str | None, _: str | None) -> int:
        if action == sqlite3.SQLITE_READ and table:
            found[ReadColumn(database or "main", table, column or "")] = None
        return sqlite3.SQLITE_OK

    try:
        raw.set_authorizer(note)
    except AttributeError:
        return None
    try:
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute(f"EXPLAIN {sql}").close()
    finally:
        try:
            raw.set_authorizer(None)
        except TypeError:  # a module made like an older sqlite3
            raw.set_authorizer(lambda *_: sqlite3.SQLITE_OK)
    return list(found)


def unknown_collation(connection: _Executes, sql: str, error: sqlite3.Error) -> str:
    """Which column of a statement has the collation that the connection does not know, and what to do; "" where that is
    not the error."""
    name = str(error).partition(_UNKNOWN)[2]
    if not name:
        return ""
    for database, table, column in read_by(connection, sql) or ():
        try:
            quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (database, table))
            inner = column.replace('"', '""')
            connection.execute(f"SELECT s.\"{inner}\" = '' FROM {quoted} AS s LIMIT 0").close()
        except sqlite3.OperationalError as other:
            if str(other) == str(error):
                where = f"column {column!r} of {table!r} has the collation {name}"
                way = f"or take its bytes: query='SELECT ..., {column} COLLATE BINARY AS {column} FROM ...'"
                break
    else:
        where, way = f"it needs the collation {name}", "or leave it out by query=..."
    return (
        f"{where}, which only the program that made the database knows: give SQLiteSource(connect=...) a function that "
        f"registers it by create_collation, {way}"
    )
