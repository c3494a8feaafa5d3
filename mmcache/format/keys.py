"""Keys: what identifies a record, and its one form in bytes.

A key is a str, an int of 64 bits, bytes, or a tuple of 2 to 8 of these; a UUID, an enum, an integer of numpy and the
like is the key that a record holds in its place (`values`). Its bytes are its msgpack object in the
shortest form, so that two keys are equal exactly when their bytes are. `unpack_key` takes bytes from anywhere, and
refuses whatever `pack_key` would not give.

What may be asked for as a key is decided here, for every tier: `check_key` raises TypeError for what is none, and
a key of a type that a collection does not have is a plain miss. `digested` is the quick way from a key to the bytes
that are hashed, for collections whose keys are of one type.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

__all__ = [
    "Key",
    "Scalar",
    "check_key",
    "check_keys",
    "check_length",
    "digested",
    "hash_key",
    "hashed_bytes",
    "header_size",
    "is_key",
    "key_of",
    "pack_key",
    "type_of",
    "unpack_key",
]

Scalar = str | int | bytes
"""A key of one value. An int is at least -2^63 and less than 2^64; a bool is none."""

Key = Scalar | tuple[Scalar, ...]
"""A key of any kind. A tuple has 2 to 8 values."""

MAX_PARTS = 8
"""Values in a key that is a tuple; what bounds the memory of `unpack_key`."""

_ALLOWED = f"a str, an int from -2^63 to 2^64-1, bytes, or a tuple of 2 to {MAX_PARTS} of these"
_NEVER = frozenset({type(None), bool, int, float, list, tuple, dict, set, frozenset})
_UNDECODABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException)


def check_key(value: object) -> Key:
    """The value as a key; of a subclass (an enum, a named tuple) the plain value, of a value that a record holds as one
    (a UUID) that. Raises TypeError for any other."""
    if type(value) is str:
        return value
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        if 2 <= len(value) <= MAX_PARTS:
            return tuple(_checked(part, value) for part in value)
        raise TypeError(f"a key cannot be {_shown(value)}, a tuple of length {len(value)}; it is {_ALLOWED}")
    return _checked(value, value)


def check_keys(values: Iterable[object]) -> list[Key]:
    """The same of many. Raises TypeError for one str or bytes, too, whose letters were not meant."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"expected several keys, found {type(values).__name__} {_shown(values)}: put it into a list")
    return list(map(check_key, values))


def is_key(value: object) -> bool:
    """Whether `check_key` takes it."""
    try:
        check_key(value)
    except TypeError:
        return False
    return True


def check_length(key: Key, length: int) -> None:
    """Raises TypeError for a tuple of another length than the keys of a collection have, if these are tuples at all.

    A part of a key, or more than one, was not meant as a key of another type.
    """
    if length > 1 and isinstance(key, tuple) and len(key) != length:
        raise TypeError(f"a key is a tuple of length {length} here, and cannot be {_shown(key)} of length {len(key)}")


def key_of(value: Any) -> Key:
    """A key as a record holds it, where a tuple is a list."""
    return tuple(value) if type(value) is list else value


def type_of(key: Key) -> str:
    """The key's type as `meta` names it: "int", "(str, int)"."""
    if isinstance(key, tuple):
        return f"({', '.join(type(part).__name__ for part in key)})"
    return type(key).__name__


def header_size(size: int) -> int:
    """Bytes of the msgpack header of a text, of whose object these are all bytes."""
    return 1 if size <= 32 else 2 if size <= 257 else 3


def digested(types: Iterable[str] | None) -> Callable[[Any], bytes]:
    """What gives the bytes over which a key is hashed, in collections with keys of these types (None: of any).

    It raises a ValueError, TypeError or OverflowError for some keys of other types, and for all that never is a key.
    """
    known = set(types or ())
    if known == {"str"}:
        return str.encode
    if known == {"int"}:
        return _bytes_of_int
    if known == {"bytes"}:
        return _bytes_of_bytes
    if known and all(name.startswith("(") for name in known):
        return _bytes_of_tuple
    return hashed_bytes


def hashed_bytes(key: Key) -> bytes:
    """The bytes over which a key is hashed: of a str its UTF-8, of any other key all its bytes. Raises TypeError."""
    plain = key if isinstance(key, str) else check_key(key)
    if isinstance(plain, str):  # that of a UUID, too
        return str.encode(plain, "utf-8", "surrogatepass")
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass")
    return packed


