"""What the names in a schema mean in a database: its table, view or query, the key, and the columns.

Names are equal as SQLite has them: the case of ASCII letters does not matter. A *resolved* schema spells them as the
database does, and has a key: that of the table, where the schema leaves it open.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ..query import path_of
from ..schema import MAX_KEY_FIELDS, Schema
from .connections import Connection
from .lacking import unknown_collation
from .listing import tables_of
from .opening import what_it_lacks

__all__ = [
    "NoKeyError",
    "Origin",
    "attached_names",
    "ended",
    "find_table",
    "keys_of_view",
    "listed",
    "origin_of",
    "quoted",
    "reduced",
    "resolved",
    "rowid_of",
]

ROWIDS = ("rowid", "_rowid_", "oid")
"""What the rowid of a table can be called, unless a column is called so."""

_ROWS = 10_000
"""Rows of a view that are looked at to find columns that could be its key."""

_SECONDS = 1.0
"""What finding these rows may take."""

_STEPS = 10_000
"""Instructions of SQLite's between two looks at the clock."""


class NoKeyError(ValueError):
    """A view or query whose schema names no key."""


class Origin(NamedTuple):
    """What stands behind FROM. kind: "table", "view" or "query". name: of the table or view, as the database has it.
    primary: the columns of a table's primary key, in its order."""

    body: str
    kind: str
    name: str | None
    columns: list[str]
    primary: tuple[str, ...]


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|;|[^'"`[;/-]+|.""", re.DOTALL
)


def ended(query: str) -> str:
    """A statement without the semicolons and comments at its end, which no sub-select may have."""
    end = 0
    for token in _TOKEN.finditer(query):
        if token[0] != ";" and token[0][:2] not in ("--", "/*") and not token[0].isspace():
            end = token.end()
    return query[:end]


