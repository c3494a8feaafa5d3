"""The rule for values over what a source of one's own gives.

A builder and the source tier take a source's rows through `plain_rows`, so that both see the same values. The sources
of this package keep to the rule by themselves, some with a `default`, and their rows pass untouched; each says so by
`_gives_plain` in its own class, which a subclass does not inherit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ..schema import Schema
from ..values import Values, all_plain
from .base import Invalid, Row, Source, SourceRecord, refused
from .vectors import Vector, vector_bytes

__all__ = ["plain_rows"]

_RUN = 256
"""Rows that are looked at together, in C."""

_VALUES = Values()
_VECTORS = {bytes, type(None)}


def plain_rows(source: Source, schema: Schema, rows: Iterable[Any]) -> Iterator[Any]:
    """The rows of a collection, as `Source.fetch` or `Reading.records` gives them, with the values that a record holds
    in place of theirs.

    A row with a value that has none is given as `refused`: raises BuildError, where the schema has it so.
    """
    return iter(rows) if vars(type(source)).get("_gives_plain") else _converted(schema, rows)


def _converted(schema: Schema, rows: Iterable[Any]) -> Iterator[Any]:
    remaining = iter(rows)
    while run := list(islice(remaining, _RUN)):
        yield from run if _are_plain(run) else [_plain(schema, row) for row in run]


def _are_plain(run: list[Any]) -> bool:
    if set(map(type, run)) != {SourceRecord}:
        return False
    return _VECTORS.issuperset(type(row.vector) for row in run) and all_plain(row.values for row in run)


def _plain(schema: Schema, row: Row | None) -> Row | None:
    if row is None or isinstance(row, Invalid):
        return row
    names, values, vector = row
    try:
        if len(names) == len(values):  # else the builder says so
            values = _VALUES.row(names, values)
        return SourceRecord(names, values, _vector(schema, vector))
    except ValueError as error:
        return refused(schema, values[0], str(error), row, cause=error)


def _vector(schema: Schema, vector: Any) -> Vector:
    """Embeddings that are arrays or lists in place of bytes, too."""
    fields = schema.embeddings
    if len(fields) < 2:
        return vector if type(vector) in _VECTORS or not fields else _bytes_of(schema, fields[0], vector)
    return vector and tuple(
        one if type(one) in _VECTORS else _bytes_of(schema, field, one)
        for field, one in zip(fields, vector, strict=True)
    )


def _bytes_of(schema: Schema, field: str, vector: Any) -> bytes | None:
    return vector_bytes(vector, dim=schema.dim_of(field), dtype=None)
