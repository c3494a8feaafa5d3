"""Whether every byte of a file is what was written."""

from __future__ import annotations

from xxhash import xxh3_64, xxh3_64_intdigest

from ..errors import CorruptFileError
from ..format.header import HEADER_SIZE
from ..format.layout import Layout, Read, validate
from .fs import CHUNK


def verify_bytes(read: Read, size: int) -> Layout:
    """Every section against its checksum, every block against its own, every padding against zero."""
    layout = validate(read, size)
    end = HEADER_SIZE + layout.header.table_size
    for section in layout.sections.values():
        if any(read(end, section.offset - end)):
            raise CorruptFileError(f"section {section.name!r}: the padding before it is not zero", section=section.name)
        digest = xxh3_64()
        for offset in range(section.offset, section.end, CHUNK):
            digest.update(read(offset, min(CHUNK, section.end - offset)))
        if digest.intdigest() != section.checksum:
            raise CorruptFileError(f"section {section.name!r}: checksum does not match", section=section.name)
        end = section.end
    begin = HEADER_SIZE + layout.header.table_size
    checksums = memoryview(read(layout.blocks.offset, layout.blocks.length)).cast("Q")
    for block, expected in enumerate(checksums):
        low, high = max(block << 16, begin), min((block + 1) << 16, layout.blocks.offset)
        if xxh3_64_intdigest(read(low, high - low), block) != expected:
            raise CorruptFileError(f"the 64 KiB from {block << 16} on do not match their checksum", section="blocks")
    return layout
