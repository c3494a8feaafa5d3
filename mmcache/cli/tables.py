"""The tables of a SQLite database, as `build`, `init` and `track` look for them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..sources.connections import Connection, Connections
from ..sources.listing import tables_of
from .options import UsageError

if TYPE_CHECKING:
    from ..sources.opening import Connect

__all__ = ["connected", "only_table", "spelled"]


@contextmanager
def connected(path: str, connect: Connect | None = None) -> Iterator[Connection]:
    """A connection that reads. Raises SourceError, also for what SQLite raises within."""
    connections = Connections(os.path.abspath(path), timeout=5.0, connect=connect)
    try:
        with connections.take() as connection:
            yield connection
    except sqlite3.Error as error:
        raise connections.error(error) from None
    finally:
        connections.close()


def only_table(path: str, *, views: bool = True, connect: Connect | None = None) -> str:
    """The one that a database has. Raises UsageError naming those that there are, or SourceError."""
    with connected(path, connect) as connection:
        found = tables_of(connection, views=views)
    if len(found) != 1:
        raise UsageError(f"say which table, with --table; {path} has: {', '.join(found) or 'none'}")
    return found[0]


def spelled(path: str, table: str, connect: Connect | None = None) -> str | None:
    """The table as the database writes it; None if it has none such. Raises SourceError."""
    from ..sources.names import find_table

    with connected(path, connect) as connection:
        try:
            return find_table(connection, table)[0]
        except ValueError:
            return None
