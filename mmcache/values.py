"""What a record holds in place of each value of Python: one rule, at every depth and for every source.

A file carries None, bool, int of 64 bits, float, str, bytes, lists, and maps of these; a plain value stays what it is.

- date, time, datetime: ISO text as `str()` and sqlite3's adapter write it, `2026-01-31 23:59:59.500000+01:00`, with
  0, 6 or 9 digits of a second. `fromisoformat` and SQLite's functions read it; in one zone its order is that of time.
  Where SQLite knows no such offset (seconds in it, or more than 14 hours) the same moment in UTC stands.
- timedelta, durations, intervals: ISO 8601 text, `P1DT2H3.5S`, `-PT1S`, `P1M-2DT0.5S`.
- Decimal: exact text. Where a source declares that there are no digits after the point: int, if it fits.
- UUID: text. Enum: its value. bytearray, memoryview of bytes: bytes. NaT, pandas.NA: None.
- numpy scalars and arrays: the numbers, nested lists of them, by this same rule; never through fewer digits.
- dataclass, sqlite3.Row, any mapping: a map of its fields. tuple, deque, range, array, any other sequence: a list.
- set: a sorted list; where its members do not compare, in the order of their types' names and then of their `repr`.
- Anything else is what `default=` makes of it, by this same rule.

A value that none of this represents exactly is refused by a ValueError that says why; the caller adds key and field.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import sys
import uuid
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence, Set as AbstractSet
from decimal import Decimal
from importlib import import_module
from itertools import chain
from operator import attrgetter
from types import MethodType
from typing import Any

import msgpack

__all__ = [
    "MAX_DEPTH",
    "NANOSECONDS",
    "PLAIN",
    "Default",
    "Unfit",
    "Unimported",
    "Values",
    "all_plain",
    "day_text",
    "decimal_text",
    "duration_text",
    "importable",
    "interval_text",
    "moment_text",
]

MAX_DEPTH = 100
"""Levels of lists and maps in a record, itself the first: what every reader can repr, pickle and compare. It bounds the
stack of whatever walks through one."""

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Types of which a value stands for itself."""

_PLAIN_OR_NESTED = PLAIN | {list, dict}
_CARRIED = frozenset({msgpack.Timestamp, msgpack.ExtType})
_MAX_DIGITS = 80
"""A Decimal has at most so many digits after the point without an exponent: more than any database declares."""
_MAX_OFFSET = dt.timedelta(hours=14)
_MINUTE = dt.timedelta(minutes=1)

Default = Callable[[Any], Any]
"""What makes of a value that the rule does not know one that it does."""


class Unfit:
    """In the place of a value that is of a kind that the rule knows, and has no text all the same."""

    def __init__(self, value: Any, what: str) -> None:
        self.value = value
        self.what = what


