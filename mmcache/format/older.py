"""What a file of format 1 says of itself, so that it can be rebuilt. Its records are not read.

A file of 1.x has a section table of 128 bytes a row, and in `meta` the same keys for its source, metadata and schemas.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ..errors import CorruptFileError, IncompatibleFormatError, wrong_checksum
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
    if len(table) != _ROW.size * header.section_count:
        raise _corrupt("table", f"expected {_ROW.size * header.section_count} bytes, found {len(table)}")
    if (found := xxh3_128_digest(table)) != header.build_id:
        raise wrong_checksum("table", header.build_id, found)
    for name, _, _, offset, length, _, _, checksum in _ROW.iter_unpack(table):
        if name.rstrip(b"\0") == b"meta":
            if length > _MAX_META_BYTES or offset > header.file_size - length:
                raise _corrupt("meta", f"{length} bytes at {offset}")
            raw = read(offset, length)
            if (found_sum := xxh3_64_intdigest(raw)) != checksum:
                raise wrong_checksum("meta", checksum, found_sum)
            return raw
    raise _corrupt("meta", "is missing")


def _corrupt(section: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: {reason}", section=section)
