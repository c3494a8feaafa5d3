"""When a record ends, by the value of the field that `Schema.expires` names.

A number is seconds since 1970. Text is a date, or a date and a time, of ISO 8601 in UTC, with a blank or a "T" between
them: what `datetime('now')` of SQLite and `isoformat()` of Python give. Within each of these spellings the order of
texts is that of time, so that the order of an index finds what has ended. Null is never.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ..query import place_of
from ..schema import Schema
from ..sources.base import SourceRecord

__all__ = ["Ends", "end_of", "has_ended", "is_over"]

_TEXT: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?(?:Z|[+-]00:00)?)?)?",
    re.ASCII,
)

_LATEST: Final = 1e11
"""The year 5138. A greater number is one of milliseconds since 1973, and no second that a record would end in."""


def end_of(value: Any) -> float:
    """Seconds since 1970; infinite for never. Raises ValueError for what is no such time."""
    kind = type(value)
    if value is None:
        return math.inf
    if kind is int or kind is float:
        if -_LATEST <= value <= _LATEST:
            return float(value)
        if value == math.inf:
            return math.inf
    elif kind is str and _TEXT.fullmatch(value):
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
        except ValueError:
            pass
    raise ValueError(
        f"{value!r:.100} is no time at which a record expires: expected seconds since 1970 (not milliseconds), "
        "ISO 8601 in UTC as text ('2027-01-31 12:00:00'), or null for never"
    )


def has_ended(value: Any, now: float) -> bool:
    """Whether a record with this value has. What is no time never comes."""
    try:
        return end_of(value) <= now
    except ValueError:
        return False


def is_over(record: SourceRecord, schema: Schema, now: float) -> bool:
    """The same of a source's record, by the field of a schema with `expires`."""
    place = place_of(schema.expires or "", record.names)
    return place is not None and has_ended(record.values[place[0]], now)


class Ends:
    """When the records of a source end. Raises ValueError for a value that is no time."""

    def __init__(self, schema: Schema) -> None:
        """Of a schema with `expires`."""
        assert schema.expires is not None
        self._field = schema.expires
        self._names: Sequence[Any] | None = None
        self._at: int | None = None

    def of(self, record: SourceRecord) -> float:
        """As of `end_of`."""
        names, values, _ = record
        if names is not self._names:
            place = place_of(self._field, names)
            self._names, self._at = names, None if place is None else place[0]
        return math.inf if self._at is None else end_of(values[self._at])