def _bytes_of_int(key: Any) -> bytes:
    if type(key) is not int:
        raise TypeError
    if 65_536 <= key < 4_294_967_296:
        return b"\xce" + key.to_bytes(4)
    if 0 <= key < 65_536:
        if key < 128:
            return _SMALL[key]
        return b"\xcd" + key.to_bytes(2) if key >= 256 else b"\xcc" + key.to_bytes()
    return pack_key(key)


_SMALL = [bytes([i]) for i in range(128)]


def _bytes_of_bytes(key: Any) -> bytes:
    if type(key) is not bytes:
        raise TypeError
    return _BIN[len(key)] + key if len(key) < 256 else pack_key(key)


_BIN = [bytes([0xC4, size]) for size in range(256)]


def _bytes_of_str(part: str) -> bytes:
    """All its bytes, as in a tuple. Raises a ValueError for text that UTF-8 does not have."""
    raw = part.encode()
    return _STR[len(raw)] + raw if len(raw) < 256 else pack_key(part)


_STR = [bytes([0xA0 + size]) if size < 32 else bytes([0xD9, size]) for size in range(256)]


def _bytes_of_tuple(key: Any) -> bytes:
    if type(key) is not tuple or not 2 <= len(key) <= MAX_PARTS:
        raise TypeError
    try:
        return b"".join([_ARRAY[len(key)], *[_PARTS[type(part)](part) for part in key]])
    except KeyError:
        raise TypeError from None


_ARRAY = [bytes([0x90 + size]) for size in range(MAX_PARTS + 1)]
_PARTS: dict[type, Callable[[Any], bytes]] = {str: _bytes_of_str, int: _bytes_of_int, bytes: _bytes_of_bytes}


def pack_key(key: Key) -> bytes:
    """The key's bytes. Raises TypeError as `check_key`."""
    packed: bytes = msgpack.packb(check_key(key), unicode_errors="surrogatepass")
    return packed


def unpack_key(data: bytes) -> Key:
    """The key that has these bytes. Raises ValueError for bytes that no key has. Costs at most their length."""
    try:
        key = check_key(
            msgpack.unpackb(
                data,
                use_list=False,
                unicode_errors="surrogatepass",
                max_array_len=MAX_PARTS,
                max_map_len=0,
                ext_hook=_refused,
            )
        )
    except _UNDECODABLE as error:
        raise ValueError(f"{len(data)} bytes are not a key ({error})") from None
    if pack_key(key) != data:
        raise ValueError(f"{len(data)} bytes are not a key in its shortest form")
    return key


def hash_key(key: Key) -> int:
    """xxh3_64 of `hashed_bytes`."""
    return xxh3_64_intdigest(hashed_bytes(key))


def _checked(part: object, whole: object) -> Scalar:
    """A value of a key as a plain one. Raises TypeError naming it, and the key that it stands in."""
    if isinstance(part, str):
        return part if type(part) is str else str.__str__(part)  # str() of an enum gives its name
    if isinstance(part, bytes):
        return part if type(part) is bytes else bytes(memoryview(part))  # whatever __bytes__ its class has
    if isinstance(part, int) and not isinstance(part, bool):
        plain = int.__index__(part)
        if -(2**63) <= plain < 2**64:
            return plain
        found = f"{plain} " if plain.bit_length() <= 128 else ""
        raise TypeError(f"a key cannot hold the int {found}of {plain.bit_length()} bits; it is {_ALLOWED}")
    held = _in_a_record(part)
    if isinstance(held, (str, bytes, int)) and not isinstance(held, bool):
        return _checked(held, whole)
    place = "be" if part is whole else "hold"
    raise TypeError(f"a key cannot {place} {_shown(part)} of type {type(part).__name__}; it is {_ALLOWED}")


def _in_a_record(part: object) -> object:
    """What a record holds in the place of a value: of a UUID its text, of an integer of numpy an int. None for none."""
    if type(part) in _NEVER:
        return None
    from ..values import Values  # costs what other keys need not pay

    try:
        return Values()(part)
    except ValueError:
        return None


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an int of thousands of digits somewhere in it
        return "a value"


def _refused(code: int, _: bytes) -> Any:
    raise ValueError(f"an extension of type {code}")
