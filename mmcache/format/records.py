"""The record codec: a record is one msgpack array of its values, the key first.

The names of the fields are kept once per file, in *shapes*: arrays decode about three times faster than maps
and take less room. A shape may also name the fields of a map that stands directly in a record (`metadata`),
which is then an array of values too. Maps further down, and maps that a shape does not name, stay maps. The first value
is the key; of a key of several fields it is an array, and the shape's first entry lists these fields.

The records section is a plain sequence of msgpack arrays; a stock `Unpacker` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from operator import itemgetter, sub
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError
from .keys import MAX_PARTS

MAX_DEPTH = 100
"""As in `values`, whose import costs more than a first answer."""
MAX_KEY_BYTES = 65_535
MAX_RECORD_BYTES = 16 * 2**20
"""A record decodes to at most 73 times its bytes (an array of empty maps): what bounds the memory of one get."""
MAX_SHAPES = 4096
MAX_NESTED_SHAPES = 256
"""Once a collection has this many shapes, nested maps stay maps."""
MAX_MAP_NAMES = 4096
"""Characters of a map's names. One with more, such as a vocabulary, stays a map: the shapes of all such maps, each with
other names, would be more than metadata may have."""

Nested = dict[int, tuple[str, ...]]

Names = tuple[Any, ...]
"""The fields of a record: texts, but for the first of a key of several fields, which is the tuple of these."""


def is_split(fields: Iterable[Any]) -> bool:
    """Whether a shape may name the fields of a map with these."""
    names = tuple(fields)
    return all(type(name) is str for name in names) and sum(map(len, names)) <= MAX_MAP_NAMES


class Shape:
    """The field names of a record: of its values, and of the values of maps directly in it.

    names: of all fields, those of the key first. key: the fields of a key of several, else (). index: where a field's
    value is; a field of such a key is at a negative place: see `part`.
    """

    __slots__ = ("count", "index", "key", "names", "nested", "prefix")

    def __init__(self, names: Names, nested: Nested) -> None:
        self.key: tuple[str, ...] = names[0] if isinstance(names[0], tuple) else ()
        self.names: tuple[str, ...] = (*self.key, *names[1:]) if self.key else names
        self.nested: dict[int, tuple[str, ...]] = nested
        self.count = len(names)
        if self.key:
            self.index = {name: i for i, name in enumerate(names) if i}
            self.index |= {name: -1 - i for i, name in enumerate(self.key)}
            self.nested = nested | dict.fromkeys(range(-len(self.key), 0), ())
        else:
            self.index = {name: i for i, name in enumerate(names)}
        self.prefix = 1 if self.count < 16 else 3 if self.count < 65_536 else 5
        """Bytes of the msgpack array header, after which the key stands."""

    @property
    def fields(self) -> Names:
        """The names as a source gives them: those of a key of several fields as one tuple."""
        return (self.key, *self.names[len(self.key) :]) if self.key else self.names

    def inner(self, i: int, values: list[Any]) -> Any:
        """The value at a place that `nested` has: a map, or a field of the key."""
        try:
            if i < 0:
                return values[0][-1 - i]
            return dict(zip(self.nested[i], values[i], strict=True))
        except (TypeError, ValueError, LookupError):
            raise CorruptFileError("section 'records': a value does not match its shape", section="records") from None

    def narrowed(self, fields: Iterable[str]) -> Shape:
        """The same values, of which only these fields show, besides the key; in this order."""
        shape = object.__new__(Shape)
        shape.key, shape.nested, shape.count, shape.prefix = self.key, self.nested, self.count, self.prefix
        key = self.key or self.names[:1]
        shape.names = tuple(name for name in dict.fromkeys((*key, *fields)) if name in self.index)
        shape.index = {name: self.index[name] for name in shape.names}
        return shape

    def to_plain(self) -> list[Any]:
        """As it stands in `meta`: the key's name, or a list of names; names, a nested map as [name, [names]]."""
        plain: list[Any] = [list(self.key)] if self.key else [self.names[0]]
        for name in self.names[max(1, len(self.key)) :]:
            inner = self.nested.get(self.index[name])
            plain.append(name if inner is None else [name, list(inner)])
        return plain

    @classmethod
    def from_plain(cls, data: object) -> Shape:
        """Raises CorruptFileError for anything that `to_plain` would not give."""
        if not isinstance(data, list) or not data:
            raise _bad_shape(data)
        first, *rest = data
        names: list[Any] = [tuple(first) if isinstance(first, list) and 2 <= len(first) <= MAX_PARTS else first]
        nested: Nested = {}
        for i, item in enumerate(rest, 1):
            name = item
            if isinstance(item, list) and len(item) == 2 and isinstance(item[1], list):
                name, inner = item
                if not all(isinstance(field, str) for field in inner) or len(set(inner)) != len(inner):
                    raise _bad_shape(data)
                nested[i] = tuple(inner)
            names.append(name)
        flat = [*(names[0] if isinstance(names[0], tuple) else names[:1]), *names[1:]]
        if not all(isinstance(name, str) for name in flat) or len(set(flat)) != len(flat):
            raise _bad_shape(data)
        return cls(tuple(names), nested)