class Unimported:
    """Stands for a function that a file names, and that is not imported for that: it refuses what is given to it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: Any) -> Any:  # noqa: ARG002
        raise ValueError(
            f"the file was built with default={self.name!r}, and nothing that a file names is imported; "
            f"use `mmcache rebuild FILE --default {self.name}`, or rebuild it by a program that has the source"
        )


def importable(
    function: Callable[..., Any] | str | None, argument: str = "default"
) -> tuple[Callable[..., Any] | None, str | None]:
    """The function, and the name "module:function" under which any process can import it; None without such a name.

    function: a callable, or such a name, which is imported. argument: that it was given as. Raises ValueError for a
    name that leads to no function. For names that a program or a command line gave: none that stands in a file may
    come here.
    """
    if function is None:
        return None, None
    if isinstance(function, str):
        return _imported(function, argument), function
    if isinstance(function, Unimported):
        return function, function.name
    if not callable(function):
        raise TypeError(f"{argument}= takes a function or its name 'module:function', not {type(function).__name__}")
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__":
        return function, None
    try:
        found: Any = attrgetter(path or " ")(sys.modules[module])
    except (KeyError, AttributeError):
        return function, None
    is_it = found is function or (isinstance(found, MethodType) and found == function)  # of a class
    return function, f"{module}:{path}" if is_it else None


def _imported(name: str, argument: str) -> Callable[..., Any]:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"{argument}={name!r}: expected 'module:function'")
    try:
        found: Any = attrgetter(path)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}={name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{argument}={name!r} is a {type(found).__name__}, expected a function")  # noqa: TRY004
    return found  # type: ignore[no-any-return]


def all_plain(rows: Iterable[Iterable[Any]]) -> bool:
    """Whether `Values.row` would leave all values of these records as they are. Level by level, in C."""
    values = list(chain.from_iterable(rows))
    for _ in range(1, MAX_DEPTH):
        kinds = set(map(type, values))
        if kinds <= PLAIN:
            return True
        if not kinds <= _PLAIN_OR_NESTED:
            return False
        lists = [value for value in values if type(value) is list]
        maps = [value for value in values if type(value) is dict] if dict in kinds else []
        if not PLAIN.issuperset(map(type, chain.from_iterable(maps))):
            return False
        values = list(chain.from_iterable(chain(lists, map(dict.values, maps))))
    return not values


class Values:
    """The rule, with a `default` for what it does not know."""

    __slots__ = ("default",)

    def __init__(self, default: Default | None = None) -> None:
        self.default = default

    def row(self, names: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        """The values of a record with these `names`; the very same object where all are plain scalars.

        Raises ValueError that names the field.
        """
        if PLAIN.issuperset(map(type, values)):
            return values
        key, *others = values
        if type(names[0]) is tuple:
            key = tuple(self.row(names[0], key))
        elif type(key) is not tuple:  # which is no key, and refused as what it is
            key = self._field(names[0], key)
        return (key, *map(self._field, names[1:], others))

    def record(self, item: Any) -> Mapping[str, Any]:
        """A record as a mapping from field to value, which are not converted yet. Raises ValueError."""
        if isinstance(item, Mapping):
            return item
        found = dict(item._asdict()) if isinstance(item, tuple) and hasattr(item, "_asdict") else _fields_of(item)
        if found is None and self.default is not None and type(item) not in PLAIN:
            found = self._from_default(item)
        if not isinstance(found, Mapping):
            raise ValueError(  # noqa: TRY004 (of the data, not of the caller)
                f"a record must be a mapping, not {type(item).__name__} (dataclass, named tuple, sqlite3.Row pass, too)"
            )
        return found

    def __call__(self, value: Any) -> Any:
        """One value. Raises ValueError."""
        return self._plain(value, 2)

    def _field(self, name: str, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        try:
            return self._plain(value, 2)
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from error

    def _plain(self, value: Any, level: int) -> Any:
        """level: that of the value, if it is a list or a map."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is dict:
            is_plain = PLAIN.issuperset(map(type, value.values())) and PLAIN.issuperset(map(type, value))
            return value if is_plain and level <= MAX_DEPTH else self._map(value, level)
        if kind is list:
            is_plain = PLAIN.issuperset(map(type, value))
            return value if is_plain and level <= MAX_DEPTH else self._list(value, level)
        scalar = _SCALARS.get(kind)
        return self._unusual(value, level) if scalar is None else scalar(value)

    def _list(self, values: Iterable[Any], level: int) -> list[Any]:
        _check_depth(level)
        return [self._plain(value, level + 1) for value in values]

    def _map(self, value: Mapping[Any, Any], level: int) -> dict[Any, Any]:
        _check_depth(level)
        plain = {self._key(key, level): self._plain(item, level + 1) for key, item in value.items()}
        if len(plain) < len(value):
            raise ValueError("two keys of a map become one; give them names that differ")
        return plain

    def _key(self, key: Any, level: int) -> Any:
        plain = self._plain(key, level + 1)
        if type(plain) not in PLAIN:
            raise ValueError(f"a map has the key {key!r}; a key may be a str, bytes, number, bool or None")
        return plain

    def _unusual(self, value: Any, level: int) -> Any:
        """Subclasses, containers and what comes from numpy."""
        if type(value) in _CARRIED:
            return value
        if isinstance(value, enum.Enum):
            return self._plain(value.value, level)
        for kind, scalar in _BASES:
            if isinstance(value, kind):
                return scalar(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
            return self._from_numpy(numpy, value, level)
        if isinstance(value, AbstractSet):
            return _in_order(self._list(value, level))
        fields = value if isinstance(value, Mapping) else _fields_of(value)
        if fields is not None:
            return self._map(fields, level)
        if isinstance(value, (Sequence, array)):
            return self._list(value, level)
        if _is_pandas_na(value):
            return None
        if isinstance(value, Unfit):
            return self._otherwise(value.value, level, value.what)
        kind = type(value)
        return self._otherwise(
            value, level, f"a value of type {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
        )

    def _otherwise(self, value: Any, level: int, what: str) -> Any:
        if self.default is not None:
            if level > MAX_DEPTH:
                raise ValueError(f"a record cannot hold {what}, and default= gives nothing else for it")
            return self._plain(self._from_default(value), level + 1)
        raise ValueError(f"a record cannot hold {what}; convert it, or give the source default=, a function that does")

    def _from_default(self, value: Any) -> Any:
        assert self.default is not None
        if isinstance(self.default, Unimported):
            return self.default(value)
        try:
            return self.default(value)
        except Exception as error:
            raise ValueError(f"default= of a {type(value).__name__} raised {type(error).__name__}: {error}") from error

    def _from_numpy(self, numpy: Any, value: Any, level: int) -> Any:
        kind = value.dtype.kind
        if kind in "biuSUT" or (kind == "f" and value.dtype.itemsize <= 8):
            return self._plain(value.tolist(), level)
        if kind == "O":
            return self._plain(value.tolist(), level)
        if kind == "f":
            double = value.astype("f8")
            if numpy.array_equal(double, value, equal_nan=True):
                return self._plain(double.tolist(), level)
            return self._otherwise(value, level, f"a {value.dtype} that float64 cannot represent exactly")
        if kind in "mM" and value.ndim:
            return self._list(value, level)
        if kind in "mM":
            try:
                return _moment(numpy, numpy.asanyarray(value))
            except ValueError as error:
                return self._otherwise(value, level, str(error))
        if value.dtype.name == "bfloat16":
            return self._plain(value.astype("f4").tolist(), level)
        return self._otherwise(value, level, f"a numpy value of dtype {value.dtype}")


def _check_depth(level: int) -> None:
    """Before what is so deep is walked, so that what holds itself ends."""
    if level > MAX_DEPTH:
        raise ValueError(f"lists and maps nest more than {MAX_DEPTH} levels deep; store what is below as JSON text")


def _in_order(values: list[Any]) -> list[Any]:
    try:
        if all(value == value for value in values):  # noqa: PLR0124 (NaN has no place in an order)
            return sorted(values)
    except TypeError:
        pass
    return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def _fields_of(value: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(value, sqlite3.Row):
        names = value.keys()
        fields = dict(zip(names, value, strict=True))
        if len(fields) < len(names):
            raise ValueError("a row has two columns of one name; name them apart with AS")
        return fields
    return None


def _is_pandas_na(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "NAType" and kind.__module__.startswith("pandas.")


# --- scalars


def _datetime(value: dt.datetime) -> str | None:
    if value != value:  # noqa: PLR0124 (NaT of pandas)
        return None
    offset = value.utcoffset()
    if offset is not None and (offset % _MINUTE or abs(offset) > _MAX_OFFSET):
        try:
            value = value.astimezone(dt.UTC)
        except OverflowError:
            raise ValueError(f"the moment {value} has no date in UTC; store it as text") from None
    return value.isoformat(sep=" ")


def _time(value: dt.time) -> str:
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        raise ValueError(f"the time {value} has a zone whose offset depends on the date; store it as text")
    if offset is not None and (offset % _MINUTE or abs(offset) > _MAX_OFFSET):
        raise ValueError(f"the time {value} has an offset that SQLite does not know; store it as text")
    return value.isoformat()


def _timedelta(value: dt.timedelta) -> str | None:
    if value != value:  # noqa: PLR0124 (NaT of pandas)
        return None
    below = int(getattr(value, "nanoseconds", 0))  # of pandas
    return duration_text(((value.days * 86_400 + value.seconds) * 10**6 + value.microseconds) * 1000 + below)


def duration_text(nanoseconds: int) -> str:
    """ISO 8601, in days of 24 hours and what is below."""
    sign, (seconds, below) = "-" * (nanoseconds < 0), divmod(abs(nanoseconds), 10**9)
    days, seconds = divmod(seconds, 86_400)
    return f"{sign}P{f'{days}D' if days else ''}{_clock(seconds, below, '') if seconds or below or not days else ''}"


def interval_text(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601, each part with a sign of its own, as PostgreSQL writes intervals: months, days and nanoseconds do not
    turn into one another."""
    parts = f"{months}M" * (months != 0) + f"{days}D" * (days != 0)
    if nanoseconds or not parts:
        seconds, below = divmod(abs(nanoseconds), 10**9)
        parts += _clock(seconds, below, "-" * (nanoseconds < 0))
    return f"P{parts}"


def _clock(seconds: int, below: int, sign: str) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{below:09}".rstrip("0") if below else ""
    whole = f"{sign}{hours}H" * (hours > 0) + f"{sign}{minutes}M" * (minutes > 0)
    return "T" + whole + (f"{sign}{seconds}{fraction}S" if seconds or below or not whole else "")


def decimal_text(value: Decimal) -> str:
    """Exact, and of the same digits: without an exponent where there is none to tell."""
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and -_MAX_DIGITS <= exponent <= 0:
        return format(value, "f")
    return str(value)


def _buffer(value: memoryview) -> bytes:
    if value.format not in ("B", "c"):
        raise ValueError(f"a memoryview of format {value.format!r}; give its list of numbers, or cast it to bytes")
    return value.tobytes()


_SCALARS: dict[type, Callable[[Any], Any]] = {
    dt.datetime: _datetime,
    dt.date: dt.date.isoformat,
    dt.time: _time,
    dt.timedelta: _timedelta,
    Decimal: decimal_text,
    uuid.UUID: str,
    bytearray: bytes,
    memoryview: _buffer,
}

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),  # of an enum, str() would give its name
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    *_SCALARS.items(),
)


# --- numbers of a unit, since 1970: datetime64, timedelta64, and what Arrow has

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 (moments without a zone)
_EPOCH_DAY = _EPOCH.date()
NANOSECONDS = {
    "W": 604_800 * 10**9,
    "D": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}


def day_text(days: int) -> str:
    """The date so many days after that of 1970. Raises ValueError."""
    try:
        return (_EPOCH_DAY + dt.timedelta(days)).isoformat()
    except OverflowError:
        raise ValueError(f"{days} days from 1970-01-01 on, beyond the years 1 to 9999") from None


def moment_text(nanoseconds: int, zone: dt.tzinfo | None = None) -> str:
    """The moment so long after the beginning of 1970, in UTC where a zone is given. Raises ValueError."""
    seconds, below = divmod(nanoseconds, 10**9)
    micros, below = divmod(below, 1000)
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds, microseconds=micros)
        if zone is not None:
            moment = moment.replace(tzinfo=dt.UTC).astimezone(zone)
    except OverflowError:
        raise ValueError(f"{nanoseconds} ns from 1970 on, beyond the years 1 to 9999") from None
    text = _datetime(moment)
    assert text is not None
    if not below:
        return text
    if not micros:
        text = f"{text[:19]}.000000{text[19:]}"
    return f"{text[:26]}{below:03}{text[26:]}"


def _moment(numpy: Any, array: Any) -> str | None:
    """One datetime64 or timedelta64 as text, NaT as None."""
    if numpy.ma.is_masked(array) or numpy.isnat(array):
        return None
    unit, count = numpy.datetime_data(array.dtype)
    number = int(array.astype("i8")) * count
    if array.dtype.kind == "M" and unit in ("Y", "M", "W", "D"):
        return day_text(int(array.astype("M8[D]").astype("i8")))
    if unit in ("Y", "M"):
        return interval_text(number * (12 if unit == "Y" else 1), 0, 0)
    if unit not in NANOSECONDS:
        raise ValueError(f"a {array.dtype}, with more digits than nanoseconds")
    nanoseconds = number * NANOSECONDS[unit]
    return moment_text(nanoseconds) if array.dtype.kind == "M" else duration_text(nanoseconds)
