"""Big arrays inside valid msgpack.

A framed section is one msgpack map in which every array is a `bin` value that starts 64-byte aligned:

    map { "_0": bin(padding), "<name 0>": bin(array 0), "_1": bin(padding), "<name 1>": bin(array 1), ... }

Stock `msgpack.unpackb(section)` reads it in any language; we compute where the arrays are from their sizes
alone, and address them in place.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from .header import ALIGN

MAX_ARRAY = 2**32 - 1
"""What a msgpack `bin 32` can hold, in bytes."""


class ArrayOffsets(NamedTuple):
    """Where the arrays of a framed section are, from its start, and how long it is."""

    offsets: dict[str, int]
    length: int


def place_arrays(sizes: Mapping[str, int]) -> ArrayOffsets:
    """Where arrays of these names (at most 7, of at most 31 bytes) and sizes in bytes go. Pure arithmetic."""
    offsets = {}
    at = 1  # the map's header
    for name, size in sizes.items():
        # Padding's key (3) and header (2), the array's key (1 + its name) and header (5).
        begin = (at + 11 + len(name) + ALIGN - 1) & -ALIGN
        offsets[name] = begin
        at = begin + size
    return ArrayOffsets(offsets, at)


def array_headers(sizes: Mapping[str, int]) -> dict[str, bytes]:
    """The msgpack bytes that stand before each array. Raises ValueError for one that msgpack cannot hold."""
    parts = {}
    before = bytes([0x80 | 2 * len(sizes)])
    at = 0
    for i, (name, begin) in enumerate(place_arrays(sizes).offsets.items()):
        if sizes[name] > MAX_ARRAY:
            raise ValueError(f"array {name!r} of {sizes[name]} bytes is larger than msgpack can hold ({MAX_ARRAY})")
        before += _key(f"_{i}") + b"\xc4"
        after = _key(name) + b"\xc6" + struct.pack(">I", sizes[name])
        padding = begin - at - len(before) - 1 - len(after)
        parts[name] = before + bytes([padding]) + bytes(padding) + after
        at = begin + sizes[name]
        before = b""
    return parts


def _key(name: str) -> bytes:
    return bytes([0xA0 | len(name)]) + name.encode()
