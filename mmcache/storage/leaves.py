"""`Leaves`: SHA-256 of each 128 KiB of each section, while its bytes go by. Builder and verifier share it."""

from __future__ import annotations

import hashlib

from ..format.header import LEAF

__all__ = ["Leaves"]


class Leaves:
    """The digests of the sections whose bytes were given, in their order; each section is ended by `end`."""

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
