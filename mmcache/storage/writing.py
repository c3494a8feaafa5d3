"""The third step of a build: one pass, which copies, and hashes what it copies.

Sections come in file order. What lies in a scratch file was summed when it was written there, so that its blocks alone
are hashed here; its whole chunks are copied from the last to the first.

The header is the publisher's to write, last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from ..format import header as h
from ..format.layout import BLOCKS_NAME, block_count
from .fs import CHUNK
from .lane import Lane
from .leaves import Sums
from .planning import Part, Piece, Plan
from .spool import Scratch, Spool
from .staging import Progress

__all__ = ["Digest", "write"]


class Digest(NamedTuple):
    """What a header says about the sections."""

    build_id: bytes
    sha256: bytes
    section_count: int
    size: int


def write(plan: Plan, file: Scratch, lane: Lane, progress: Progress | None = None) -> Digest:
    """Write all but the header, and hash each section, each 64 KiB of the file, and each 128 KiB of a section.

    lane: in which the bytes were hashed, of sections of which the sums are known.
    """
    stream = _Stream(file, lane, h.HEADER_SIZE + len(plan.parts) * h.TABLE_ROW_SIZE, plan.offsets[BLOCKS_NAME])
    summed: list[Sums] = []
    leaves = b""
    for part in plan.parts:
        stream.pad_to(plan.offsets[part.name])
        pieces: Iterable[Piece]
        if part.kind == h.BLOCKS:
            pieces = [stream.blocks()]
        elif part.kind == h.CHUNKS:
            lane.wait()
            leaves = b"".join(sums.end().leaves for sums in summed)
            pieces = [leaves]
        else:
            pieces = part.pieces(plan.offsets)
        sums = part.sums or Sums()
        for piece in pieces:
            data = _bytes_of(piece)
            if part.sums is None:
                lane.call(sums.update, data)
            stream.append(data)
            if progress is not None:
                progress("write", stream.at, plan.size)
        if part.spool is not None:
            begin = stream.at
            for done in stream.take(part.spool):
                if progress is not None:
                    progress("write", begin + done, plan.size)
        summed.append(sums)
        assert stream.at == plan.offsets[part.name] + part.length, part.name
    stream.flush()
    lane.wait()
    table = b"".join(map(_row, itertools.repeat(plan), plan.parts, summed))
    file.write(h.HEADER_SIZE, table)
    return Digest(h.build_id_of(table), h.sha256_of(table, leaves), len(plan.parts), plan.size)


def _bytes_of(piece: Piece) -> memoryview:
    whole = memoryview(piece)
    return whole.cast("B") if whole.nbytes else memoryview(b"")


def _row(plan: Plan, part: Part, sums: Sums) -> bytes:
    """Of the section table."""
    return h.Section(
        name=part.name,
        kind=part.kind,
        flags=h.flags_of(part.kind),
        offset=plan.offsets[part.name],
        length=part.length,
        payload=part.payload,
        count=part.entries,
        checksum=sums.end().checksum,
    ).pack()


class _Stream:
    """Bytes in file order from the end of the section table on; written and hashed by whole blocks.

    Block k covers the bytes of [64 KiB * k, 64 KiB * (k + 1)) between the section table and the `blocks` section.
    """

    def __init__(self, file: Scratch, lane: Lane, begin: int, end: int) -> None:
        """begin, end: of what has blocks."""
        self._file = file
        self._lane = lane
        self._pending = bytearray()
        self._written = begin
        self._end = end
        self._checksums = np.zeros(block_count(end), "<u8")
        for block in range(begin // h.BLOCK):  # those that lie wholly in header and table have no bytes
            self._checksums[block] = xxh3_64_intdigest(b"", block)

    @property
    def at(self) -> int:
        return self._written + len(self._pending)

    def append(self, data: memoryview) -> None:
        """Whole chunks where they lie so in the file are written from where they are; what is less is copied."""
        while len(data):
            room = CHUNK - self.at % CHUNK
            piece, data = data[:room], data[room:]
            if not self._pending and len(piece) == room:
                self._write(piece)
                continue
            self._pending += piece
            if len(piece) == room:
                self.flush()

    def take(self, spool: Spool) -> Iterator[int]:
        """Append what a scratch file has, and tell how many bytes of that are written; whole chunks from the last to
        the first, so that it can give each back."""
        end = self.at + spool.size
        first = -self.at % CHUNK  # bytes up to the first whole chunk
        last = end % CHUNK
        if spool.size < first + last + CHUNK:
            self.append(memoryview(b"".join(spool.in_order())))
            yield spool.size
            return
        done = spool.size - last
        head, tail = spool.read(0, first), spool.read(done, last)
        self.append(memoryview(head))
        begin = self.at - first
        for place, piece in spool.from_the_end(first, done):
            self._put(begin + place, memoryview(piece))
            yield spool.size - last - place
        self._written = begin + done
        self.append(memoryview(tail))
        yield spool.size

    def pad_to(self, offset: int) -> None:
        self.append(memoryview(bytes(offset - self.at)))

    def blocks(self) -> bytes:
        """The checksums of all blocks so far, the last one ending here."""
        self.flush()
        self._lane.wait()
        return self._checksums.tobytes()

    def flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._write(memoryview(pending))

    def _write(self, data: memoryview) -> None:
        self._put(self._written, data)
        self._written += len(data)

    def _put(self, offset: int, data: memoryview) -> None:
        """Of these bytes both ends are ends of a block, or of all that has blocks."""
        if offset < self._end:
            self._lane.call(partial(self._sum_blocks, offset), data)
        self._file.write(offset, data)

    def _sum_blocks(self, begin: int, data: memoryview) -> None:
        at = 0
        while at < len(data):
            block, within = divmod(begin + at, h.BLOCK)
            end = min(at + h.BLOCK - within, len(data))
            self._checksums[block] = xxh3_64_intdigest(data[at:end], block)
            at = end