def _bad_shape(data: object) -> CorruptFileError:
    return CorruptFileError(f"section 'meta': {data!r:.80} is not the shape of a record", section="meta")


def checksum(record: bytes, shape: int) -> int:
    """xxh3_64 of the record's bytes, xor its shape number, so that the shape is covered too."""
    return xxh3_64_intdigest(record) ^ shape


def decode(record: bytes) -> Any:
    """The array of values. Raises CorruptFileError for bytes that are not one msgpack object."""
    try:
        return msgpack.unpackb(record)
    except ValueError as error:
        if "strict_map_key" not in str(error):
            raise undecodable(error) from None
    except (msgpack.UnpackException, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise undecodable(error) from None
    try:
        return msgpack.unpackb(record, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise undecodable(error) from None


def undecodable(error: BaseException) -> CorruptFileError:
    return CorruptFileError(f"section 'records': a record does not decode ({error})", section="records")


class Encoder:
    """Turns the records of one collection into bytes, learning shapes as it goes.

    `encode_run` takes records that share one tuple of names, which is how they come, and does as much as
    it can in C. Not for several threads.
    """

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self._pack: Callable[[Any], bytes] = msgpack.Packer(strict_types=True, default=self._unusual).pack
        self._numbers: dict[tuple[Names, tuple[tuple[str, ...] | None, ...]], int] = {}
        self._maps_at: dict[Names, tuple[int, ...]] = {}
        self._saw_unusual = False

    def mark(self) -> tuple[int, int, int]:
        """What `restore` needs to forget all that was learned since."""
        return len(self.shapes), len(self._numbers), len(self._maps_at)

    def restore(self, mark: tuple[int, int, int]) -> None:
        shapes, numbers, maps_at = mark
        del self.shapes[shapes:]
        _shorten(self._numbers, numbers)
        _shorten(self._maps_at, maps_at)

    @property
    def maps_at(self) -> dict[Names, tuple[int, ...]]:
        """Fields -> where the first record with these had maps: only there are maps split by shapes."""
        return dict(self._maps_at)

    def adopt(self, shapes: Sequence[Shape], maps_at: Mapping[Names, tuple[int, ...]]) -> list[int] | None:
        """The numbers here for the shapes of records that another encoder has encoded, and that come next.

        maps_at: of that encoder. None, and nothing is learned, where this one would encode the records otherwise.
        Raises ValueError for too many shapes.
        """
        if any(self._maps_at.get(names, at) != at for names, at in maps_at.items()):
            return None
        wanted = []
        for shape in shapes:
            at = maps_at.get(shape.fields, ())
            wanted.append((shape.fields, tuple([shape.nested.get(i) for i in at]), at))
        count = len(self._numbers.keys() | {(names, inner) for names, inner, _ in wanted})
        if count > MAX_NESTED_SHAPES and any((*self._maps_at.values(), *maps_at.values())):
            return None
        self._maps_at |= maps_at
        return [self._number(names, inner, at) for names, inner, at in wanted]

    def expect(self, names: Names, nested: Nested) -> None:
        """Learn a shape as if a record of it had been encoded. Raises ValueError for too many shapes."""
        at = self._maps_at.setdefault(names, tuple(sorted(nested)))
        full = len(self.shapes) >= MAX_NESTED_SHAPES
        self._number(names, tuple([None if full else nested.get(i) for i in at]), at)

    def encode_run(self, names: Names, rows: Iterable[Sequence[Any]]) -> tuple[list[bytes], list[int]]:
        """Encoded records and their shape numbers. Raises whatever msgpack raises for a value that it cannot carry;
        `encode_one` tells which record and why."""
        self._saw_unusual = False
        lists = list(map(list, rows))
        maps_at = self._maps_at.get(names)
        if maps_at is None:
            maps_at = self._maps_at[names] = tuple(i for i, value in enumerate(lists[0]) if type(value) is dict)
        if len(maps_at) == 1:
            shapes = self._split_column(names, lists, maps_at[0])
        elif maps_at:
            shapes = [self._split_maps(names, values, maps_at) for values in lists]
        else:
            shapes = [self._number(names, ())] * len(lists)
        packed = list(map(self._pack, lists))
        if self._saw_unusual:
            for values in lists:
                _check_keys(values)
        if max(map(len, packed), default=0) > MAX_DEPTH and _most_containers(packed) > MAX_DEPTH:
            for data, values in zip(packed, lists, strict=True):
                if _most_containers([data]) > MAX_DEPTH:
                    _check_depth(values)
        return packed, shapes

    def encode_one(self, names: Names, values: Sequence[Any]) -> tuple[bytes, int]:
        """One record. Raises ValueError with a reason for people."""
        try:
            packed, shapes = self.encode_run(names, [values])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(_reason(names, values, error)) from None
        return packed[0], shapes[0]

    def _split_column(self, names: Names, lists: list[list[Any]], at: int) -> list[int]:
        """`_split_maps` for many records with one map each, quick where all of them have the same fields."""
        column = list(map(itemgetter(at), lists))
        if {dict}.issuperset(map(type, column)) and len(set(map(tuple, column))) == 1:
            number = self._split_maps(names, lists[0], (at,))
            if at in self.shapes[number].nested:
                for values, inner in zip(lists, map(list, map(dict.values, column)), strict=True):
                    values[at] = inner
            return [number] * len(lists)
        return [self._split_maps(names, values, (at,)) for values in lists]

    def _split_maps(self, names: Names, values: list[Any], maps_at: tuple[int, ...]) -> int:
        """Replace the maps at these places by lists of their values, and tell which shape that makes."""
        inner = tuple([tuple(values[i]) if type(values[i]) is dict else None for i in maps_at])
        number = self._numbers.get((names, inner))
        if number is None:
            full = len(self.shapes) >= MAX_NESTED_SHAPES
            inner = tuple(None if full or fields is None or not is_split(fields) else fields for fields in inner)
            number = self._number(names, inner, maps_at)
        nested = self.shapes[number].nested
        for i in maps_at:
            if i in nested:
                values[i] = list(values[i].values())
        return number

    def _number(self, names: Names, inner: tuple[tuple[str, ...] | None, ...], maps_at: tuple[int, ...] = ()) -> int:
        number = self._numbers.get((names, inner))
        if number is None:
            number = len(self.shapes)
            if number >= MAX_SHAPES:
                raise ValueError(
                    f"more than {MAX_SHAPES} different sets of fields; put the variable ones into one field as a map"
                )
            # Names stand in the metadata: one that is not valid Unicode costs its record here, and the file there.
            "".join(chain(Shape(names, {}).names, *filter(None, inner))).encode()
            self._numbers[names, inner] = number
            nested = {i: fields for i, fields in zip(maps_at, inner, strict=False) if fields is not None}
            self.shapes.append(Shape(names, nested))
        return number

    def _unusual(self, value: object) -> object:
        """msgpack asks here about everything that is not exactly of a type that it carries."""
        self._saw_unusual = True
        if isinstance(value, str):
            return str.__str__(value)  # of an enum, str() would give its name
        plain: Any
        for plain in (int, float, bytes, list, dict):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, tuple):
            return list(value)
        raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not a type that msgpack carries")


def _shorten(learned: dict[Any, Any], size: int) -> None:
    while len(learned) > size:
        learned.popitem()


_CONTAINERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""The bytes with which an array or a map begins. A record nests no deeper than it has of these."""


def _most_containers(packed: Sequence[bytes]) -> int:
    """The most bytes of `_CONTAINERS` that one of these has. In C, over bytes that were just written."""
    without = map(bytes.translate, packed, repeat(None), repeat(_CONTAINERS))
    return max(map(sub, map(len, packed), map(len, without)), default=0)


def _check_depth(values: object) -> None:
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)  # type: ignore[attr-defined]
            if isinstance(inner, (dict, list, tuple)) and not isinstance(inner, msgpack.ExtType)
        ]
        if not level:
            return
    raise ValueError(f"arrays and maps nest deeper than {MAX_DEPTH} levels")


def _check_keys(value: object) -> None:
    """Refuse a map with a tuple for a key: it would be written as an array, which no reader can use as a key."""
    left = [value]  # a stack: values may nest deeper than Python functions do
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for key in value:
                if isinstance(key, (tuple, list)) and not isinstance(key, msgpack.ExtType):
                    raise TypeError(f"a map has the key {key!r}; a key may be a str, bytes, number, bool or None")
            left.extend(value.values())
        elif isinstance(value, (list, tuple)):
            left.extend(value)


def _reason(names: Names, values: Sequence[Any], error: Exception) -> str:
    """Which field of a record cannot be encoded."""
    for name, value in zip(names, values, strict=False):
        try:
            Encoder().encode_run((name,), [(value,)])
        except (TypeError, ValueError, OverflowError) as inner:
            if isinstance(inner, OverflowError):
                return f"field {name!r} has an int beyond 64 bits; store it as text"
            if isinstance(inner, UnicodeEncodeError):
                return f"field {name!r} has text that is not valid Unicode ({inner.reason})"
            if "recursion limit" in str(inner):
                return f"field {name!r}: arrays and maps nest deeper than {MAX_DEPTH} levels"
            return f"field {name!r}: {inner}"
    return str(error)
