"""Keys: what identifies a record, and its one form in bytes.

A key is a str, an int of 64 bits, bytes, or a tuple of 2 to 8 of these. Its bytes are its msgpack object in the
shortest form, so that two keys are equal exactly when their bytes are. `unpack_key` takes bytes from anywhere, and
refuses whatever `pack_key` would not give.
"""

from __future__ import annotations

import reprlib
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

__all__ = ["Key", "Scalar", "check_key", "hash_key", "pack_key", "unpack_key"]

Scalar = str | int | bytes
"""A key of one value. An int is at least -2^63 and less than 2^64; a bool is none."""

Key = Scalar | tuple[Scalar, ...]
"""A key of any kind. A tuple has 2 to 8 values."""

MAX_PARTS = 8
"""Values in a key that is a tuple; what bounds the memory of `unpack_key`."""

_ALLOWED = f"a str, an int from -2^63 to 2^64-1, bytes, or a tuple of 2 to {MAX_PARTS} of these"
_UNDECODABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException)


def check_key(value: object) -> Key:
    """The value as a key; of a subclass (an enum, a named tuple) the plain value. Raises TypeError for any other."""
    if type(value) is str:
        return value
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        if 2 <= len(value) <= MAX_PARTS:
            return tuple(_checked(part, value) for part in value)
        raise TypeError(f"a key cannot be {_shown(value)}, a tuple of length {len(value)}; it is {_ALLOWED}")
    return _checked(value, value)


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
    """xxh3_64: of a str over its UTF-8 bytes without the msgpack header, of any other key over all its bytes."""
    if isinstance(key, str):
        return xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
    return xxh3_64_intdigest(pack_key(key))


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
    place = "be" if part is whole else "hold"
    raise TypeError(f"a key cannot {place} {_shown(part)} of type {type(part).__name__}; it is {_ALLOWED}")


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an int of thousands of digits somewhere in it
        return "a value"


def _refused(code: int, _: bytes) -> Any:
    raise ValueError(f"an extension of type {code}")
