"""The third step of a build: one pass in file order, which copies, and hashes what it copies.

The header is the publisher's to write, last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from ..format import header as h
from .fs import CHUNK
from .leaves import Leaves
from .planning import Plan
from .staging import Progress, Scratch

__all__ = ["Digest", "write"]


class Digest(NamedTuple):
    """What a header says about the sections."""

    build_id: bytes
    sha256: bytes
    section_count: int
    size: int


def write(plan: Plan, file: Scratch, progress: Progress | None = None) -> Digest:
    """Write all but the header, and hash each section, each 64 KiB of the file, and each 128 KiB of a section."""
    stream = _Stream(file, h.HEADER_SIZE + len(plan.parts) * h.TABLE_ROW_SIZE)
    leaves = Leaves()
    sections = []
    for part in plan.parts:
        offset = plan.offsets[part.name]
        stream.pad_to(offset)
        digest = xxh3_64()
        if part.kind == h.BLOCKS:
            pieces = iter([stream.blocks()])
        elif part.kind == h.CHUNKS:
            pieces = iter([leaves.joined()])
        else:
            pieces = iter(part.pieces(plan.offsets))
        for piece in pieces:
            with memoryview(piece) as whole:
                data = whole.cast("B") if whole.nbytes else whole
                digest.update(data)
                if part.kind != h.CHUNKS:
                    leaves.update(data)
                stream.append(data)
            if progress is not None:
                progress("write", stream.at, plan.size)
        leaves.end()
        assert stream.at == offset + part.length, part.name
        sections.append(
            h.Section(
                name=part.name,
                kind=part.kind,
                flags=h.flags_of(part.kind),
                offset=offset,
                length=part.length,
                payload=part.payload,
                count=part.entries,
                checksum=digest.intdigest(),
            )
        )
    stream.flush()
    table = b"".join(section.pack() for section in sections)
    file.write(h.HEADER_SIZE, table)
    sha256 = h.sha256_of(table, leaves.joined())
    return Digest(h.build_id_of(table), sha256, len(sections), plan.size)


class _Stream:
    """Bytes in file order from the end of the section table on; written and hashed by whole blocks.

    Block k covers the bytes of [64 KiB * k, 64 KiB * (k + 1)) between the section table and the `blocks` section.
    """

    def __init__(self, file: Scratch, begin: int) -> None:
        self._file = file
        self._pending = bytearray()
        self._written = begin
        # Blocks that lie wholly in header and table have no bytes.
        self._checksums = [xxh3_64_intdigest(b"", block) for block in range(begin // h.BLOCK)]

    @property
    def at(self) -> int:
        return self._written + len(self._pending)

    def append(self, data: memoryview) -> None:
        for begin in range(0, data.nbytes, CHUNK):
            self._pending += data[begin : begin + CHUNK]
            if len(self._pending) >= CHUNK:
                self._write((self.at & -h.BLOCK) - self._written)

    def pad_to(self, offset: int) -> None:
        self._pending += bytes(offset - self.at)

    def blocks(self) -> bytes:
        """The checksums of all blocks so far, the last one ending here."""
        self._write(len(self._pending))
        return np.array(self._checksums, "<u8").tobytes()

    def flush(self) -> None:
        self._write(len(self._pending))

    def _write(self, length: int) -> None:
        """Write the first `length` pending bytes, which end with a block, or with the sections that are covered."""
        with memoryview(self._pending) as pending, pending[:length] as data:
            at = 0
            while at < length:
                block, within = divmod(self._written + at, h.BLOCK)
                end = min(at + h.BLOCK - within, length)
                self._checksums.append(xxh3_64_intdigest(data[at:end], block))
                at = end
            self._file.write(self._written, data)
        del self._pending[:length]
        self._written += length
