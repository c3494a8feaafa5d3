"""Rows of SQLite where some text is not UTF-8, and the schema lets such rows be left out.

sqlite3 raises at such a row, and its statement cannot go on. So it is run again, from the row on at which it ended,
with text that carries the odd bytes as lone surrogates: these are no text that a record may hold, and the row is
refused by itself. Until then, text is decoded in C.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from .connections import Connection
from .statements import Plan

__all__ = ["tolerant"]


def tolerant(connection: Connection, plan: Plan, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
    """The rows of a statement. Within a transaction, or other rows might come the second time."""
    rows = connection.execute(sql, parameters)
    return rows if plan.schema.on_invalid == "raise" else _skipping(connection, rows, sql, parameters)


def _skipping(connection: Connection, rows: Iterator[Any], sql: str, parameters: Sequence[Any]) -> Iterator[Any]:
    given = 0
    try:
        for row in rows:
            yield row
            given += 1
    except sqlite3.OperationalError as error:
        if "Could not decode" not in str(error):
            raise
    else:
        return
    connection.raw.text_factory = _with_surrogates  # until the connection is given back
    yield from islice(connection.execute(sql, parameters), given, None)


def _with_surrogates(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
