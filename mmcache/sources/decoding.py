"""Rows of SQLite as source records: JSON text decoded, embeddings as float32, keys checked.

A build from SQLite spends its time here. Values need no rule but that: SQLite has none that a record cannot hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

from .base import Invalid, SourceRecord, refused
from .rowkeys import SCALARS, Shape, bad_key, is_key
from .vectors import Decoders, Vector, any_doubtful, is_doubtful

__all__ = ["source_records"]

_RUN = 256
"""Rows that are taken together: enough to be quick, few enough that they stay in the CPU's cache."""
_FIRST_RUN = 16

_TOGETHER = 8
_TEXT_OR_NULL = {str, type(None)}


def source_records(plan: Shape, rows: Iterable[tuple[Any, ...]], decode: Decoders) -> Iterator[SourceRecord | Invalid]:
    """The rows of a statement, `keyed`, decoded and checked; a bad row as `refused`. sqlite3's own errors pass.

    Where all rows of a run are as most are, they are made records together.
    """
    for run in _runs(rows):
        together = {at: _decoded_together([row[at] for row in run]) for at in plan.decode}
        yield from _alike(plan, run, decode, together) or _one_by_one(plan, run, decode, together)


def _runs(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """All rows, some at a time; few at first, so that a lookup waits for few."""
    remaining, size = iter(rows), _FIRST_RUN
    while run := list(islice(remaining, size)):
        yield run
        size = min(2 * size, _RUN)


def _alike(
    plan: Shape, run: list[tuple[Any, ...]], decode: Decoders, together: Mapping[int, list[Any] | None]
) -> Iterator[SourceRecord] | None:
    """The records of these rows, made column by column in C; None where some row must be looked at by itself.

    together: what the texts at these positions say.
    """
    columns: list[Sequence[Any]] = list(zip(*run, strict=True))
    width = len(plan.names)
    vectors: Iterable[Vector] = repeat(None)
    if not SCALARS.issuperset(map(type, columns[0])) and not all(map(is_key, columns[0])):
        return None
    if len(columns) > width:
        vectors = columns[-1]
        if set(map(type, vectors)) != {bytes} or set(map(len, vectors)) != {decode.size} or any_doubtful(vectors):
            return None
    for position, column in together.items():
        if column is None:
            return None
        columns[position] = column
    values: Iterable[Sequence[Any]] = run if len(columns) == width else zip(*columns[:width], strict=True)
    if together:  # as of rows that are looked at one by one
        values = map(list, zip(*columns[:width], strict=True))
    # `tuple.__new__` skips the Python-level constructor of the NamedTuple.
    new: Any = tuple.__new__
    return map(new, repeat(SourceRecord), zip(repeat(plan.names), values, vectors))


def _one_by_one(
    plan: Shape,
    run: list[tuple[Any, ...]],
    decode: Decoders,
    together: Mapping[int, list[Any] | None],
) -> Iterator[SourceRecord | Invalid]:
    new, record, names, schema = tuple.__new__, SourceRecord, plan.names, plan.schema
    width = len(names)
    size = decode.size
    vector: Vector = None
    for i, row in enumerate(run):
        key = row[0]
        if type(key) not in SCALARS and not is_key(key):
            yield bad_key(schema, key)
            continue
        values: Any = list(row[:width]) if together else row[:width]
        position = -1
        try:
            if len(row) > width:
                vector = row[-1]
                if type(vector) is not bytes or len(vector) != size or is_doubtful(vector):
                    vector = decode(row[width:])
                    size = decode.size
            for position, column in together.items():
                values[position] = _decoded(values[position]) if column is None else column[i]
        except (ValueError, RecursionError) as error:
            reason = str(error) if position < 0 else f"column {names[position]!r} is not JSON text: {error}"
            raw = SourceRecord(names, row[:width], None)
            yield refused(schema, key, reason, raw, cause=error)
            continue
        yield new(record, (names, values, vector))


def _decoded_together(texts: Sequence[Any]) -> list[Any] | None:
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
