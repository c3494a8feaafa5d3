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
from ..text import plural
from .lacking import read_by
from .names import Origin, find_table, listed, origin_of, quoted, resolved
from .triggers import PREFIX

__all__ = ["Bases", "bases_of", "check_keys", "spellings"]

_RESPELLS: Final = re.compile(r"\bcast\b|\|\||\+", re.IGNORECASE)
"""What can make a key of another type of what a column holds."""


_LOOKED_AT: Final = 20
"""Keys that are looked for in the tables that hold them."""


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


def check_keys(connection: _Executes, schema: Schema, bases: Bases) -> None:
    """Whether the first keys of a query or view are values of the columns that `tracks` names. A key that the statement
    makes otherwise, as by 'p-' || id, would be logged as what it is made of, and its changes be missed.

    Raises ValueError.
    """
    if not schema.tracks or not all(columns for _, columns in bases.tables):
        return
    origin = origin_of(connection, schema)
    fields = ", ".join(map(quoted, resolved(connection, schema, origin).key_fields))
    rows = connection.execute(f"SELECT {fields} FROM {origin.body} LIMIT {_LOOKED_AT}").fetchall()
    for parts in rows:
        if all(type(part) in (str, int, bytes) for part in parts) and not _is_held(connection, bases, parts):
            columns = listed(f"{base.name}.{column}" for base, names in bases.tables for column in names)
            key = parts[0] if len(parts) == 1 else parts
            raise ValueError(
                f"tracks: the key {key!r:.80} is no value of {columns}, so what is written there would not tell of it; "
                "take such a column itself as the key, or several as a tuple"
            )


def _is_held(connection: _Executes, bases: Bases, parts: Sequence[Any]) -> bool:
    alike = [spellings(part) for part in parts]
    for origin, columns in bases.tables:
        condition = " AND ".join(
            f"s.{quoted(column)} IN ({', '.join('?' * len(values))})"
            for column, values in zip(columns, alike, strict=True)
        )
        sql = f"SELECT 1 FROM {origin.body} AS s WHERE {condition} LIMIT 1"
        if connection.execute(sql, [value for values in alike for value in values]).fetchone():
            return True
    return False


def spellings(value: Any) -> list[Any]:
    """A part of a key, and what a CAST or a concatenation may make of it, or have made it of."""
    if isinstance(value, int):
        return [value, str(value)]
    if isinstance(value, bytes):
        return [value, value.decode("utf-8", "replace")]
    is_number = value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20 and str(int(value)) == value
    return [value, value.encode("utf-8", "surrogatepass"), *([int(value)] if is_number else ())]


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
