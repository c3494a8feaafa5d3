"""The tables of a SQLite database that hold records, as `build`, `init` and `track` look for them.

Left out are SQLite's own, those of `mmcache track`, virtual tables, and the shadow tables in which these keep their
data (FTS5, rtree, vec0).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..sources.connections import Connection, Connections
from .options import UsageError

__all__ = ["Table", "connected", "only_table", "spelled", "tables_of"]


class Table(NamedTuple):
    """kind: "table", "view", "virtual" or "shadow"."""

    name: str
    kind: str

    @property
    def has_records(self) -> bool:
        return self.kind in ("table", "view")


@contextmanager
def connected(path: str) -> Iterator[Connection]:
    """A connection that reads. Raises SourceError, also for what SQLite raises within."""
    connections = Connections(os.path.abspath(path), timeout=5.0)
    try:
        with connections.take() as connection:
            yield connection
    except sqlite3.Error as error:
        raise connections.error(error) from None
    finally:
        connections.close()


def tables_of(connection: Connection) -> list[Table]:
    """By name. Raises sqlite3.Error."""
    try:
        rows = connection.execute(
            "SELECT name, type FROM pragma_table_list WHERE schema = 'main' ORDER BY 1"
        ).fetchall()
    except sqlite3.OperationalError:  # before SQLite 3.37
        rows = _from_master(connection)
    return [Table(name, kind) for name, kind in rows if not name.startswith(("sqlite_", "_mmcache_"))]


def _from_master(connection: Connection) -> list[tuple[str, str]]:
    sql = "SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1"
    found = connection.execute(sql).fetchall()
    virtual = tuple(f"{name}_" for name, _, made in found if made.upper().startswith("CREATE VIRTUAL"))
    return [
        (name, "virtual" if f"{name}_" in virtual else "shadow" if name.startswith(virtual) else kind)
        for name, kind, _ in found
    ]


def only_table(path: str, kinds: tuple[str, ...] = ("table", "view")) -> str:
    """The one that a database has. Raises UsageError naming those that there are, or SourceError."""
    with connected(path) as connection:
        found = [table.name for table in tables_of(connection) if table.kind in kinds]
    if len(found) != 1:
        raise UsageError(f"say which table, with --table; {path} has: {', '.join(found) or 'none'}")
    return found[0]


def spelled(path: str, table: str) -> str | None:
    """The table as the database writes it; None if it has none such. Raises SourceError."""
    from ..sources.names import find_table

    with connected(path) as connection:
        try:
            return find_table(connection, table)[0]
        except ValueError:
            return None
