"""`Pieces`: bytes that lie in several files, read as those of one scratch file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from .spool import Scratch

__all__ = ["Pieces"]


class Pieces:
    """Bytes end to end that lie in several files, as the scratch file of a `Staged`; what is written goes behind them,
    into a scratch file."""

    def __init__(self, scratch: Callable[[], Scratch]) -> None:
        self.size = 0
        self._begins: list[int] = []
        self._reads: list[tuple[Callable[[int, int], bytes], int]] = []
        self._make = scratch
        self._scratch: Scratch | None = None
        self._spooled = 0

    def join(self, read: Callable[[int, int], bytes], offset: int, length: int) -> None:
        """The next bytes."""
        if length:
            self._begins.append(self.size)
            self._reads.append((read, offset))
            self.size += length

    def append(self, data: bytes) -> None:
        """The next bytes, which are kept in the scratch file. Before any `write`."""
        self._own().write(self._spooled, data)
        self.join(self._own().read, self._spooled, len(data))
        self._spooled += len(data)

    def _own(self) -> Scratch:
        if self._scratch is None:
            self._scratch = self._make()
        return self._scratch

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._own().write(offset - self.size + self._spooled, data)

    def shorten(self, size: int) -> None:
        """Nothing is cut off: the files stay as they are."""

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self.size:
            return self._own().read(offset - self.size + self._spooled, length)
        parts = []
        at = bisect_right(self._begins, offset) - 1
        while length:
            begin, (read, place) = self._begins[at], self._reads[at]
            end = self._begins[at + 1] if at + 1 < len(self._begins) else self.size
            some = min(length, end - offset)
            parts.append(read(place + offset - begin, some))
            offset, length, at = offset + some, length - some, at + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)
