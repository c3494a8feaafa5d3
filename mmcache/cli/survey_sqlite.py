"""The tables and views of a SQLite database, as `survey` needs them: key, indexes, a sample. Nothing is written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..schema import Schema
from ..sources.connections import Connection
from ..sources.listing import tables_of, virtual_tables
from ..sources.names import NoKeyError, Origin, keys_of_view, origin_of, quoted, resolved
from .survey import SAMPLE, Survey, is_unique
from .tables import connected

__all__ = ["survey_database"]

_SECONDS: Final = 1.0
"""What counting the rows of a table, or taking its sample, may take."""

_STEPS: Final = 10_000
"""Instructions of SQLite's between two looks at the clock."""


def survey_database(path: str) -> tuple[list[Survey], list[str]]:
    """Of each table and view; and what was left out, with the reason. Raises SourceError."""
    with connected(path) as connection:
        there = tables_of(connection)
        found = [_survey(connection, name) for name in there]
        left_out = [
            f"{name}, a virtual table, and the tables that it keeps its data in"
            for name in virtual_tables(connection)
            if name not in there
        ]
    return found, left_out


def _survey(connection: Connection, name: str) -> Survey:
    schema = Schema("table", table=name)
    try:
        origin = origin_of(connection, schema)
        rows = _sample(connection, origin)
    except (ValueError, sqlite3.Error) as error:
        return Survey(name, [], None, None, f"it cannot be read: {error}")
    count = _count(connection, origin)
    key, reason = _key(connection, schema, origin)
    is_view = origin.kind == "view"
    if is_view and key is not None and not is_unique([[row.get(field) for field in key] for row in rows]):
        reason, key = f"{', '.join(key)} stands twice, or is null", None
    return Survey(name, rows, count, key, reason, dict(_indexed(connection, name)), is_view=is_view)


def _key(connection: Connection, schema: Schema, origin: Origin) -> tuple[tuple[str, ...] | None, str]:
    try:
        key = resolved(connection, schema, origin).key_fields
    except NoKeyError:
        return None, f"a view has no key of its own; {keys_of_view(connection, origin)}"
    except ValueError as error:
        return None, str(error)
    if origin.primary:
        return key, "its primary key"
    if origin.kind == "view":
        return key, "it has a column of this name"
    return key, "it has no primary key, so its rowid, which VACUUM may change"


def _sample(connection: Connection, origin: Origin) -> list[dict[str, Any]]:
    connection.raw.text_factory = lambda data: data.decode("utf-8", "replace")
    rows: list[dict[str, Any]] = []
    with _in_time(connection):
        for row in connection.execute(f"SELECT * FROM {origin.body} LIMIT {SAMPLE}"):  # noqa: S608 (quoted)
            rows.append(dict(zip(origin.columns, row, strict=True)))  # noqa: PERF401 (what came in time is kept)
    return rows


def _count(connection: Connection, origin: Origin) -> int | None:
    found: int | None = None
    with _in_time(connection):
        (found,) = connection.execute(f"SELECT count(*) FROM {origin.body}").fetchone()  # noqa: S608 (quoted)
    return found


@contextmanager
def _in_time(connection: Connection) -> Iterator[None]:
    """Ends what takes too long, without an error."""
    end = time.monotonic() + _SECONDS
    connection.raw.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
            raise
    finally:
        connection.raw.set_progress_handler(None, 0)


def _indexed(connection: Connection, table: str) -> Iterator[tuple[str, str]]:
    """Columns that an index begins with, those of the primary key apart."""
    for name, origin in connection.execute("SELECT name, origin FROM pragma_index_list(?)", (table,)).fetchall():
        first = connection.execute("SELECT name FROM pragma_index_info(?) ORDER BY seqno LIMIT 1", (name,)).fetchone()
        if origin != "pk" and first is not None and first[0] is not None:
            yield first[0], "of a UNIQUE column" if origin == "u" else quoted(name).strip('"')
