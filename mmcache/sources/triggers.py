"""The triggers that log which keys of a table are written, as SQL; docs/tracking.md shows them.

Too many keys may be logged, never too few: where triggers could miss one, the table is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from ..schema import MAX_KEY_FIELDS
from .names import Origin, quoted, rowid_of

__all__ = ["PARTS", "PREFIX", "key_name", "part", "triggers_of"]

PREFIX: Final = "_mmcache_"

PARTS: Final = ("key", *(f"key{i}" for i in range(2, MAX_KEY_FIELDS + 1)))
"""Columns of the log for the values of a key; those that a key does not need hold NULL."""


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


def triggers_of(connection: _Executes, origin: Origin, key: tuple[str, ...]) -> dict[str, str]:
    """Trigger name -> the statement that makes it. key: columns, or none where any write may change every record.

    Raises ValueError where triggers could miss a key.
    """
    table = origin.name or ""
    insert = f'INSERT INTO "_mmcache_changes" ({", ".join(("mark", "tbl_name", "key_name", *PARTS[: len(key)]))})'
    values = f"random(), {_text(table)}, {_text(key_name(key))}"
    if key:
        made = _by_key(connection, origin, key, insert, values)
    else:
        events = ("insert", "delete", "update")
        body = f"{insert}\n    VALUES ({values});"
        made = {event: (f"AFTER {event.upper()} ON {quoted(table)}", body) for event in events}
    return {
        (called := _called(event, table, key)): f"CREATE TRIGGER {quoted(called)} {when} BEGIN\n  {body}\nEND"
        for event, (when, body) in made.items()
    }


def _by_key(
    connection: _Executes, origin: Origin, key: tuple[str, ...], insert: str, values: str
) -> dict[str, tuple[str, str]]:
    """Event -> when a trigger runs, and its body. insert, values: of the log's entry, without the key's columns."""
    name = quoted(origin.name or "")

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
    return made


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
    return f"{PREFIX}{event}_{part(table)}.{key_name(key)}"


def key_name(key: Sequence[str]) -> str:
    return ".".join(map(part, key))


def part(name: str) -> str:
    """Without dots, so that "a.b" and "c" are not named as "a" and "b.c"."""
    return name.replace("%", "%25").replace(".", "%2E")


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
