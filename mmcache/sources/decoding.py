"""Rows of SQLite as source records: JSON text decoded, embeddings as float32, keys checked.

A build from SQLite spends its time here. Values need no rule but that: SQLite has none that a record cannot hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from .base import Invalid, SourceRecord, refused
from .rowkeys import SCALARS, Shape, bad_key, is_key
from .vectors import Decoders, Vector

__all__ = ["source_records"]

_RUN = 512
"""Rows whose JSON is decoded together: enough to be quick, few enough that a lookup does not wait for many."""

_TOGETHER = 8
_TEXT_OR_NULL = {str, type(None)}


def source_records(plan: Shape, rows: Iterable[tuple[Any, ...]], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
    """The rows of a statement, `keyed`, decoded and checked; a bad row as `refused`. sqlite3's own errors pass.

    A row is handed on as a slice of the tuple that sqlite3 made; `tuple.__new__` skips
    the Python-level constructor of the NamedTuple.
    """
    if plan.decode:
        return _decoded_rows(plan, rows, decode)
    if not plan.schema.embeddings:
        return _bare_rows(plan, rows)
    return _vector_rows(plan, rows, decode)


def _bare_rows(plan: Shape, rows: Iterable[tuple[Any, ...]]) -> Iterator[SourceRecord | Invalid]:
    new, record, names, scalars = tuple.__new__, SourceRecord, plan.names, SCALARS
    for row in rows:
        if type(row[0]) not in scalars and not is_key(row[0]):
            yield bad_key(plan.schema, row[0])
            continue
        yield new(record, (names, row, None))


def _vector_rows(plan: Shape, rows: Iterable[tuple[Any, ...]], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
    new, record, names, schema = tuple.__new__, SourceRecord, plan.names, plan.schema
    width = len(names)
    size = decode.size
    vector: Vector
    for row in rows:
        key, vector = row[0], row[-1]
        if type(key) not in SCALARS and not is_key(key):
            yield bad_key(schema, key)
            continue
        if type(vector) is not bytes or len(vector) != size:
            try:
                vector = decode(row[width:])
            except ValueError as error:
                raw = SourceRecord(names, row[:width], None)
                yield refused(schema, key, str(error), raw, cause=error)
                continue
            size = decode.size
        yield new(record, (names, row[:width], vector))


def _decoded_rows(plan: Shape, rows: Iterable[tuple[Any, ...]], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
    new, record, names, schema = tuple.__new__, SourceRecord, plan.names, plan.schema
    width = len(names)
    size = decode.size
    vector: Vector = None
    remaining = iter(rows)
    while run := list(islice(remaining, _RUN)):
        columns = [(position, _decoded_together([row[position] for row in run])) for position in plan.decode]
        for i, row in enumerate(run):
            key = row[0]
            if type(key) not in SCALARS and not is_key(key):
                yield bad_key(schema, key)
                continue
            values = list(row[:width])
            position = -1
            try:
                if len(row) > width:
                    vector = row[-1]
                    if type(vector) is not bytes or len(vector) != size:
                        vector = decode(row[width:])
                        size = decode.size
                for position, column in columns:
                    values[position] = _decoded(values[position]) if column is None else column[i]
            except (ValueError, RecursionError) as error:
                reason = str(error) if position < 0 else f"column {names[position]!r} is not JSON text: {error}"
                raw = SourceRecord(names, row[:width], None)
                yield refused(schema, key, reason, raw, cause=error)
                continue
            yield new(record, (names, values, vector))


def _decoded_together(texts: list[Any]) -> list[Any] | None:
    """What many JSON texts say, read as one array, in half the time; None if they must be looked at one by one.

    Between any two stands a string that no text can contain, so what is not JSON by itself shows: it swallows that
    string, or is an error, or shifts it from its place.
    """
    if len(texts) < _TOGETHER or not _TEXT_OR_NULL.issuperset(map(type, texts)):
        return None
    mark = os.urandom(16).hex()
    joined = f',"{mark}",'.join(["null" if text is None else text for text in texts])
    try:
        items = json.loads(f"[{joined}]")
    except (ValueError, RecursionError):
        return None
    if len(items) != 2 * len(texts) - 1 or items[1::2] != [mark] * (len(texts) - 1):
        return None
    return items[::2]  # type: ignore[no-any-return]


def _decoded(value: Any) -> Any:
    """What the JSON text says; a number stands for itself, as a column of type JSON turns numeric text into numbers."""
    if type(value) is str:
        # Faster than json.loads, which also skips leading blanks, minds what follows and says well what is wrong.
        try:
            found, end = _scan(value)
        except ValueError:
            found, end = None, -1
        return found if end == len(value) else json.loads(value)
    if type(value) is bytes:
        raise ValueError(f"a BLOB of {len(value)} bytes")
    return value


_scan = json.JSONDecoder().raw_decode
