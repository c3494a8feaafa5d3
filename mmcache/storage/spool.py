"""`Spool`: the scratch file in which a part of a build waits until its place in the file is known.

It is appended to while the source is read, and read back in order, from its end, or in another order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .fs import CHUNK
from .lane import Lane
from .leaves import Sums

__all__ = ["Scratch", "Spool"]

_PIECES = 4096
"""Records that are copied together from where they lie scattered."""

_CUT_OFF = 8
"""Chunks that are cut off a scratch file together."""


class Scratch(Protocol):
    """Where staged bytes wait: `fs.WriteFile`, or anything that writes and reads back at offsets."""

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def shorten(self, size: int) -> None: ...


class Spool:
    """An append-only scratch file; and behind what was appended, what was put aside.

    lane: in which it is written, and summed. sums: of all that was appended; None where they are not taken.
    """

    def __init__(self, file: Scratch, lane: Lane | None, sums: Sums | None) -> None:
        self._file = file
        self._lane = lane
        self.sums = sums
        self.size = 0
        self._aside = 0

    def append(self, data: bytes) -> None:
        write = partial(self._write, self.size, self.sums)
        self.size += len(data)
        if self._lane is None:
            write(data)
        else:
            self._lane.call(write, data)

    def _write(self, offset: int, sums: Sums | None, data: bytes) -> None:
        self._file.write(offset, data)
        if sums is not None:
            sums.update(data)

    def shorten(self, size: int) -> None:
        """Forget what was appended behind this size."""
        if size < self.size:
            self.size, self.sums = size, None

    def settle(self) -> None:
        """From now on, what was appended can be read; until more is."""
        if self._lane is not None:
            self._lane.wait()

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def in_order(self) -> Iterator[bytes]:
        return self._pieces(0, self.size)

    def from_the_end(self, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Chunks between these places, and where each begins; the last first, and once: what was given is cut off, and
        what was put aside.

        So the pages of the system's cache in which they lay are there for those to which they are copied."""
        for given, place in enumerate(range(end - CHUNK, begin - 1, -CHUNK), 1):
            yield place, self._file.read(place, CHUNK)
            if given % _CUT_OFF == 0:
                self._file.shorten(place)

    def _pieces(self, begin: int, end: int) -> Iterator[bytes]:
        for offset in range(begin, end, CHUNK):
            yield self._file.read(offset, min(CHUNK, end - offset))

    def put_aside(self, data: bytes | bytearray | NDArray[Any]) -> Callable[[], Iterable[Any]]:
        """What gives these bytes again, from here where they are many. Once nothing is appended any more."""
        whole = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        size = len(whole)
        if size < CHUNK // 16:
            return lambda: [data]
        begin = self.size + self._aside
        self._file.write(begin, whole.data)
        self._aside += size
        return lambda: self._pieces(begin, begin + size)

    def permuted(self, offsets: Iterable[int], lengths: Iterable[int]) -> Iterator[bytes]:
        pieces = map(self._file.read, offsets, lengths)
        while batch := list(itertools.islice(pieces, _PIECES)):
            yield b"".join(batch)
