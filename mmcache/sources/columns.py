"""A column of Arrow as values of Python that follow the rule of `values`, at every depth by the type that it declares.

By the type, as `to_pylist` alone loses what it says: that a decimal has no digits after the point, nanoseconds, the
unit of a duration. A value that has no text, such as a date beyond the year 9999, is `Unfit`: its
scalar of Arrow goes to `default=`, or it is refused by key and field. Needs the extra `arrow`.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

import pyarrow as pa
from pyarrow import compute

from ..values import NANOSECONDS, Unfit, day_text, decimal_text, duration_text, interval_text, moment_text

__all__ = ["values_of"]

_DAY_NANOSECONDS = NANOSECONDS["D"]


def values_of(column: pa.Array) -> list[Any]:
    """One for each row. Raises ValueError or ArrowException for a column that cannot be read."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return column.to_pylist() if isinstance(kind, pa.UuidType) else values_of(column.storage)
    if pa.types.is_dictionary(kind):
        words = values_of(column.dictionary)
        return [None if i is None else words[i] for i in column.indices.to_pylist()]
    if pa.types.is_run_end_encoded(kind) and not _is_plain(kind.value_type):
        return values_of(compute.run_end_decode(column))
    scalar = _scalar(kind)
    if scalar is not None:
        return _each(column, scalar)
    if pa.types.is_nested(kind) and not _is_plain(kind):
        if pa.types.is_struct(kind):
            return _structs(column)
        if pa.types.is_map(kind):
            return _maps(column)
        if not pa.types.is_union(kind):
            return _lists(column)
    return column.to_pylist()  # type: ignore[no-any-return]


def _is_plain(kind: pa.DataType) -> bool:
    """Whether what `to_pylist` gives is right for whatever is in it."""
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_nested(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    return _scalar(kind) is None and not pa.types.is_dictionary(kind) and not pa.types.is_run_end_encoded(kind)


def _scalar(kind: pa.DataType) -> tuple[pa.DataType | None, Callable[[Any], Any]] | None:
    """How to take a value that is no plain one: as which other type, or None for its own, and by which function."""
    if pa.types.is_decimal(kind):
        return None, _whole if kind.scale <= 0 else decimal_text
    if pa.types.is_date32(kind):
        return pa.int32(), day_text
    if pa.types.is_date64(kind):
        return pa.int64(), _day
    if pa.types.is_interval(kind):
        return None, lambda value: interval_text(*value)
    if not pa.types.is_temporal(kind):
        return None
    number = pa.int32() if pa.types.is_time32(kind) else pa.int64()
    unit = NANOSECONDS[kind.unit]
    if pa.types.is_time(kind):
        return number, lambda value: _time(value * unit)
    if pa.types.is_duration(kind):
        return number, lambda value: duration_text(value * unit)
    zone = None if kind.tz is None else _zone(kind.tz)
    return number, lambda value: moment_text(value * unit, zone)


def _each(column: pa.Array, scalar: tuple[pa.DataType | None, Callable[[Any], Any]]) -> list[Any]:
    number, function = scalar
    values = (column if number is None else column.cast(number)).to_pylist()
    found = []
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else function(value))
        except ValueError as error:
            found.append(Unfit(column[row], str(error)))
    return found


def _whole(value: Any) -> int | str:
    whole = int(value)
    return whole if -(2**63) <= whole < 2**64 else str(whole)


def _day(milliseconds: int) -> str:
    days, rest = divmod(milliseconds, 86_400_000)
    if rest:
        raise ValueError(f"a date with a time of day, {milliseconds} ms from 1970-01-01 on")
    return day_text(days)


def _time(nanoseconds: int) -> str:
    if not 0 <= nanoseconds < _DAY_NANOSECONDS:
        raise ValueError(f"a time of day at {nanoseconds} ns")
    return moment_text(nanoseconds)[11:]


def _zone(name: str) -> tzinfo:
    """Arrow has names of the time-zone database, and offsets."""
    if name in ("UTC", "Z"):
        return UTC
    if name[0] in "+-":
        hours, minutes = name[1:3], name[3:].lstrip(":") or "0"
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(offset if name[0] == "+" else -offset)
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"the time zone {name!r} is not known here: {error}") from error


def _structs(column: pa.StructArray) -> list[Any]:
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    if len(set(names)) < len(names):
        raise ValueError("a struct has two fields of one name")
    columns = [values_of(child) for child in column.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(column)
    valid = column.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if there else None for there, row in zip(valid, rows, strict=True)]


def _maps(column: pa.MapArray) -> list[Any]:
    """Lists of [key, value]: Arrow's maps may have a key twice."""
    offsets = column.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    keys = values_of(column.keys.slice(first, last - first))
    items = values_of(column.items.slice(first, last - first))
    pairs = [[key, item] for key, item in zip(keys, items, strict=True)]
    return [
        pairs[begin - first : end - first] if there else None
        for there, begin, end in zip(column.is_valid().to_pylist(), offsets, offsets[1:], strict=False)
    ]


def _lists(column: pa.Array) -> list[Any]:
    flat = values_of(column.flatten())  # without those of rows that are null
    found: list[Any] = []
    begin = 0
    for length in compute.list_value_length(column).to_pylist():
        end = begin + (length or 0)
        found.append(None if length is None else flat[begin:end])
        begin = end
    return found
