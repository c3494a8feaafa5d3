"""Which tables are below a collection, and which of their columns hold its key: where its changes can be seen.

Below a table there is only itself. Below a query or view are the tables that `Schema.tracks` names, and no others: what
is missing there would be a change that no cache hears of, so SQLite is asked what the statement reads.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from ..schema import Schema
from ..words import plural
from .lacking import read_by
from .names import Origin, find_table, listed, origin_of, resolved
from .triggers import PREFIX

__all__ = ["Bases", "bases_of"]

_RESPELLS: Final = re.compile(r"\bcast\b|\|\||\+", re.IGNORECASE)
"""What can make a key of another type of what a column holds."""


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


class Bases(NamedTuple):
    """tables: each with the columns that hold the collection's key, none where any write may change every record.
    respells: whether the key may be another spelling of these values, as a CAST makes it."""

    tables: list[tuple[Origin, tuple[str, ...]]]
    respells: bool = False


def bases_of(connection: _Executes, sql_of: Callable[[str], str | None], schema: Schema) -> Bases:
    """sql_of: the statement that made a table or view. Raises ValueError for what cannot be tracked."""
    origin = origin_of(connection, schema)
    if origin.kind == "table":
        if schema.tracks:
            raise ValueError(f"{origin.name!r} is a table, whose own key is tracked: tracks= is for a query or view")
        return Bases([(_checked(origin, sql_of), resolved(connection, schema, origin).key_fields)])
    what = "a query" if origin.kind == "query" else f"{origin.name!r} is a view, which"
    read = _tables_read(connection, origin)
    if not schema.tracks:
        raise ValueError(
            f"{what} cannot be tracked by itself; name the tables that it reads, and their columns that hold the key: "
            f"Schema(tracks={{{_example(read)}}})"
        )
    width = len(resolved(connection, schema, origin).key_fields)
    tables = [_named(connection, sql_of, table, columns, width) for table, columns in schema.tracked_tables]
    if unnamed := [table for table in read if table not in {base.name for base, _ in tables}]:
        raise ValueError(
            f"{what} also reads {listed(unnamed)}, of which tracks= says nothing: name the column that holds the key, "
            "or () where any write may change every record"
        )
    texts = [schema.query, *(sql_of(table) for table in (origin.name, *_views_read(connection, origin)) if table)]
    return Bases(tables, any(text and _RESPELLS.search(text) for text in texts))


def _example(tables: Sequence[str]) -> str:
    return ", ".join(f"{table!r}: '...'" for table in tables) or "'table': 'column'"


def _named(
    connection: _Executes, sql_of: Callable[[str], str | None], table: str, columns: tuple[str, ...], width: int
) -> tuple[Origin, tuple[str, ...]]:
    """A table that `tracks` names, as the database spells it."""
    if columns and len(columns) != width:
        found = f"{listed(columns)} of {table!r}"
        raise ValueError(f"tracks: the key has {plural(width, 'column')}, found {found}")
    try:
        schema = Schema("tracked", table=table, key=columns or None)
        origin = origin_of(connection, schema)
        if origin.kind == "view":
            raise ValueError(f"{table!r} is a view; name the tables that it reads")
        key = resolved(connection, schema, origin).key_fields if columns else ()
    except ValueError as error:
        raise ValueError(f"tracks: {error}") from error
    return _checked(origin, sql_of), key


def _checked(origin: Origin, sql_of: Callable[[str], str | None]) -> Origin:
    """The table, if it can have triggers."""
    name = origin.name or ""
    if (sql_of(name) or "").upper().startswith("CREATE VIRTUAL"):
        raise ValueError(f"{name!r} is a virtual table, which cannot have triggers; track the table that it indexes")
    if name.lower().startswith((PREFIX, "sqlite_")):
        raise ValueError(f"{name!r} is not a table of records")
    return origin


def _tables_read(connection: _Executes, origin: Origin) -> list[str]:
    return _read(connection, origin, "table")


def _views_read(connection: _Executes, origin: Origin) -> list[str]:
    return _read(connection, origin, "view")


def _read(connection: _Executes, origin: Origin, kind: str) -> list[str]:
    """The tables, or views, that a query or view reads, as the database spells them."""
    found: dict[str, None] = {}
    for database, table, _ in read_by(connection, f"SELECT * FROM {origin.body}") or ():
        if database not in ("main", "temp"):
            raise ValueError(f"it reads {table!r} of the attached database {database!r}, which is not tracked")
        try:
            name, its_kind = find_table(connection, table)
        except ValueError:
            continue  # a function such as json_each, or a subquery
        if its_kind == kind and not name.lower().startswith("sqlite_"):
            found[name] = None
    return list(found)
