"""What a file looks like from outside, as 32 bytes, and whether that can be trusted yet."""

from __future__ import annotations

import os
import struct
import time
from hashlib import blake2b

__all__ = ["fingerprint_of", "once_only", "unsettled"]

_MASK = 2**63 - 1
_SETTLED_NS = 20_000_000
"""Two ticks of the slowest usual clock (10 ms, at 100 Hz)."""


def fingerprint_of(*stats: os.stat_result | None) -> bytes:
    """32 bytes from the identity, size, mtime and ctime of each file; None stands for a file that is not there.

    The ctime shows a copy over the file with its times preserved. Two writes within one tick of the file system's clock
    (some ms before Linux 6.13) can look alike: see `unsettled`.
    """
    digest = blake2b(digest_size=32)
    for stat in stats:
        words = (0,) * 5
        if stat is not None:
            words = stat.st_dev & _MASK, stat.st_ino & _MASK, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        digest.update(struct.pack("<5q", *words))
    return digest.digest()


def unsettled(begun_ns: int, *stats: os.stat_result | None) -> float:
    """Seconds, at most 0.021, until no further write can leave the times of the files as they are; 0 for "none can".

    begun_ns: the time before the files were looked at; any moment since may be the one at which they were. Judged by
    the ctime: every write sets it, from the file system's clock, and nobody can set it otherwise.
    """
    now = time.time_ns()
    young = [
        stat.st_ctime_ns
        for stat in stats
        if stat is not None and begun_ns - _SETTLED_NS < stat.st_ctime_ns < now + _SETTLED_NS
    ]
    if not young:
        return 0
    return min(max(max(young) + _SETTLED_NS - now, 0), _SETTLED_NS) / 1e9 + 0.001


def once_only(fingerprint: bytes) -> bytes:
    """32 bytes that were never given before and will never be again: for files that may look alike and not be."""
    return blake2b(fingerprint + os.urandom(16), digest_size=32).digest()
