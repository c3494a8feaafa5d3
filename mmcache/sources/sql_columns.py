"""What the columns of a database hold: how each is selected, what of it is a plain value, and what it can equal.

A column has a *kind*. By it a key, or a term of a query, is turned into what the database compares with, or found to be
none that the column can hold; PostgreSQL would refuse to compare the others.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, NamedTuple

from .conditions import storable
from .vectors import vector_bytes

__all__ = [
    "ABSENT",
    "ArrayDecoder",
    "Kind",
    "SQLColumn",
    "bindable",
    "bounds",
    "moments",
    "moments_of_arrays",
    "vectors_of_arrays",
    "vectors_of_pgvector",
    "wholes",
]

Kind = Literal[
    "int", "whole", "float", "real", "bool", "decimal", "text", "padded", "word", "bytes", "strings", "uuid", "date",
    "timestamp", "timestamptz", "json", "array", "any", "opaque", "narrow",
]  # fmt: skip
"""whole: of a decimal type without digits after the point. padded: of PostgreSQL's char(n). word: whose text is
compared. strings: text or bytes. narrow: the same, in a character set that lacks letters. any: whatever the database
compares with whatever. opaque: nothing is known."""

Convert = Callable[[Sequence[Any]], Sequence[Any]]
"""Makes plain values of those of many rows. Raises ValueError."""

ABSENT: Final = object()
"""In the place of a value that no row can hold."""


class SQLColumn(NamedTuple):
    """sql: as it is written in a condition. selected: as it is read; as_vector: where it is an embedding. cast: the
    type of a parameter that it is compared with. convert, convert_vector: of what was read."""

    name: str
    kind: Kind
    sql: str
    selected: str
    as_vector: str
    cast: str = ""
    convert: Convert | None = None
    convert_vector: Convert | None = None


# --- parameters -------------------------------------------------------------------------------------------------------

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.\d{6})?(\+00:00)?)?")
_LEAST, _MOST = -(2**63), 2**63 - 1
_MAX_REAL = 3.4e38


def bindable(kind: Kind, value: Any) -> Any:
    """A part of a key, or a term, as the database compares a column of this kind with it; ABSENT if none can be equal.

    May be equal to more than the value. The caller looks at what was found.
    """
    found = _BINDS[kind](value) if kind in _BINDS else value
    return ABSENT if isinstance(found, str) and not storable(found) else found


def _int(value: Any) -> Any:
    return value if type(value) is int and _LEAST <= value <= _MOST else ABSENT


def _whole_text(value: Any) -> Any:
    """Those beyond 64 bits are texts in a record."""
    if type(value) is str and re.fullmatch(r"-?[1-9]\d{18,80}", value) and not _LEAST <= int(value) < 2**64:
        return value
    return str(value) if type(value) is int else ABSENT


def _float(value: Any) -> Any:
    if not isinstance(value, (int, float)):
        return ABSENT
    try:
        return float(value) if float(value) == value else ABSENT
    except OverflowError:
        return ABSENT


def _real(value: Any) -> Any:
    found = _float(value)
    return ABSENT if found is not ABSENT and math.isfinite(found) and abs(found) > _MAX_REAL else found


def _bool(value: Any) -> Any:
    return bool(value) if value in (0, 1) and not isinstance(value, str) else ABSENT


def _text(value: Any) -> Any:
    return value if isinstance(value, str) and "\0" not in value else ABSENT


def _decimal(value: Any) -> Any:
    try:
        number = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return ABSENT
    return str(number) if number is not None and number.is_finite() else value if value == "NaN" else ABSENT


def _uuid(value: Any) -> Any:
    try:
        return value if isinstance(value, str) and str(uuid.UUID(value)) == value else ABSENT
    except ValueError:
        return ABSENT


def _moment(value: Any) -> Any:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return ABSENT
    try:
        dt.datetime.fromisoformat(value)
    except ValueError:
        return ABSENT
    return value


_BINDS: dict[Kind, Callable[[Any], Any]] = {
    "int": _int,
    "whole": _whole_text,
    "float": _float,
    "real": _real,
    "bool": _bool,
    "decimal": _decimal,
    "text": _text,
    "padded": _text,
    "word": _text,
    "bytes": lambda value: value if type(value) is bytes else ABSENT,
    "strings": lambda value: value if isinstance(value, (str, bytes)) else ABSENT,
    "narrow": lambda value: value if isinstance(value, (str, bytes)) else ABSENT,
    "uuid": _uuid,
    "date": _moment,
    "timestamp": _moment,
    "timestamptz": _moment,
}


_TEXTS = frozenset(
    {"text", "padded", "word", "strings", "narrow", "uuid", "decimal", "date", "timestamp", "timestamptz"}
)
"""Kinds whose terms are texts."""


def bounds(kind: Kind, low: Any, high: Any) -> tuple[Any, Any] | None:
    """The bounds of an interval as the database takes them, perhaps further apart; None for no bound there. None if
    nothing of this kind is between."""
    is_text = isinstance(high if low is None else low, str)
    if kind in ("int", "whole", "float", "real"):
        if is_text:
            return (None, None) if kind == "whole" else None
        return _whole_bounds(low, high) if kind in ("int", "whole") else _float_bounds(low, high)
    if not is_text:
        return None if kind in _TEXTS else (None, None)
    if kind in ("date", "timestamp", "timestamptz"):
        found = [None if bound is None or _moment(bound) is ABSENT else bound for bound in (low, high)]
        return found[0], found[1]
    return tuple(
        bound if bound is not None and "\0" not in bound and storable(bound) else None for bound in (low, high)
    )  # type: ignore[return-value]


def _whole_bounds(low: Any, high: Any) -> tuple[Any, Any] | None:
    if low == math.inf or high == -math.inf:
        return None
    least = None if low in (None, -math.inf) else math.ceil(low)
    most = None if high in (None, math.inf) else math.floor(high)
    if (least is not None and least > 2**64) or (most is not None and most < _LEAST):
        return None
    return None if least is None or least <= _LEAST else least, None if most is None or most >= _MOST else most


def _float_bounds(low: Any, high: Any) -> tuple[Any, Any]:
    def nearest(bound: Any) -> Any:
        try:
            found = None if bound is None else float(bound)
        except OverflowError:
            return None
        return None if found is None or abs(found) > _MAX_REAL else found

    return nearest(low), nearest(high)


# --- values -----------------------------------------------------------------------------------------------------------


def wholes(values: Sequence[Any]) -> Sequence[Any]:
    """Decimals of a type that has no digits after the point: int, if it fits."""
    return [_whole(value) if isinstance(value, Decimal) else value for value in values]


def _whole(value: Decimal) -> Any:
    if not value.is_finite():
        return value
    number = int(value)
    return number if _LEAST <= number < 2**64 else str(number)


_WRITTEN = re.compile(
    r"(?P<whole>(?:\d{4}-\d\d-\d\d)?(?: ?(?:[01]\d|2[0-3]):\d\d:\d\d)?)"
    r"(?P<below>\.\d{1,6})?(?P<zone>[+-]\d\d(?::\d\d)?)?"
)


def moments(values: Sequence[Any]) -> Sequence[Any]:
    """Dates and times as PostgreSQL writes them, by the rule of `values`: 0 or 6 digits of a second, +00:00. Raises
    ValueError for what has no such text, as infinity, and years before 1 and after 9999."""
    return [
        value if value is None or (len(value) in (10, 19) and value[4] == "-") else _written(value) for value in values
    ]


def _written(value: str) -> str:
    found = _WRITTEN.fullmatch(value)
    if found is None or not found["whole"]:
        raise ValueError(f"the moment {value!r} is not one of the years 1 to 9999; convert it to text by query=")
    below, zone = found["below"] or "", found["zone"] or ""
    return found["whole"] + (below and below.ljust(7, "0")) + (f"{zone}:00" if len(zone) == 3 else zone)


def moments_of_arrays(values: Sequence[Any]) -> Sequence[Any]:
    """`moments` at every depth. Raises ValueError."""
    return [moments_of_arrays(value) if isinstance(value, list) else moments([value])[0] for value in values]


_HEAD = 20
"""Bytes before the elements of an array of one dimension, as array_send writes it; a length is before each of them."""

_ELEMENTS = {700: ">f4", 701: ">f8"}


def vectors_of_arrays(values: Sequence[Any]) -> Sequence[Any]:
    """What array_send wrote of real[] as little-endian bytes, of double precision[] as arrays of numpy. Raises
    ValueError."""
    import numpy as np

    blobs = [value for value in values if value is not None]
    if len(blobs) == len(values) and len({blob[:_HEAD] for blob in map(bytes, blobs)}) == 1:
        joined = b"".join(blobs)
        size = _HEAD + 8 * _count(blobs[0])
        if _element(blobs[0]) == ">f4" and len(joined) == size * len(blobs) and size > _HEAD:
            table = np.frombuffer(joined, ">i4").reshape(len(blobs), size // 4)[:, _HEAD // 4 :]
            if (table[:, ::2] == 4).all():  # NULL has the length -1
                data, width = table[:, 1::2].astype("<i4").tobytes(), (size - _HEAD) // 2
                return [data[at : at + width] for at in range(0, len(data), width)]
    return [None if value is None else _vector(np, bytes(value)) for value in values]


def vectors_of_pgvector(values: Sequence[Any]) -> Sequence[Any]:
    """What vector_send wrote: 4 bytes before the numbers. As little-endian bytes."""
    import numpy as np

    blobs = [bytes(value) for value in values if value is not None]
    data = np.frombuffer(b"".join(blobs), ">i4").astype("<i4").tobytes()
    found, at = [], 0
    for blob in blobs:
        found.append(data[at + 4 : at + len(blob)])
        at += len(blob)
    rest = iter(found)
    return [None if value is None else next(rest) for value in values]


def _element(blob: Any) -> str:
    return _ELEMENTS[int.from_bytes(blob[8:12])]


def _count(blob: Any) -> int:
    return int.from_bytes(blob[12:16])


def _vector(np: Any, blob: bytes) -> Any:
    dimensions = int.from_bytes(blob[:4])
    if dimensions == 0:
        return np.empty(0, "f4")
    if dimensions != 1:
        raise ValueError(f"the embedding is an array of {dimensions} dimensions, expected one")
    if int.from_bytes(blob[4:8]):
        raise ValueError("the embedding holds NULL among its numbers")
    kind = _element(blob)
    table = np.frombuffer(blob, np.uint8, offset=_HEAD).reshape(_count(blob), 4 + int(kind[-1]))
    return np.ascontiguousarray(table[:, 4:]).view(kind)[:, 0].astype(kind.replace(">", "<"))


class ArrayDecoder:
    """In the place of a `VectorDecoder`, where the database says what the numbers are."""

    __slots__ = ("dim", "dtype", "size")

    is_settled = True
    taken_as = None

    def __init__(self, dim: int | None) -> None:
        self.dim = dim
        self.dtype = None
        self.size = 4 * dim if dim else -1

    def __call__(self, value: Any) -> bytes | None:
        """Raises ValueError."""
        if type(value) is not bytes:
            return vector_bytes(value, dim=self.dim, dtype=None)
        if self.dim is not None and len(value) != 4 * self.dim:
            raise ValueError(f"the embedding has {len(value) // 4} numbers, expected dim={self.dim}")
        self.size = len(value) if self.size < 0 else self.size
        return value