def origin_of(connection: _Executes, schema: Schema) -> Origin:
    """Reads no row. Raises ValueError with the reason where there is no such table, or no such query is possible."""
    if schema.query is not None:
        query = ended(schema.query)
        body = f"(\n{query}\n)"
        return Origin(body, "query", None, _query_columns(connection, query, body), ())
    table, kind = find_table(connection, schema.table or schema.name)
    body = quoted(table)
    primary: tuple[str, ...] = ()
    if kind == "table":
        rows = connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE pk ORDER BY pk", (table,)).fetchall()
        primary = tuple(name for (name,) in rows)
    try:
        columns = _columns(connection, f"SELECT * FROM {body} LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no query solution" in str(error):
            reason = f"SQLite cannot read the table {table!r}{_unknown_collation(connection, table)}"
            raise ValueError(reason) from error
        if reason := unknown_collation(connection, f"SELECT * FROM {body}", error):
            raise ValueError(reason) from error
        raise
    return Origin(body, kind, table, columns, primary)


def _unknown_collation(connection: _Executes, table: str) -> str:
    """Why a table WITHOUT ROWID cannot be read: its rows are kept in an order that this connection does not know."""
    found = connection.execute(
        "SELECT DISTINCT x.coll FROM pragma_index_list(?) AS i, pragma_index_xinfo(i.name) AS x"
        " WHERE i.origin = 'pk' AND x.key AND x.coll NOT IN ('BINARY', 'NOCASE', 'RTRIM')",
        (table,),
    )
    names = listed(name for (name,) in found)
    way = "give SQLiteSource(connect=...) a function that registers it"
    return f": its key has the collation {names}, which only the program that made it knows; {way}"


def find_table(connection: _Executes, name: str) -> tuple[str, str]:
    """A table or view as the database writes it, and which of them it is. Raises ValueError."""
    tables = connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1")
    found = dict(tables.fetchall())
    table = _spelled(name, found)
    if table is not None:
        return table, found[table]
    known = listed(tables_of(connection))
    raise ValueError(f"the database has no table {name!r}; it has: {known}. Name it with Schema(table=...)")


def resolved(connection: _Executes, schema: Schema, origin: Origin | None = None) -> Schema:
    """The schema with its key, and all names as the database spells them; those that it does not have as they are.

    Raises ValueError, NoKeyError among them, where there is no such table or key.
    """
    if origin is None:
        origin = origin_of(connection, schema)
    columns = origin.columns

    def spelled(given: Any) -> Any:
        if given is None or isinstance(given, str):
            return given and _spelled_path(given, columns)
        return tuple(map(spelled, given))

    return replace(
        schema,
        key=_primary(connection, origin) if schema.key is None else _named(connection, schema, origin),
        index=spelled(schema.index),
        embedding=spelled(schema.embedding),
        table=None if origin.name == schema.name else origin.name,
        columns=spelled(schema.columns),
        json=spelled(schema.json),
        expires=spelled(schema.expires),
    )


def reduced(connection: _Executes, schema: Schema) -> Schema | None:
    """The schema, resolved, without the indexes and columns that the database does not have; None if it lacks more."""
    try:
        origin = origin_of(connection, schema)
        schema = resolved(connection, schema, origin)
    except ValueError:
        return None
    there = {*origin.columns, *schema.key_fields}
    if not there.issuperset((*schema.embeddings, schema.expires or schema.key_fields[0])):
        return None

    def kept(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in there or path_of(name)[0] in there)

    wanted = None if schema.columns is None else kept(schema.columns)
    return replace(schema, index=kept(schema.index), json=kept(schema.json), columns=wanted)


def rowid_of(connection: _Executes, origin: Origin) -> str | None:
    """What the rowid of a table can be called; None where it has none, or all these names are taken."""
    if origin.kind != "table":
        return None
    for alias in ROWIDS:
        if _spelled(alias, origin.columns) is None:
            try:
                connection.execute(f"SELECT s.{alias} FROM {origin.body} AS s LIMIT 0")
            except sqlite3.OperationalError as error:
                if "no such column" not in str(error):
                    raise
                return None  # WITHOUT ROWID
            return alias
    return None


def _primary(connection: _Executes, origin: Origin) -> str | tuple[str, ...]:
    """The key of a schema that names none."""
    if origin.kind != "table":
        if (name := _spelled("id", origin.columns)) is not None:
            return name
        raise NoKeyError(
            f"a {origin.kind} has no key of its own: name one with key=; there are: {listed(origin.columns)}"
        )
    if len(origin.primary) > MAX_KEY_FIELDS:
        raise ValueError(
            f"key: the primary key has {len(origin.primary)} columns, and a key at most {MAX_KEY_FIELDS}; "
            "name fewer that identify a record, or key='rowid'"
        )
    if origin.primary:
        return origin.primary
    rowid = rowid_of(connection, origin)
    if rowid is None:
        raise ValueError(f"table {origin.name!r} has no primary key and no rowid: name a key with key=")
    return rowid


def _named(connection: _Executes, schema: Schema, origin: Origin) -> tuple[str, ...]:
    """The key that a schema names, as the database spells it."""
    found = []
    for name in schema.key_fields:
        column = _spelled(name, origin.columns)
        if column is None and _fold(name) in ROWIDS:
            column = rowid_of(connection, origin)
        if column is None:
            raise ValueError(f"key: no column named {name}; there are: {listed(origin.columns)}")
        found.append(column)
    return tuple(found)


def keys_of_view(connection: Connection, origin: Origin) -> str:
    """Which columns of a view or query could be its key: a sentence, made out from a bounded number of rows."""
    end = time.monotonic() + _SECONDS
    connection.raw.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    columns = origin.columns[:500]
    counts = (
        f"count(s.{name}) = count(*) AND count(DISTINCT s.{name}) = count(*) AND total(typeof(s.{name}) = 'real') = 0"
        for name in map(quoted, columns)
    )
    try:
        rows, *could = connection.execute(
            f"SELECT count(*), {', '.join(counts)} FROM (SELECT * FROM {origin.body} LIMIT {_ROWS + 1}) AS s"
        ).fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
            raise
        return "which of them are unique was not looked up: it takes too long"
    finally:
        connection.raw.set_progress_handler(None, 0)
    if not rows:
        return "it has no rows to look at"
    where = f"its first {_ROWS:,} rows" if rows > _ROWS else f"its {rows:,} rows"
    unique = [name for name, is_unique in zip(columns, could, strict=True) if is_unique]
    return f"unique and not null in {where}: {listed(unique)}"


def attached_names(connection: Connection) -> list[str]:
    """Of databases besides the one that was opened."""
    return [
        name for _, name, _ in connection.execute("PRAGMA database_list").fetchall() if name not in ("main", "temp")
    ]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def listed(names: Iterable[str]) -> str:
    """Those with a comma in quotes, as a command line takes them."""
    return ", ".join(quoted(name) if "," in name else name for name in names) or "none"


def _fold(name: str) -> str:
    """As SQLite compares names: without the case of ASCII letters."""
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _spelled(name: str, names: Iterable[str]) -> str | None:
    """The one of these names that this is; None if it is none of them."""
    folded, names = _fold(name), list(names)
    return name if name in names else next((one for one in names if _fold(one) == folded), None)


def _spelled_path(field: str, names: Sequence[str]) -> str:
    """A field, or the column that a path begins in, as one of these names; as it is if it is none of them."""
    found = _spelled(field, names)
    if found is None:
        root = path_of(field)[0]
        found = (_spelled(root, names) or root) + field.removeprefix(root)
    return found


def _columns(connection: _Executes, sql: str) -> list[str]:
    return [column[0] for column in connection.execute(sql).description]


def _query_columns(connection: _Executes, query: str, body: str) -> list[str]:
    try:
        columns = _columns(connection, f"SELECT * FROM {body} LIMIT 0")
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if reason := unknown_collation(connection, query, error):
            raise ValueError(f"query= cannot be read: {reason}") from error
        if getattr(error, "sqlite_errorname", "SQLITE_ERROR") != "SQLITE_ERROR":
            raise
        way = what_it_lacks(error, "")
        raise ValueError(
            f"query= must be one SELECT without parameters; SQLite says: {error}{way and f'; {way}'}"
        ) from error
    # A sub-select renames the second "id" to "id:1"; only the query itself tells that from a column of that name.
    if any(":" in name for name in columns):
        given = _columns(connection, query)
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise ValueError(f"query= gives more than one column named {listed(twice)}; name them apart with AS")
    return columns
