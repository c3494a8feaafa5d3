"""Whether every byte of a file is what was written. Reads each byte once, but for header, table and meta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xxhash import xxh3_64, xxh3_64_intdigest

from ..errors import CorruptFileError, wrong_checksum
from ..format.header import BLOCK, DIGEST, HEADER_SIZE, LEAF, Section, sha256_of, wrong_block
from ..format.layout import Layout, Read, leaf_count, validate
from .fs import CHUNK
from .leaves import Leaves


def verify_bytes(read: Read, size: int, *, digests: bool = True) -> Layout:
    """Every section against its checksum, every block against its own, every padding against zero.

    digests: also every SHA-256, which shows a file that was changed and given right checksums, header apart.
    """
    layout = validate(read, size)
    begin, blocks = HEADER_SIZE + layout.header.table_size, layout.blocks
    raw = read(blocks.offset, blocks.length)
    checksums = memoryview(raw[: len(raw) - len(raw) % 8]).cast("Q")
    extents = _Extents(layout, begin, Leaves() if digests else None)
    damaged = None
    for offset in range(begin - begin % CHUNK, blocks.offset, CHUNK):
        low, high = max(offset, begin), min(offset + CHUNK, blocks.offset)
        with memoryview(read(low, high - low)) as data:
            extents.feed(low, data)
            if damaged is None:
                damaged = _damaged_block(low, data, checksums)
    extents.end()
    _check(blocks, raw)
    if damaged is not None:  # a section says more of itself, so those were checked first
        raise damaged
    chunks = read(layout.chunks.offset, layout.chunks.length)
    _check(layout.chunks, chunks)
    if any(read(blocks.end, layout.chunks.offset - blocks.end)):
        raise _padding(layout.chunks.name)
    if extents.leaves is not None:
        extents.leaves.update(memoryview(raw))
        extents.leaves.end()
        _check_digests(layout, extents.leaves.joined(), chunks)
        table = read(HEADER_SIZE, layout.header.table_size)
        if (digest := sha256_of(table, chunks)) != layout.header.sha256:
            text = "section 'header': SHA-256 does not match the content"
            raise wrong_checksum("header", layout.header.sha256, digest, text)
    return layout


def _check_digests(layout: Layout, found: bytes, expected: bytes) -> None:
    if found == expected:
        return
    at = next(i for i in range(0, len(expected), DIGEST) if found[i : i + DIGEST] != expected[i : i + DIGEST])
    left = at // DIGEST
    for section in layout.sections.values():
        count = leaf_count([section.length])
        if left < count:
            text = f"section {section.name!r}: SHA-256 of the 128 KiB from {left * LEAF} on does not match"
            end = at + DIGEST
            raise wrong_checksum(section.name, expected[at:end], found[at:end], text)
        left -= count


def _damaged_block(low: int, data: memoryview, checksums: Sequence[int]) -> CorruptFileError | None:
    """Of the first block of these bytes that does not match; they begin and end with a block, or with all blocks."""
    at = 0
    while at < len(data):
        block, within = divmod(low + at, BLOCK)
        end = min(at + BLOCK - within, len(data))
        found, expected = xxh3_64_intdigest(data[at:end], block), checksums[block] if block < len(checksums) else 0
        if block >= len(checksums) or found != expected:
            return wrong_block(block, expected, found)
        at = end
    return None


class _Extent(NamedTuple):
    """A section, or without a checksum the padding before it."""

    name: str
    begin: int
    end: int
    checksum: int | None


class _Extents:
    """Sections and paddings, checked while their bytes go by in file order. Bytes that are missing match nothing."""

    def __init__(self, layout: Layout, begin: int, leaves: Leaves | None) -> None:
        self.leaves = leaves
        extents = []
        for section in layout.sections.values():
            extents.append(_Extent(section.name, begin, section.offset, None))
            if section is layout.blocks:
                break
            extents.append(_Extent(section.name, section.offset, section.end, section.checksum))
            begin = section.end
        self._left = extents[::-1]
        self._digest = xxh3_64()

    def feed(self, low: int, data: memoryview) -> None:
        high = low + len(data)
        while self._left and self._left[-1].begin < high:
            extent = self._left[-1]
            piece = data[max(extent.begin - low, 0) : min(extent.end, high) - low]
            if extent.checksum is not None:
                self._digest.update(piece)
                if self.leaves is not None:
                    self.leaves.update(piece)
            elif any(piece):
                raise _padding(extent.name)
            if extent.end > high:
                return
            self._finish()

    def end(self) -> None:
        """All bytes have gone by."""
        while self._left:
            self._finish()

    def _finish(self) -> None:
        extent = self._left.pop()
        if extent.checksum is not None and (found := self._digest.intdigest()) != extent.checksum:
            raise wrong_checksum(extent.name, extent.checksum, found)
        self._digest = xxh3_64()
        if self.leaves is not None:
            self.leaves.end()


def _check(section: Section, data: bytes) -> None:
    if (found := xxh3_64_intdigest(data)) != section.checksum:
        raise wrong_checksum(section.name, section.checksum, found)


def _padding(section: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: the padding before it is not zero", section=section)
