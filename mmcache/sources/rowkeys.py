"""Keys in the rows of SQLite: which rows have one, and which keys a row can have.

A key's columns stand first in a row. They hold text, an integer or a BLOB each; NULL and REAL are no keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from ..format.keys import Key
from ..schema import Schema
from .base import Invalid, refused
from .conditions import storable

__all__ = ["SCALARS", "Shape", "bad_key", "is_key", "key_of", "keyed", "lookable", "of_keys"]

SCALARS = frozenset({str, int, bytes})
"""What SQLite's text, integers and BLOBs are in Python: the types of a key, or of its parts."""


class Shape(Protocol):
    """What is known of the rows of a collection. schema: resolved. names: as in a `SourceRecord`. width: columns of the
    key, which stand first in a row. decode: positions in `names` of columns of JSON text."""

    @property
    def schema(self) -> Schema: ...
    @property
    def names(self) -> tuple[Any, ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def decode(self) -> tuple[int, ...]: ...


def lookable(ids: Iterable[Key], width: int) -> list[Key]:
    """Those that a record of SQLite can have for its key of so many columns, each once."""
    if width == 1:
        return [key for key in dict.fromkeys(ids) if _is_lookable(key)]
    keys = (key for key in dict.fromkeys(ids) if isinstance(key, tuple) and len(key) == width)
    return [key for key in keys if all(map(_is_lookable, key))]


def _is_lookable(part: object) -> bool:
    kind = type(part)
    if kind is int:
        return -(2**63) <= part < 2**63  # type: ignore[operator]
    return kind is bytes or (isinstance(part, str) and storable(part))


def key_of(row: tuple[Any, ...], width: int) -> Any:
    return row[0] if width == 1 else row[:width]


def is_key(key: object) -> bool:
    return type(key) in SCALARS or (type(key) is tuple and SCALARS.issuperset(map(type, key)))


def keyed(plan: Shape, rows: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """The rows with their key in one place."""
    width = plan.width
    return rows if width == 1 else ((row[:width], *row[width:]) for row in rows)


def of_keys(
    plan: Shape, rows: Iterable[tuple[Any, ...]], wanted: frozenset[Key] | None = None
) -> Iterator[tuple[Any, ...]]:
    """`keyed`, and only those that have a key; one of these very keys, and not only by an affinity or collation."""
    return (row for row in keyed(plan, rows) if is_key(row[0]) and (wanted is None or row[0] in wanted))


def bad_key(schema: Schema, key: Any) -> Invalid:
    """Raises BuildError where the schema does not let the row be left out."""
    values = key if type(key) is tuple else (key,)
    field, value = next(pair for pair in zip(schema.key_fields, values, strict=True) if type(pair[1]) not in SCALARS)
    found = "NULL" if value is None else f"the real number {value!r}" if type(value) is float else f"{value!r:.80}"
    reason = (
        f"the key {field!r} is {found}; a key is text, an integer or a BLOB: mend the row, "
        "or leave such rows out by on_invalid='skip' (--on-invalid skip) or by a query="
    )
    return refused(schema, key, reason)
