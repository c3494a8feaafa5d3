"""What a file says of its sections, taken while their bytes go by. Builder and verifier share it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from xxhash import xxh3_64

from ..format.header import LEAF

__all__ = ["Leaves", "Sum", "Sums"]


class Leaves:
    """SHA-256 of each 128 KiB of the sections whose bytes are given, in their order; each section is ended by `end`."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._current = hashlib.sha256()
        self._filled = 0

    def update(self, data: memoryview) -> None:
        """The next bytes of the section."""
        at = 0
        while at < len(data):
            piece = data[at : at + LEAF - self._filled]
            self._current.update(piece)
            self._filled += len(piece)
            at += len(piece)
            if self._filled == LEAF:
                self.end()

    def end(self) -> None:
        """The section ends here: a digest covers bytes of one section only."""
        if self._filled:
            self._digests.append(self._current.digest())
            self._current = hashlib.sha256()
            self._filled = 0

    def joined(self) -> bytes:
        """What the `chunks` section holds."""
        return b"".join(self._digests)


class Sum(NamedTuple):
    """Of one section: its xxh3_64, and the SHA-256 of each 128 KiB, end to end."""

    checksum: int
    leaves: bytes


class Sums:
    """The `Sum` of a section, while its bytes go by."""

    def __init__(self) -> None:
        self._checksum = xxh3_64()
        self._leaves = Leaves()

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the section."""
        self._checksum.update(data)
        with memoryview(data) as view:
            self._leaves.update(view)

    def end(self) -> Sum:
        """There are no more bytes."""
        self._leaves.end()
        return Sum(self._checksum.intdigest(), self._leaves.joined())
