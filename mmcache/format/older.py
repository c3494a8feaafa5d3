"""What a file of format 1 says of itself, so that it can be rebuilt. Its records are not read.

A file of 1.x has a section table of 128 bytes a row, and in `meta` the same keys for its source, metadata and schemas.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ..errors import CorruptFileError, IncompatibleFormatError
from .header import HEADER_SIZE, VERSION, Header

_ROW = struct.Struct("<72s II 5Q 8x")
_MAX_META_BYTES = 2**20


def meta_of(header: Header, read: Callable[[int, int], bytes]) -> bytes:
    """The bytes of `meta`. Raises CorruptFileError for a damaged file, IncompatibleFormatError for any other major."""
    if header.version[0] != 1:
        raise IncompatibleFormatError(
            f"format {header.version[0]} is unknown: build the file anew from its source",
            found=".".join(map(str, header.version)),
            supported=".".join(map(str, VERSION)),
        )
    table = read(HEADER_SIZE, _ROW.size * header.section_count)
    if len(table) != _ROW.size * header.section_count or xxh3_128_digest(table) != header.build_id:
        raise _corrupt("table", "checksum does not match the build id")
    for name, _, _, offset, length, _, _, checksum in _ROW.iter_unpack(table):
        if name.rstrip(b"\0") == b"meta":
            if length > _MAX_META_BYTES or offset > header.file_size - length:
                raise _corrupt("meta", f"{length} bytes at {offset}")
            raw = read(offset, length)
            if len(raw) != length or xxh3_64_intdigest(raw) != checksum:
                raise _corrupt("meta", "checksum does not match")
            return raw
    raise _corrupt("meta", "is missing")


def _corrupt(section: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: {reason}", section=section)
