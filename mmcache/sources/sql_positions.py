"""Where a tracked PostgreSQL database stands, as 32 bytes, and which transactions came after that.

The log holds the number of each transaction that wrote. Numbers are given at the first write, and a transaction is seen
when it commits, in another order. So a position is the highest number seen in the log, and with it the *gaps*: lower
numbers of transactions that were not over then. What came later is seen now, and is higher or one of the gaps.

Transactions that never write to a tracked table move neither the number nor, once they are over, the gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

__all__ = ["Position", "Since", "parse", "running"]

_MAGIC: Final = b"\xf5p"
_ROOM: Final = 12
"""Bytes for the gaps. Each takes one for every 7 bits of its distance to the next."""


class Since(NamedTuple):
    """What a fingerprint tells. top: the highest number that was seen. gaps: lower ones that were not over; None for
    all from `low` on, as far as the fingerprint tells. low: the lowest that was not over, else the one after top."""

    proof: bytes
    top: int
    gaps: tuple[int, ...] | None
    low: int


class Position(NamedTuple):
    """state: digest of what must stay as it is for the log to tell everything. top: the highest number in the log.
    mark: of its last entry, which is random. gaps: lower numbers that are not over, the lowest first. oldest: the
    lowest number in the log, which holds all of the higher ones."""

    state: bytes
    top: int
    mark: int
    gaps: tuple[int, ...]
    oldest: int

    @property
    def fingerprint(self) -> bytes:
        return _MAGIC + self.proof(self.mark) + self.top.to_bytes(8) + _packed(self.top, self.gaps)

    def proof(self, mark: int) -> bytes:
        """10 bytes, equal where the history up to an entry with this mark is the same."""
        return blake2b(self.state + mark.to_bytes(8, signed=True), digest_size=10).digest()


def parse(fingerprint: bytes) -> Since | None:
    """None for one that is of no tracked PostgreSQL database."""
    if len(fingerprint) != 2 + 10 + 8 + _ROOM or not fingerprint.startswith(_MAGIC):
        return None
    proof, top, packed = fingerprint[2:12], int.from_bytes(fingerprint[12:20]), fingerprint[20:]
    if packed[0] == 0 and any(packed):
        return Since(proof, top, None, top - int.from_bytes(packed[1:6]))
    gaps = _unpacked(top, packed)
    return Since(proof, top, gaps, gaps[0] if gaps else top + 1)


def running(snapshot: str, top: int) -> tuple[int, ...]:
    """The gaps below a number, of a snapshot as text: `xmin:xmax:xip,xip`."""
    numbers = snapshot.rpartition(":")[2]
    return tuple(sorted(number for number in map(int, numbers.split(",") if numbers else ()) if number < top))


def _packed(top: int, gaps: Sequence[int]) -> bytes:
    """The distances from top down, 7 bits a byte, the last byte of each without the high bit; none is 0. Where there is
    no room for all: 0, the distance of the lowest, and a digest."""
    data = b"".join(map(_distance, _distances(top, gaps)))
    if len(data) <= _ROOM:
        return data.ljust(_ROOM, b"\0")
    rest = blake2b(data, digest_size=_ROOM - 6).digest()
    return b"\0" + (top - gaps[0]).to_bytes(5) + rest  # which PostgreSQL keeps below 2**31


def _distances(top: int, gaps: Sequence[int]) -> Iterable[int]:
    for gap in reversed(gaps):
        yield top - gap
        top = gap


def _distance(value: int) -> bytes:
    data = [value & 0x7F]
    while value := value >> 7:
        data.append(value & 0x7F | 0x80)
    return bytes(reversed(data))


def _unpacked(top: int, data: bytes) -> tuple[int, ...]:
    gaps: list[int] = []
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            if not value:
                break
            top -= value
            gaps.append(top)
            value = 0
    return tuple(reversed(gaps))
