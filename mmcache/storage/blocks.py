"""`Blocks`: which parts of a mapped file have been verified, and verification on first touch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from ..arrays import np
from ..errors import CorruptFileError, wrong_checksum
from ..format.header import BLOCK, HEADER_SIZE, Section, wrong_block
from ..format.layout import Layout
from ..format.postings import distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Blocks:
    """The 64 KiB blocks of a mapped file; verifies a block against its checksum when it is first touched.

    Shared by the collections of a snapshot. Two threads may verify the same block; nothing worse can happen.
    """

    def __init__(self, buffer: memoryview, layout: Layout) -> None:
        self._buffer = buffer
        self._begin = HEADER_SIZE + layout.header.table_size
        self._section, self._chunks = layout.blocks, layout.chunks
        self._checksums: memoryview | None = None
        self.verified = bytearray(layout.blocks.count)
        """1 for each block that was verified; hot paths look here themselves."""

    def touch(self, offset: int, length: int) -> None:
        """Verify what these bytes lie in where that was not done before. Raises CorruptFileError."""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        if self.verified.find(0, first, last + 1) >= 0 or last >= len(self.verified):
            self._verify(range(first, last + 1))

    def touch_many(self, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
        """The same for many extents, none longer than a block."""
        if not len(offsets):
            return
        verified = np.frombuffer(self.verified, np.bool_)
        firsts, lasts = offsets // BLOCK, (offsets + np.maximum(lengths, 1) - 1) // BLOCK
        for blocks in (firsts, lasts):
            if blocks.max() >= len(verified) or not verified[blocks].all():
                self._verify(distinct(blocks).tolist())

    def mark(self, section: Section) -> None:
        """A section was verified by its own checksum: so are the blocks that lie wholly in it."""
        first, end = -(-section.offset // BLOCK), section.end // BLOCK
        if first < end:
            self.verified[first:end] = b"\1" * (end - first)

    def _verify(self, blocks: Iterable[int]) -> None:
        checksums = self._checksums if self._checksums is not None else self._load()
        end = self._section.offset
        for block in blocks:
            if block >= len(self.verified):
                raise CorruptFileError(f"an offset leads to block {block} of {len(self.verified)}", section="blocks")
            if not self.verified[block]:
                data = self._buffer[max(block * BLOCK, self._begin) : min((block + 1) * BLOCK, end)]
                if (found := xxh3_64_intdigest(data, block)) != checksums[block]:
                    raise wrong_block(block, checksums[block], found)
                self.verified[block] = 1

    def verify_all(self) -> None:
        """Every block, and with them every byte between the section table and the block checksums; and what follows."""
        self._verify(range(len(self.verified)))
        self._load()
        chunks = self._chunks
        if (found := xxh3_64_intdigest(self._buffer[chunks.offset : chunks.end])) != chunks.checksum:
            raise wrong_checksum("chunks", chunks.checksum, found)
        if any(self._buffer[self._section.end : chunks.offset]):
            raise CorruptFileError("section 'chunks': the padding before it is not zero", section="chunks")

    def _load(self) -> memoryview:
        """The checksums, themselves verified."""
        data = self._buffer[self._section.offset : self._section.end]
        if (found := xxh3_64_intdigest(data)) != self._section.checksum:
            raise wrong_checksum("blocks", self._section.checksum, found)
        self._checksums = data.cast("Q")
        return self._checksums
