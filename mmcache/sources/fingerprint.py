"""What a file looks like from outside, as 32 bytes, and whether that can be trusted yet."""

from __future__ import annotations

import os
import struct
import time
from hashlib import blake2b
from typing import NamedTuple

__all__ = ["Stamp", "fingerprint_of", "lasting", "once_only", "stamp_of", "unsettled"]

_MASK = 2**63 - 1
_ABSENT = (0,) * 5
_SETTLED_NS = 20_000_000
"""Two ticks of the slowest usual clock (10 ms, at 100 Hz)."""


class Stamp(NamedTuple):
    """What tells a file from the same file before a write."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    changed_ns: int


def stamp_of(stat: os.stat_result, *, by_ctime: bool = True) -> Stamp:
    """The ctime shows a copy over the file with its times preserved, too. Not by_ctime: for files on which another
    process calls chown without writing to them."""
    changed = stat.st_ctime_ns if by_ctime else stat.st_mtime_ns
    return Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, changed)


def fingerprint_of(*stamps: Stamp | None) -> bytes:
    """32 bytes from the stamp of each file; None stands for a file that is not there.

    Two writes within one tick of the file system's clock (some ms before Linux 6.13) can look alike: see `unsettled`.
    """
    words = (word & _MASK for stamp in stamps for word in (stamp or _ABSENT))
    return blake2b(struct.pack(f"<{5 * len(stamps)}q", *words), digest_size=32).digest()


def unsettled(begun_ns: int, *stamps: Stamp | None) -> float:
    """Seconds, at most 0.021, until no further write can leave the times of the files as they are; 0 for "none can".

    begun_ns: the time before the files were looked at; any moment since may be the one at which they were. Judged by
    the ctime where it counts: every write sets it, from the file system's clock, and nothing can set it otherwise.
    """
    now = time.time_ns()
    young = [
        stamp.changed_ns
        for stamp in stamps
        if stamp is not None and begun_ns - _SETTLED_NS < stamp.changed_ns < now + _SETTLED_NS
    ]
    if not young:
        return 0
    return min(max(max(young) + _SETTLED_NS - now, 0), _SETTLED_NS) / 1e9 + 0.001


def once_only(fingerprint: bytes) -> bytes:
    """32 bytes that were never given before and will never be again: for files that may look alike and not be."""
    return blake2b(fingerprint + os.urandom(16), digest_size=32).digest()


def lasting(begun_ns: int, *stamps: Stamp | None) -> bytes:
    """`fingerprint_of` files whose times can tell of another write; of others, what is never given again."""
    looks = fingerprint_of(*stamps)
    return once_only(looks) if unsettled(begun_ns, *stamps) else looks
