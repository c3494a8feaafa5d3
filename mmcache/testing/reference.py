"""What one read of a collection gives, and what its lookups must give for that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgpack

from ..format.keys import Key, is_key
from ..query import Query
from ..schema import Schema
from ..sources.base import Invalid, Reading, Source, SourceRecord, flat
from ..sources.mappings import Keyed
from ..sources.plain import plain_rows

__all__ = ["Reference", "fields_of", "form", "is_record"]


class Reference(NamedTuple):
    """rows: as they were given. keyed: to look them up; None where some are no rows. count: as it was told."""

    schema: Schema
    rows: Sequence[Any]
    keyed: Keyed | None
    count: Any

    @classmethod
    def of(cls, source: Source, schema: Schema, reading: Reading) -> Reference:
        count = reading.count(schema.name)
        rows = _plain(source, schema, reading.records(schema.name))
        is_sound = all(isinstance(row, Invalid) or (is_record(row) and is_key(row.values[0])) for row in rows)
        return cls(schema, rows, Keyed(schema, rows) if is_sound else None, count)

    def plain(self, source: Source, rows: Iterable[Any]) -> list[Any]:
        """The rows of an answer, with the values that a record holds in place of theirs."""
        return _plain(source, self.schema, rows)

    @property
    def keys(self) -> list[Key]:
        """In the order of the records."""
        found = (row.key if isinstance(row, Invalid) else row.values[0] for row in self.rows)
        assert self.keyed is not None
        return self.keyed.in_order([key for key in found if key is not None])

    @property
    def by_key(self) -> dict[Key, SourceRecord | Invalid]:
        keys = self.keys
        assert self.keyed is not None
        return {key: row for key, row in zip(keys, self.keyed.fetch(keys), strict=True) if row is not None}

    @property
    def records(self) -> list[SourceRecord]:
        """Those that a query can find."""
        return self.found({})

    def found(self, query: Query) -> list[SourceRecord]:
        """The records that answer it, in order."""
        assert self.keyed is not None
        return list(self.keyed.find(query))

    @property
    def forms(self) -> list[str]:
        """The rows, in a form in which 1 and True differ."""
        return list(map(form, self.rows))


def _plain(source: Source, schema: Schema, rows: Iterable[Any]) -> list[Any]:
    found = list(rows)
    if all(row is None or isinstance(row, Invalid) or is_record(row) for row in found):
        return list(plain_rows(source, schema, found))
    return found


def is_record(row: Any) -> bool:
    """Whether it has the form of one."""
    return isinstance(row, SourceRecord) and 0 < len(row.names) == len(row.values)


def fields_of(record: SourceRecord) -> dict[str, Any]:
    """All fields by name, those of the key one by one."""
    key, *others = record.values
    parts = key if isinstance(record.names[0], tuple) else (key,)
    return dict(zip(flat(record.names), (*parts, *others), strict=True))


def form(row: Any) -> str:
    """What two answers have in common if they are the same record: fields by name, types included, and embeddings."""
    if isinstance(row, Invalid):
        return f"invalid {row.raw_key!r}"
    if not is_record(row):
        return repr(row)
    fields = {name: _packed(value) for name, value in fields_of(row).items()}
    return repr((row.names[0], sorted(fields.items()), row.vector))


def _packed(value: Any) -> Any:
    try:
        return msgpack.packb(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
